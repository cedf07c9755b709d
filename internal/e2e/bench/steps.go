package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// part is what one step, or one operation in it, took in all rotations looked at.
type part struct {
	name   string // the event that ends the step, or the operation
	ofStep bool   // false: an operation of the step before
	times  int
	waited time.Duration // from the event before to the start of the step
	took   time.Duration // a step's includes the append of its event
}

// breakdown is where the time of some rotations went, by their own events.
type breakdown struct {
	rotations int
	parts     []part
	heard     time.Duration // from storing completed to hearing of it
}

// newestRotations is how many rotations of a cell a breakdown reads.
const newestRotations = 200

func breakDown(ctx context.Context, q *requester, done []rotation) (breakdown, error) {
	b := breakdown{}
	for _, r := range done[max(0, len(done)-newestRotations):] {
		log, err := q.ReadRotation(ctx, r.credential, r.id)
		if err != nil {
			return b, err
		}
		completed := log.Find(saga.Completed)
		if completed == nil || log.Records[0].Event != saga.Requested {
			return b, fmt.Errorf("the log of rotation %s is not whole", r.id)
		}
		b.rotations++
		b.heard += r.sent.Add(r.took).Sub(completed.At)
		b.add(part{name: string(saga.Requested), ofStep: true, took: log.Records[0].At.Sub(r.sent)})
		for i, record := range log.Records[1:] {
			b.addStep(record, log.Records[i].At)
		}
	}
	return b, nil
}

func (b *breakdown) addStep(record bus.Record, before time.Time) {
	began := record.Body.GetStartedAt().AsTime()
	step := string(record.Event)
	b.add(part{name: step, ofStep: true, waited: began.Sub(before), took: record.At.Sub(began)})
	for _, op := range record.Body.GetOperations() {
		b.addAfter(step, part{name: op.GetName(), took: op.GetDuration().AsDuration()})
	}
}

func (b *breakdown) add(p part) {
	i := slices.IndexFunc(b.parts, func(have part) bool { return have.ofStep && have.name == p.name })
	if i < 0 {
		i = len(b.parts)
		b.parts = append(b.parts, part{name: p.name, ofStep: true})
	}
	b.parts[i].sum(p)
}

// addAfter adds an operation of a step, below those of it that are known.
func (b *breakdown) addAfter(step string, p part) {
	i := 1 + slices.IndexFunc(b.parts, func(have part) bool { return have.ofStep && have.name == step })
	for ; i < len(b.parts) && !b.parts[i].ofStep; i++ {
		if b.parts[i].name == p.name {
			break
		}
	}
	if i == len(b.parts) || b.parts[i].ofStep {
		b.parts = slices.Insert(b.parts, i, part{name: p.name})
	}
	b.parts[i].sum(p)
}

func (p *part) sum(more part) {
	p.times++
	p.waited += more.waited
	p.took += more.took
}

// find returns the same part of another breakdown; zero where it has none.
func (b breakdown) find(step, operation string) part {
	in := false
	for _, p := range b.parts {
		if p.ofStep {
			in = p.name == step
		}
		if in && (p.ofStep && operation == "" || !p.ofStep && p.name == operation) {
			return p
		}
	}
	return part{}
}

// mean is per rotation, in milliseconds.
func (b breakdown) mean(d time.Duration) float64 {
	return milliseconds(d) / float64(max(1, b.rotations))
}
