// Command bench measures whole rotations beside the floor, in one run: the
// floor is what no rotation can do without, a committed ALTER ROLE with a ready
// verifier and one login. Pawl runs as shipped, `pawl up` as a process of its
// own; PostgreSQL and NATS sync every write to disk. The result is a Markdown
// document on stdout, progress goes to stderr.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"pawl.dev/internal/pgserver"
)

// options are the flags.
type options struct {
	rounds      int
	cell        time.Duration
	counted     int
	credentials int
	cpuProfile  string
	up          string
	only        string
	against     string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; each figure is the median of them")
	flag.DurationVar(&o.cell, "cell", 5*time.Second, "duration of one cell of a round")
	flag.IntVar(&o.counted, "counted", 20, "rotations in which ALTERs, logins and messages are counted")
	flag.IntVar(&o.credentials, "credentials", 1000, "credentials where memory, or a mass emergency, is measured, at least 50; 0: leave that out")
	flag.StringVar(&o.cpuProfile, "cpuprofile", "", "write a CPU profile of `pawl up` under load to this file")
	flag.StringVar(&o.only, "only", "", "measure but one part: speed, clusters, bus, compose, emergency, mass, schedule, growth or memory")
	flag.StringVar(&o.against, "against", "", "a revision of this repository, whose ordinary rotations mass compares with")
	flag.StringVar(&o.up, "up", "", "be `pawl up` with this pawl.yaml, profiled; the bench starts itself so")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := o.check()
	switch {
	case err != nil:
	case o.up != "":
		err = profiledUp(ctx, o.up, o.cpuProfile)
	default:
		err = bench(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) wants(part string) bool { return o.only == "" || o.only == part }

func (o options) check() error {
	if o.rounds < 1 || o.cell <= 0 || o.counted < 1 {
		return errors.New("-rounds, -cell and -counted must be greater than 0")
	}
	if o.credentials != 0 && o.credentials < rotatedInMemory {
		return fmt.Errorf("-credentials must be 0 or at least %d", rotatedInMemory)
	}
	return nil
}

func bench(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "pawl-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	progress("building pawl")
	b := program{path: filepath.Join(dir, "pawl")}
	if err := b.build(ctx); err != nil {
		return err
	}
	server, err := pgserver.Start(ctx, pgserver.Options{Settings: map[string]string{"max_connections": "200"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()

	r := report{options: o}
	if r.environment, err = describe(ctx, server); err != nil {
		return err
	}
	if o.cpuProfile != "" {
		if b, err = profiled(o.cpuProfile); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		name    string
		measure func(dir string) error
	}{
		{"speed", func(dir string) error { return r.speed(ctx, b, server, dir) }},
		{"clusters", func(dir string) (err error) { r.clusters, err = r.measureClusters(ctx, b, server, dir); return err }},
		{"bus", func(dir string) (err error) { r.buses, err = r.measureBuses(ctx, b, server, dir); return err }},
		{"compose", func(dir string) (err error) { r.stacks, err = measureCompose(ctx, dir); return err }},
		{"emergency", func(dir string) (err error) { r.emergency, err = r.measureEmergency(ctx, b, dir); return err }},
		{"mass", func(dir string) (err error) { r.mass, err = r.measureMass(ctx, b, dir); return err }},
		{"schedule", func(dir string) (err error) { r.schedule, err = measureSchedule(ctx, dir); return err }},
		{"growth", func(dir string) (err error) {
			r.growth, err = measureGrowth(ctx, b, server, dir, o.counted)
			return err
		}},
		{"memory", func(dir string) (err error) {
			r.memory, err = measureMemory(ctx, b, server, dir, o.credentials)
			return err
		}},
	} {
		if !o.wants(part.name) || o.credentials == 0 && (part.name == "memory" || part.name == "mass") {
			continue
		}
		if err := part.measure(filepath.Join(dir, part.name)); err != nil {
			return err
		}
		b.profile = "" // the profile is of the first part's load
	}
	return r.write(os.Stdout)
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
