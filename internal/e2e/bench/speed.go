package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
)

// atOnce are the numbers of credentials at a time.
var atOnce = []int{1, 4, 16}

var strategies = []string{inventory.Alternating, inventory.InPlace}

// round holds, for one number at a time, the floor's cell and each strategy's.
type round struct {
	floor cell
	pawl  map[string]cell
}

// lab is one installation, set up to be measured.
type lab struct {
	processes
	floor   *floor
	request *requester
	streams streams
}

// speed measures the rounds, and counts.
func (r *report) speed(ctx context.Context, b program, server *pgserver.Server, dir string) (err error) {
	behind, err := newTap(fmt.Sprintf("%s:%d", server.Host, server.Port))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, behind.close()) }()
	var credentials []site.Credential
	for _, strategy := range strategies {
		for i := range atOnce[len(atOnce)-1] {
			credentials = append(credentials, site.Credential{Name: credentialName(strategy, i), Strategy: strategy})
		}
		credentials = append(credentials, site.Credential{Name: "counted-" + strategy, Strategy: strategy, Port: behind.port})
	}
	s, err := newSite(ctx, dir, server, credentials)
	if err != nil {
		return err
	}
	p, err := b.start(ctx, s.File)
	if err != nil {
		return err
	}
	defer func() {
		r.warnings += p.warnings.Load()
		err = errors.Join(err, p.stop())
	}()
	l := lab{processes: processes{pawl: p.cmd.Process.Pid}}
	if l.postgres, err = postmasters(server); err != nil {
		return err
	}
	if l.request, err = newRequester(ctx, s); err != nil {
		return err
	}
	defer l.request.NATS.Close()
	if l.streams, err = newStreams(s); err != nil {
		return err
	}
	defer l.streams.NATS.Close()
	if l.floor, err = newFloor(ctx, server, "floor", atOnce[len(atOnce)-1]); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.floor.close()) }()
	if err := l.warmUp(ctx, credentials); err != nil {
		return err
	}
	for _, strategy := range strategies {
		progress("counting %d rotations, %s", r.options.counted, strategy)
		c, err := count(ctx, l.request, l.streams, behind, "counted-"+strategy, strategy, r.options.counted)
		if err != nil {
			return err
		}
		r.counted = append(r.counted, c)
	}
	return r.measure(ctx, l)
}

// warmUp adopts every credential and rotates it twice, so that both logins are
// there and all sessions open.
func (l lab) warmUp(ctx context.Context, credentials []site.Credential) error {
	progress("adopting %d credentials, and rotating each twice", len(credentials))
	var names []string
	for _, c := range credentials {
		names = append(names, c.Name)
	}
	return each(ctx, names, 8, func(ctx context.Context, credential string) error {
		if err := l.request.adopt(ctx, credential); err != nil {
			return err
		}
		for range 2 {
			if _, err := l.request.rotate(ctx, credential); err != nil {
				return err
			}
		}
		return nil
	})
}

// measure interleaves the floor's cells and Pawl's, so that the machine's drift
// hits both.
func (r *report) measure(ctx context.Context, l lab) (err error) {
	r.rounds, r.where = map[int][]round{}, map[int]map[string]breakdown{}
	for i := range r.options.rounds {
		for _, k := range atOnce {
			one := round{pawl: map[string]cell{}}
			r.where[k] = map[string]breakdown{} // of the last round
			if one.floor, err = l.closedLoop(ctx, k, r.options.cell, l.floor.once); err != nil {
				return err
			}
			show(i, k, "floor", one.floor)
			for _, strategy := range strategies {
				c, done, err := l.cell(ctx, k, r.options.cell, strategy)
				if err != nil {
					return err
				}
				one.pawl[strategy] = c
				show(i, k, strategy, c)
				_, _, behind, err := l.streams.backlog(ctx)
				if err != nil {
					return err
				}
				r.auditBehind = max(r.auditBehind, behind)
				if r.where[k][strategy], err = breakDown(ctx, l.request, done); err != nil {
					return err
				}
				if _, err := l.streams.settle(ctx); err != nil {
					return err
				}
			}
			r.rounds[k] = append(r.rounds[k], one)
		}
	}
	return nil
}

func (l lab) cell(ctx context.Context, k int, duration time.Duration, strategy string) (cell, []rotation, error) {
	var mu sync.Mutex
	var done []rotation
	c, err := l.closedLoop(ctx, k, duration, func(ctx context.Context, worker int) (time.Duration, error) {
		one, err := l.request.rotate(ctx, credentialName(strategy, worker))
		mu.Lock()
		defer mu.Unlock()
		done = append(done, one)
		return one.took, err
	})
	return c, done, err
}

func show(i, k int, what string, c cell) {
	progress("round %d, %2d at once, %-11s %6.1f per second, p50 %.1f ms, p99 %.1f ms, CPU ms each: PostgreSQL %.1f, pawl %.1f, bench %.1f",
		i+1, k, what, c.perSecond, c.quantile(.5), c.quantile(.99), c.each(c.cpu.postgres), c.each(c.cpu.pawl), c.each(c.cpu.bench))
}

func credentialName(strategy string, i int) string { return fmt.Sprintf("%s-%02d", strategy, i+1) }
