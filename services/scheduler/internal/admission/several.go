package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/fault"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// severalPoint is where the crash tests kill the scheduler between two emergencies of
// one request.
const severalPoint = "several"

// beginsAtOnce is how many emergencies of one request begin at the same time.
const beginsAtOnce = 32

// recorded is how large the record may be, in bytes: the audit trail repeats the names.
const recorded = bus.MaxEvent * 3 / 4

// namedInAnswer is how many credentials an answer names that did not begin: the notes
// name all.
const namedInAnswer = 20

// unknownAgain is when emergencies that are not known to have begun are tried again.
const unknownAgain = time.Second

// several begins an emergency of each selected credential, all under one rotation id.
// The record that lists them is stored before the first begins, and once: however
// often the request is delivered, and whatever pawl.yaml says by then, the same
// credentials are contained, each once.
func (c *Clerk) several(ctx context.Context, q *request) (*pawlv1.Answer, time.Duration, error) {
	record, err := c.d.Bus.Several(ctx, q.rotation)
	if err != nil {
		return nil, 0, err
	}
	if record == nil {
		var refusal *pawlv1.Answer
		if record, refusal = c.newRecord(q); refusal != nil {
			return refusal, 0, nil
		}
		_, err := c.d.Bus.PublishAfter(ctx, bus.SeveralSubject(q.rotation), record, bus.SeveralSubject(q.rotation), 0)
		if errors.Is(err, bus.ErrConflict) {
			return nil, time.Millisecond, nil // another scheduler has stored it: work by that
		}
		if err != nil {
			return nil, 0, err
		}
	}
	refused, unknown, err := c.beginAll(ctx, q, record.GetCredentials())
	if err != nil {
		return nil, 250 * time.Millisecond, err
	}
	answer := answerSeveral(q, record, refused, unknown)
	if len(unknown) > 0 { // until it is known of all, nothing is refused for good
		c.d.Log.WarnContext(ctx, "emergencies not known to have begun; they are tried again", "request", q.id, "rotation", q.rotation, "errors", unknown)
		return answer, unknownAgain, nil
	}
	if err := c.noteRefused(ctx, q, refused); err != nil {
		return nil, 250 * time.Millisecond, err
	}
	return answer, 0, nil
}

// newRecord lists what the request selects, or says why nothing is done.
func (c *Clerk) newRecord(q *request) (*pawlv1.Note, *pawlv1.Answer) {
	s := q.body.GetSelection()
	selection := inventory.Selection{Credentials: s.GetCredentials(), Clusters: s.GetClusters(), Environments: s.GetEnvironments(), All: s.GetAll()}
	all, err := c.d.Inventory.Select(selection)
	if err != nil {
		return nil, rejected(err.Error())
	}
	var names, own []string
	for _, known := range all {
		switch {
		case !known.IsOwn():
			names = append(names, known.Name)
		case slices.Contains(selection.Credentials, known.Name):
			return nil, rejected(lockedOut(known.Name))
		default:
			own = append(own, known.Name)
		}
	}
	if len(names) == 0 {
		return nil, rejected("only credentials with which Pawl itself logs in are selected: " + strings.Join(own, ", "))
	}
	text := fmt.Sprintf("emergency of %d credentials", len(names))
	if q.body.GetReason() != "" {
		text += ": " + q.body.GetReason()
	}
	record := &pawlv1.Note{Kind: "emergency of several", Rotation: q.rotation, Step: string(saga.Requested), Text: text,
		Actor: q.body.GetRequestedBy(), At: timestamppb.New(q.at), Credentials: names, Laggards: own}
	if size := proto.Size(record); size > recorded {
		return nil, rejected(fmt.Sprintf("%d credentials are too many for one emergency: their names take %d bytes, and at most %d are recorded together. Ask for each cluster by itself", len(names), size, recorded))
	}
	return record, nil
}

