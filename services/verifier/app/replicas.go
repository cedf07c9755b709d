package app

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/services/verifier/internal/probe"
)

const (
	// maxLag is half of what the stage step may take.
	maxLag = 30 * time.Second
	// catchUp is how long preflight waits for a replica that is a moment behind.
	catchUp = 3 * time.Second
)

// standing is what a server is in its set: who takes writes, or who follows.
type standing struct {
	node   inventory.Node
	report *report

	known    bool // it was read
	standby  bool
	system   int64 // the system identifier: the same in a primary and its standbys
	timeline int   // of a standby: the one it streams, 0 where it streams none
	position string
	paused   bool
	delay    time.Duration // recovery_min_apply_delay
}

const readStanding = `
SELECT standby, system_identifier,
	CASE WHEN standby THEN coalesce((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver WHERE status = 'streaming'), 0)
		ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
	CASE WHEN standby THEN '' ELSE pg_current_wal_lsn()::text END,
	CASE WHEN standby THEN pg_is_wal_replay_paused() ELSE false END,
	(SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'recovery_min_apply_delay')
FROM (SELECT pg_is_in_recovery() AS standby) s, pg_control_system()`

func (s *standing) read(ctx context.Context, conn *pgx.Conn) {
	var delay int64
	err := conn.QueryRow(ctx, readStanding).Scan(&s.standby, &s.system, &s.timeline, &s.position, &s.paused, &delay)
	if err != nil {
		s.report.refuse("%v", probe.Explain("read whom it follows", err))
		return
	}
	s.known, s.delay = true, time.Duration(delay)*time.Millisecond
}

// checkStandings finds in a set, its configured primary first, the one server
// that takes writes, nil where there is none or more, and judges the others as
// its replicas. What could not be read was refused before.
func (a *app) checkStandings(ctx context.Context, c *inventory.Credential, servers []standing) (lead *standing) {
	var writers []string
	for i := range servers {
		if s := &servers[i]; s.known && !s.standby {
			writers = append(writers, s.node.Name)
			lead = s
		}
	}
	configured := &servers[0]
	switch {
	case len(writers) > 1:
		configured.report.refuse("%s all take writes, and only one of them may: stop the others, or correct replica_of in pawl.yaml", strings.Join(writers, " and "))
		return nil
	case lead == nil && configured.known:
		configured.report.refuse("is a standby, and no replica of it takes writes: promote one, or correct pawl.yaml")
	case lead != nil && lead != configured:
		configured.report.find("warning: %s takes its writes: correct pawl.yaml", lead.node.Name)
	}
	if lead == nil {
		return nil
	}
	var all sync.WaitGroup
	for i := range servers {
		if s := &servers[i]; s.known && s != lead {
			all.Go(func() { a.checkReplica(ctx, c, s, lead) })
		}
	}
	all.Wait()
	return lead
}

// checkReplica refuses a replica that staging would await in vain.
func (a *app) checkReplica(ctx context.Context, c *inventory.Credential, s, lead *standing) {
	r := s.report
	switch {
	case s.system != lead.system:
		r.refuse("is no copy of %s (its system identifier is another): correct replica_of in pawl.yaml", lead.node.Name)
	case s.timeline == 0:
		r.refuse("receives no WAL, so a new password would not reach it: see its log and primary_conninfo, or take it out of pawl.yaml")
	case s.timeline != lead.timeline:
		r.refuse("streams timeline %d, and %s writes timeline %d: it follows another server: correct its primary_conninfo", s.timeline, lead.node.Name, lead.timeline)
	case s.paused:
		r.refuse("replay is paused, so a new password would not reach it: SELECT pg_wal_replay_resume()")
	case s.delay > maxLag:
		r.refuse("recovery_min_apply_delay is %v, and a rotation waits for replicas at most %v: lower it, or take the replica out of pawl.yaml", s.delay, maxLag)
	default:
		a.checkLag(ctx, c, s, lead, maxLag)
	}
}

// lag is how old the newest change is that a standby has replayed.
const lag = `SELECT extract(epoch FROM clock_timestamp() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time()))::float8`

// checkLag lets the replica catch up for a moment: how old its newest change is
// says nothing where it has them all, and next to nothing where a primary that
// was idle has just begun to write.
func (a *app) checkLag(ctx context.Context, c *inventory.Credential, s, lead *standing, bearable time.Duration) {
	observer, err := a.accounts.observer(c, s.node)
	if err != nil {
		s.report.refuse("%v", err)
		return
	}
	while, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	behind := new(postgres.Behind)
	switch _, err := observer.AwaitReplay(while, lead.position); {
	case err == nil:
		s.report.find("follows %s", lead.node.Name)
		return
	case !errors.As(err, &behind):
		s.report.refuse("%v", err)
		return
	}
	var seconds float64
	err = observer.Do(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, lag).Scan(&seconds) })
	late := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	switch {
	case err != nil:
		s.report.refuse("%v", probe.Explain("read how late it is", err))
	case late > bearable:
		s.report.refuse("is %v late, with %d bytes of WAL yet to replay, and a rotation waits for replicas at most %v: wait until it has caught up, or take it out of pawl.yaml", late, behind.Bytes, bearable)
	default:
		s.report.find("warning: is %v late: each step waits for it", late)
	}
}
