package pgserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pawl.dev/internal/secret"
)

// standbyRole is whom standbys log in as at their primary.
const standbyRole = "pgserver_standby"

// Standby starts a server that streams from s, or, where s is a standby itself,
// from s by cascade. It has the settings of s and, over them, those of o, such
// as recovery_min_apply_delay. It returns once the standby accepts connections.
func (s *Server) Standby(ctx context.Context, o Options) (*Server, error) {
	if err := s.createStandbyRole(ctx); err != nil {
		return nil, err
	}
	if o.Binaries == "" {
		o.Binaries = s.binaries
	}
	if o.HBA == nil {
		o.HBA = s.hba
	}
	o.Settings = merged(s.settings, o.Settings)
	return startWith(ctx, o, func(standby *Server) error {
		if err := s.Backup(ctx, standby.data()); err != nil {
			return err
		}
		standby.replication = s.replication
		line := fmt.Sprintf("*:*:*:%s:%s\n", standbyRole, s.replication.Reveal())
		if err := os.WriteFile(standby.passfile(), []byte(line), 0o600); err != nil {
			return err
		}
		standby.settings = merged(map[string]string{"primary_conninfo": standby.conninfo(s), "wal_retrieve_retry_interval": "100ms"}, standby.settings)
		return os.WriteFile(filepath.Join(standby.data(), "standby.signal"), nil, 0o600)
	})
}

// Follow has a standby stream from another primary, or, with nil, from nobody,
// so that what is committed from now on does not reach it.
func (s *Server) Follow(ctx context.Context, primary *Server) error {
	conn, err := s.session(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	conninfo, port := "", 0
	if primary != nil {
		conninfo, port = s.conninfo(primary), int(primary.Port)
	}
	for _, sql := range []string{"ALTER SYSTEM SET primary_conninfo = '" + strings.ReplaceAll(conninfo, "'", "''") + "'", "SELECT pg_reload_conf()"} {
		if _, err := query(ctx, conn, sql); err != nil {
			return err
		}
	}
	if primary == nil {
		// A receiver that ends before recovery has read the new setting is started
		// once more with the old one: only a new process is sure to have none.
		return s.Restart(ctx)
	}
	// While it waits for recovery_min_apply_delay, a standby would stop receiving
	// only afterwards.
	receiver, err := query(ctx, conn, fmt.Sprintf("SELECT pid FROM pg_stat_wal_receiver WHERE sender_port IS DISTINCT FROM %d", port))
	if err != nil {
		return err
	}
	if len(receiver) > 0 {
		pid, _ := strconv.Atoi(receiver[0])
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return await(ctx, conn, fmt.Sprintf("EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_port = %d)", port))
}

// Promote makes a standby a primary. What it has received is replayed, however
// long recovery_min_apply_delay is; see Follow.
func (s *Server) Promote(ctx context.Context) error {
	conn, err := s.session(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := query(ctx, conn, "SELECT pg_promote(false)"); err != nil {
		return err
	}
	return await(ctx, conn, "NOT pg_is_in_recovery()")
}

// createStandbyRole does so once, on the primary; its password stands in no log.
func (s *Server) createStandbyRole(ctx context.Context) error {
	if !s.replication.IsZero() {
		return nil
	}
	password, err := secret.Generate(secret.DefaultLength)
	if err != nil {
		return err
	}
	conn, err := s.session(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range []string{
		"SET log_statement = 'none'", "SET log_min_duration_statement = -1", "SET log_min_error_statement = 'panic'",
		"SET pg_stat_statements.track_utility = off", "SET track_activities = off",
		"CREATE ROLE " + standbyRole + " REPLICATION LOGIN PASSWORD '" + password.Reveal() + "'",
	} {
		if _, err := query(ctx, conn, sql); err != nil {
			return fmt.Errorf("create role %s: %w", standbyRole, err)
		}
	}
	s.replication = password
	return nil
}

// conninfo names the file of the password, never the password: the server shows
// and logs it.
func (s *Server) conninfo(primary *Server) string {
	return fmt.Sprintf("host=%s port=%d user=%s passfile='%s' application_name=standby_%s",
		primary.Host, primary.Port, standbyRole, s.passfile(), filepath.Base(s.Dir))
}

func (s *Server) passfile() string { return filepath.Join(s.Dir, "pgpass") }

// session logs in as the superuser.
func (s *Server) session(ctx context.Context) (*pgconn.PgConn, error) {
	config, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%d user=%s dbname=postgres password=later sslmode=disable application_name=pgserver", s.Host, s.Port, s.Superuser))
	if err != nil {
		return nil, err
	}
	config.Password = s.Password.Reveal()
	return pgconn.ConnectConfig(ctx, config)
}

// query returns the first row.
func query(ctx context.Context, conn *pgconn.PgConn, sql string) ([]string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var row []string
	for _, result := range results {
		if len(result.Rows) > 0 {
			for _, value := range result.Rows[0] {
				row = append(row, string(value))
			}
		}
	}
	return row, nil
}

// await waits until the condition is true on the server.
func await(ctx context.Context, conn *pgconn.PgConn, condition string) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		row, err := query(ctx, conn, "SELECT "+condition)
		if err != nil || row[0] == "t" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", condition, ctx.Err())
		case <-tick.C:
		}
	}
}

func merged(under, over map[string]string) map[string]string {
	all := maps.Clone(under)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, over)
	return all
}
