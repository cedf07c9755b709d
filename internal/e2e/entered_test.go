package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// walled is an installation whose accounts have what `pawl init --admin-sql` gives
// them, and whose applications have a hostile database.
type walled struct {
	*world
	server *pgserver.Server
	super  *pgx.Conn
	notes  *nats.Subscription
}

// newWalled starts one that compares every second.
func newWalled(t *testing.T, names map[string]string) *walled {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{Settings: loudestLogging()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	w := &walled{server: server}
	secrets := t.TempDir()
	account := func(user string) string {
		return fmt.Sprintf("{user: %s, password_file: %q, sslmode: disable}", user, filepath.Join(secrets, user))
	}
	cluster := fmt.Sprintf("{environment: test, admin: %s, observer: %s, nodes: {primary: {host: 127.0.0.1, port: %d}}}", account("pawl_admin"), account("pawl_observer"), server.Port)
	w.world = newWorldWith(t, 1, stepDeadline, func(*site.Apps) (all []site.Credential) {
		for name, strategy := range names {
			all = append(all, site.Credential{Name: name, Strategy: strategy, Keep: "1h", Database: "shop", Cluster: cluster})
		}
		return all
	}, func(dir, otlp string, credentials []site.Credential) (*site.Site, error) {
		s, err := site.NewCluster(t.Context(), dir, []site.Node{{Name: "primary", Server: server}}, otlp, credentials)
		if err == nil {
			err = appendTo(s.File, "reconcile_every: 1s\n")
		}
		if err == nil {
			s.Inventory, err = inventory.Load(s.File)
		}
		return s, err
	})
	if w.super, err = w.site.Superuser(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.super.Close(context.Background()) })
	w.setUp(secrets, names)
	if w.notes, err = w.client.NATS.SubscribeSync("pawl.note.*"); err != nil {
		t.Fatal(err)
	}
	return w
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// setUp makes the accounts and the database.
func (w *walled) setUp(secrets string, names map[string]string) {
	w.t.Helper()
	var roles []string
	var cluster *inventory.Cluster
	for name := range names {
		c := w.site.Inventory.Credentials[name]
		roles, cluster = append(roles, c.Logins()...), c.Cluster
	}
	w.exec(postgres.AdminSQL(cluster.Admin, cluster.Observer, roles), "CREATE DATABASE shop OWNER "+roles[0])
	for _, user := range []string{"pawl_admin", "pawl_observer"} {
		password, err := secret.Generate(secret.DefaultLength)
		if err != nil {
			w.t.Fatal(err)
		}
		w.setPassword(user, password)
		if err := os.WriteFile(filepath.Join(secrets, user), []byte(password.Reveal()), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	config := w.super.Config().Copy()
	config.Database = "shop"
	inside, err := pgx.ConnectConfig(w.t.Context(), config)
	if err == nil {
		defer inside.Close(context.Background())
		err = pgserver.Hostile(w.t.Context(), inside)
	}
	if err != nil {
		w.t.Fatal("the database could not be made hostile")
	}
}

func (w *walled) exec(statements ...string) {
	w.t.Helper()
	for _, sql := range statements {
		if _, err := w.super.Exec(w.t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *walled) setPassword(user string, password secret.String) {
	w.t.Helper()
	verifier, err := postgres.Verifier(password)
	if err != nil {
		w.t.Fatal(err)
	}
	// Elsewhere it would be found by the search for secrets, which is to find Pawl's faults.
	w.exec("BEGIN; SET LOCAL log_statement = 'none'; SET LOCAL log_min_duration_statement = -1; SET LOCAL pg_stat_statements.track_utility = off",
		"ALTER ROLE "+user+" PASSWORD '"+verifier.Reveal()+"'", "COMMIT")
}

// hears waits for a note of the kind about the credential.
func (w *walled) hears(ctx context.Context, kind, credential string) string {
	w.t.Helper()
	for {
		m, err := w.notes.NextMsgWithContext(ctx)
		if err != nil {
			w.t.Fatalf("no note %q about %s: %v", kind, credential, err)
		}
		note := &pawlv1.Note{}
		if err := bus.Decode(m.Header, m.Data, note); err != nil {
			w.t.Fatal(err)
		}
		if note.GetKind() == kind && note.GetCredential() == credential {
			return note.GetText()
		}
	}
}

// TestTheAdminEntersNoDatabaseOfAnApplication while it is adopted, planned, rotated,
// rolled back, examined by `pawl doctor`, reconciled and contained.
func TestTheAdminEntersNoDatabaseOfAnApplication(t *testing.T) {
	names := map[string]string{"kept-out": "alternating", "kept-out-in-place": "in-place"}
	w := newWalled(t, names)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for name := range names {
		for _, action := range []pawlv1.Action{adopt, rotate, rollback, rotate} {
			if planned, err := w.client.Ask(ctx, name, plan); err != nil || planned.GetOutcome() == pawlv1.Outcome_OUTCOME_REJECTED && action != adopt {
				t.Fatalf("plan of %s before %s: %v (%v)", name, action, planned, err)
			}
			if _, err := w.client.Do(ctx, name, action); err != nil {
				t.Fatalf("%s of %s: %v", action, name, err)
			}
		}
		for _, asked := range []string{saga.DBRotator, saga.Verifier} {
			if checks, err := service.Ask(ctx, w.client.Bus, bus.ExamineSubject(asked, name)); err != nil || slices.ContainsFunc(checks, (*pawlv1.Check).GetRefused) {
				t.Errorf("doctor of %s by %s: %v (%v)", name, asked, checks, err)
			}
		}
		foreign, err := secret.Generate(secret.DefaultLength)
		if err != nil {
			t.Fatal(err)
		}
		w.setPassword(site.Role(name), foreign)
		w.hears(ctx, "drift", name)
		if _, err := w.client.Do(ctx, name, contain); err != nil {
			t.Fatalf("containment of %s: %v", name, err)
		}
		if told := w.hears(ctx, "evidence", name); !strings.Contains(told, "kept, sealed, of primary") {
			t.Errorf("evidence: %s", told)
		}
	}
	users, err := w.server.Entered("shop")
	if err != nil || slices.Contains(users, "pawl_admin") || !slices.Contains(users, "pawl_observer") || !slices.Contains(users, "kept_out_b") {
		t.Errorf("%q logged in to the application's database (%v)", users, err)
	}
	if calls, err := w.server.HostileCalls(); err != nil || slices.ContainsFunc(calls, func(c string) bool { return strings.Contains(c, "pawl_") }) {
		t.Errorf("called with the rights of Pawl's accounts: %v (%v)", calls, err)
	}
}
