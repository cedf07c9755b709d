package admission

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func rejected(reason string) *pawlv1.Answer {
	return &pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_REJECTED, Reason: reason}
}

func accepted(rotation string) *pawlv1.Answer {
	return &pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_ACCEPTED, Rotation: rotation}
}

// resume wakes the owner of the step that is due.
func (c *Clerk) resume(ctx context.Context, q *request) (*pawlv1.Answer, time.Duration, error) {
	newest, err := rotation.Of(c.d.Bus.ReadNewest(ctx, q.credential))
	switch {
	case err != nil:
		return nil, 0, err
	case newest.Empty():
		return rejected("nothing to resume: " + q.credential + " never had a rotation"), 0, nil
	case !newest.Open():
		return rejected("nothing to resume: rotation " + newest.Rotation + " has ended"), 0, nil
	}
	step := newest.Next()
	wake := &pawlv1.Wake{Rotation: newest.Rotation, Sequence: newest.LastSeq(), Cause: "resumed"}
	header := telemetry.Inject(ctx)
	newest.PassUrgency(header)
	if err := c.d.Bus.Publish(ctx, bus.WakeSubject(step.Owner, q.credential), wake, header); err != nil {
		return nil, 0, err
	}
	c.d.Note(ctx, &pawlv1.Note{Kind: "resumed", Credential: q.credential, Rotation: newest.Rotation, Step: step.Name, Actor: q.body.GetRequestedBy(), Text: q.body.GetReason()})
	answer := accepted(newest.Rotation)
	answer.Reason = fmt.Sprintf("%s tries %q now", step.Owner, step.Name)
	return answer, 0, nil
}

// answer stores the answer and sends it to whoever waits for it.
func (c *Clerk) answer(ctx context.Context, q *request, a *pawlv1.Answer) error {
	refused := a.GetOutcome() == pawlv1.Outcome_OUTCOME_REJECTED
	_, begin := begins[q.body.GetAction()]
	begun := begin && a.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED
	if !begun && !c.limits.keeps(q.user, cmp.Or(a.GetReason(), actionName(q.body.GetAction()))) {
		c.count(q, a)
		return c.d.Bus.Send(bus.RefusedSubject(q.id), a, nats.Header{digestHeader: {digest(q.message.Subject(), q.message.Headers(), q.message.Data())}})
	}
	if refused {
		if err := c.refuse(ctx, q, a); err != nil {
			return err
		}
	}
	header := telemetry.Inject(ctx)
	header.Set(digestHeader, digest(q.message.Subject(), q.message.Headers(), q.message.Data()))
	if err := c.d.Bus.Publish(ctx, bus.AnswerSubject(q.id), a, header); err != nil {
		return err
	}
	action, outcome := c.count(q, a)
	if refused || begun {
		return nil // requested is the record, or the refusal
	}
	c.d.Note(ctx, &pawlv1.Note{Kind: "request " + outcome, Credential: q.credential, Rotation: a.GetRotation(), Actor: q.body.GetRequestedBy(),
		Text: strings.TrimSpace(action + " " + q.id + " " + a.GetReason())})
	return nil
}

// count counts the answer, and returns what its metric says.
func (c *Clerk) count(q *request, a *pawlv1.Answer) (action, outcome string) {
	action, outcome = actionName(q.body.GetAction()), strings.ToLower(strings.TrimPrefix(a.GetOutcome().String(), "OUTCOME_"))
	c.d.Metrics.Answered(action, outcome)
	return action, outcome
}

// refuse notes a refusal before it is told: an answer is kept for a month, the
// note for ever. Noted twice, it is one.
func (c *Clerk) refuse(ctx context.Context, q *request, a *pawlv1.Answer) error {
	kind := "request"
	if q.emergency {
		kind = "emergency"
	}
	header := telemetry.Inject(trace.ContextWithRemoteSpanContext(ctx, telemetry.Extract(q.message.Headers())))
	header.Set(jetstream.MsgIDHeader, "refused-"+kind+"-"+q.rotation)
	text := strings.TrimSpace(kind + " " + q.id + " " + actionName(q.body.GetAction()) + ": " + a.GetReason())
	if why := q.body.GetReason(); why != "" {
		text += fmt.Sprintf(" (asked because: %s)", why)
	}
	return c.d.Bus.Publish(ctx, bus.NoteSubject(saga.Scheduler), &pawlv1.Note{Kind: "refused", Credential: q.credential, Rotation: a.GetRotation(),
		Actor: q.body.GetRequestedBy(), At: timestamppb.Now(), Text: text}, header)
}

func actionName(a pawlv1.Action) string {
	return strings.ToLower(strings.TrimPrefix(a.String(), "ACTION_"))
}

// isEmergency are the actions that only pawl.emergency.CREDENTIAL takes.
var isEmergency = map[pawlv1.Action]bool{pawlv1.Action_ACTION_CONTAIN: true, pawlv1.Action_ACTION_LOCK: true, pawlv1.Action_ACTION_UNLOCK: true}

// begins are the actions that start a rotation.
var begins = map[pawlv1.Action]struct{}{pawlv1.Action_ACTION_ROTATE: {}, pawlv1.Action_ACTION_ADOPT: {}, pawlv1.Action_ACTION_ROLLBACK: {},
	pawlv1.Action_ACTION_CONTAIN: {}, pawlv1.Action_ACTION_LOCK: {}, pawlv1.Action_ACTION_UNLOCK: {}}

