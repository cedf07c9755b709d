package site

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
)

// Pool is an application with many sessions: some are held and queried all the
// time, and new ones are opened all the time. Whatever fails is remembered.
type Pool struct {
	at         inventory.Node
	site       *Site
	credential string

	mu       sync.Mutex
	queries  int
	logins   int
	failures []string

	held []*session
	stop context.CancelFunc
	wait sync.WaitGroup
}

// session is one that is held.
type session struct {
	mu   sync.Mutex // for a query, or while another connection takes its place
	conn *pgx.Conn
}

// each client's pause between two queries, or two logins.
const breath = 5 * time.Millisecond

// StartPool starts a pool with so many sessions held at the address, and two
// clients that log in over and over, in place of the credential's application.
func (a *Apps) StartPool(ctx context.Context, credential string, at inventory.Node, sessions int) (*Pool, error) {
	p := &Pool{at: at, site: a.site, credential: credential}
	for range sessions {
		p.held = append(p.held, &session{})
	}
	if err := p.reopen(ctx); err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.pools[credential] = p
	a.mu.Unlock()
	ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, s := range p.held {
		p.every(ctx, func() { p.count(&p.queries, "query", s.query()) })
	}
	for range 2 {
		p.every(ctx, func() { p.count(&p.logins, "new login", p.logInOnce()) })
	}
	return p, nil
}

// Stop ends the pool, and returns what it has done and what has failed.
func (p *Pool) Stop() (queries, logins int, failures []string) {
	p.stop()
	p.wait.Wait()
	for _, s := range p.held {
		_ = s.conn.Close(context.Background()) // it may have been cut already
	}
	return p.queries, p.logins, p.failures
}

// every does work, seen to its end, until ctx ends.
func (p *Pool) every(ctx context.Context, work func()) {
	p.wait.Go(func() {
		tick := time.NewTicker(breath)
		defer tick.Stop()
		for {
			work()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

func (p *Pool) count(done *int, what string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failures = append(p.failures, fmt.Sprintf("%s: %s: %v", time.Now().Format(time.StampMicro), what, err))
		return
	}
	*done++
}

func (s *session) query() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return queryOnce(s.conn)
}

func queryOnce(conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var user string
	return conn.QueryRow(ctx, "SELECT current_user").Scan(&user)
}

func (p *Pool) logInOnce() error {
	conn, err := p.open(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	return queryOnce(conn)
}

func (p *Pool) open(ctx context.Context) (*pgx.Conn, error) {
	login, err := p.site.Published(p.credential)
	if err != nil {
		return nil, err
	}
	return LoginAt(ctx, p.at, login, p.credential+"-app")
}

// reopen replaces every held session by one with what is published now.
func (p *Pool) reopen(ctx context.Context) error {
	for _, s := range p.held {
		conn, err := p.open(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		old := s.conn
		s.conn = conn
		s.mu.Unlock()
		if old != nil {
			_ = old.Close(ctx) // it may have been cut already
		}
	}
	return nil
}
