package pgserver

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// ask returns the first value of the first row.
func (s *Server) ask(t *testing.T, sql string) string {
	t.Helper()
	conn, err := s.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	row, err := query(t.Context(), conn, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if len(row) == 0 {
		return ""
	}
	return row[0]
}

func standby(t *testing.T, of *Server, o Options) *Server {
	t.Helper()
	s, err := of.Standby(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

const caughtUp = "SELECT count(*) FROM pg_class WHERE relname = '"

func TestStandbyStreamsAndCascades(t *testing.T) {
	s := start(t, Options{})
	first := standby(t, s, Options{})
	s.ask(t, "CREATE TABLE before ()")
	cascaded := standby(t, first, Options{})
	s.ask(t, "CREATE TABLE after ()")
	for _, s := range []*Server{first, cascaded} {
		poll(t, func() bool { return s.ask(t, caughtUp+"after'") == "1" })
		if got := s.ask(t, "SELECT pg_is_in_recovery()"); got != "t" {
			t.Errorf("in recovery: %s", got)
		}
	}
}

func TestPromotedStandbyLacksWhatItDidNotReceive(t *testing.T) {
	s := start(t, Options{})
	late := standby(t, s, Options{Settings: map[string]string{"recovery_min_apply_delay": "1h"}})
	s.ask(t, "CREATE TABLE received ()")
	end := s.ask(t, "SELECT pg_current_wal_flush_lsn()")
	poll(t, func() bool { return late.ask(t, "SELECT pg_last_wal_receive_lsn() >= '"+end+"'") == "t" })
	if got := late.ask(t, caughtUp+"received'"); got != "0" {
		t.Error("recovery_min_apply_delay is not observed")
	}
	if err := late.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s.ask(t, "CREATE TABLE lost ()")
	if err := late.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := late.ask(t, caughtUp+"received'") + late.ask(t, caughtUp+"lost'"); got != "10" {
		t.Errorf("received and lost are there: %s, want 10", got)
	}
	late.ask(t, "CREATE TABLE writable ()")
}

func TestStandbyFollowsAgain(t *testing.T) {
	s := start(t, Options{})
	follower := standby(t, s, Options{})
	if err := follower.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s.ask(t, "CREATE TABLE missed ()")
	if err := follower.Follow(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	poll(t, func() bool { return follower.ask(t, caughtUp+"missed'") == "1" })
}

func TestRestoreBringsBackAnOlderState(t *testing.T) {
	s := start(t, Options{})
	port := s.Port
	s.ask(t, "CREATE TABLE kept ()")
	backup := filepath.Join(t.TempDir(), "backup")
	if err := s.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a backup can be used again
		s.ask(t, "CREATE TABLE lost ()")
		if err := s.Restore(t.Context(), backup); err != nil {
			t.Fatal(err)
		}
		if got := s.ask(t, caughtUp+"kept'") + s.ask(t, caughtUp+"lost'"); got != "10" || s.Port != port {
			t.Errorf("kept and lost are there: %s, want 10; port %d, want %d", got, s.Port, port)
		}
	}
}

func TestReplicationPasswordIsInNoLogAndNoCommandLine(t *testing.T) {
	s := start(t, Options{Settings: map[string]string{"log_statement": "all", "log_min_duration_statement": "0",
		"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on"}})
	follower := standby(t, s, Options{})
	if err := follower.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := follower.Follow(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s.ask(t, "CREATE EXTENSION pg_stat_statements")
	statements := s.ask(t, "SELECT string_agg(query, E'\\n') FROM pg_stat_statements")
	places := map[string][]byte{"pg_stat_statements": []byte(statements)}
	for _, file := range []string{s.LogFile, follower.LogFile, filepath.Join(follower.data(), "postgresql.conf"), filepath.Join(follower.data(), "postgresql.auto.conf")} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		places[file] = raw
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		places[p], _ = os.ReadFile(p) // it may have ended
	}
	for place, text := range places {
		if bytes.Contains(text, []byte(s.replication.Reveal())) || bytes.Contains(text, []byte("SCRAM-SHA-256$")) {
			t.Errorf("the password of %s, or a verifier, is in %s", standbyRole, place)
		}
	}
}
