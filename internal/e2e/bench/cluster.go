package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
)

// onNodes are the numbers of nodes that one credential is on.
var onNodes = []int{1, 3, 10}

const manyNodes = 4 // that many credentials are on

// clusters is what credentials on several nodes cost.
type clusters struct {
	Rounds map[int][]cell                   // by number of nodes: one credential at a time
	Floors map[int][]cell                   // of as many nodes
	Far    map[time.Duration]map[int][]cell // by the time of a round trip
	Many   many
}

// many is what many credentials on manyNodes nodes cost.
type many struct {
	Credentials int
	Cell        cell          // of one rotation each
	Took        time.Duration // for all of them
	Rested      resident
	Idle        float64 // cores that an idle Pawl takes, which compares all of them for ever
}

// measureClusters has servers of its own: the first of speed's and nine more.
func (r *report) measureClusters(ctx context.Context, b program, first *pgserver.Server, dir string) (c *clusters, err error) {
	most := onNodes[len(onNodes)-1]
	progress("clusters: starting %d more servers", most-1)
	servers := []*pgserver.Server{first}
	defer func() {
		for _, s := range servers[1:] {
			err = errors.Join(err, s.Stop())
		}
	}()
	for len(servers) < most {
		s, err := pgserver.Start(ctx, pgserver.Options{})
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	c = &clusters{Rounds: map[int][]cell{}, Floors: map[int][]cell{}, Far: map[time.Duration]map[int][]cell{}}
	if err := r.measureNodes(ctx, c, b, servers, filepath.Join(dir, "nodes")); err != nil {
		return nil, err
	}
	for _, trip := range roundTrips {
		if err := r.measureFar(ctx, c, b, servers, filepath.Join(dir, "far"), trip); err != nil {
			return nil, err
		}
	}
	if r.options.credentials > 0 {
		err = c.Many.measure(ctx, b, servers[:manyNodes], filepath.Join(dir, "many"), r.options.credentials)
	}
	return c, err
}

// measureNodes interleaves the numbers of nodes, so that the machine's drift
// hits all of them.
func (r *report) measureNodes(ctx context.Context, c *clusters, b program, servers []*pgserver.Server, dir string) (err error) {
	p, q, err := r.startOnNodes(ctx, b, nodesOf(servers), 0, dir)
	if err != nil {
		return err
	}
	defer func() { q.NATS.Close(); r.warnings += p.warnings.Load(); err = errors.Join(err, p.stop()) }()
	at := processes{pawl: p.cmd.Process.Pid}
	if at.postgres, err = postmasters(servers...); err != nil {
		return err
	}
	least, err := newFloors(ctx, servers, "floor_of_nodes")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, least.close()) }()
	for i := range r.options.rounds {
		for _, n := range onNodes {
			bare, err := at.closedLoop(ctx, 1, r.options.cell, least[:n].once)
			if err != nil {
				return err
			}
			c.Floors[n] = append(c.Floors[n], bare)
			one, err := q.cellOn(ctx, at, onNodesName(n, 0), r.options.cell)
			if err != nil {
				return err
			}
			progress("round %d, %2d nodes: p50 %.1f ms, floor %.1f ms, CPU ms each: PostgreSQL %.1f, floor %.1f, pawl %.1f", i+1, n,
				one.quantile(.5), bare.quantile(.5), one.each(one.cpu.postgres), bare.each(bare.cpu.postgres), one.each(one.cpu.pawl))
			c.Rounds[n] = append(c.Rounds[n], one)
		}
	}
	return nil
}

// startOnNodes starts Pawl with a credential on each number of nodes, which are so far.
func (r *report) startOnNodes(ctx context.Context, b program, nodes []site.Node, far time.Duration, dir string) (*process, *requester, error) {
	var credentials []site.Credential
	for _, n := range onNodes {
		credentials = append(credentials, site.Credential{Name: onNodesName(n, far), Strategy: strategies[0], Nodes: nodeNames(n)})
	}
	p, q, err := startOn(ctx, b, nodes, dir, credentials)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range onNodes { // twice, so that both logins are there and all sessions open
		for range 2 {
			if _, err := q.rotate(ctx, onNodesName(n, far)); err != nil {
				q.NATS.Close()
				return nil, nil, errors.Join(err, p.stop())
			}
		}
	}
	return p, q, nil
}