// beginAll begins the emergency of each, and returns why some did not begin, and of
// which that is not known. Those are tried for a while: what has begun begins no second
// time.
func (c *Clerk) beginAll(ctx context.Context, q *request, names []string) (refused, unknown map[string]string, err error) {
	var known []*inventory.Credential
	for _, name := range names {
		if one := c.d.Inventory.Credentials[name]; one != nil {
			known = append(known, one)
		}
	}
	pools := c.d.Inventory.Pools(known)
	under, span := c.d.Tracer.Start(trace.ContextWithRemoteSpanContext(ctx, telemetry.Extract(q.header)), "emergency of several requested",
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attribute.String("rotation.id", q.rotation), attribute.Int("rotation.credentials", len(names))))
	defer span.End()
	all := *q
	all.header = telemetry.Inject(under) // one trace of all
	refused = map[string]string{}
	for first := c.d.Clock.Now(); ; {
		unknown = c.beginEach(ctx, &all, names, pools, refused)
		if ctx.Err() != nil || len(unknown) == 0 || c.d.Clock.Since(first) >= c.patience {
			return refused, unknown, ctx.Err()
		}
		names = slices.Sorted(maps.Keys(unknown))
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// beginEach tries each once. It adds to refused what was, and returns the errors of
// those that are not known to have begun: one whose log cannot be read holds up no other.
func (c *Clerk) beginEach(ctx context.Context, q *request, names []string, pools map[string][]string, refused map[string]string) (unknown map[string]string) {
	var mu sync.Mutex
	unknown = map[string]string{}
	var all errgroup.Group
	all.SetLimit(beginsAtOnce)
	for _, name := range names {
		all.Go(func() error {
			one := *q
			one.credential, one.group = name, pools[name]
			answer, err := c.beginOne(ctx, &one)
			if err == nil {
				fault.Point(name, severalPoint+".begun")
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				unknown[name] = err.Error()
			case answer.GetOutcome() == pawlv1.Outcome_OUTCOME_REJECTED:
				refused[name] = answer.GetReason()
			}
			return nil
		})
	}
	_ = all.Wait() // each error is in unknown
	return unknown
}

// noteRefused notes each credential that did not begin. Noted twice, it is one.
func (c *Clerk) noteRefused(ctx context.Context, q *request, refused map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		note := &pawlv1.Note{Kind: "refused", Credential: name, Rotation: q.rotation, Actor: q.body.GetRequestedBy(), At: timestamppb.Now(),
			Text: fmt.Sprintf("emergency %s: %s", q.id, refused[name])}
		header := telemetry.Inject(ctx)
		header.Set(jetstream.MsgIDHeader, "refused-emergency-"+q.rotation+"-"+name)
		if err := c.d.Bus.Publish(ctx, bus.NoteSubject(saga.Scheduler), note, header); err != nil {
			return err
		}
	}
	return nil
}

// answerSeveral says how many began, and names those that did not, and those of which
// that is not known.
func answerSeveral(q *request, record *pawlv1.Note, refused, unknown map[string]string) *pawlv1.Answer {
	begun := len(record.GetCredentials()) - len(refused) - len(unknown)
	parts := []string{fmt.Sprintf("%d of %d credentials", begun, len(record.GetCredentials()))}
	if own := record.GetLaggards(); len(own) > 0 {
		parts = append(parts, "left out, since Pawl itself logs in with it: "+strings.Join(own, ", "))
	}
	for i, name := range slices.Sorted(maps.Keys(unknown)) {
		if i == namedInAnswer {
			parts = append(parts, fmt.Sprintf("and %d more that are tried", len(unknown)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("not known whether it has begun, and tried until it is known: %s (%s)", name, short(unknown[name])))
	}
	for i, name := range slices.Sorted(maps.Keys(refused)) {
		if i == namedInAnswer {
			parts = append(parts, fmt.Sprintf("and %d more", len(refused)-i))
			break
		}
		parts = append(parts, "not begun: "+short(refused[name]))
	}
	answer := accepted(q.rotation)
	if begun+len(unknown) == 0 {
		answer = rejected("")
	}
	answer.Reason = strings.Join(parts, "; ")
	return answer
}

// short cuts a reason, since an answer has to fit into a message. The note has it whole.
func short(reason string) string {
	const most = 300
	if runes := []rune(reason); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return reason
}
