// Package admission decides what becomes of a request: it starts a rotation,
// or says why not. Every request is answered, on pawl.answer.REQUEST and on
// the reply subject where one was given. Handling one twice is harmless: a
// rotation's id derives from its request.
package admission

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/durationpb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/fault"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/schedule"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// patience is how long a request waits for services that do not answer the
// preflight, and for a scheduler of another version: they may be starting.
const patience = 20 * time.Second

// longest is how long a request is worked on without being given to another replica:
// more than a preflight takes.
const longest = time.Minute

// beginPoint is where the crash tests kill the scheduler as it begins a rotation.
const beginPoint = "begin.append"

// Clerk admits requests.
type Clerk struct {
	d       service.Dependencies
	book    *schedule.Book
	replies *replies
	limits  *limits
	// patience is how long emergencies of one request are tried before it is told which
	// of them are not known to have begun.
	patience time.Duration
}

// New returns a clerk.
func New(d service.Dependencies) *Clerk {
	return &Clerk{d: d, book: schedule.New(d.Inventory), replies: &replies{waiting: map[string][]string{}, order: map[string][]waiter{}, given: map[string]*nats.Msg{}}, limits: newLimits(), patience: patience}
}

// Run answers requests until ctx ends.
func (c *Clerk) Run(ctx context.Context) error {
	stop, err := c.replies.listen(c.d.Bus)
	if err != nil {
		return err
	}
	defer stop()
	ctx, end := context.WithCancel(ctx)
	var summing sync.WaitGroup
	defer func() { end(); summing.Wait() }() // also where a consumer is not there
	summing.Go(func() { c.summarise(ctx) })
	summing.Go(func() { c.watchKey(ctx) })
	for durable, stream := range map[string]string{bus.ConsumerRequests: bus.StreamRequest, bus.ConsumerAsked: bus.StreamAsked, bus.ConsumerEmergencies: bus.StreamEmergency} {
		slots := make(chan struct{}, 64) // an emergency waits for no request
		stop, err := service.Consume(ctx, c.d, stream, durable, func(m service.Message) {
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				c.handle(ctx, m)
			}()
		})
		if err != nil {
			return err
		}
		defer stop()
	}
	<-ctx.Done()
	return nil
}

// request is one request as received.
type request struct {
	id         string
	user       string // who sent it, as the server says
	credential string
	rotation   string // the id its rotation gets
	at         time.Time
	delivered  uint64
	body       *pawlv1.Request
	group      []string // all that turn together, where there are several
	emergency  bool
	header     nats.Header       // whose trace goes on
	message    jetstream.Msg     // nil of a schedule's, and of an alert's
	follows    map[string]string // of a schedule's: each member's newest rotation
	listed     bool              // among those that wait
}

func (c *Clerk) handle(ctx context.Context, m service.Message) {
	working, done := context.WithTimeout(ctx, longest)
	defer done()
	go m.Heartbeat(working)
	meta, err := m.Metadata()
	if err != nil {
		c.d.Log.Error("request without metadata", "error", err)
		return
	}
	user, credential, emergency := bus.ParseAsked(m.Subject())
	q := request{
		id: requestID(m, meta), user: user, credential: credential, emergency: emergency, at: meta.Timestamp,
		rotation: RotationID(meta.Timestamp, meta.Sequence.Stream), delivered: meta.NumDelivered, body: &pawlv1.Request{}, header: m.Headers(), message: m,
	}
	var again time.Duration
	var answer *pawlv1.Answer
	if q.delivered == 1 { // later it may have begun
		answer = c.limits.mayAsk(user)
	}
	if answer == nil {
		answer, again, err = c.decide(ctx, &q)
	}
	if ctx.Err() != nil {
		return
	}
	if errors.Is(err, saga.ErrUnknownEvent) && c.d.Clock.Since(q.at) > patience {
		answer, err = unread(&q, err), nil
	}
	if err != nil {
		c.d.Log.Warn("request deferred", "request", q.id, "credential", q.credential, "again", again, "error", err)
		again = max(again, 250*time.Millisecond)
	}
	if answer != nil {
		answer.Request, answer.Credential = q.id, q.credential
		if err := c.answer(ctx, &q, answer); err != nil {
			c.d.Log.Warn("answer not stored; the request will be handled again", "request", q.id, "error", err)
			again = max(again, time.Second)
		}
	}
	if q.listed && again == 0 {
		if err := c.unlist(ctx, &q); err != nil {
			c.d.Log.Warn("request is still among those that wait; it will be handled again", "request", q.id, "error", err)
			again = time.Second
		}
	}
	if again > 0 {
		err = m.NakWithDelay(again)
	} else {
		err = m.Ack()
	}
	if err != nil {
		c.d.Log.Warn("request not settled; it will be delivered again", "request", q.id, "error", err)
	}
}

