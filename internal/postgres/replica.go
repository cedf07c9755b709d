package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// InRecovery reports whether the node is a standby, which takes no writes.
func (a *Admin) InRecovery(ctx context.Context) (standby bool, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby))
	})
	return standby, err
}

// Position returns the end of a primary's WAL, as PostgreSQL writes an LSN:
// every commit that was acknowledged before lies before it.
func (a *Admin) Position(ctx context.Context) (lsn string, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&lsn))
	})
	return lsn, err
}

// Behind is returned by Replayed while a standby has not caught up.
type Behind struct {
	Node  string
	Bytes int64
}

func (b *Behind) Error() string {
	return fmt.Sprintf("replica %s has %d bytes of WAL yet to replay", b.Node, b.Bytes)
}

// Replayed returns a standby's clock once it has replayed the WAL up to lsn,
// *Behind before, and another error where the node is no standby.
func (a *Admin) Replayed(ctx context.Context, lsn string) (at time.Time, err error) {
	var behind *int64
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, "SELECT pg_wal_lsn_diff($1::pg_lsn, pg_last_wal_replay_lsn())::bigint, clock_timestamp()", lsn).Scan(&behind, &at))
	})
	switch {
	case err != nil:
		return at, err
	case behind == nil:
		return at, fmt.Errorf("%s: replays nothing: it is no standby any more", a.Node)
	case *behind > 0:
		return at, &Behind{a.Node, *behind}
	}
	return at, nil
}

// AwaitReplay returns the standby's clock once it has replayed the WAL up to
// lsn. Where ctx ends before, it says how far behind the standby is.
func (a *Admin) AwaitReplay(ctx context.Context, lsn string) (time.Time, error) {
	pause := 10 * time.Millisecond
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		at, err := a.Replayed(ctx, lsn)
		behind := new(Behind)
		if !errors.As(err, &behind) {
			return at, err
		}
		select {
		case <-ctx.Done():
			return at, behind
		case <-ticker.C:
			pause = min(pause*3/2, 500*time.Millisecond)
			ticker.Reset(pause)
		}
	}
}
