package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const resume = pawlv1.Action_ACTION_RESUME

// asked is a request whose answers are listened for.
type asked struct {
	id      string
	answers *nats.Subscription
}

// send publishes a request as any client would: as a message and no more.
func (h *house) send(t *testing.T, credential string, body []byte) asked {
	t.Helper()
	a := asked{id: "e2e-" + strings.ToLower(rand.Text())}
	var err error
	if a.answers, err = h.client.NATS.SubscribeSync(bus.AnswerSubject(a.id)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.answers.Unsubscribe() })
	m := &nats.Msg{Subject: bus.RequestSubject(credential), Data: body, Header: nats.Header{jetstream.MsgIDHeader: {a.id}}}
	if _, err := h.client.JetStream.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a asked) next(t *testing.T) *pawlv1.Answer {
	t.Helper()
	return nextAnswer(t, a.answers)
}

func nextAnswer(t *testing.T, from *nats.Subscription) *pawlv1.Answer {
	t.Helper()
	m, err := from.NextMsg(patience)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	answer := &pawlv1.Answer{}
	if err := bus.Decode(m.Header, m.Data, answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func marshal(t *testing.T, r *pawlv1.Request) []byte {
	t.Helper()
	body, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestEveryRequestIsAnsweredAndBadOnesDoNothing(t *testing.T) {
	t.Parallel()
	var credentials []site.Credential
	for _, name := range []string{"adopted", "fresh", "busy", "draining", "later", "twice"} {
		credentials = append(credentials, site.Credential{Name: name, Strategy: "alternating"})
	}
	h := newHouse(t, credentials)
	t.Run("malformed", h.malformed)
	t.Run("out of place", h.outOfPlace)
	t.Run("one already running", h.alreadyRunning)
	t.Run("a session still uses the old login", h.stillInUse)
	t.Run("held until its time", h.held)
	t.Run("sent twice", h.sentTwice)
	t.Run("a requester may ask and nothing else", h.requesterMayOnlyAsk)
}

func (h *house) malformed(t *testing.T) {
	h.do(t, "adopted", adopt)
	before := h.look(t, "adopted")
	for name, c := range map[string]struct {
		credential string
		body       []byte
		says       []string
	}{
		"torn JSON":             {"adopted", []byte(`{"action": `), []string{"not a Request"}},
		"another JSON":          {"adopted", []byte(`{"action": "ACTION_ROTATE"}, 1`), []string{"not a Request"}},
		"unknown key":           {"adopted", []byte(`{"credential": "adopted"}`), []string{"not a Request", `unknown field "credential"`}},
		"unknown action":        {"adopted", []byte(`{"action": "ACTION_EXPLODE"}`), []string{"not a Request", "action", "ACTION_EXPLODE"}},
		"unknown action number": {"adopted", marshal(t, &pawlv1.Request{Action: 99}), []string{"not a valid Request", "action", "defined"}},
		"binary garbage":        {"adopted", []byte("\x00\xff\xfe\x80garbage"), []string{"neither protobuf nor JSON"}},
		"text":                  {"adopted", []byte("please rotate"), []string{"neither protobuf nor JSON"}},
		"text that parses":      {"adopted", []byte("x1"), []string{"not a Request", "protobuf fields that this version does not know"}},
		"too large":             {"adopted", bytes.Repeat([]byte("a"), 70<<10), []string{"Request of 71680 bytes: at most"}},
		"reason too long":       {"adopted", marshal(t, &pawlv1.Request{Reason: strings.Repeat("r", 2000)}), []string{"not a valid Request", "reason", "1024"}},
		"no time at all":        {"adopted", marshal(t, &pawlv1.Request{NotBefore: &timestamppb.Timestamp{Seconds: 1 << 60}}), []string{"not a valid Request", "not_before"}},
		"upper case":            {"ADOPTED", nil, []string{"the credential in the subject must match [a-z0-9-]{1,64}"}},
		"too long a name":       {strings.Repeat("a", 65), nil, []string{"the credential in the subject must match [a-z0-9-]{1,64}"}},
		"unknown credential":    {"adopter", nil, []string{`unknown credential "adopter": pawl.yaml, as read when the scheduler started, has adopted, busy, `}},
	} {
		t.Run(name, func(t *testing.T) {
			answer := h.send(t, c.credential, c.body).next(t)
			if answer.GetOutcome() != rejected || !holdsAll(answer.GetReason(), c.says) || answer.GetRotation() != "" {
				t.Errorf("answered %v %q, want a refusal with %q", answer.GetOutcome(), answer.GetReason(), c.says)
			}
		})
	}
	if d := before.diff(h.look(t, "adopted")); d != nil {
		t.Errorf("malformed requests changed %v", d)
	}
	// More tokens than one name no credential: nobody may ask there, and the server says so.
	if _, err := h.client.PublishMsg(t.Context(), &nats.Msg{Subject: "pawl.request.two.tokens"}); !errors.Is(err, bus.ErrNotPermitted) {
		t.Errorf("a request for two tokens: %v", err)
	}
}

func (h *house) outOfPlace(t *testing.T) {
	h.refused(t, "fresh", rotate, "fresh is not adopted: run `pawl adopt fresh` first")
	h.refused(t, "fresh", rollback, "fresh is not adopted")
	h.refused(t, "fresh", resume, "nothing to resume: fresh never had a rotation")
	h.do(t, "fresh", adopt)
	h.refused(t, "fresh", rollback, "nothing to roll back", "was no completed rotation")
	h.refused(t, "fresh", resume, "nothing to resume", "has ended")
	h.do(t, "fresh", rotate)
	before := h.look(t, "fresh")
	h.refused(t, "fresh", rollback, "the predecessor is no longer kept: `keep` of 0s ended at")
	if d := before.diff(h.look(t, "fresh")); d != nil {
		t.Errorf("refused requests changed %v", d)
	}
	h.do(t, "fresh", rotate)
}

func (h *house) alreadyRunning(t *testing.T) {
	h.do(t, "busy", adopt)
	release := hold(t, filepath.Dir(h.site.Env("busy")))
	defer release()
	running := h.ask(t, "busy", rotate)
	h.await(t, running, saga.Staged)
	before := h.look(t, "busy")
	for _, action := range []pawlv1.Action{rotate, adopt, rollback, plan} {
		answer := h.refused(t, "busy", action, "rotation "+running.GetRotation()+" of busy is still running", `it is at "publish" since`)
		if action != plan && answer.GetRotation() != running.GetRotation() {
			t.Errorf("%v: the answer names the rotation %q", action, answer.GetRotation())
		}
	}
	if d := before.diff(h.look(t, "busy")); d != nil {
		t.Errorf("refused requests changed %v", d)
	}
	release()
	h.await(t, running, saga.Completed)
	h.do(t, "busy", rotate)
}

func (h *house) stillInUse(t *testing.T) {
	h.do(t, "draining", adopt)
	session, err := h.site.LoginPublished(t.Context(), "draining", "laggard")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close(context.Background()) }()
	notes, err := h.client.NATS.SubscribeSync(bus.NoteSubject(saga.DBRotator))
	if err != nil {
		t.Fatal(err)
	}
	running := h.ask(t, "draining", rotate)
	h.await(t, running, saga.Verified)
	note := &pawlv1.Note{}
	for note.GetCredential() != "draining" || note.GetKind() != "waiting" {
		m, err := notes.NextMsg(patience)
		if err != nil {
			t.Fatalf("nobody is told whom the rotation waits for: %v", err)
		}
		if err := bus.Decode(m.Header, m.Data, note); err != nil {
			t.Fatal(err)
		}
	}
	if !holdsAll(note.GetText(), []string{`"draining" is still in use`}) || !strings.HasPrefix(strings.Join(note.GetLaggards(), ""), "laggard@127.0.0.1 pid ") {
		t.Errorf("note: %q of %q", note.GetText(), note.GetLaggards())
	}
	h.refused(t, "draining", rotate, running.GetRotation(), `it is at "retire" since`)
	if answer := h.ask(t, "draining", resume); answer.GetOutcome() != accepted || answer.GetRotation() != running.GetRotation() || answer.GetReason() != `db-rotator tries "retire" now` {
		t.Errorf("resume: %v", answer)
	}
	if err := session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.await(t, running, saga.Completed)
	h.works(t, "draining")
}

// held: a request may name its time, and is then answered twice.
func (h *house) held(t *testing.T) {
	h.do(t, "later", adopt)
	notBefore := time.Now().Add(1500 * time.Millisecond)
	request := h.send(t, "later", marshal(t, &pawlv1.Request{NotBefore: timestamppb.New(notBefore)}))
	if answer := request.next(t); answer.GetOutcome() != scheduled || !strings.HasPrefix(answer.GetReason(), "held until ") || answer.GetRotation() != "" {
		t.Errorf("first answer: %v", answer)
	}
	answer := request.next(t)
	log := h.await(t, answer, saga.Completed)
	if early := notBefore.Sub(log.Records[0].At); early > 0 {
		t.Errorf("began %v before its time", early)
	}
	h.works(t, "later")
}

func (h *house) sentTwice(t *testing.T) {
	h.do(t, "twice", adopt)
	client, err := h.site.Connect(bus.Requester)
	if err != nil {
		t.Fatal(err)
	}
	defer client.NATS.Close()
	release := hold(t, filepath.Dir(h.site.Env("twice")))
	defer release()
	var replies []*nats.Subscription
	for range 2 {
		inbox := client.NATS.NewInbox()
		reply, err := client.NATS.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		replies = append(replies, reply)
		request := &nats.Msg{Subject: "pawl.request.twice", Reply: inbox, Header: nats.Header{jetstream.MsgIDHeader: {"e2e-twice"}}}
		if err := client.NATS.PublishMsg(request); err != nil {
			t.Fatal(err)
		}
	}
	// To each, the stream's acknowledgement and the answer.
	acks, duplicates, answers := 0, 0, []*pawlv1.Answer{}
	for i := range 4 {
		m, err := replies[i/2].NextMsg(patience)
		if err != nil {
			t.Fatalf("after %d acknowledgements (%d of duplicates) and %d answers: %v", acks, duplicates, len(answers), err)
		}
		var ack jetstream.PubAck
		if m.Header.Get("Content-Type") == "" && json.Unmarshal(m.Data, &ack) == nil && ack.Stream == bus.StreamAsked {
			acks++
			if ack.Duplicate {
				duplicates++
			}
			continue
		}
		answer := &pawlv1.Answer{}
		if err := bus.Decode(m.Header, m.Data, answer); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, answer)
	}
	if acks != 2 || duplicates != 1 || len(answers) != 2 || answers[0].GetOutcome() != accepted || !proto.Equal(answers[0], answers[1]) {
		t.Errorf("%d acknowledgements, %d of duplicates, answers %v", acks, duplicates, answers)
	}
	release()
	h.await(t, answers[0], saga.Completed)
	began := 0
	for what := range h.look(t, "twice") {
		if strings.HasSuffix(what, ".requested") {
			began++
		}
	}
	if began != 2 {
		t.Errorf("%d rotations began, want the adoption and one more", began)
	}
}