// unread rejects what no scheduler could decide upon in time: the newest rotation
// is under way by a flow that only another version knows.
func unread(q *request, why error) *pawlv1.Answer {
	reason := fmt.Sprintf("the newest rotation of %s is under way by another version of Pawl (%v): start a scheduler of that version", q.credential, why)
	if q.emergency {
		reason += fmt.Sprintf("; `pawl emergency %s --break-glass` needs none", q.credential)
	}
	return rejected(reason)
}

// decide returns the answer, or when to ask again, or both.
func (c *Clerk) decide(ctx context.Context, q *request) (*pawlv1.Answer, time.Duration, error) {
	if err := c.read(ctx, q); err != nil {
		return rejected(err.Error()), 0, nil
	}
	switch {
	case q.body.GetSelection() != nil:
		return c.several(ctx, q)
	case q.emergency:
		return c.emergency(ctx, q)
	}
	if q.body.GetAction() == pawlv1.Action_ACTION_CANCEL {
		return c.cancel(ctx, q)
	}
	members, err := c.together(q)
	if err != nil {
		return rejected(err.Error()), 0, nil
	}
	if q.body.GetNotBefore() != nil {
		if answer, again, err := c.wait(ctx, q); answer != nil || again > 0 || err != nil {
			return answer, again, err
		}
	}
	switch q.body.GetAction() {
	case pawlv1.Action_ACTION_PLAN:
		return c.plan(ctx, q, members)
	case pawlv1.Action_ACTION_RESUME:
		return c.resume(ctx, q)
	default:
		return c.admit(ctx, q, members)
	}
}

