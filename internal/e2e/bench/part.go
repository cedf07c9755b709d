package main

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
)

// part is one part of the bench while it is measured.
type part struct {
	context.Context
	options
	program
	*report
	server *pgserver.Server // which all parts may use
	dir    string           // of its own
	undo   []func() error
}

// failure is an error that ends a part.
type failure struct{ error }

// check ends the part if there is an error, as Fatal ends a test: what the part has
// started is stopped, and main prints the error. Other goroutines return theirs.
func check(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// must is check of an error that comes with a value.
func must[T any](value T, err error) T {
	check(err)
	return value
}

// run measures the part, and then stops what it has started, the last first.
func (p *part) run(measure func(*part)) (err error) {
	defer func() {
		switch ended := recover().(type) {
		case nil:
		case failure:
			err = ended.error
		default:
			panic(ended)
		}
		err = errors.Join(err, p.stop(0))
	}()
	measure(p)
	return nil
}

// within measures something on the way, and stops what was started for that.
func (p *part) within(measure func()) {
	before := len(p.undo)
	measure()
	check(p.stop(before))
}

func (p *part) later(undo func() error) { p.undo = append(p.undo, undo) }

// stop undoes all but the first, the last of them first.
func (p *part) stop(first int) (err error) {
	for _, undo := range slices.Backward(p.undo[first:]) {
		err = errors.Join(err, undo())
	}
	p.undo = p.undo[:first]
	return err
}

// servers starts so many of PostgreSQL.
func (p *part) servers(n int, settings map[string]string) (all []*pgserver.Server) {
	progress("starting %d servers of PostgreSQL", n)
	for range n {
		s := must(pgserver.Start(p, pgserver.Options{Settings: settings}))
		p.later(s.Stop)
		all = append(all, s)
	}
	return all
}

// site writes an installation whose one cluster is the nodes.
func (p *part) site(dir string, nodes []site.Node, credentials []site.Credential) *site.Site {
	check(os.MkdirAll(dir, 0o700))
	return must(site.NewCluster(p, dir, nodes, "", credentials))
}

// installation is a running Pawl that is measured.
type installation struct {
	processes
	*requester
	up *process
}

// install starts Pawl on a site, has it adopt all credentials, and rotates each so
// often: after two rotations both logins are there, and all sessions open.
func (p *part) install(s *site.Site, rotations int) *installation {
	in := &installation{up: p.pawlUp(s)}
	in.pawl = in.up.cmd.Process.Pid
	for _, n := range s.Nodes {
		in.postgres = append(in.postgres, must(postmaster(n.Server)))
	}
	in.requester = p.join(s)
	names := slices.Sorted(maps.Keys(s.Inventory.Credentials))
	progress("adopting %d credentials on %d nodes, and rotating each %d times", len(names), len(s.Nodes), rotations)
	check(each(p, names, 8, func(ctx context.Context, credential string) error {
		err := in.adopt(ctx, credential)
		for i := 0; i < rotations && err == nil; i++ {
			_, err = in.rotate(ctx, credential)
		}
		return err
	}))
	return in
}

// wait returns after a while, or ends the part if it is interrupted.
func (p *part) wait(d time.Duration) { check(waitUntil(p, time.Now().Add(d))) }

// primary is a cluster of one node.
func primary(server *pgserver.Server) []site.Node {
	return []site.Node{{Name: "primary", Server: server}}
}
