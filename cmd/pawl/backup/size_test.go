package backup

import (
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var full = flag.Bool("full", false, "of 1,000 credentials, not of 100")

// TestBackupOfAYearIsTooBigForEveryHour makes what 1,000 credentials leave that are
// rotated every 30 days (of a tenth of them, where not in full), and backs it up.
func TestBackupOfAYearIsTooBigForEveryHour(t *testing.T) {
	credentials := 100
	if *full {
		credentials = 1000
	}
	rotations := credentials * 365 / 30
	inv := quickServer(t)
	b := provisioner(t, inv)
	messages := 0
	for n := range rotations {
		credential, rotation := fmt.Sprintf("service-%03d-app", n%credentials), time.Unix(int64(1.7e9)+int64(n)*2600, 0).UTC().Format("20060102-150405-")+random(3)[:5]
		for _, m := range played(credential, rotation, n >= rotations-credentials) {
			if _, err := b.JetStream.PublishMsgAsync(m); err != nil {
				t.Fatal(err)
			}
			if messages++; messages%1000 == 0 {
				settle(t, b)
			}
		}
	}
	settle(t, b)
	w, err := Write(t.Context(), Options{Inventory: inv})
	if err != nil {
		t.Fatal(err)
	}
	if w.Messages < uint64(messages) {
		t.Errorf("%d messages of %d are in it", w.Messages, messages)
	}
	t.Logf("restored in %v", restoredIn(t, inv, w.File))
	each := float64(w.Bytes) / float64(rotations)
	t.Logf("%d credentials, %d rotations, %d messages: %.1f MB in the streams, %.1f MB as a file (%.1f KB a rotation), in %v; so a year of 1,000 credentials is %.0f MB",
		credentials, rotations, w.Messages, float64(w.Unpacked)/1e6, float64(w.Bytes)/1e6, each/1e3, w.Took.Round(time.Millisecond), each*12_167/1e6)
	if each > 8_000 {
		t.Errorf("%.0f bytes a rotation: more than what is worth every hour", each)
	}
}

// restoredIn restores all streams on another server.
func restoredIn(t *testing.T, inv *inventory.Inventory, path string) time.Duration {
	t.Helper()
	b := provisioner(t, quickServer(t))
	identities, err := LoadIdentities(IdentityFile(inv))
	if err != nil {
		t.Fatal(err)
	}
	var manifest *Manifest
	read := func(visit func(string, io.Reader) error) {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		r, err := Open(file, identities)
		if err == nil {
			manifest, err = r.Parts(visit)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	read(func(string, io.Reader) error { return nil })
	began := time.Now()
	streams := manifest.Streams
	read(func(name string, content io.Reader) error {
		if err := b.JetStream.DeleteStream(t.Context(), name); err != nil {
			return err
		}
		s := streams[slices.IndexFunc(streams, func(s Stream) bool { return s.Name == name })]
		return s.Restore(t.Context(), b, content)
	})
	return time.Since(began).Round(time.Millisecond)
}

func settle(t *testing.T, b *bus.Bus) {
	t.Helper()
	select {
	case <-b.JetStream.PublishAsyncComplete():
	case <-time.After(time.Minute):
		t.Fatal("the server stores nothing")
	}
}

// quickServer is a server that syncs nothing, and on which anybody may do anything.
func quickServer(t *testing.T) *inventory.Inventory {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	file := filepath.Join(dir, "pawl.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "nats: {url: \"nats://127.0.0.1:%d\"}\n", port), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Load(file)
	if err == nil {
		_, err = bus.CreateSeeds(inv)
	}
	if err == nil {
		_, err = CreateKey(inv)
	}
	if err != nil {
		t.Fatal(err)
	}
	var users []*server.NkeyUser
	for _, name := range []string{bus.Provisioner, bus.Backup} {
		seed, err := bus.LoadSeed(bus.SeedFile(inv, name))
		if err != nil {
			t.Fatal(err)
		}
		pair, err := nkeys.FromSeed(seed)
		if err != nil {
			t.Fatal(err)
		}
		public, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		users = append(users, &server.NkeyUser{Nkey: public})
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: filepath.Join(dir, "store"), NoSigs: true, Nkeys: users})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server did not start")
	}
	b := provisioner(t, inv)
	if err := bus.Provision(t.Context(), b.JetStream, bus.Settings{Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	return inv
}

func provisioner(t *testing.T, inv *inventory.Inventory) *bus.Bus {
	t.Helper()
	o, err := bus.For(inv, bus.Provisioner)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.NATS.Close)
	return b
}

// played is what one rotation leaves: nine events, their records, the notes of who
// opened what was sealed, an answer, and of the last one what is sealed.
func played(credential, rotation string, last bool) (all []*nats.Msg) {
	trace := random(16)
	record := 0
	add := func(subject string, body proto.Message, header nats.Header) {
		data, err := proto.Marshal(body)
		if err != nil {
			panic(err)
		}
		all = append(all, &nats.Msg{Subject: subject, Header: header, Data: data})
		if subject[:10] == "pawl.audit" || subject[:11] == "pawl.answer" {
			return
		}
		record++
		digest, _ := proto.Marshal(&pawlv1.AuditRecord{Stream: bus.StreamLog, Sequence: uint64(record), Subject: subject, At: timestamppb.Now(), BodySha256: random(32), TraceId: trace,
			Credential: credential, Rotation: rotation, Event: "staged", Service: saga.DBRotator, Flow: saga.Alternating, Actor: "schedule", Reason: "by policy due until 2027-01-01T00:00:00Z", Summary: `"app_b" carries the new password on all 3 nodes`})
		all = append(all, &nats.Msg{Subject: "pawl.audit.record." + credential + "." + rotation + "." + fmt.Sprint(record), Data: digest})
	}
	flow, _ := saga.FlowByName(saga.Alternating)
	for i, s := range append(append([]saga.Step{{Emits: saga.Requested}}, flow.Forward...), flow.Tail...) {
		e := &pawlv1.Event{StartedAt: timestamppb.Now(), Attempt: 1, Instance: "host-1/4711", Summary: "what was done, in a sentence of some length"}
		if i == 0 {
			e.Detail = &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Request: "schedule-20261129-020000", Reason: "by policy due until 2027-01-01T00:00:00Z; rotate_every 30d",
				RequestedBy: "schedule", Role: "app", Drain: durationpb.New(2 * time.Minute), DrainDeadline: durationpb.New(24 * time.Hour), Keep: durationpb.New(time.Hour), Generation: 7, Flow: saga.Alternating, Basis: "20261029-020000-abcde", BasisUser: "app"}}
		}
		for _, node := range []string{"coordinator", "worker-1", "worker-2"} {
			e.Operations = append(e.Operations, &pawlv1.Operation{Name: "alter role", Target: node})
		}
		add(bus.LogSubject(credential, rotation, s.Emits), e, nats.Header{"traceparent": {"00-" + trace + "-" + random(8) + "-01"}, "Nats-Msg-Id": {credential + "/" + rotation + "/" + string(s.Emits)},
			"Content-Type": {"application/x-protobuf"}, "Nots-Expected-Last-Subject-Sequence": {"123456"}, "Nots-Expected-Last-Subject-Sequence-Subject": {"pawl.rotation." + credential + ".>"}})
	}
	for _, service := range []string{saga.DBRotator, saga.DBRotator, saga.SecretPublisher, saga.SecretPublisher, saga.Verifier, saga.DBRotator} {
		add(bus.NoteSubject(service), &pawlv1.Note{Kind: "opened", Credential: credential, Rotation: rotation, At: timestamppb.Now(), Actor: "host-1/4711", Text: "opened what is sealed to " + service}, nats.Header{"traceparent": {"00-" + trace + "-" + random(8) + "-01"}})
	}
	add(bus.AnswerSubject("schedule-"+rotation), &pawlv1.Answer{Request: "schedule-20261129-020000", Credential: credential, Rotation: rotation, Outcome: pawlv1.Outcome_OUTCOME_ACCEPTED}, nil)
	if !last {
		return all // erased since
	}
	for _, recipient := range []string{saga.DBRotator, saga.SecretPublisher, saga.Verifier} {
		box := make([]byte, 900)
		_, _ = rand.Read(box) // never fails
		all = append(all, &nats.Msg{Subject: "pawl.sealed." + credential + "." + rotation + "." + recipient, Data: box})
	}
	return all
}

func random(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