// read decodes the request; what cannot be decoded is kept on pawl.dead.
func (c *Clerk) read(ctx context.Context, q *request) error {
	err := bus.DecodeRequest(q.message.Headers(), q.message.Data(), q.body)
	switch {
	case err != nil:
	case bus.ReadOut(q.header):
		err = errors.New("not a request: somebody had NATS read it out of a stream onto this subject")
	case len(q.body.ProtoReflect().GetUnknown()) > 0: // stray text can be protobuf, too
		err = errors.New("not a Request: it has protobuf fields that this version does not know")
	case q.body.GetNotBefore() != nil && q.body.GetNotBefore().CheckValid() != nil:
		err = errors.New("not a valid Request: not_before: must be a time from the year 1 to 9999")
	case q.emergency && q.credential == bus.Several && q.body.GetSelection() == nil:
		err = errors.New("selection: an emergency of several must name credentials, clusters or environments, or all")
	case q.body.GetSelection() != nil && (!q.emergency || q.credential != bus.Several):
		err = fmt.Errorf("selection: publish an emergency of several on %s", bus.EmergencySubject(bus.Several))
	case q.body.GetSelection() != nil && q.body.GetAction() != pawlv1.Action_ACTION_UNSPECIFIED && q.body.GetAction() != pawlv1.Action_ACTION_CONTAIN:
		err = fmt.Errorf("%s is of one credential: leave out the selection, and publish it on %s", actionName(q.body.GetAction()), bus.EmergencySubject("CREDENTIAL"))
	case q.credential != bus.Several && !bus.ValidToken(q.credential), q.credential == bus.Several && !q.emergency:
		err = errors.New("the credential in the subject must match [a-z0-9-]{1,64}")
	case q.emergency && q.body.GetAction() != pawlv1.Action_ACTION_UNSPECIFIED && !isEmergency[q.body.GetAction()]:
		err = fmt.Errorf("%s is no emergency: publish it on %s", actionName(q.body.GetAction()), bus.RequestSubject(q.credential))
	case q.emergency && (q.body.GetNotBefore() != nil || len(q.body.GetWith()) > 0):
		err = errors.New("an emergency is of one credential, and at once: leave out not_before and with")
	case q.body.GetAction() == pawlv1.Action_ACTION_CANCEL && (q.body.GetNotBefore() != nil || len(q.body.GetWith()) > 0):
		err = errors.New("cancel is of one rotation or request, and at once: leave out not_before and with")
	case q.body.GetAction() != pawlv1.Action_ACTION_CANCEL && q.body.GetCancels() != "":
		err = errors.New("cancels: only the action cancel has it")
	case !q.emergency && q.body.GetGlassBroken():
		err = errors.New("glass_broken: an emergency follows it, no rotation")
	case q.emergency && q.body.GetAction() == pawlv1.Action_ACTION_UNSPECIFIED:
		q.body.Action = pawlv1.Action_ACTION_CONTAIN
	case !q.emergency && isEmergency[q.body.GetAction()]:
		err = fmt.Errorf("%s is an emergency: publish it on %s, if you may", actionName(q.body.GetAction()), bus.EmergencySubject(q.credential))
	case q.body.GetAction() == pawlv1.Action_ACTION_UNSPECIFIED:
		q.body.Action = pawlv1.Action_ACTION_ROTATE
	}
	if err == nil {
		return q.mayAsk()
	}
	q.body.Action = pawlv1.Action_ACTION_UNSPECIFIED // it becomes a metric's label
	if c.limits.spent(q.user) {
		return err
	}
	dead := &pawlv1.Note{Kind: "undecodable", Text: err.Error(), Credential: q.credential}
	if stored := c.d.Bus.Publish(ctx, bus.DeadSubject(saga.Scheduler), dead, telemetry.Inject(ctx)); stored != nil {
		c.d.Log.Warn("dead request not stored", "request", q.id, "error", stored)
	}
	return err
}

// mayAsk refuses what only the operator may ask for.
func (q *request) mayAsk() error {
	what := ""
	switch action := q.body.GetAction(); {
	case q.user == bus.Operator:
		return nil
	case action != pawlv1.Action_ACTION_ROTATE && action != pawlv1.Action_ACTION_PLAN:
		what = actionName(action)
	case q.body.GetNotBefore() != nil:
		what = "not_before"
	default:
		return nil
	}
	return fmt.Errorf("%s is the operator's: %s.nk may ask for rotate and plan, and at once. Ask with operator.nk, as `pawl` does", what, q.user)
}

// admit starts a rotation, of all the members or of none, unless something
// stands in the way of one.
func (c *Clerk) admit(ctx context.Context, q *request, members []*member) (*pawlv1.Answer, time.Duration, error) {
	begun, err := c.begun(ctx, q) // and only the acknowledgement was lost
	if err != nil || begun != nil {
		return begun, 0, err
	}
	answer, again, err := c.consider(ctx, q, members)
	if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_REJECTED || err != nil {
		return answer, again, err
	}
	// Who was asleep meanwhile may see what another replica, which was given the
	// request then, has begun: what is in the way is the rotation itself.
	if begun, err = c.begun(ctx, q); err != nil || begun != nil {
		return begun, 0, err
	}
	return answer, again, nil
}

// begun is the answer where the request's rotation has begun; nil: it has not.
func (c *Clerk) begun(ctx context.Context, q *request) (*pawlv1.Answer, error) {
	mine, err := c.d.Bus.ReadRotation(ctx, q.credential, q.rotation)
	if err != nil || len(mine.Records) == 0 {
		return nil, err
	}
	return accepted(q.rotation), nil
}

