package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pawl.dev/internal/saga"
)

// share is what one step, or one operation in it, took in all rotations looked at.
type share struct {
	step      string // the event that ends it
	operation string // empty: the whole step
	times     int
	waited    time.Duration // from the event before to the start of the step
	took      time.Duration // a step's includes the append of its event
}

// breakdown is where the time of some rotations went, by their own events.
type breakdown struct {
	rotations int
	shares    []share
	heard     time.Duration // from storing completed to hearing of it
}

// newestRotations is how many rotations of a cell a breakdown reads.
const newestRotations = 200

func breakDown(ctx context.Context, q *requester, done []rotation) (b breakdown) {
	for _, r := range done[max(0, len(done)-newestRotations):] {
		log := must(q.ReadRotation(ctx, r.credential, r.id))
		completed := log.Find(saga.Completed)
		if completed == nil || log.Records[0].Event != saga.Requested {
			check(fmt.Errorf("the log of rotation %s is not whole", r.id))
		}
		b.rotations++
		b.heard += r.sent.Add(r.took).Sub(completed.At)
		b.add(string(saga.Requested), "", 0, log.Records[0].At.Sub(r.sent))
		for i, record := range log.Records[1:] {
			began := record.Body.GetStartedAt().AsTime()
			b.add(string(record.Event), "", began.Sub(log.Records[i].At), record.At.Sub(began))
			for _, op := range record.Body.GetOperations() {
				b.add(string(record.Event), op.GetName(), 0, op.GetDuration().AsDuration())
			}
		}
	}
	return b
}

func (b *breakdown) add(step, operation string, waited, took time.Duration) {
	i := b.index(step, operation)
	if i < 0 {
		i, b.shares = len(b.shares), append(b.shares, share{step: step, operation: operation})
	}
	s := &b.shares[i]
	s.times, s.waited, s.took = s.times+1, s.waited+waited, s.took+took
}

func (b breakdown) index(step, operation string) int {
	return slices.IndexFunc(b.shares, func(s share) bool { return s.step == step && s.operation == operation })
}

// of is what the same took in another breakdown, zero if nothing did.
func (b breakdown) of(s share) share {
	if i := b.index(s.step, s.operation); i >= 0 {
		return b.shares[i]
	}
	return share{}
}

// mean is per rotation, in milliseconds.
func (b breakdown) mean(d time.Duration) float64 {
	return milliseconds(d) / float64(max(1, b.rotations))
}

// whereRows are those of a strategy's table: each step, and below it its operations.
func (r *report) whereRows(strategy string) (rows []string) {
	one, many := r.where[pawlName(atOnce[0], strategy)], r.where[pawlName(atOnce[len(atOnce)-1], strategy)]
	for _, step := range one.shares {
		if step.operation != "" {
			continue
		}
		rows = append(rows, fmt.Sprintf("| **%s** | | %.1f | %.1f | %.1f | %.1f |", step.step, one.mean(step.waited), one.mean(step.took), many.mean(many.of(step).waited), many.mean(many.of(step).took)))
		for _, s := range one.shares {
			if s.step == step.step && s.operation != "" {
				rows = append(rows, fmt.Sprintf("| · %s | %.3g | | %.1f | | %.1f |", s.operation, float64(s.times)/float64(one.rotations), one.mean(s.took), many.mean(many.of(s).took)))
			}
		}
	}
	return append(rows, fmt.Sprintf("| completed is heard of | | %.1f | | %.1f | |", one.mean(one.heard), many.mean(many.heard)))
}
