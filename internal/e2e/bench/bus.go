package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
)

// onServers are the numbers of nats-servers that a bus is of.
var onServers = []int{1, 3}

// measureBuses has an installation on a bus of each number of stock nats-servers.
func measureBuses(p *part) {
	binaries := must(site.Binaries())
	p.later(func() error { return os.RemoveAll(binaries) })
	var subjects []subject
	for _, n := range onServers {
		name := onServersName(n)
		dir := filepath.Join(p.dir, name)
		check(os.MkdirAll(dir, 0o700))
		s := must(site.NewOnServers(p, dir, n, primary(p.server), "", []site.Credential{{Name: name, Strategy: strategies[0]}}))
		fleet := must(s.StartFleet(p, binaries, 0, bus.DefaultAckWait, time.Hour)) // of the bus alone
		p.later(func() error { fleet.Stop(); return nil })
		in := p.install(s, 2)
		subjects = append(subjects, subject{name, in.processes, 1, in.over(name), nil})
	}
	p.interleave(subjects...)
}

func onServersName(n int) string { return fmt.Sprintf("on-%d-servers", n) }

// busRows are those of the table of buses.
func (r *report) busRows() (rows []string) {
	for _, n := range onServers {
		name := onServersName(n)
		rows = append(rows, fmt.Sprintf("| %d | %.1f | %.1f | %.2f |", n, r.median(name, p50), r.median(name, p99), r.median(name, p50)/r.median(onServersName(onServers[0]), p50)))
	}
	return rows
}