// consider begins the rotation, or finds what is in the way.
func (c *Clerk) consider(ctx context.Context, q *request, members []*member) (*pawlv1.Answer, time.Duration, error) {
	for _, m := range members {
		refusal, err := c.look(ctx, q, m)
		if err != nil || refusal != nil {
			return refusal, 0, err
		}
	}
	_, reasons, missing := c.preflight(ctx, q.body.GetAction(), members)
	if missing != nil && c.d.Clock.Since(q.at) < patience {
		return nil, 500 * time.Millisecond, missing
	}
	if reasons != "" {
		return rejected(reasons), 0, nil
	}
	err := c.begin(ctx, q, members)
	if errors.Is(err, bus.ErrConflict) {
		return nil, 10 * time.Millisecond, nil // look again: most likely another request was first
	}
	if err != nil {
		return nil, 0, err
	}
	return accepted(q.rotation), 0, nil
}

// begin appends requested to each member's log: the events from which their
// parts of the trace hang, all below one span.
func (c *Clerk) begin(ctx context.Context, q *request, members []*member) error {
	ctx = trace.ContextWithRemoteSpanContext(ctx, telemetry.Extract(q.header))
	if len(members) > 1 {
		var span trace.Span
		ctx, span = c.d.Tracer.Start(ctx, "group requested", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
			attribute.StringSlice("rotation.group", names(members)), attribute.String("rotation.id", q.rotation)))
		defer span.End()
	}
	var parts []bus.Part
	for _, m := range members {
		b := m.begin
		ctx, span := c.d.Tracer.Start(ctx, string(saga.Requested), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
			attribute.String("rotation.credential", m.Name), attribute.String("rotation.id", q.rotation),
			attribute.String("rotation.flow", b.GetFlow()), attribute.String("rotation.request", b.GetRequest()),
			attribute.String("rotation.reason", b.GetReason()), attribute.String("rotation.requested_by", b.GetRequestedBy())))
		defer span.End()
		event := &pawlv1.Event{Attempt: uint32(q.delivered), Warnings: c.unproven(ctx, q, m), Detail: &pawlv1.Event_Requested{Requested: b}}
		header := telemetry.Inject(ctx)
		if q.emergency {
			bus.MarkUrgent(header)
		}
		parts = append(parts, bus.Part{Credential: m.Name, Body: event, Header: header, LastSeq: m.newest.LastSeq()})
	}
	fault.Point(q.credential, beginPoint+".before")
	if err := c.d.Bus.AppendAll(ctx, q.rotation, saga.Requested, parts); err != nil {
		return err
	}
	fault.Point(q.credential, beginPoint+".after")
	for _, m := range members {
		c.d.Log.InfoContext(ctx, "requested", "credential", m.Name, "rotation", q.rotation, "flow", m.begin.GetFlow(), "reason", m.begin.GetReason())
	}
	return nil
}

// prepare builds the requested event from the newest rotation, or the refusal. One
// that is held after a restore ends where an adoption begins.
func prepare(q *request, known *inventory.Credential, newest rotation.Rotation, held bool, at *clock.Clock) (begin *pawlv1.Requested, refusal *pawlv1.Answer) {
	begin = newRequested(q, known)
	adopting := q.body.GetAction() == pawlv1.Action_ACTION_ADOPT
	if adopting {
		begin.Flow = saga.Newest(saga.Adopt)
	}
	if newest.Empty() {
		return first(begin, known)
	}
	if newest.Open() && !(held && adopting) {
		refusal := rejected(fmt.Sprintf("rotation %s of %s is still running: it is at %q since %s", newest.Rotation, known.Name, newest.Next().Name, newest.Last.At.Format(time.RFC3339)))
		refusal.Rotation = newest.Rotation
		return nil, refusal
	}
	now := follow(begin, newest)
	switch {
	case newest.Flow.Locks && !held:
		return nil, rejected(locked(newest))
	case now.Rotation == "" && !(held && adopting):
		return first(begin, known)
	case adopting:
	case q.body.GetAction() == pawlv1.Action_ACTION_ROLLBACK:
		if refusal := rollbackOf(begin, newest, at); refusal != "" {
			return nil, rejected(refusal)
		}
	}
	return begin, nil
}

