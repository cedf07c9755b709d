package probe

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
)

// Pool opens connections beside the first one, all held until the last is
// there: what an application's pool does after its restart.
type Pool struct {
	Index       int // from 0, in `verify`
	Connections int
}

// Name implements Probe.
func (p Pool) Name() string { return fmt.Sprintf("pool %d", p.Index) }

// Run implements Probe.
func (p Pool) Run(ctx context.Context, l *Login) error {
	conns := make([]*pgx.Conn, p.Connections)
	errs := make([]error, p.Connections)
	var opening sync.WaitGroup
	for i := range conns {
		opening.Go(func() { conns[i], errs[i] = l.Another(ctx) })
	}
	opening.Wait()

	opened := 0
	for _, conn := range conns {
		if conn != nil {
			opened++
			Close(conn)
		}
	}
	for _, err := range errs {
		if err == nil {
			continue
		}
		if !errors.As(err, new(*postgres.Refused)) {
			return fmt.Errorf("verify[%d] (pool): %w", p.Index, err) // the network, not the database, said no
		}
		// Having too few connections left is just what this probe is to find, so
		// a refusal counts even where it might pass.
		return saga.Permanentf("verify[%d] (pool): %d of %d connections opened: %w; raise max_connections or the login's CONNECTION LIMIT, or lower the probe's number",
			p.Index, opened, p.Connections, err)
	}
	return nil
}

// Close ends a connection politely, also after its context has ended.
func Close(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
