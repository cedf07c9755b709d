package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
)

// onServers are the numbers of nats-servers that a bus is of.
var onServers = []int{1, 3}

// buses is what a rotation takes on each, one at a time.
type buses struct{ Rounds map[int][]cell }

// office is an installation on a bus of stock nats-servers.
type office struct {
	processes
	fleet   *site.Fleet // of the bus alone
	up      *process
	request *requester
}

// measureBuses interleaves the numbers of servers, so that the machine's drift
// hits both.
func (r *report) measureBuses(ctx context.Context, b program, server *pgserver.Server, dir string) (all *buses, err error) {
	binaries, err := site.Binaries()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(binaries)) }()
	offices := map[int]*office{}
	for _, n := range onServers {
		progress("bus: starting %d nats-servers", n)
		o, err := openOffice(ctx, b, binaries, server, filepath.Join(dir, onServersName(n)), n)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, o.close()) }()
		offices[n] = o
	}
	all = &buses{Rounds: map[int][]cell{}}
	for i := range r.options.rounds {
		for _, n := range onServers {
			one, err := offices[n].closedLoop(ctx, 1, r.options.cell, func(ctx context.Context, _ int) (time.Duration, error) {
				done, err := offices[n].request.rotate(ctx, onServersName(n))
				return done.took, err
			})
			if err != nil {
				return nil, err
			}
			progress("round %d, %d nats-servers: p50 %.1f ms, p99 %.1f ms", i+1, n, one.quantile(.5), one.quantile(.99))
			all.Rounds[n] = append(all.Rounds[n], one)
		}
	}
	return all, nil
}

func onServersName(n int) string { return fmt.Sprintf("on-%d-servers", n) }

func openOffice(ctx context.Context, b program, binaries string, server *pgserver.Server, dir string, servers int) (o *office, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	name := onServersName(servers)
	s, err := site.NewOnServers(ctx, dir, servers, []site.Node{{Name: "primary", Server: server}}, "", []site.Credential{{Name: name, Strategy: strategies[0]}})
	if err != nil {
		return nil, err
	}
	o = &office{}
	if o.fleet, err = s.StartFleet(ctx, binaries, 0, bus.DefaultAckWait, time.Hour); err != nil {
		return nil, err
	}
	if o.up, err = b.start(ctx, s.File); err != nil {
		return nil, errors.Join(err, o.close())
	}
	o.pawl = o.up.cmd.Process.Pid
	if o.postgres, err = postmasters(server); err == nil {
		o.request, err = newRequester(ctx, s)
	}
	if err == nil {
		err = o.request.adopt(ctx, name)
	}
	for range 2 { // so that both logins are there and all sessions open
		if err == nil {
			_, err = o.request.rotate(ctx, name)
		}
	}
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *office) close() (err error) {
	if o.request != nil {
		o.request.NATS.Close()
	}
	if o.up != nil {
		err = o.up.stop()
	}
	o.fleet.Stop()
	return err
}

// Rows of the table of buses.
func (all *buses) Rows() (rows []string) {
	one := medianOf(all.Rounds[onServers[0]], p50)
	for _, n := range onServers {
		rows = append(rows, fmt.Sprintf("| %d | %.1f | %.1f | %.2f |", n, medianOf(all.Rounds[n], p50), medianOf(all.Rounds[n], p99), medianOf(all.Rounds[n], p50)/one))
	}
	return rows
}
