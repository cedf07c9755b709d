package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// patience is how long one rotation may take.
const patience = time.Minute

// requester asks for rotations as any client does, by an event, and hears how
// they end. It reads no logs meanwhile, and follows all credentials at once: its
// own work is on the same cores as what it measures.
type requester struct {
	*site.Client
	site    *site.Site
	streams streams
	heard   map[string]chan news // by credential, of which one rotation runs at a time
}

// news is how a rotation ended, or why there is none.
type news struct {
	rotation string
	event    saga.Event
	at       time.Time
	refusal  string
}

// rotation is one that was done.
type rotation struct {
	credential, id string
	sent           time.Time
	took           time.Duration // from sending the request to hearing of completed
	contained      time.Duration // to hearing that nobody is logged in, or can be
	recovered      time.Duration // to hearing that every consumer is back
}

// join connects a client.
func (p *part) join(s *site.Site) *requester {
	q := &requester{Client: must(s.Operator()), site: s, streams: streams{must(s.Connect(bus.Provisioner))}, heard: map[string]chan news{}}
	p.later(func() error { q.NATS.Close(); q.streams.NATS.Close(); return nil })
	for credential := range s.Inventory.Credentials {
		q.heard[credential] = make(chan news, 16)
	}
	// A consumer, since a subscription would hear of events before they are
	// stored; only the provisioner may make one.
	ends := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy}
	for _, e := range []saga.Event{saga.Contained, saga.Verified, saga.Completed, saga.RolledBack, saga.Erased} {
		ends.FilterSubjects = append(ends.FilterSubjects, bus.LogSubject("*", "*", e))
	}
	must(must(q.streams.JetStream.OrderedConsumer(p, bus.StreamLog, ends)).Consume(q.hear))
	must(q.NATS.Subscribe(bus.AnswerSubject("*"), q.hearAnswer))
	check(q.NATS.Flush())
	return q
}

func (q *requester) hear(m jetstream.Msg) {
	at := time.Now()
	if credential, rotation, event, err := bus.ParseLogSubject(m.Subject()); err == nil {
		q.heard[credential] <- news{rotation: rotation, event: event, at: at}
	}
}

func (q *requester) hearAnswer(m *nats.Msg) {
	answer := &pawlv1.Answer{}
	if err := bus.Decode(m.Header, m.Data, answer); err == nil && answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		q.heard[answer.GetCredential()] <- news{refusal: answer.GetReason()}
	}
}

// rotate asks for a rotation and returns when its predecessor is erased, which
// with `keep: 0s` follows at once: so that every rotation pays for all of its
// work before the next one begins.
func (q *requester) rotate(ctx context.Context, credential string) (rotation, error) {
	return q.do(ctx, credential, pawlv1.Action_ACTION_ROTATE, saga.Erased)
}

// adopt returns when the adoption is completed; nothing is erased after it.
func (q *requester) adopt(ctx context.Context, credential string) error {
	_, err := q.do(ctx, credential, pawlv1.Action_ACTION_ADOPT, saga.Completed)
	return err
}

func (q *requester) do(ctx context.Context, credential string, action pawlv1.Action, last saga.Event) (r rotation, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := protojson.Marshal(&pawlv1.Request{Action: action, Reason: "benchmark", RequestedBy: "bench"})
	if err != nil {
		return r, err
	}
	r = rotation{credential: credential, sent: time.Now()}
	subject := bus.RequestSubject(credential)
	if action == pawlv1.Action_ACTION_CONTAIN {
		subject = bus.EmergencySubject(credential)
	}
	if _, err := q.JetStream.Publish(ctx, subject, body); err != nil {
		return r, fmt.Errorf("request %s: %w", credential, err)
	}
	for {
		select {
		case n := <-q.heard[credential]:
			switch {
			case n.refusal != "":
				return r, fmt.Errorf("request %s: %s", credential, n.refusal)
			case n.event == saga.RolledBack:
				return r, fmt.Errorf("rotation %s of %s was rolled back: %s", n.rotation, credential, q.why(ctx, credential, n.rotation))
			case n.event == saga.Contained:
				r.contained = n.at.Sub(r.sent)
			case n.event == saga.Verified:
				r.recovered = n.at.Sub(r.sent)
			case n.event == saga.Completed:
				r.id, r.took = n.rotation, n.at.Sub(r.sent)
			}
			if n.event == last {
				return r, nil
			}
		case <-ctx.Done():
			return r, fmt.Errorf("%s of %s: no end within %v: %w", strings.ToLower(action.String()), credential, patience, ctx.Err())
		}
	}
}

// why returns the reason of a failed rotation.
func (q *requester) why(ctx context.Context, credential, rotation string) string {
	log, err := q.ReadRotation(ctx, credential, rotation)
	if err != nil {
		return err.Error()
	}
	for _, r := range log.Records {
		if f := r.Body.GetFailure(); f != nil {
			return f.GetStep() + ": " + f.GetReason()
		}
	}
	return "no failure in its log"
}

// each does work for every credential, so many at once.
func each(ctx context.Context, credentials []string, atOnce int, work func(ctx context.Context, credential string) error) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(atOnce)
	for _, credential := range credentials {
		all.Go(func() error { return work(ctx, credential) })
	}
	return all.Wait()
}
