package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// played are the services but the scheduler: every check passes, and every step
// is done once its rotation has been held for a while.
type played struct {
	ctx    context.Context
	stop   context.CancelFunc
	as     map[string]*bus.Bus // by service
	reader *bus.Bus
	of     func(credential string) (cluster string)
	hold   atomic.Int64
	turned chan turned
	failed chan error

	mu              sync.Mutex
	open            map[string]turned
	begun           int
	atOnce, cluster int // most
}

// turned is a rotation that a schedule has begun.
type turned struct {
	credential   string
	begun, ended time.Time
}

func (p *part) play(t *town) *played {
	all := &played{as: map[string]*bus.Bus{}, open: map[string]turned{}, turned: make(chan turned, 100*t.n), failed: make(chan error, 1),
		of: func(credential string) string { return t.inventory.Credentials[credential].Cluster.Name }}
	all.ctx, all.stop = context.WithCancel(p)
	p.later(func() error { all.stop(); return nil })
	connect := func(user string) *bus.Bus {
		b := must(t.connect(user))
		p.later(func() error { all.stop(); b.NATS.Close(); return nil })
		return b
	}
	for _, name := range saga.Services {
		all.as[name] = connect(name)
	}
	for _, name := range service.Checked {
		b := all.as[name]
		must(b.NATS.Subscribe(bus.CheckSubject(name, "*"), func(m *nats.Msg) { all.fail(bus.Respond(m, &pawlv1.Findings{})) }))
		check(b.NATS.Flush())
	}
	all.reader = connect(bus.Provisioner)
	consumer := must(all.reader.JetStream.OrderedConsumer(p, bus.StreamLog, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy}))
	must(consumer.Consume(all.hear))
	return all
}

func (p *played) fail(err error) {
	if err == nil || p.ctx.Err() != nil {
		return
	}
	select {
	case p.failed <- err:
	default: // one is enough
	}
}

func (p *played) hear(m jetstream.Msg) {
	name, rotation, event, err := bus.ParseLogSubject(m.Subject())
	if err != nil || strings.HasPrefix(rotation, adoption) {
		p.fail(err)
		return
	}
	meta, err := m.Metadata()
	if err != nil {
		p.fail(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event {
	case saga.Requested:
		p.begun++
		p.open[name] = turned{credential: name, begun: meta.Timestamp}
		in := 0
		for other := range p.open {
			if p.of(other) == p.of(name) {
				in++
			}
		}
		p.atOnce, p.cluster = max(p.atOnce, len(p.open)), max(p.cluster, in)
		time.AfterFunc(time.Duration(p.hold.Load()), func() { p.fail(p.do(name, rotation)) })
	case saga.Completed:
		one := p.open[name]
		one.ended = meta.Timestamp
		p.turned <- one
		delete(p.open, name)
	}
}

// do appends what the services would, up to the scheduler's end.
func (p *played) do(name, rotation string) error {
	for p.ctx.Err() == nil {
		log, err := p.reader.ReadNewest(p.ctx, name)
		if err != nil {
			return err
		}
		state, err := log.Fold()
		if err != nil {
			return err
		}
		step := state.Next()
		if log.Rotation != rotation || step == nil || step.Owner == saga.Scheduler {
			return nil
		}
		if _, err := p.as[step.Owner].Append(p.ctx, name, rotation, step.Emits, eventOf(name, step), nil, log.LastSeq()); err != nil && !errors.Is(err, bus.ErrConflict) {
			return fmt.Errorf("%s of %s: %w", step.Emits, name, err)
		}
	}
	return nil
}

func eventOf(name string, step *saga.Step) *pawlv1.Event {
	if step.Emits == saga.Staged || step.Emits == saga.Adopted {
		return &pawlv1.Event{Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: name}}}
	}
	return &pawlv1.Event{}
}

const adoption = "adoption"

// adopt writes the logs of adoptions, all at once.
func (p *played) adopt(ctx context.Context, names []string) error {
	flow, _ := saga.FlowByName(saga.Adopt)
	owner, event := saga.Scheduler, saga.Requested
	body := func(name string) *pawlv1.Event {
		return &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ADOPT, Flow: saga.Adopt, Generation: 1, Role: name}}}
	}
	for i := 0; ; i++ {
		var parts []bus.Part
		for _, name := range names {
			seq, err := p.reader.NewestSeq(ctx, name)
			if err != nil {
				return err
			}
			parts = append(parts, bus.Part{Credential: name, Body: body(name), Header: nats.Header{}, LastSeq: seq})
		}
		if err := p.as[owner].AppendAll(ctx, adoption, event, parts); err != nil {
			return err
		}
		if i == len(flow.Forward) {
			return nil
		}
		step := &flow.Forward[i]
		owner, event, body = step.Owner, step.Emits, func(name string) *pawlv1.Event { return eventOf(name, step) }
	}
}

// forget begins to count anew.
func (p *played) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun, p.atOnce, p.cluster = 0, 0, 0
	clear(p.open)
}

// most returns how many have begun, and were under way at once, in all and in
// one cluster.
func (p *played) most() (begun, atOnce, inCluster int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun, p.atOnce, p.cluster
}
