package bus_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestDenialEndsTheCallAtOnce: a call that is denied must not wait for an answer
// that never comes. Its own deadline is none.
func TestDenialEndsTheCallAtOnce(t *testing.T) {
	b := bustest.Start(t).Connect(t, saga.Restarter)
	ctx := t.Context()
	for name, c := range map[string]struct {
		subject string
		do      func() error
	}{
		"Publish": {bus.NoteSubject(saga.Verifier), func() error { return b.Publish(ctx, bus.NoteSubject(saga.Verifier), &pawlv1.Note{Kind: "x"}, nil) }},
		"PublishAfter": {bus.DeadlineSubject("c"), func() error {
			_, err := b.PublishAfter(ctx, bus.DeadlineSubject("c"), &pawlv1.Note{Kind: "x"}, bus.DeadlineSubject("c"), 0)
			return err
		}},
		"Append":    {bus.LogSubject("c", "r", saga.Verified), func() error { _, err := b.Append(ctx, "c", "r", saga.Verified, &pawlv1.Event{}, nil, 0); return err }},
		"AppendAll": {bus.LogSubject("c", "r", saga.Verified), func() error { return b.AppendAll(ctx, "r", saga.Verified, parts(nil, "c", "d")) }},
		"Stream":    {"$JS.API.STREAM.INFO." + bus.StreamSealed, func() error { _, err := b.Stream(ctx, bus.StreamSealed); return err }},
		"Consume": {"$JS.API.CONSUMER.INFO." + bus.StreamLog + "." + saga.Verifier, func() error {
			_, err := service.Consume(ctx, service.Dependencies{Bus: b}, bus.StreamLog, saga.Verifier, nil)
			return err
		}},
		"Ask": {bus.CheckSubject(saga.Verifier, "c"), func() error { _, err := service.Ask(ctx, b, bus.CheckSubject(saga.Verifier, "c")); return err }},
	} {
		err := c.do()
		if !errors.Is(err, bus.ErrNotPermitted) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not permitted to publish on "+c.subject) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What comes after is not hit by it.
	if _, err := b.Append(ctx, "c", "r", saga.Restarted, &pawlv1.Event{}, nil, 0); err != nil {
		t.Error(err)
	}
}
