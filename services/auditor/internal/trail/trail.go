// Package trail writes the audit trail: one record per event of the log, per
// note, and per message that could not be decoded, in an append-only stream of
// its own. A record's subject is the place of what it records, and a subject
// takes one message only, so that recording twice is recording once. Nothing
// waits for the auditor: where it is down, the trail catches up later.
package trail

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	audit "pawl.dev/internal/trail"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// lastOffer is the delivery at which an event of another version is recorded all
// the same, without its owner: until then, some ten minutes, an auditor of that
// version may come and take it.
const lastOffer = 48

// Trail records.
type Trail struct {
	d service.Dependencies

	mu    sync.Mutex
	began map[string]*bus.Record // requested, by rotation: who, why, which trace
}

// New returns a trail.
func New(d service.Dependencies) *Trail { return &Trail{d: d, began: map[string]*bus.Record{}} }

// Run records until ctx ends.
func (t *Trail) Run(ctx context.Context) error {
	for _, of := range []struct {
		stream string
		record func(context.Context, jetstream.Msg, *pawlv1.AuditRecord) error
	}{{bus.StreamLog, t.event}, {bus.StreamNote, t.note}, {bus.StreamDead, t.note}} {
		// One at a time, in stored order.
		stop, err := service.Consume(ctx, t.d, of.stream, saga.Auditor, func(m service.Message) { t.keep(ctx, m, of.record) }, jetstream.PullMaxMessages(256))
		if err != nil {
			return err
		}
		defer stop()
	}
	<-ctx.Done()
	return nil
}

// keep stores the record, and only then acknowledges what it records.
func (t *Trail) keep(ctx context.Context, m jetstream.Msg, fill func(context.Context, jetstream.Msg, *pawlv1.AuditRecord) error) {
	meta, err := m.Metadata()
	if err != nil {
		t.d.Log.Error("message without metadata", "error", err)
		return
	}
	sum := sha256.Sum256(m.Data())
	record := &pawlv1.AuditRecord{
		Stream: meta.Stream, Sequence: meta.Sequence.Stream, Subject: m.Subject(), At: timestamppb.New(meta.Timestamp),
		BodySha256: hex.EncodeToString(sum[:]),
	}
	if s := telemetry.Extract(m.Headers()); s.IsValid() {
		record.TraceId = s.TraceID().String()
	}
	err = fill(ctx, m, record)
	if err == nil && record.GetService() == "" && meta.NumDelivered < lastOffer {
		err = saga.ErrUnknownEvent
	}
	if err == nil {
		err = t.store(ctx, record)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		t.d.Log.Warn("record deferred", "subject", m.Subject(), "sequence", meta.Sequence.Stream, "error", err)
		err = m.NakWithDelay(min(30*time.Second, time.Duration(meta.NumDelivered)*500*time.Millisecond))
	} else {
		err = m.Ack()
	}
	if err != nil {
		t.d.Log.Warn("message not settled; it will be delivered again", "error", err)
	}
}

func (t *Trail) store(ctx context.Context, record *pawlv1.AuditRecord) error {
	err := t.d.Bus.Publish(ctx, audit.Subject(record), record, nil)
	if bus.IsTaken(err) {
		return nil // recorded before; only the acknowledgement was lost
	}
	return err
}

// event fills the record of one event of the log.
func (t *Trail) event(ctx context.Context, m jetstream.Msg, record *pawlv1.AuditRecord) error {
	credential, rotation, name, err := bus.ParseLogSubject(m.Subject())
	if err != nil {
		return err
	}
	record.Credential, record.Rotation, record.Event, record.Service = credential, rotation, string(name), saga.OwnerOf(name)
	event := &pawlv1.Event{}
	if err := bus.Decode(m.Headers(), m.Data(), event); err != nil {
		record.Summary = "cannot be decoded: " + err.Error()
		return nil // recorded all the same, by its digest
	}
	record.Summary = event.GetSummary()
	if f := event.GetFailure(); f != nil {
		record.Summary = f.GetStep() + ": " + f.GetReason()
	}
	began, err := t.requested(ctx, credential, rotation)
	if err != nil {
		return err
	}
	r := began.Body.GetRequested()
	record.Flow, record.Actor, record.AuthenticatedAs, record.Reason = r.GetFlow(), r.GetRequestedBy(), r.GetAuthenticatedAs(), r.GetReason()
	if s := telemetry.Extract(began.Header); s.IsValid() {
		record.TraceId = s.TraceID().String()
	}
	if name == saga.Completed || name == saga.RolledBack {
		t.draw(ctx, credential, rotation, string(name), began, record.GetAt().AsTime())
	}
	return nil
}

// draw adds the one span that is as long as the whole rotation.
func (t *Trail) draw(ctx context.Context, credential, rotation, outcome string, began *bus.Record, ended time.Time) {
	ctx = trace.ContextWithRemoteSpanContext(ctx, telemetry.Extract(began.Header))
	_, span := t.d.Tracer.Start(ctx, "rotation", trace.WithTimestamp(began.At), trace.WithAttributes(
		attribute.String("rotation.credential", credential), attribute.String("rotation.id", rotation), attribute.String("rotation.outcome", outcome)))
	span.End(trace.WithTimestamp(ended))
}

// requested returns the event that began a rotation, kept while it is recent.
func (t *Trail) requested(ctx context.Context, credential, rotation string) (*bus.Record, error) {
	t.mu.Lock()
	began, ok := t.began[rotation]
	t.mu.Unlock()
	if ok {
		return began, nil
	}
	log, err := t.d.Bus.ReadRotation(ctx, credential, rotation)
	if err != nil {
		return nil, err
	}
	if began = log.Find(saga.Requested); began == nil {
		return nil, fmt.Errorf("rotation %s has no %s event yet", rotation, saga.Requested)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.began) > 1000 {
		clear(t.began)
	}
	t.began[rotation] = began
	return began, nil
}

// note fills the record of a note or of what could not be decoded.
func (t *Trail) note(_ context.Context, m jetstream.Msg, record *pawlv1.AuditRecord) error {
	record.Service = strings.Split(m.Subject(), ".")[2]
	n := &pawlv1.Note{}
	if err := bus.Decode(m.Headers(), m.Data(), n); err != nil {
		record.Summary = "cannot be decoded: " + err.Error()
		return nil
	}
	record.Event, record.Credential, record.Rotation, record.Actor, record.Summary = n.GetKind(), n.GetCredential(), n.GetRotation(), n.GetActor(), n.GetText()
	if len(n.GetCredentials()) > 0 {
		record.Summary += ": " + strings.Join(n.GetCredentials(), ", ")
	}
	if len(n.GetLaggards()) > 0 {
		record.Summary += " (" + strings.Join(n.GetLaggards(), ", ") + ")"
	}
	return nil
}
