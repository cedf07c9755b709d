package embedded_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
)

// TestEncryptedServersBackupIsRestoredIntoAPlainOne does what NATS's own `nats account
// backup` and `restore` do: the move of docs/nats.md.
func TestEncryptedServersBackupIsRestoredIntoAPlainOne(t *testing.T) {
	t.Parallel()
	old := install(t)
	var before string
	var streams []snapshot
	old.encrypted(func(s *server.Server) {
		old.fillWithMuch(s)
		before = old.described(s)
		for _, c := range bus.Streams(bus.Settings{Replicas: 1}) {
			streams = append(streams, old.snapshot(s, c.Name))
		}
	})
	i := install(t)
	i.run(func(s *server.Server) {
		for _, one := range streams {
			i.restore(s, one)
		}
		if after := i.described(s); after != before {
			t.Errorf("changed:\n%s", changes(before, after))
		}
	})
}

// snapshot is what the server gives out of a stream.
type snapshot struct {
	name   string
	answer []byte // with the stream's config and state
	chunks [][]byte
}

func (i *installation) snapshot(s *server.Server, stream string) snapshot {
	t := i.t
	t.Helper()
	nc := i.join(s, bus.Provisioner).NATS
	to := nats.NewInbox()
	to = bus.InboxPrefix(bus.Provisioner) + strings.TrimPrefix(to, "_INBOX")
	chunks, err := nc.SubscribeSync(to)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := nc.Request("$JS.API.STREAM.SNAPSHOT."+stream, fmt.Appendf(nil, `{"deliver_subject":%q,"jsck":true}`, to), 10*time.Second)
	if err != nil || bytes.Contains(answer.Data, []byte(`"error"`)) {
		t.Fatalf("%v %s", err, answer.Data)
	}
	one := snapshot{name: stream, answer: answer.Data}
	for {
		m, err := chunks.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Data) == 0 {
			return one
		}
		one.chunks = append(one.chunks, m.Data)
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (i *installation) restore(s *server.Server, one snapshot) {
	t := i.t
	t.Helper()
	nc := i.join(s, bus.Provisioner).NATS
	ask := func(subject string, body []byte) []byte {
		answer, err := nc.Request(subject, body, 10*time.Second)
		if err != nil || bytes.Contains(answer.Data, []byte(`"error"`)) {
			t.Fatalf("%s: %v %s", subject, err, answer.Data)
		}
		return answer.Data
	}
	ask("$JS.API.STREAM.DELETE."+one.name, nil)
	var to struct {
		Subject string `json:"deliver_subject"`
	}
	var described struct {
		Config json.RawMessage `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	err := json.Unmarshal(one.answer, &described)
	if err == nil {
		err = json.Unmarshal(ask("$JS.API.STREAM.RESTORE."+one.name, fmt.Appendf(nil, `{"config":%s,"state":%s}`, described.Config, described.State)), &to)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, chunk := range append(one.chunks, nil) {
		ask(to.Subject, chunk)
	}
}
