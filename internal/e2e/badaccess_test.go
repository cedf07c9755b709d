package e2e

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// requesterMayOnlyAsk tries what a stolen requester's key could be used for.
func (h *house) requesterMayOnlyAsk(t *testing.T) {
	requester, err := h.site.Connect(bus.Requester)
	if err != nil {
		t.Fatal(err)
	}
	defer requester.NATS.Close()
	requester.NATS.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}) // asked for below
	denied := func(what, subject string, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if err := requester.NATS.Flush(); err != nil { // the server has read it, and said what it thinks of it
			t.Fatal(err)
		}
		if err := requester.NATS.LastError(); err == nil || !strings.Contains(strings.ToLower(err.Error()), "permissions violation for "+what) || !strings.Contains(err.Error(), `"`+subject+`"`) {
			t.Errorf("%s %s: %v", what, subject, err)
		}
	}
	overheard, err := requester.NATS.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := requester.NATS.Publish("pawl.alert.test", nil); err != nil {
		t.Fatal(err)
	}
	if err := requester.NATS.Flush(); err != nil || requester.NATS.LastError() != nil {
		t.Fatalf("what is allowed: %v, %v", err, requester.NATS.LastError())
	}
	before := h.look(t, "adopted")
	for _, subject := range []string{
		bus.LogSubject("adopted", "x", saga.Requested), "pawl.sealed.adopted.x.verifier", "pawl.emergency.adopted",
		bus.AnswerSubject("x"), bus.NoteSubject(saga.Scheduler), bus.DeadSubject(saga.Scheduler), bus.DeadlineSubject("adopted"), bus.WakeSubject(saga.DBRotator, "adopted"),
		bus.CheckSubject(saga.DBRotator, "adopted"), bus.ExamineSubject(saga.DBRotator, "adopted"), "pawl.audit.x",
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO." + bus.StreamLog, "$JS.API.STREAM.MSG.GET." + bus.StreamLog,
		"$JS.API.DIRECT.GET." + bus.StreamSealed + ".pawl.sealed.adopted.x.verifier", "$JS.API.STREAM.PURGE." + bus.StreamSealed, "$JS.API.STREAM.DELETE." + bus.StreamLog,
		"$JS.API.CONSUMER.CREATE." + bus.StreamLog + ".x", "$JS.API.CONSUMER.MSG.NEXT." + bus.StreamRequest + "." + bus.ConsumerRequests,
	} {
		denied("publish", subject, func() error { return requester.NATS.Publish(subject, []byte("{}")) })
	}
	for _, subject := range []string{">", "pawl.>", "pawl.request.*", "pawl.rotation.>", "pawl.sealed.>", "pawl.answer.>", "pawl.note.>", "pawl.emergency.>", "pawl.audit.>",
		"$JS.>", bus.InboxPrefix(saga.DBRotator) + ".>", bus.InboxPrefix(bus.Operator) + ".>"} {
		denied("subscription", subject, func() error { _, err := requester.NATS.SubscribeSync(subject); return err })
	}
	if d := before.diff(h.look(t, "adopted")); d != nil {
		t.Errorf("a requester changed %v", d)
	}
	// Nor may it listen to what others are told.
	h.refused(t, "adopted", resume, "nothing to resume")
	if _, err := h.client.ReadNewest(t.Context(), "adopted"); err != nil {
		t.Fatal(err)
	}
	if err := requester.NATS.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _, err := overheard.Pending(); err != nil || n != 0 {
		t.Errorf("a requester overheard %d replies to others (%v)", n, err)
	}
}
