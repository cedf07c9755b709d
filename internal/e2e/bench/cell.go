package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// subject is what is done over and over in a cell of each round.
type subject struct {
	name   string
	on     processes
	atOnce int
	once   func(ctx context.Context, worker int) (time.Duration, error)
	after  func() // looks at what the cell has left
}

// cell is one measurement: so many at once, for so long.
type cell struct {
	perSecond float64
	took      []time.Duration // sorted
	cpu       cpu             // of all of them
}

// interleave measures a cell of each subject in each round, so that the machine's
// drift hits all of them.
func (p *part) interleave(subjects ...subject) {
	for i := range p.rounds {
		for _, s := range subjects {
			c := s.closedLoop(p, p.cell)
			progress("round %d, %-26s %6.1f per second, p50 %.1f ms, p99 %.1f ms, CPU ms each: PostgreSQL %.1f, pawl %.1f, bench %.1f",
				i+1, s.name, perSecond(c), p50(c), p99(c), postgresCPU(c), pawlCPU(c), benchCPU(c))
			p.cells[s.name] = append(p.cells[s.name], c)
			if s.after != nil {
				s.after()
			}
		}
	}
}

// closedLoop has the workers do once over and over for about the duration: each
// begins anew as soon as it has ended. once returns how long what counts took;
// the worker's rate includes all that once did beside it.
func (s subject) closedLoop(ctx context.Context, duration time.Duration) cell {
	rates := make([]float64, s.atOnce)
	took := make([][]time.Duration, s.atOnce)
	workers, ctx := errgroup.WithContext(ctx)
	before := s.on.cpu()
	began := time.Now()
	for i := range s.atOnce {
		workers.Go(func() error {
			for time.Since(began) < duration {
				t, err := s.once(ctx, i)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				took[i] = append(took[i], t)
			}
			rates[i] = float64(len(took[i])) / time.Since(began).Seconds()
			return nil
		})
	}
	check(workers.Wait())
	c := cellOf(slices.Concat(took...))
	c.cpu = s.on.cpu().minus(before)
	for _, rate := range rates {
		c.perSecond += rate
	}
	return c
}

func cellOf(took []time.Duration) cell { return cell{took: slices.Sorted(slices.Values(took))} }

// quantile returns the smallest time that the share q of all did not exceed, in
// milliseconds.
func (c cell) quantile(q float64) float64 {
	i := int(q*float64(len(c.took)) + 0.999999)
	return milliseconds(c.took[min(max(i, 1), len(c.took))-1])
}

// each is CPU time by iteration, in milliseconds.
func (c cell) each(used time.Duration) float64 { return milliseconds(used) / float64(len(c.took)) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Figures of a cell.
func perSecond(c cell) float64   { return c.perSecond }
func p50(c cell) float64         { return c.quantile(.5) }
func p99(c cell) float64         { return c.quantile(.99) }
func postgresCPU(c cell) float64 { return c.each(c.cpu.postgres) }
func pawlCPU(c cell) float64     { return c.each(c.cpu.pawl) }
func benchCPU(c cell) float64    { return c.each(c.cpu.bench) }

// median is a figure of a subject: that of the middle round.
func (r *report) median(name string, figure func(cell) float64) float64 {
	return r.beside(name, name, func(c, _ cell) float64 { return figure(c) })
}

// beside compares two subjects in each round.
func (r *report) beside(one, other string, figure func(one, other cell) float64) float64 {
	var all []float64
	for i, c := range r.cells[one] {
		all = append(all, figure(c, r.cells[other][i]))
	}
	return median(all)
}

func median(all []float64) float64 {
	slices.Sort(all)
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2
	}
	return all[len(all)/2]
}
