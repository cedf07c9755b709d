package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"pawl.dev/internal/pgserver"
)

// roundTrips are how far nodes are: in another zone of a region, and in another
// region.
var roundTrips = []time.Duration{2 * time.Millisecond, 10 * time.Millisecond}

// measureFar does without floors what measureNodes does, with each node behind a
// relay: on a real cluster a rotation waits for its nodes, and not for their cores.
func (r *report) measureFar(ctx context.Context, c *clusters, b program, servers []*pgserver.Server, dir string, trip time.Duration) (err error) {
	nodes := nodesOf(servers)
	for i := range nodes {
		far, err := newRelay(fmt.Sprintf("%s:%d", servers[i].Host, servers[i].Port), trip/2)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, far.close()) }()
		nodes[i].Port = far.port
	}
	p, q, err := r.startOnNodes(ctx, b, nodes, trip, filepath.Join(dir, trip.String()))
	if err != nil {
		return err
	}
	defer func() { q.NATS.Close(); r.warnings += p.warnings.Load(); err = errors.Join(err, p.stop()) }()
	c.Far[trip] = map[int][]cell{}
	for i := range r.options.rounds {
		for _, n := range onNodes {
			one, err := q.cellOn(ctx, processes{pawl: p.cmd.Process.Pid}, onNodesName(n, trip), r.options.cell)
			if err != nil {
				return err
			}
			progress("round %d, %2d nodes %v away: p50 %.1f ms", i+1, n, trip, one.quantile(.5))
			c.Far[trip][n] = append(c.Far[trip][n], one)
		}
	}
	return nil
}

// FarRows of the table of nodes that are far.
func (c *clusters) FarRows() (rows []string) {
	for _, trip := range roundTrips {
		for _, n := range onNodes {
			rounds := c.Far[trip][n]
			rows = append(rows, fmt.Sprintf("| %v | %d | %.1f | %.1f | %.2f |", trip, n, medianOf(rounds, p50), medianOf(rounds, p99), medianOf(rounds, p50)/medianOf(c.Far[trip][onNodes[0]], p50)))
		}
	}
	return rows
}

// relay carries connections to a target, and everything in them late.
type relay struct {
	port     uint16
	listener net.Listener
	wait     sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

func newRelay(target string, late time.Duration) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{port: uint16(l.Addr().(*net.TCPAddr).Port), listener: l}
	r.wait.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, client, server)
			r.mu.Unlock()
			r.wait.Go(func() { carry(server, client, late) })
			r.wait.Go(func() { carry(client, server, late) })
		}
	})
	return r, nil
}

func (r *relay) close() error {
	err := r.listener.Close()
	r.mu.Lock()
	for _, conn := range r.conns {
		conn.Close()
	}
	r.mu.Unlock()
	r.wait.Wait()
	return err
}

// carry delays without slowing: what follows is on its way meanwhile.
func carry(to io.WriteCloser, from io.Reader, late time.Duration) {
	type piece struct {
		bytes []byte
		due   time.Time
	}
	underway := make(chan piece, 1024)
	go func() {
		defer close(underway)
		for {
			buffer := make([]byte, 16<<10)
			n, err := from.Read(buffer)
			if n > 0 {
				underway <- piece{buffer[:n], time.Now().Add(late)}
			}
			if err != nil {
				return // however it ended, the connection has
			}
		}
	}()
	defer to.Close()
	for p := range underway {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.bytes); err != nil {
			for range underway { // let the reader end
			}
			return
		}
	}
}
