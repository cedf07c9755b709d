package admission

import (
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

	"pawl.dev/internal/bus"
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
	log, err := c.d.Bus.ReadNewest(ctx, q.credential)
	if err != nil {
		return nil, 0, err
	}
	if len(log.Records) == 0 {
		return rejected("nothing to resume: " + q.credential + " never had a rotation"), 0, nil
	}
	state, err := log.Fold()
	if err != nil {
		return nil, 0, err
	}
	step := state.Next()
	if step == nil || !state.Open() {
		return rejected("nothing to resume: rotation " + log.Rotation + " has ended"), 0, nil
	}
	wake := &pawlv1.Wake{Rotation: log.Rotation, Sequence: log.LastSeq(), Cause: "resumed"}
	if err := c.d.Bus.Publish(ctx, bus.WakeSubject(step.Owner, q.credential), wake, telemetry.Inject(ctx)); err != nil {
		return nil, 0, err
	}
	c.d.Note(ctx, &pawlv1.Note{Kind: "resumed", Credential: q.credential, Rotation: log.Rotation, Step: step.Name, Actor: q.body.GetRequestedBy(), Text: q.body.GetReason()})
	answer := accepted(log.Rotation)
	answer.Reason = fmt.Sprintf("%s tries %q now", step.Owner, step.Name)
	return answer, 0, nil
}

// answer stores the answer and sends it to whoever waits for it.
func (c *Clerk) answer(ctx context.Context, q *request, a *pawlv1.Answer) error {
	outcome := strings.ToLower(strings.TrimPrefix(a.GetOutcome().String(), "OUTCOME_"))
	action := strings.ToLower(strings.TrimPrefix(q.body.GetAction().String(), "ACTION_"))
	header := telemetry.Inject(ctx)
	header.Set(digestHeader, digest(q.message.Subject(), q.message.Headers(), q.message.Data()))
	if err := c.d.Bus.Publish(ctx, bus.AnswerSubject(q.id), a, header); err != nil {
		return err
	}
	c.d.Metrics.Answered(action, outcome)
	if _, began := begins[q.body.GetAction()]; began && a.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED {
		return nil // requested is the record
	}
	c.d.Note(ctx, &pawlv1.Note{Kind: "request " + outcome, Credential: q.credential, Rotation: a.GetRotation(), Actor: q.body.GetRequestedBy(),
		Text: strings.TrimSpace(action + " " + q.id + " " + a.GetReason())})
	return nil
}

// begins are the actions that start a rotation.
var begins = map[pawlv1.Action]struct{}{pawlv1.Action_ACTION_ROTATE: {}, pawlv1.Action_ACTION_ADOPT: {}, pawlv1.Action_ACTION_ROLLBACK: {}}

// requestID is the requester's own message id, or else the place of the request
// in its stream, which the publisher's acknowledgement told it.
func requestID(m jetstream.Msg, meta *jetstream.MsgMetadata) string {
	if id := m.Headers().Get(jetstream.MsgIDHeader); bus.ValidToken(id) {
		return id
	}
	return strconv.FormatUint(meta.Sequence.Stream, 10)
}

// rotationID derives from the request alone, so that the same request cannot
// start two rotations. It sorts by time.
func rotationID(at time.Time, seq uint64) string {
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
	given   map[string]*nats.Msg // digest of a request with an id to its answer
}

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
		_ = b.NATS.PublishMsg(&nats.Msg{Subject: reply, Header: answer.Header, Data: answer.Data}) // the stored answer remains
	}
	asked, err := b.NATS.QueueSubscribe("pawl.request.*", saga.Scheduler, func(m *nats.Msg) {
		if m.Reply == "" {
			return
		}
		key := digest(m.Subject, m.Header, m.Data)
		if answer := r.wait(key, m.Reply); answer != nil {
			send(m.Reply, answer)
			return
		}
		time.AfterFunc(remembered, func() { r.forget(key, m.Reply) })
	})
	if err != nil {
		return nil, fmt.Errorf("requests: %w", err)
	}
	answered, err := b.NATS.Subscribe("pawl.answer.*", func(m *nats.Msg) {
		for _, reply := range r.take(m.Header.Get(digestHeader), m) {
			send(reply, m)
		}
	})
	if err != nil {
		_ = asked.Unsubscribe() // the connection is about to close
		return nil, fmt.Errorf("answers: %w", err)
	}
	return func() { _, _ = asked.Unsubscribe(), answered.Unsubscribe() }, nil
}

// wait adds a reply subject, unless the answer is there already.
func (r *replies) wait(key, reply string) (answer *nats.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if answer = r.given[key]; answer == nil {
		r.waiting[key] = append(r.waiting[key], reply)
	}
	return answer
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

// forget removes a reply subject that waits no longer.
func (r *replies) forget(key, reply string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.waiting[key], reply); i >= 0 {
		r.keep(key, slices.Delete(r.waiting[key], i, i+1))
	}
}

func (r *replies) keep(key string, waiting []string) {
	if r.waiting[key] = waiting; len(waiting) == 0 {
		delete(r.waiting, key)
	}
}

func sorted(names []string) []string { slices.Sort(names); return names }
