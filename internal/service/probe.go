package service

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// How a service probes the bus and the other services.
const (
	probeEvery   = 5 * time.Second
	storedWithin = 3 * time.Second
	answerWithin = time.Second      // then the question is put once again: another replica may answer
	probeIsOld   = 15 * time.Second // a probe that ended before that says nothing
	missedAt     = 2                // probes in a row that a service did not answer: it is missing
)

// probe finds out, again and again, whether the service can work: whether the bus
// stores what it publishes, whether it is heard, and whether the other services
// answer a question.
type probe struct {
	Dependencies
	name    string
	heard   chan string // own signs of life, as they pass
	answers chan answer
	ended   atomic.Pointer[time.Time] // when the last probe did
	missed  map[string]int            // by service: probes in a row
	unheard int                       // probes in a row
}

type answer struct {
	round, service string
	absent         bool // the server knows nobody to ask
}

func newProbe(d Dependencies, name string) *probe {
	return &probe{Dependencies: d, name: name, heard: make(chan string, 64), answers: make(chan answer, 64), missed: map[string]int{}}
}

// ready tells what keeps the service from working, as far as the last probe knows.
// A nil probe is that of a service which is not bound to its consumers yet.
func (p *probe) ready() error {
	if p == nil {
		return errors.New("starting")
	}
	if !p.Bus.NATS.IsConnected() {
		return errors.New("bus: not connected to NATS")
	}
	switch ended := p.ended.Load(); {
	case ended == nil:
		return errors.New("starting: no probe of the bus has ended yet")
	case time.Since(*ended) > probeIsOld:
		return errors.Join(fmt.Errorf("probe: the last probe of the bus ended %v ago: the bus or this process hangs", time.Since(*ended).Round(time.Second)), p.Conditions.Err())
	}
	return p.Conditions.Err()
}

// run probes until ctx ends.
func (p *probe) run(ctx context.Context) error {
	stop, err := p.listen()
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		var both sync.WaitGroup
		both.Go(func() { p.live(ctx) })
		both.Go(func() { p.ask(ctx) })
		both.Wait()
		p.Bus.ReviewStreams(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now := time.Now()
		p.ended.Store(&now)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *probe) listen() (stop func(), err error) {
	return p.Bus.Listen("", map[string]nats.MsgHandler{bus.LiveSubject(p.name): p.hearLive, bus.HealthAnswerSubject(p.name, "*", "*"): p.hearAnswer})
}

func (p *probe) hearLive(m *nats.Msg) {
	sign := &pawlv1.Note{}
	if bus.Decode(m.Header, m.Data, sign) != nil {
		return // another version's
	}
	select {
	case p.heard <- sign.GetText():
	default: // nobody waits
	}
}

func (p *probe) hearAnswer(m *nats.Msg) {
	parts := strings.Split(m.Subject, ".") // pawl.health.ASKING.ASKED.ROUND
	select {
	case p.answers <- answer{round: parts[4], service: parts[3], absent: m.Header.Get("Status") == "503"}:
	default: // nobody waits
	}
}

// live stores a sign of life, hears it pass and reads the stream again.
func (p *probe) live(ctx context.Context) {
	if !p.Bus.NATS.IsConnected() {
		p.update(true, condition.Condition{Name: "bus", Failing: true, Text: "not connected to NATS"})
		return
	}
	id := rand.Text()
	within, cancel := context.WithTimeout(ctx, storedWithin)
	defer cancel()
	err := p.Bus.Publish(within, bus.LiveSubject(p.name), &pawlv1.Note{Kind: "live", Text: id, At: timestamppb.Now()}, nil)
	heard := err == nil && p.hears(ctx, id)
	if err == nil {
		_, err = newestAt(ctx, p.Bus, bus.StreamLive, bus.LiveSubject(p.name))
	}
	if ctx.Err() != nil {
		return
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if errors.Is(err, bus.ErrNotPermitted) {
		text += ". Does the server know this version's permissions? (`pawl nats-config` writes them)"
	}
	p.update(err != nil, condition.Condition{Name: "bus", Failing: true, Text: text})
	if err == nil {
		p.hearing(heard)
	}
}

func (p *probe) hears(ctx context.Context, id string) bool {
	late := time.After(answerWithin)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-late:
			return false
		case text := <-p.heard:
			if text == id {
				return true
			}
		}
	}
}

// hearing takes whether the sign of life was heard that was stored. As with a
// consumer, the connection is made anew if not, and then the service ends.
func (p *probe) hearing(heard bool) {
	if p.unheard++; heard {
		p.unheard = 0
	}
	p.update(p.unheard >= rebindAt, condition.Condition{Name: "deaf", Failing: true,
		Text: "NATS stores what this service publishes, but the service does not hear it. It connects again; if that does not help, it ends to be restarted"})
	if p.unheard < rebindAt || p.Bus.Unheard() {
		return
	}
	switch p.unheard {
	case rebindAt, reconnectAt:
		p.Log.Warn("the service does not hear its own sign of life; it connects again")
		p.Bus.Reconnect()
	case endAt:
		p.end(errors.New("NATS stores what the service publishes, but the service does not hear it, also on a new connection"))
	}
}

// ask asks each other service a question.
func (p *probe) ask(ctx context.Context) {
	silent := map[string]bool{}
	for _, other := range saga.Services {
		if other != p.name {
			silent[other] = true
		}
	}
	subjects := make([]string, 0, len(silent))
	for other := range silent {
		subjects = append(subjects, bus.HealthSubject(other))
	}
	round := rand.Text()
	err := p.Bus.Permitted(ctx, func(ctx context.Context) error {
		for range 2 {
			if err := p.askOnce(ctx, round, silent); err != nil || len(silent) == 0 {
				return err
			}
		}
		return nil
	}, subjects...)
	if ctx.Err() != nil || !p.Bus.NATS.IsConnected() {
		return // the bus is at fault
	}
	p.update(errors.Is(err, bus.ErrNotPermitted), condition.Condition{Name: "bus", Object: bus.HealthSubject("*"), Failing: true,
		Text: fmt.Sprintf("%v. Does the server know this version's permissions? (`pawl nats-config` writes them)", err)})
	if err != nil {
		return
	}
	for _, other := range saga.Services {
		if other == p.name {
			continue
		}
		if p.missed[other]++; !silent[other] {
			p.missed[other] = 0
		}
		c := condition.Condition{Name: "service", Object: other}
		if p.missed[other] >= missedAt {
			c, _ = missing(ctx, p.Bus, other) // its text does without what cannot be read
		}
		p.update(c.Text != "", c)
	}
}

// askOnce removes from silent those who answer.
func (p *probe) askOnce(ctx context.Context, round string, silent map[string]bool) error {
	for other := range silent {
		if err := p.Bus.NATS.PublishRequest(bus.HealthSubject(other), bus.HealthAnswerSubject(p.name, other, round), nil); err != nil {
			return err
		}
	}
	late, asked := time.After(answerWithin), len(silent)
	for asked > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return nil
		case a := <-p.answers:
			if a.round != round || !silent[a.service] {
				continue
			}
			asked--
			if !a.absent {
				delete(silent, a.service)
			}
		}
	}
	return nil
}