// first is prepare for a credential that Pawl has never had: nothing begins but its
// adoption. Who looks inside its database must be named then: what was adopted before
// goes on without.
func first(begin *pawlv1.Requested, known *inventory.Credential) (*pawlv1.Requested, *pawlv1.Answer) {
	unobserved := known.Unobserved()
	switch adopting := begin.GetAction() == pawlv1.Action_ACTION_ADOPT; {
	case adopting && unobserved == "":
		return begin, nil
	case adopting:
		return nil, rejected(unobserved)
	case unobserved != "":
		unobserved = "; before that, " + unobserved
	}
	return nil, rejected(fmt.Sprintf("%s is not adopted: run `pawl adopt %s` first, so that Pawl knows the present password%s", known.Name, known.Name, unobserved))
}

// newRequested begins with what the request and the configuration say.
func newRequested(q *request, known *inventory.Credential) *pawlv1.Requested {
	return &pawlv1.Requested{
		Action: q.body.GetAction(), Request: q.id, Reason: q.body.GetReason(), RequestedBy: q.body.GetRequestedBy(), AuthenticatedAs: q.user, Role: known.Role,
		Drain: durationpb.New(known.Drain), DrainDeadline: durationpb.New(known.DrainDeadline), Keep: durationpb.New(known.Keep),
		Generation: 1, Flow: saga.Newest(known.Strategy), Group: q.group,
	}
}

// follow makes begin the successor of the newest rotation, which ends with it if it is
// open.
func follow(begin *pawlv1.Requested, newest rotation.Rotation) rotation.Current {
	now := newest.Current()
	begin.Basis, begin.BasisUser, begin.BasisGeneration = now.Rotation, now.User, now.Generation
	begin.Generation = newest.Fence() + 1
	if newest.Open() {
		begin.Supersedes = newest.Rotation
	}
	return now
}

// stolen finds reasons by which what a rotation replaced must not come back.
var stolen = regexp.MustCompile(`(?i)compromis|leak|stole|steal|theft|breach|expos|disclos|intru`)

// rollbackOf turns begin into the rollback of the newest rotation.
func rollbackOf(begin *pawlv1.Requested, newest rotation.Rotation, now *clock.Clock) (refusal string) {
	before := newest.Requested()
	ended, _ := newest.Ended()
	_, erased := newest.Has(saga.Erased)
	const margin = 2 * time.Second // the db-rotator may be about to erase, by a clock that differs a little
	switch {
	case ended.Event != saga.Completed || before.GetAction() != pawlv1.Action_ACTION_ROTATE:
		return fmt.Sprintf("nothing to roll back: the newest rotation, %s, was no completed rotation (%s, %s)", newest.Rotation, newest.Flow.Name, ended.Event)
	case erased || before.GetKeep().AsDuration()-now.Since(ended.At) < margin:
		return fmt.Sprintf("the predecessor is no longer kept: `keep` of %v ended at %s", before.GetKeep().AsDuration(), ended.At.Add(before.GetKeep().AsDuration()).Format(time.RFC3339))
	case stolen.MatchString(before.GetReason()):
		return fmt.Sprintf("rotation %s was asked for because %q: its predecessor may be stolen. Fix: `pawl rotate` again; or put a password of your own in the sink and the database, and `pawl adopt`", newest.Rotation, before.GetReason())
	case before.GetBasis() == "":
		return fmt.Sprintf("rotation %s had no predecessor", newest.Rotation)
	}
	begin.Restores, begin.RestoresUser = before.GetBasis(), before.GetBasisUser()
	begin.Flow = saga.Newest(saga.RollbackAlternating)
	if newest.Flow.Logins == saga.One {
		begin.Flow = saga.Newest(saga.RollbackInPlace)
	}
	return ""
}

func (c *Clerk) knownNames() string {
	var names []string
	for name := range c.d.Inventory.Credentials {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "no credentials"
	}
	return strings.Join(sorted(names), ", ")
}
