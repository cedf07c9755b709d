package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
)

// atOnce are the numbers of credentials at a time.
var atOnce = []int{1, 4, 16}

var strategies = []string{inventory.Alternating, inventory.InPlace}

// measureSpeed counts what rotations make, and measures them beside the floor.
func measureSpeed(p *part) {
	most := atOnce[len(atOnce)-1]
	tap := must(newTap(fmt.Sprintf("%s:%d", p.server.Host, p.server.Port)))
	p.later(tap.close)
	var credentials []site.Credential
	for _, strategy := range strategies {
		for i := range most {
			credentials = append(credentials, site.Credential{Name: credentialName(strategy, i), Strategy: strategy})
		}
		credentials = append(credentials, site.Credential{Name: "counted-" + strategy, Strategy: strategy, Port: tap.port})
	}
	in := p.install(p.site(p.dir, primary(p.server), credentials), 2)
	floor := p.newFloor("floor", slices.Repeat([]*pgserver.Server{p.server}, most)...)
	for _, strategy := range strategies {
		progress("counting %d rotations, %s", p.options.counted, strategy)
		p.report.counted = append(p.report.counted, in.count(p, tap, "counted-"+strategy, p.options.counted))
	}
	var subjects []subject
	for _, k := range atOnce {
		subjects = append(subjects, subject{floorName(k), in.processes, k, floor.once, nil})
		for _, strategy := range strategies {
			subjects = append(subjects, p.ofStrategy(in, k, strategy))
		}
	}
	p.where = map[string]breakdown{}
	p.interleave(subjects...)
}

// ofStrategy rotates k credentials over and over, and breaks the time of the last
// round down.
func (p *part) ofStrategy(in *installation, k int, strategy string) subject {
	var mu sync.Mutex
	var done []rotation
	return subject{pawlName(k, strategy), in.processes, k, func(ctx context.Context, worker int) (time.Duration, error) {
		one, err := in.rotate(ctx, credentialName(strategy, worker))
		mu.Lock()
		defer mu.Unlock()
		done = append(done, one)
		return one.took, err
	}, func() {
		_, _, behind, err := in.streams.backlog(p)
		check(err)
		p.auditBehind = max(p.auditBehind, behind)
		p.where[pawlName(k, strategy)] = breakDown(p, in.requester, done)
		done = nil
		must(in.streams.settle(p))
	}}
}

func floorName(k int) string                       { return fmt.Sprintf("floor, %d at once", k) }
func pawlName(k int, strategy string) string       { return fmt.Sprintf("%s, %d at once", strategy, k) }
func credentialName(strategy string, i int) string { return fmt.Sprintf("%s-%02d", strategy, i+1) }

// speedRows are those of the main table.
func (r *report) speedRows() (rows []string) {
	for _, k := range atOnce {
		floor := floorName(k)
		rows = append(rows, fmt.Sprintf("| %d | floor | %.1f | %.1f | %.1f | | | %s |", k, r.median(floor, perSecond), r.median(floor, p50), r.median(floor, p99), r.cpuCells(floor)))
		for _, strategy := range strategies {
			pawl := pawlName(k, strategy)
			rows = append(rows, fmt.Sprintf("| %d | Pawl, %s | %.1f | %.1f | %.1f | %.1f | %+.1f | %s |", k, strategy,
				r.median(pawl, perSecond), r.median(pawl, p50), r.median(pawl, p99), r.slower(k, strategy), r.beyond(k, strategy), r.cpuCells(pawl)))
		}
	}
	return rows
}

func (r *report) cpuCells(name string) string {
	return fmt.Sprintf("%.1f | %.1f | %.1f", r.median(name, postgresCPU), r.median(name, pawlCPU), r.median(name, benchCPU))
}

// slower is the floor's throughput as a multiple of Pawl's, in the same round.
func (r *report) slower(k int, strategy string) float64 {
	return r.beside(floorName(k), pawlName(k, strategy), func(floor, pawl cell) float64 { return floor.perSecond / pawl.perSecond })
}

// beyond is by how many milliseconds Pawl's p50 exceeds the floor's, in the same round.
func (r *report) beyond(k int, strategy string) float64 {
	return r.beside(floorName(k), pawlName(k, strategy), func(floor, pawl cell) float64 { return p50(pawl) - p50(floor) })
}

// aim says, for each strategy, whether it is within the aims.
func (r *report) aim() (lines []string) {
	most := atOnce[len(atOnce)-1]
	for _, strategy := range strategies {
		lines = append(lines, fmt.Sprintf("%s: floor ÷ Pawl at %d is %.1f (aim: at most 2: %s); p50 at 1 is %+.1f ms from the floor's (aim: at most +25: %s).",
			strategy, most, r.slower(most, strategy), met(r.slower(most, strategy) <= 2), r.beyond(1, strategy), met(r.beyond(1, strategy) <= 25)))
	}
	return lines
}

func met(is bool) string {
	if is {
		return "met"
	}
	return "**not met**"
}
