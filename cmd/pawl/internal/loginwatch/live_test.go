package loginwatch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// live is a server whose log is watched.
type live struct {
	t      *testing.T
	server *pgserver.Server
	log    *output
	*Watcher
	alerts *alerts
}

// refused logs in as somebody whom the server refuses.
func (l *live) refused(user, database, password string) {
	l.t.Helper()
	conn, err := postgres.Login(context.Background(), postgres.Target{Host: l.server.Host, Port: l.server.Port, Database: database, User: user, Password: secret.New(password)})
	if err == nil {
		_ = conn.Close(context.Background())
		l.t.Fatalf("%q was let in", user)
	}
}

func (l *live) as(user, password string, statements ...string) {
	l.t.Helper()
	ctx := context.Background()
	conn, err := postgres.Login(ctx, postgres.Target{Host: l.server.Host, Port: l.server.Port, Database: "postgres", User: user, Password: secret.New(password)})
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil && !strings.Contains(s, "raise") {
			l.t.Fatalf("%s: %v", s, err)
		}
	}
}

func (l *live) admin(statements ...string) {
	l.t.Helper()
	l.as(l.server.Superuser, l.server.Password.Reveal(), statements...)
}

// wants expects the next alert. Each is followed by all that was logged before.
func (l *live) wants(want string) {
	l.t.Helper()
	if got := about(l.alerts.next()); got != want {
		l.t.Fatalf("alert %q, want %q; log: %s", got, want, l.log)
	}
}

func formats(t *testing.T) []string {
	binaries, err := pgserver.Find()
	if err != nil {
		t.Fatal(err)
	}
	if s := filepath.ToSlash(binaries); strings.Contains(s, "postgres-13") || strings.Contains(s, "postgres-14") || strings.Contains(s, "/13/") || strings.Contains(s, "/14/") {
		return []string{"csvlog"} // jsonlog is new in 15
	}
	return []string{"csvlog", "jsonlog"}
}

func newLive(t *testing.T, format string, settings map[string]string) *live {
	t.Helper()
	options := map[string]string{"logging_collector": "on", "log_destination": format, "log_directory": "log", "log_connections": "on", "log_timezone": "Asia/Kolkata", "log_statement": "all"}
	maps.Copy(options, settings)
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true, Settings: options,
		HBA: []string{"host all trusted 127.0.0.1/32 trust", "host all forbidden 127.0.0.1/32 reject"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() }) // the test is over
	nats := bustest.Start(t)
	l := &live{t: t, server: server, log: &output{}, alerts: listen(t, nats.Connect(t, bus.Operator))}
	l.Watcher = newWatcher(t, inventoryIn(t, t.TempDir()), nats.Connect(t, bus.SourceUser(inventory.LoginWatch)), filepath.Join(server.Dir, "data", "log"), l.log)
	l.admin("CREATE DATABASE shop", "CREATE ROLE app LOGIN PASSWORD 'right'", "CREATE ROLE app_b NOLOGIN IN ROLE app", "CREATE ROLE gone NOLOGIN PASSWORD 'retired'",
		"CREATE ROLE trusted NOLOGIN", "CREATE ROLE forbidden LOGIN PASSWORD 'x'", "CREATE ROLE other LOGIN PASSWORD 'x'")
	return l
}

func TestFailuresOfARealServer(t *testing.T) {
	for _, format := range formats(t) {
		t.Run(format, func(t *testing.T) { realFailures(t, newLive(t, format, nil)) })
	}
}

