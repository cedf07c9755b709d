package rotator

import (
	"context"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
)

// crowded is a world on a server of its own with few connection slots, whose admin has
// what `pawl init --admin-sql` gives.
type crowded struct {
	*world
	server *pgserver.Server
}

func newCrowded(t *testing.T, role string) *crowded {
	t.Helper()
	settings := maps.Clone(loud)
	settings["max_connections"] = "12"
	if version(t) >= 160000 {
		settings["reserved_connections"] = "3"
	}
	started := running(t)(pgserver.Start(t.Context(), pgserver.Options{NoSync: true, Settings: settings}))
	w := &crowded{bareWorld(t, role, inventory.InPlace), started}
	w.others = []*pgserver.Server{w.server}
	w.credential.Nodes = []inventory.Node{{Name: "coordinator", Host: w.server.Host, Port: w.server.Port}}
	admin := &w.credential.Cluster.Admin
	admin.User, admin.Database = "admin_of_"+role, "of_"+role
	password, verifier := newPassword(t)
	adminPassword, adminVerifier := newPassword(t)
	w.root("postgres", "CREATE ROLE "+role+" LOGIN PASSWORD '"+verifier.Reveal()+"'", "CREATE DATABASE "+admin.Database)
	w.root(admin.Database, postgres.AdminSQL(*admin, inventory.Account{}, w.credential.Logins()), "ALTER ROLE "+admin.User+" PASSWORD '"+adminVerifier.Reveal()+"'")
	if err := os.WriteFile(admin.PasswordFile, []byte(adminPassword.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	w.publish(role, password)
	w.adopt()
	return w
}

func (w *crowded) root(database string, statements ...string) {
	w.t.Helper()
	to := target(w.server.Superuser, w.server.Password)
	to.Host, to.Port, to.Database = w.server.Host, w.server.Port, database
	conn, err := postgres.Login(w.t.Context(), to)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	w.as(conn, "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_transaction_sample_rate = 0; SET pg_stat_statements.track_utility = off")
	for _, sql := range statements {
		w.as(conn, sql)
	}
}

// taken are sessions of the stolen login on every slot that there is.
func (w *crowded) taken() (all []*pgx.Conn) {
	w.t.Helper()
	stolen := w.envelope(w.basis)
	to := target(stolen.User, stolen.Password)
	to.Host, to.Port = w.server.Host, w.server.Port
	for {
		conn, err := postgres.Login(w.t.Context(), to)
		if postgres.IsRefused(err, postgres.NoSlot) {
			return all
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { conn.Close(context.Background()) })
		all = append(all, conn)
	}
}

// refusedHere asserts that every thief is gone, and none comes back.
func (w *crowded) refusedHere(thieves []*pgx.Conn) {
	w.t.Helper()
	for i, thief := range thieves {
		if !thief.IsClosed() && thief.Ping(w.t.Context()) == nil {
			w.t.Errorf("thief %d of %d is still inside", i+1, len(thieves))
		}
	}
	stolen := w.envelope(w.basis)
	to := target(stolen.User, stolen.Password)
	to.Host, to.Port = w.server.Host, w.server.Port
	if conn, err := postgres.Login(w.t.Context(), to); err == nil || postgres.IsRefused(err, postgres.NoSlot) {
		w.t.Errorf("the stolen login: %v; want it refused", err)
		if err == nil {
			conn.Close(context.Background())
		}
	}
}

// From PostgreSQL 16 on a slot is reserved, also for a Pawl that has just started. Before,
// Pawl has a session that it keeps.
func TestStolenLoginThatHoldsEverySlotIsRefused(t *testing.T) {
	w := newCrowded(t, "crowd")
	if version(t) >= 160000 {
		w.Close()
	}
	thieves := w.taken()
	r := w.emergency(nil)
	w.do(w.insistently, r, saga.Contained)
	w.refusedHere(thieves)
}

// If there is no slot, the first that frees is taken.
func TestStolenLoginIsRefusedOnceASlotFrees(t *testing.T) {
	w := newCrowded(t, "squeeze")
	if version(t) >= 160000 {
		w.root("postgres", "REVOKE pg_use_reserved_connections FROM admin_of_squeeze")
	}
	w.Close()
	w.awaitNobody("admin_of_squeeze")
	thieves := w.taken()
	r := w.emergency(nil)
	waiting := new(saga.NotYet)
	if _, err := w.Contain(t.Context(), r); !errors.As(err, &waiting) || waiting.Again > crowdedAgain || !strings.Contains(err.Error(), postgres.NoSlot) {
		t.Errorf("contained without a slot: %v; want it tried again at once", err)
	}
	alone := New(nil, nil)
	defer alone.Close()
	tries := 0
	contained, err := alone.BreakGlass(t.Context(), w.credential, nil, func(text string) {
		if tries++; tries == 1 {
			if !strings.Contains(text, postgres.NoSlot) {
				t.Errorf("waits for %s; want the slot named", text)
			}
			thieves[0].Close(context.Background())
		}
	})
	if err != nil || tries == 0 {
		t.Errorf("break glass: %v, %v, after %d tries", contained, err, tries)
	}
	w.refusedHere(thieves)
}

// awaitNobody waits until no session of the user is left.
func (w *crowded) awaitNobody(user string) {
	w.t.Helper()
	(&followed{world: w.world}).awaits(w.server, "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '"+user+"'")
}

func TestStolenLoginThatCouldTakeEverySlotIsWarnedOf(t *testing.T) {
	w := leastWorld(t, "greedy", inventory.Alternating, false)
	w.rotate(saga.Alternating)
	want := "warning: its logins may take all of the"
	if version(t) >= 160000 {
		want = "warning: if others take every connection slot, an emergency finds none. Fix: set reserved_connections = 3"
	}
	if checks := w.Check(t.Context(), w.credential); !finding(checks, false, want) || finding(checks, true, "") {
		t.Errorf("plan: %v; want %q, and nothing refused", checks, want)
	}
	w.sql("ALTER ROLE greedy CONNECTION LIMIT 10", "ALTER ROLE greedy_b CONNECTION LIMIT 10")
	if checks := w.Check(t.Context(), w.credential); finding(checks, false, want) {
		t.Errorf("plan: %v; want no warning of logins with a limit", checks)
	}
}