// cellOn rotates the credential over and over.
func (q *requester) cellOn(ctx context.Context, at processes, credential string, duration time.Duration) (cell, error) {
	return at.closedLoop(ctx, 1, duration, func(ctx context.Context, _ int) (time.Duration, error) {
		done, err := q.rotate(ctx, credential)
		return done.took, err
	})
}

func onNodesName(n int, far time.Duration) string {
	return fmt.Sprintf("on-%02d-nodes-%v-away", n, far)
}

func (m *many) measure(ctx context.Context, b program, servers []*pgserver.Server, dir string, credentials int) (err error) {
	progress("clusters: adopting %d credentials on %d nodes", credentials, len(servers))
	m.Credentials = credentials
	var all []site.Credential
	var names []string
	for i := range credentials {
		names = append(names, fmt.Sprintf("wide-%04d", i+1))
		all = append(all, site.Credential{Name: names[i], Strategy: strategies[0]})
	}
	p, q, err := startOn(ctx, b, nodesOf(servers), dir, all)
	if err != nil {
		return err
	}
	defer func() { q.NATS.Close(); err = errors.Join(err, p.stop()) }()
	progress("clusters: rotating each")
	began := time.Now()
	rotations := make(chan time.Duration, len(names))
	err = each(ctx, names, 8, func(ctx context.Context, credential string) error {
		done, err := q.rotate(ctx, credential)
		rotations <- done.took
		return err
	})
	if err != nil {
		return err
	}
	m.Took = time.Since(began)
	close(rotations)
	for took := range rotations {
		m.Cell.took = append(m.Cell.took, took)
	}
	m.Cell.sort()
	if m.Rested, err = p.whenIdle(ctx); err != nil {
		return err
	}
	m.Idle, err = p.idleShare(ctx)
	return err
}

// idleLook is long enough for the reconciler to have compared everything twice.
const idleLook = time.Minute

// idleShare is how much of a core the idle process takes.
func (p *process) idleShare(ctx context.Context) (float64, error) {
	before, err := used(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(idleLook):
	}
	after, err := used(p.cmd.Process.Pid)
	return (after - before).Seconds() / idleLook.Seconds(), err
}

// startOn sets a site up whose one cluster is the nodes, starts Pawl on it, and
// adopts all.
func startOn(ctx context.Context, b program, nodes []site.Node, dir string, credentials []site.Credential) (p *process, q *requester, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	s, err := site.NewCluster(ctx, dir, nodes, "", credentials)
	if err != nil {
		return nil, nil, err
	}
	if p, err = b.start(ctx, s.File); err != nil {
		return nil, nil, err
	}
	if q, err = newRequester(ctx, s); err == nil {
		var names []string
		for _, c := range credentials {
			names = append(names, c.Name)
		}
		err = each(ctx, names, 8, q.adopt)
	}
	if err != nil {
		return nil, nil, errors.Join(err, p.stop())
	}
	return p, q, nil
}

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

// PerSecond, P50 and P99 of many, and the others, are for the report's template.
func (m many) PerSecond() float64   { return float64(m.Credentials) / m.Took.Seconds() }
func (m many) P50() float64         { return m.Cell.quantile(.5) }
func (m many) P99() float64         { return m.Cell.quantile(.99) }
func (m many) IdlePercent() float64 { return 100 * m.Idle }

// Rows of the table of nodes.
func (c *clusters) Rows() (rows []string) {
	one := onNodes[0]
	for _, n := range onNodes {
		of := func(figure func(cell) float64) float64 { return medianOf(c.Rounds[n], figure) }
		bare := func(figure func(cell) float64) float64 { return medianOf(c.Floors[n], figure) }
		rows = append(rows, fmt.Sprintf("| %d | %.1f | %.1f | %.2f | %.1f | %.2f | %.1f | %.1f | %.1f |", n,
			of(p50), of(p99), of(p50)/medianOf(c.Rounds[one], p50), bare(p50), bare(p50)/medianOf(c.Floors[one], p50),
			of(postgresCPU), bare(postgresCPU), of(func(one cell) float64 { return one.each(one.cpu.pawl) })))
	}
	return rows
}

func postgresCPU(one cell) float64 { return one.each(one.cpu.postgres) }