func realFailures(t *testing.T, l *live) {
	stop := start(t, l.Watcher)
	const typed = "a-password-in-the-wrong-place"
	hostile := []string{typed, "a\"b,\n{\"user\":\"app\"}", "app\n2026-11-25 04:55:47.488 CET,\"app\",", "app\xff", "'", "app ", "APP", "\\"}
	for range 4 { // none of these is an alert by role
		for _, user := range []string{"other", "elsewhere"} {
			l.refused(user, "postgres", "wrong")
		}
		l.refused("app", "no such database", "right")
	}
	l.admin("DO $$ begin raise exception using errcode = '28P01', message = 'password authentication failed for user \"app\"'; end $$",
		"DO $$ begin raise exception using errcode = '28000'; end $$")
	l.wants("FailedLogins main/one @127.0.0.1 28P01 ") // "elsewhere" does not exist on this server
	for _, user := range hostile {
		l.refused(user, "d\"\n,{b}", "wrong")
	}
	// The right password of a login that was refused: once is enough.
	l.refused("gone", "shop", "retired")
	l.wants("RetiredCredentialUsed main/one gone@127.0.0.1 28000 gone")
	for range 3 {
		l.refused("app", "shop", "wrong")
		l.refused("forbidden", "shop", "x")
	}
	l.wants("FailedLogins main/one app@127.0.0.1 28P01 shop")
	l.wants("RefusedByHBA main/one forbidden@127.0.0.1 28000 forbidden")
	// In place and alternating, as Pawl does it: nobody fails.
	l.admin("ALTER ROLE app PASSWORD 'newer'", "ALTER ROLE app_b LOGIN PASSWORD 'newest'")
	l.as("app", "newer", "SELECT 1")
	l.as("app_b", "newest", "SELECT 1")
	l.admin("ALTER ROLE app NOLOGIN", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'", "ALTER ROLE app PASSWORD NULL")
	// Trust asks for no password, so none was known: PostgreSQL tells from 14 on.
	if l.admin(); !slices.Contains(formats(t), "jsonlog") {
		l.refused("app_b", "shop", "wrong")
	} else {
		l.refused("trusted", "shop", "")
	}
	for range 3 {
		l.refused("app_b", "shop", "wrong")
	}
	l.wants("FailedLogins main/one app_b@127.0.0.1 28P01 shop")
	stop()
	saved, err := os.ReadFile(stateFile(l.dir))
	if err != nil {
		t.Fatal(err)
	}
	if all := l.log.String() + string(saved); strings.Contains(all, typed) || strings.Contains(all, "right") || strings.Contains(all, "newest") || strings.Contains(all, "malformed") {
		t.Errorf("what a client typed is repeated, or a record was not understood: %s", all)
	}
	if strings.Contains(l.log.String(), "WARN") {
		t.Errorf("warned: %s", l.log)
	}
}

func TestNoFailureIsLostWhileTheLogRotates(t *testing.T) {
	for _, format := range formats(t) {
		t.Run(format, func(t *testing.T) {
			// A name with milliseconds there is not: a second is the finest.
			l := newLive(t, format, map[string]string{"log_filename": "p-%S.log", "log_truncate_on_rotation": "on", "log_rotation_size": "64kB"})
			start(t, l.Watcher)
			const each = 40
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					for range each {
						_, err := postgres.Login(context.Background(), postgres.Target{Host: l.server.Host, Port: l.server.Port, Database: "shop", User: "app", Password: secret.New("wrong")})
						if refused := new(postgres.Refused); !errors.As(err, &refused) {
							t.Errorf("not refused: %v", err)
						}
					}
				})
			}
			for range 40 {
				l.admin("SELECT pg_rotate_logfile()", "SELECT '"+strings.Repeat("x", 8000)+"'")
			}
			all.Wait()
			l.wants("FailedLogins main/one app@127.0.0.1 28P01 shop")
			l.refused("gone", "shop", "retired") // all that was logged before is read when this is told
			l.wants("RetiredCredentialUsed main/one gone@127.0.0.1 28000 gone")
			saved := l.saved()
			if n := len(saved.Position.Files); n < 2 {
				t.Errorf("the log was in %d files", n)
			}
			for _, e := range saved.Episodes {
				if e.Key.Alert == FailedLogins && e.Episode.Count != 3*each {
					t.Errorf("%d failures counted of %d", e.Episode.Count, 3*each)
				}
			}
			if strings.Contains(l.log.String(), "WARN") {
				t.Errorf("warned: %s", l.log)
			}
		})
	}
}

// saved waits until the alerts that were published are saved.
func (l *live) saved() state {
	l.t.Helper()
	for l.t.Context().Err() == nil {
		s, _, err := load(l.dir)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, e := range s.Episodes {
			if e.Key.Alert == RetiredCredentialUsed {
				return s
			}
		}
	}
	l.t.Fatal(fmt.Errorf("never saved: %w", l.t.Context().Err()))
	return state{}
}
