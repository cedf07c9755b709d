package probe

import (
	"context"
	"fmt"
)

// SQL runs a statement of the user's, whose rows are ignored: it fails where
// the statement does, or takes more than 10 s.
type SQL struct {
	Index int // from 0, in `verify`
	Text  string
}

// Name implements Probe. The text itself may hold what does not belong in a log.
func (s SQL) Name() string { return fmt.Sprintf("sql %d", s.Index) }

// Run implements Probe.
func (s SQL) Run(ctx context.Context, l *Login) error {
	what := fmt.Sprintf("verify[%d] (sql)", s.Index)
	if _, err := l.Conn.Exec(ctx, "SET statement_timeout = '10s'"); err != nil {
		return Explain(what, err)
	}
	// The simple protocol takes several statements, as psql does.
	results := l.Conn.PgConn().Exec(ctx, s.Text)
	for results.NextResult() {
		_, _ = results.ResultReader().Close() // Close of the whole returns the error
	}
	if err := results.Close(); err != nil {
		return Explain(what, err)
	}
	return nil
}
