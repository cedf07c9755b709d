package service

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// noteStart notes that the service works, and by which configuration: whether it
// is the one by which it worked last, on this machine or another. As with every
// note, one that cannot be stored stops nothing.
func noteStart(ctx context.Context, d Dependencies, service string) {
	digest := d.Inventory.Digest()
	loaded := &pawlv1.Note{Kind: "configuration", Text: fmt.Sprintf("%s %s loaded %s (%s)", service, Version(), filepath.Base(d.Inventory.File), digest), Configuration: digest}
	switch before, err := LastStart(ctx, d.Bus, service); {
	case err != nil:
		d.Log.Warn("cannot tell whether the configuration has changed", "error", err)
	case before != nil && before.GetConfiguration() != digest:
		loaded.Kind = "configuration changed"
		loaded.Text += ", changed: from " + before.GetConfiguration() + " to " + digest
	}
	d.Note(ctx, loaded)
	started := &pawlv1.Note{Kind: "started", Text: fmt.Sprintf("%s %s on %s", service, Version(), process()), Configuration: digest, At: timestamppb.Now()}
	if err := d.Bus.Publish(ctx, bus.StartedSubject(service), started, telemetry.Inject(ctx)); err != nil {
		d.Log.Warn("start not noted", "error", err)
	}
}

// LastStart is the note of the service's newest start, on whichever machine; nil
// where it never did.
func LastStart(ctx context.Context, b *bus.Bus, service string) (*pawlv1.Note, error) {
	n := &pawlv1.Note{}
	m, err := b.Last(ctx, bus.StreamNote, bus.StartedSubject(service), n)
	if err != nil {
		return nil, fmt.Errorf("newest start of %s: %w", service, err)
	}
	if m == nil {
		return nil, nil
	}
	return n, nil
}

// noteStop notes an orderly end, after what was under way; a killed process has
// none.
func noteStop(ctx context.Context, d Dependencies, service string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if d.Sealed != nil {
		if err := d.Sealed.Noted(ctx); err != nil {
			d.Log.Warn("stopped", "error", err)
		}
	}
	if d.Bus.NATS.IsConnected() {
		d.Note(ctx, &pawlv1.Note{Kind: "stopped", Text: fmt.Sprintf("%s %s on %s", service, Version(), process())})
	}
}

// process names this one.
func process() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}
