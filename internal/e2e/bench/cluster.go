package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
)

// onNodes are the numbers of nodes that one credential is on.
var onNodes = []int{1, 3, 10}

// roundTrips are how far nodes are: on this machine, in another zone of a region, and
// in another region.
var roundTrips = []time.Duration{0, 2 * time.Millisecond, 10 * time.Millisecond}

const (
	manyNodes = 4           // that many credentials are on
	idleLook  = time.Minute // in which the reconciler compares everything twice
)

// many is what many credentials on manyNodes nodes cost.
type many struct {
	Credentials int
	Rotation    cell          // of each once
	Took        time.Duration // for all of them
	Rested      resident
	IdlePercent float64 // of a core that an idle Pawl takes, which compares all of them for ever
}

// measureClusters has servers of its own: the first of speed's and nine more.
func measureClusters(p *part) {
	most := onNodes[len(onNodes)-1]
	servers := append([]*pgserver.Server{p.server}, p.servers(most-1, nil)...)
	for _, trip := range roundTrips {
		p.within(func() { p.onNodes(servers, trip) })
	}
	if p.credentials > 0 {
		p.many = &many{Credentials: p.credentials}
		p.many.measure(p, servers[:manyNodes])
	}
}

// onNodes measures a credential on each number of nodes; where they are on this
// machine, beside the floor. If they are far, each is behind a relay: a rotation waits
// for its nodes then, and not for their cores.
func (p *part) onNodes(servers []*pgserver.Server, trip time.Duration) {
	nodes := nodesOf(servers)
	var credentials []site.Credential
	for _, n := range onNodes {
		credentials = append(credentials, site.Credential{Name: onNodesName(n, trip), Strategy: strategies[0], Nodes: nodeNames(n)})
	}
	var least floor
	if trip == 0 {
		least = p.newFloor("floor_of_nodes", servers...)
	}
	for i := range nodes {
		if trip > 0 {
			far := must(newProxy(fmt.Sprintf("%s:%d", servers[i].Host, servers[i].Port), late(trip/2), late(trip/2)))
			p.later(far.close)
			nodes[i].Port = far.port
		}
	}
	in := p.install(p.site(filepath.Join(p.dir, trip.String()), nodes, credentials), 2)
	var subjects []subject
	for _, n := range onNodes {
		if trip == 0 {
			subjects = append(subjects, subject{floorOnName(n), in.processes, 1, least[:n].onAll, nil})
		}
		subjects = append(subjects, subject{onNodesName(n, trip), in.processes, 1, in.over(onNodesName(n, trip)), nil})
	}
	p.interleave(subjects...)
}

// over rotates one credential over and over.
func (q *requester) over(credential string) func(ctx context.Context, _ int) (time.Duration, error) {
	return func(ctx context.Context, _ int) (time.Duration, error) {
		done, err := q.rotate(ctx, credential)
		return done.took, err
	}
}

func onNodesName(n int, far time.Duration) string {
	return fmt.Sprintf("on-%02d-nodes-%v-away", n, far)
}
func floorOnName(n int) string { return fmt.Sprintf("floor on %d nodes", n) }

func (m *many) measure(p *part, servers []*pgserver.Server) {
	names, credentials := credentialsOf("wide", m.Credentials)
	in := p.install(p.site(filepath.Join(p.dir, "many"), nodesOf(servers), credentials), 0)
	progress("clusters: rotating each")
	began := time.Now()
	var mu sync.Mutex
	var all []time.Duration
	check(each(p, names, 8, func(ctx context.Context, credential string) error {
		done, err := in.rotate(ctx, credential)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, done.took)
		return err
	}))
	m.Took, m.Rotation = time.Since(began), cellOf(all)
	m.Rested = in.up.after(p, idle)
	before := must(used(in.pawl))
	p.wait(idleLook)
	m.IdlePercent = 100 * (must(used(in.pawl)) - before).Seconds() / idleLook.Seconds()
}

// PerSecond, P50 and P99 are for the report's template.
func (m many) PerSecond() float64 { return float64(m.Credentials) / m.Took.Seconds() }
func (m many) P50() float64       { return p50(m.Rotation) }
func (m many) P99() float64       { return p99(m.Rotation) }

func nodesOf(servers []*pgserver.Server) (nodes []site.Node) {
	for i, name := range nodeNames(len(servers)) {
		nodes = append(nodes, site.Node{Name: name, Server: servers[i]})
	}
	return nodes
}

// nodeNames are those of the first n servers.
func nodeNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("node-%02d", i+1))
	}
	return names
}

// nodeRows and farRows are those of the tables of nodes.
func (r *report) nodeRows() (rows []string) {
	pawl, floor := onNodesName(onNodes[0], 0), floorOnName(onNodes[0])
	for _, n := range onNodes {
		on, bare := onNodesName(n, 0), floorOnName(n)
		rows = append(rows, fmt.Sprintf("| %d | %.1f | %.1f | %.2f | %.1f | %.2f | %.1f | %.1f | %.1f |", n,
			r.median(on, p50), r.median(on, p99), r.median(on, p50)/r.median(pawl, p50), r.median(bare, p50), r.median(bare, p50)/r.median(floor, p50),
			r.median(on, postgresCPU), r.median(bare, postgresCPU), r.median(on, pawlCPU)))
	}
	return rows
}

func (r *report) farRows() (rows []string) {
	for _, trip := range roundTrips[1:] {
		for _, n := range onNodes {
			on := onNodesName(n, trip)
			rows = append(rows, fmt.Sprintf("| %v | %d | %.1f | %.1f | %.2f |", trip, n, r.median(on, p50), r.median(on, p99), r.median(on, p50)/r.median(onNodesName(onNodes[0], trip), p50)))
		}
	}
	return rows
}
