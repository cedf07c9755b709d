package main

import (
	"context"
)

// counted is what a number of rotations, one after the other, made together.
type counted struct {
	strategy   string
	rotations  int
	asked      asked
	stored     map[string]uint64 // messages, by stream
	deliveries uint64            // of messages to consumers, again ones included
}

// count does the rotations of a credential whose node is behind the tap.
func count(ctx context.Context, q *requester, s streams, t *tap, credential, strategy string, rotations int) (counted, error) {
	c := counted{strategy: strategy, rotations: rotations, stored: map[string]uint64{}}
	deliveries, err := s.settle(ctx)
	if err != nil {
		return c, err
	}
	stored, err := s.stored(ctx)
	if err != nil {
		return c, err
	}
	before := t.asked()
	for range rotations {
		if _, err := q.rotate(ctx, credential); err != nil {
			return c, err
		}
	}
	if c.deliveries, err = s.settle(ctx); err != nil {
		return c, err
	}
	c.deliveries -= deliveries
	after, err := s.stored(ctx)
	if err != nil {
		return c, err
	}
	for name, n := range after {
		c.stored[name] = n - stored[name]
	}
	c.asked = t.asked().minus(before)
	return c, nil
}

func (a asked) minus(b asked) asked {
	return asked{a.passwords - b.passwords, a.otherAlters - b.otherAlters, a.creates - b.creates, a.logins - b.logins,
		a.sessions - b.sessions, a.commits - b.commits, a.statements - b.statements, a.roundTrips - b.roundTrips}
}

func (c counted) per(n int) float64 { return float64(n) / float64(c.rotations) }

func (c counted) messages() (all uint64) {
	for _, n := range c.stored {
		all += n
	}
	return all
}
