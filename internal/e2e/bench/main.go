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

func (o options) check() error {
	if o.rounds < 1 || o.cell <= 0 || o.counted < 1 {
		return errors.New("-rounds, -cell and -counted must be greater than 0")
	}
	if o.credentials != 0 && o.credentials < rotatedInMemory {
		return fmt.Errorf("-credentials must be 0 or at least %d", rotatedInMemory)
	}
	return nil
}

// parts are measured in this order.
var parts = []struct {
	name    string
	measure func(*part)
}{
	{"speed", measureSpeed}, {"clusters", measureClusters}, {"bus", measureBuses}, {"compose", measureCompose}, {"emergency", measureEmergency},
	{"mass", measureMass}, {"schedule", measureSchedule}, {"growth", measureGrowth}, {"memory", measureMemory},
}

func bench(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "pawl-bench-")
	if err != nil {
		return err
	}
	r := &report{options: o, cells: map[string][]cell{}}
	all := &part{Context: ctx, options: o, report: r, dir: dir}
	all.later(func() error { return os.RemoveAll(dir) })
	err = all.run(func(all *part) {
		progress("building pawl")
		all.program = program{path: filepath.Join(dir, "pawl")}
		must(command(ctx, "", "go", "build", "-o", all.path, "pawl.dev/cmd/pawl"))
		all.server = all.servers(1, map[string]string{"max_connections": "200"})[0]
		all.describe()
		if o.cpuProfile != "" {
			all.program = must(profiled(o.cpuProfile))
		}
		for _, one := range parts {
			if o.only != "" && o.only != one.name || o.credentials == 0 && (one.name == "memory" || one.name == "mass") {
				continue
			}
			check((&part{Context: ctx, options: o, program: all.program, report: r, server: all.server, dir: filepath.Join(dir, one.name)}).run(one.measure))
			all.profile = "" // the profile is of the first part's load
		}
	})
	if err != nil {
		return err
	}
	return r.write(os.Stdout)
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
