package natsconf

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// questions are what a user may send that the server, or a stream, answers: one of
// each right that stores nothing, and one that does.
func questions(user string) (all []string) {
	kinds := map[string]bool{}
	for _, a := range publications() {
		if !slices.Contains(a.owners, user) || strings.Contains(a.subject, ".PURGE.") {
			continue
		}
		kind := class(a.subject)
		if strings.HasPrefix(kind, "pawl") {
			kind = "stores"
			if user == bus.Operator && !strings.HasPrefix(a.subject, "pawl.note.") {
				continue
			}
		}
		if strings.HasPrefix(a.subject, "$JS.ACK.") || strings.HasPrefix(a.subject, "_R_") || strings.HasPrefix(a.subject, "pawl.health") || kinds[kind] {
			continue
		}
		kinds[kind] = true
		all = append(all, a.subject)
	}
	return all
}

// class is what subjects are alike in: the verb of JetStream's API and its stream, or
// the kind of Pawl's subject and whose it is.
func class(subject string) string {
	parts := strings.Split(subject, ".")
	if strings.HasPrefix(subject, "$JS.API.") {
		return strings.Join(parts[2:min(4, len(parts))], ".")
	}
	if parts[0] == "pawl" {
		return strings.Join(parts[:2], ".")
	}
	return parts[0]
}

// foreign are the subjects that are not a user's: of each class, and owner, one.
func foreign(user string) (all []string) {
	seen := map[string]bool{}
	for _, a := range publications() {
		of := fmt.Sprint(class(a.subject), a.owners)
		if slices.Contains(a.owners, user) || strings.HasPrefix(a.subject, "_R_") || strings.HasPrefix(a.subject, "$JS.ACK.") || seen[of] {
			continue
		}
		seen[of] = true
		all = append(all, a.subject)
	}
	return all
}

// seed stores a message on each subject that somebody may store on, so that none is
// missing unseen.
func (i *installation) seed() {
	i.t.Helper()
	for _, a := range publications() {
		if !strings.HasPrefix(a.subject, "pawl.") || len(a.owners) == 0 || slices.ContainsFunc([]string{"check", "examine", "health", "refused", "operator"}, func(kind string) bool { return strings.HasPrefix(a.subject, "pawl."+kind) }) {
			continue
		}
		if _, err := i.join(a.owners[0]).JetStream.Publish(i.t.Context(), a.subject, nil); err != nil {
			i.t.Fatalf("%s: %v", a.subject, err)
		}
	}
}

// held is what all streams hold: of each subject how many messages.
func (i *installation) held() map[string]string {
	i.t.Helper()
	all := map[string]string{}
	b := i.join(bus.Provisioner)
	defer b.NATS.Close()
	for _, s := range bus.Streams(bus.Settings{}) {
		stream, err := b.JetStream.Stream(i.t.Context(), s.Name)
		if err != nil {
			i.t.Fatal(err)
		}
		info, err := stream.Info(i.t.Context(), jetstream.WithSubjectFilter(">"))
		if err != nil {
			i.t.Fatal(err)
		}
		for subject, n := range info.State.Subjects {
			all[s.Name+" "+subject] = fmt.Sprint(n)
		}
		all[s.Name] = fmt.Sprint(info.Config.Subjects, info.State.Consumers)
	}
	return all
}

// TestAnswerThatIsWantedOnAnothersSubjectArrivesNowhere: who asks names the subject of
// the answer, and the server publishes there with rights of its own. Whatever anybody
// asks, and whichever subject he names that is not his: nothing changes.
func TestAnswerThatIsWantedOnAnothersSubjectArrivesNowhere(t *testing.T) {
	i := install(t)
	i.serve()
	i.mustProvision()
	i.seed()
	tried := 0
	for _, user := range bus.UsersOf(i.inv) {
		if user == bus.Provisioner {
			continue // it makes the streams
		}
		b := i.join(user)
		asked := questions(user)
		if len(asked) == 0 {
			t.Errorf("%s asks nothing", user)
		}
		var own []string
		before := i.settled(b)
		for _, question := range asked {
			if strings.HasPrefix(question, "pawl.") {
				own = append(own, question)
			}
			for _, reply := range foreign(user) {
				tried++
				m := &nats.Msg{Subject: question, Reply: reply, Data: []byte(`{"batch":1,"no_wait":true,"seq":1}`)}
				if err := b.NATS.PublishMsg(m); err != nil {
					t.Fatalf("%s asks %s: %v", user, question, err)
				}
			}
		}
		after := i.settled(b)
		for _, held := range []map[string]string{before, after} {
			maps.DeleteFunc(held, func(subject, _ string) bool {
				return slices.ContainsFunc(own, func(s string) bool {
					return strings.HasSuffix(subject, " "+s) || strings.HasSuffix(subject, "."+user+s[strings.LastIndex(s, "."):])
				})
			})
		}
		if !maps.Equal(before, after) {
			t.Errorf("after what %s asked (%v), the streams hold %v, and before that %v", user, asked, after, before)
		}
	}
	if tried < 2000 {
		t.Errorf("%d attempts: the table is not what it was", tried)
	}
	t.Logf("%d attempts", tried)
}

// settled waits until what was asked on a connection is answered, and what the answers
// may have set off is done, and returns what is held then.
func (i *installation) settled(b *bus.Bus) (held map[string]string) {
	i.t.Helper()
	if err := b.NATS.Flush(); err != nil {
		i.t.Fatal(err)
	}
	await(i.t, func() bool {
		before := held
		held = i.held()
		return before != nil && maps.Equal(before, held)
	})
	return held
}