// requestID is the requester's own message id, or else the place of the request
// in its stream, which the publisher's acknowledgement told it.
func requestID(m jetstream.Msg, meta *jetstream.MsgMetadata) string {
	if id := m.Headers().Get(jetstream.MsgIDHeader); bus.ValidToken(id) {
		return id
	}
	id := strconv.FormatUint(meta.Sequence.Stream, 10)
	if user, _, _ := bus.ParseAsked(m.Subject()); user != bus.Operator { // the streams count apart
		id = user + "-" + id
	}
	return id
}

// RotationID derives from the request alone, so that the same request cannot
// start two rotations. It sorts by time.
func RotationID(at time.Time, seq uint64) string {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, seq), uint64(at.UnixNano())))
	return at.UTC().Format("20060102-150405-") + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:5])
}

// replies remembers reply subjects, which JetStream does not store, and
// forwards the answer. Each replica sees all answers, and sends those for
// which it holds a reply subject. A request with an id of its own may come
// again, and is one request: each time it comes it gets the same answer.
type replies struct {
	mu      sync.Mutex
	waiting map[string][]string  // digest of the request to reply subjects, oldest first
	order   map[string][]waiter  // by user, oldest first: those that wait, and some that do no longer
	given   map[string]*nats.Msg // digest of a request with an id to its answer
}

// waiter is a reply subject, and until when it is remembered.
type waiter struct {
	key, reply string
	until      time.Time
}

// mostWait is how many reply subjects are remembered of one user. Of a flood that the
// stream does not take, nobody else tells.
const mostWait = 10_000

const (
	digestHeader = "Pawl-Request-Digest"
	identified   = "id-" // begins the digest of a request with an id
)

// remembered is how long the server remembers a message id.
const remembered = 2 * time.Minute

func digest(subject string, header nats.Header, body []byte) string {
	sum := sha256.New()
	id := header.Get(jetstream.MsgIDHeader)
	fmt.Fprintf(sum, "%s\n%s\n", subject, id)
	sum.Write(body)
	key := hex.EncodeToString(sum.Sum(nil))
	if id != "" {
		key = identified + key
	}
	return key
}

func (r *replies) listen(b *bus.Bus) (stop func(), err error) {
	send := func(reply string, answer *nats.Msg) {
		_ = b.RespondTo(reply, answer) // the stored answer remains
	}
	asked := func(m *nats.Msg) {
		if m.Reply == "" {
			return
		}
		key := digest(m.Subject, m.Header, m.Data)
		user, _, _ := bus.ParseAsked(m.Subject)
		if answer := r.wait(user, key, m.Reply); answer != nil {
			send(m.Reply, answer)
		}
	}
	answered := func(m *nats.Msg) {
		for _, reply := range r.take(m.Header.Get(digestHeader), m) {
			send(reply, m)
		}
	}
	stopRequests, err := b.Listen(saga.Scheduler, map[string]nats.MsgHandler{bus.RequestSubject("*"): asked, bus.AskedSubject("*", "*"): asked, bus.EmergencySubject("*"): asked})
	if err != nil {
		return nil, err
	}
	stopAnswers, err := b.Listen("", map[string]nats.MsgHandler{bus.AnswerSubject("*"): answered, bus.RefusedSubject("*"): answered})
	if err != nil {
		stopRequests()
		return nil, err
	}
	return func() { stopRequests(); stopAnswers() }, nil
}

// wait adds a reply subject, unless the answer is there already. It forgets those of
// the user's that waited too long, and the oldest of too many.
func (r *replies) wait(user, key, reply string) (answer *nats.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if answer = r.given[key]; answer != nil {
		return answer
	}
	now, order := time.Now(), r.order[user]
	for len(order) > 0 && (len(order) >= mostWait || now.After(order[0].until)) {
		r.forget(order[0])
		order = order[1:]
	}
	r.waiting[key] = append(r.waiting[key], reply)
	r.order[user] = append(order, waiter{key, reply, now.Add(remembered)})
	return nil
}

// take removes and returns the reply subjects that an answer is for: all of a
// request with an id, else the oldest, since two alike are two requests.
func (r *replies) take(key string, answer *nats.Msg) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(1, len(r.waiting[key]))
	if strings.HasPrefix(key, identified) {
		n = len(r.waiting[key])
		r.given[key] = answer
		time.AfterFunc(remembered, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.given[key] == answer {
				delete(r.given, key)
			}
		})
	}
	taken := slices.Clone(r.waiting[key][:n])
	r.keep(key, r.waiting[key][n:])
	return taken
}

// forget removes a reply subject, if it still waits.
func (r *replies) forget(w waiter) {
	if i := slices.Index(r.waiting[w.key], w.reply); i >= 0 {
		r.keep(w.key, slices.Delete(r.waiting[w.key], i, i+1))
	}
}

func (r *replies) keep(key string, waiting []string) {
	if r.waiting[key] = waiting; len(waiting) == 0 {
		delete(r.waiting, key)
	}
}

func sorted(names []string) []string { slices.Sort(names); return names }
