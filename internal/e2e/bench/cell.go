package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// cell is one measurement: so many at once, for so long.
type cell struct {
	perSecond float64
	took      []time.Duration // sorted
	cpu       cpu             // of all of them
}

// closedLoop has k workers do once over and over for about the duration: each
// begins anew as soon as it has ended. once returns how long what counts took;
// the worker's rate includes all that once did beside it.
func (p processes) closedLoop(ctx context.Context, k int, duration time.Duration, once func(ctx context.Context, worker int) (time.Duration, error)) (cell, error) {
	rates := make([]float64, k)
	took := make([][]time.Duration, k)
	workers, ctx := errgroup.WithContext(ctx)
	before, err := p.cpu()
	if err != nil {
		return cell{}, err
	}
	began := time.Now()
	for i := range k {
		workers.Go(func() error {
			for time.Since(began) < duration {
				t, err := once(ctx, i)
				if err != nil {
					return err
				}
				took[i] = append(took[i], t)
			}
			rates[i] = float64(len(took[i])) / time.Since(began).Seconds()
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return cell{}, fmt.Errorf("%d at once: %w", k, err)
	}
	after, err := p.cpu()
	if err != nil {
		return cell{}, err
	}
	c := cell{took: slices.Concat(took...), cpu: after.minus(before)}
	c.sort()
	for _, rate := range rates {
		c.perSecond += rate
	}
	return c, nil
}

func (c *cell) sort() { slices.Sort(c.took) }

// quantile returns the smallest time that the share q of all did not exceed, in
// milliseconds.
func (c cell) quantile(q float64) float64 {
	i := int(q*float64(len(c.took)) + 0.999999)
	return milliseconds(c.took[min(max(i, 1), len(c.took))-1])
}

// each is CPU time by iteration, in milliseconds.
func (c cell) each(used time.Duration) float64 { return milliseconds(used) / float64(len(c.took)) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// medianOf reduces the rounds to one figure.
func medianOf[T any](rounds []T, figure func(T) float64) float64 {
	all := make([]float64, len(rounds))
	for i, round := range rounds {
		all[i] = figure(round)
	}
	slices.Sort(all)
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2
	}
	return all[len(all)/2]
}
