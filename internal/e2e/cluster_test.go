package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// applyDelay is how late the replica replays.
const applyDelay = time.Second

// clusterWorld is a coordinator, its late replica, and two workers.
func clusterWorld(t *testing.T, layOut func(*site.Apps, []site.Node) []site.Credential) *world {
	t.Helper()
	options := pgserver.Options{Settings: loudestLogging()}
	coordinator := running(t)(pgserver.Start(t.Context(), options))
	late := pgserver.Options{Settings: map[string]string{"recovery_min_apply_delay": applyDelay.String()}}
	nodes := []site.Node{{Name: "primary", Server: coordinator},
		{Name: "replica", Server: running(t)(coordinator.Standby(t.Context(), late)), ReplicaOf: "primary"},
		{Name: "worker-1", Server: running(t)(pgserver.Start(t.Context(), options))},
		{Name: "worker-2", Server: running(t)(pgserver.Start(t.Context(), options))}}
	return newWorldOn(t, 2, nodes, func(apps *site.Apps) []site.Credential { return layOut(apps, nodes) })
}

// running stops a server that was started when the test ends.
func running(t *testing.T) func(*pgserver.Server, error) *pgserver.Server {
	return func(s *pgserver.Server, err error) *pgserver.Server {
		t.Helper()
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
}

// everywhere asserts that all servers hold the same of both logins: on a
// replica once it has replayed that.
func (w *world) everywhere(ctx context.Context, credential string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var faults []error
	for _, login := range []string{site.Role(credential), site.Role(credential) + "_b"} {
		first, err := w.holds(ctx, w.site.Nodes[0], login)
		if err != nil {
			return err
		}
		for _, n := range w.site.Nodes[1:] {
			now, err := w.holds(ctx, n, login)
			for err == nil && n.ReplicaOf != "" && now != first && ctx.Err() == nil {
				now, err = w.holds(ctx, n, login)
			}
			if err == nil && now != first {
				err = fmt.Errorf("%s holds something else of %q than %s", n.Name, login, w.site.Nodes[0].Name)
			}
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// holds tells what a server holds of a login, comparably.
func (w *world) holds(ctx context.Context, n site.Node, login string) (string, error) {
	conn, err := w.site.SuperuserAt(ctx, n)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	var held string
	err = conn.QueryRow(ctx, "SELECT coalesce((SELECT rolcanlogin::text || coalesce(rolpassword, '') FROM pg_authid WHERE rolname = $1), 'false')", login).Scan(&held)
	return held, err
}

// TestClusterTurnsUnderLoad is the whole of it: an application with a pool of
// sessions through pgbouncer, and clients that log in directly on every server,
// the late replica among them. No query and no login may fail.
func TestClusterTurnsUnderLoad(t *testing.T) {
	var pooler *pooltest.Pooler
	w := clusterWorld(t, func(apps *site.Apps, nodes []site.Node) []site.Credential {
		pooler = pooltest.Start(t, nodes[0].Server.Port, "", map[string]string{"pool_mode": "transaction", "max_client_conn": "200"})
		console := fmt.Sprintf("host: 127.0.0.1, port: %d, user: %s, password_file: %q, sslmode: disable", pooler.Console.Port, pooltest.Boss, pooler.Console.PasswordFile)
		return []site.Credential{{Name: "busy", Strategy: "alternating", Drain: "2s", Restart: apps.RestartYAML("busy"), Pooler: "{pgbouncer: {" + console + "}}",
			Publish: `[{dotenv: {path: "apps/busy/.env", user: DB_USER, password: DB_PASSWORD}}, {pgbouncer: {userlist: "` + pooler.Userlist + `", ` + console + "}}]"}}
	})
	verifier, err := w.admin.RoleState(t.Context(), "busy")
	if err != nil {
		t.Fatal(err)
	}
	pooler.Rewrite(t, pooltest.Line("busy", verifier.Verifier.Reveal()))
	pool, err := w.apps.StartPool(t.Context(), "busy", inventory.Node{Host: pooler.Console.Host, Port: pooler.Console.Port}, 8)
	if err != nil {
		t.Fatal(err)
	}
	if log, err := w.client.Do(t.Context(), "busy", adopt); err != nil || log.Find(saga.Completed) == nil {
		t.Fatalf("%v %v %s", err, site.Events(log), failureOf(log))
	}
	oracles := map[string]*site.Oracle{}
	for _, n := range w.site.Nodes {
		oracles[n.Name] = w.site.WatchAt(t.Context(), n.Direct(), "busy", 25*time.Millisecond, time.Second)
	}
	for range 2 {
		w.turns("busy")
	}
	for name, o := range oracles {
		if o.Stop(); len(o.Refusals) > 0 || o.Logins == 0 {
			t.Errorf("%s: of %d logins %d were refused: %v", name, o.Logins+len(o.Refusals), len(o.Refusals), o.Refusals[:min(3, len(o.Refusals))])
		}
	}
	queries, logins, failures := pool.Stop()
	t.Logf("through the pooler: %d queries, %d new logins", queries, logins)
	if len(failures) > 0 || queries == 0 || logins == 0 {
		t.Errorf("%d failures, such as %v", len(failures), failures[:min(3, len(failures))])
	}
}

// TestWorkersHavePasswordsOfTheirOwn: one role on two servers, and a list of
// passwords in one .env that they turn at the same time. Each member stays with
// its worker.
func TestWorkersHavePasswordsOfTheirOwn(t *testing.T) {
	options := pgserver.Options{Settings: loudestLogging()}
	nodes := []site.Node{{Name: "primary", Server: running(t)(pgserver.Start(t.Context(), options))},
		{Name: "worker", Server: running(t)(pgserver.Start(t.Context(), options))}}
	names := []string{"first", "second"}
	w := newWorldOn(t, 1, nodes, func(*site.Apps) (all []site.Credential) {
		for i, name := range names {
			all = append(all, site.Credential{Name: name, Login: "worker_user", Strategy: "in-place", Nodes: []string{nodes[i].Name},
				Publish: fmt.Sprintf(`[{dotenv: {path: apps/.env, password: "WORKER_PASSWORDS[%d]"}}]`, i)})
		}
		return all
	})
	var list []string
	for _, name := range names {
		login, err := w.site.Published(name) // the first one, of a file that only the test reads
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, login.Password.Reveal())
	}
	if err := os.WriteFile(filepath.Join(w.site.Dir, "apps", ".env"), []byte("WORKER_PASSWORDS="+strings.Join(list, ",")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	members := func() (passwords [2]string) {
		for i, name := range names {
			member, err := published.Read(w.site.Inventory.Credentials[name].Publish...)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := site.LoginAt(t.Context(), nodes[i].Direct(), inventory.Login{User: "worker_user", Password: member.Password}, "check")
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			conn.Close(t.Context())
			passwords[i] = member.Password.Reveal()
			w.seen.add(passwords[i])
		}
		return passwords
	}
	turn := func(action pawlv1.Action, names ...string) {
		var wait sync.WaitGroup
		for _, name := range names {
			wait.Go(func() {
				if log, err := w.client.Do(t.Context(), name, action); err != nil || log.Find(saga.Completed) == nil {
					t.Errorf("%v of %s: %v %v %s", action, name, err, site.Events(log), failureOf(log))
				}
			})
		}
		wait.Wait()
	}
	turn(adopt, names...)
	before := members()
	turn(rotate, names[1])
	one := members()
	turn(rotate, names...)
	both := members()
	if one[0] != before[0] || one[1] == before[1] || both[0] == one[0] || both[1] == one[1] {
		t.Error("the members that changed are not those of the workers that turned")
	}
}

// TestDeadWorker: a set of nodes turns as a whole or not at all.
func TestDeadWorker(t *testing.T) {
	strategies := []string{"alternating", "in-place"}
	points := map[string]string{"staging": "stage.seal(db-rotator).after", "staged": "publish.append.before", "verified": "verify.append.before"}
	var cases [][2]string
	for _, strategy := range strategies {
		for when := range points {
			cases = append(cases, [2]string{strategy, when})
		}
	}
	slices.SortFunc(cases, func(a, b [2]string) int { return strings.Compare(a[0]+a[1], b[0]+b[1]) })
	w := clusterWorld(t, func(apps *site.Apps, _ []site.Node) (all []site.Credential) {
		add := func(name, strategy string) {
			all = append(all, site.Credential{Name: name, Strategy: strategy, Drain: drainWindow.String(), Restart: apps.RestartYAML(name)})
		}
		add("before", "alternating")
		for _, c := range cases {
			add(c[0]+"-"+c[1], c[0])
		}
		return all
	})
	t.Run("refused while it is down", func(t *testing.T) { w.in(t).downBefore("before") })
	for _, i := range w.random.Perm(len(cases))[:sample(len(cases), 1)] {
		strategy, when := cases[i][0], cases[i][1]
		t.Run(strategy+" "+when, func(t *testing.T) {
			if when == "verified" {
				w.in(t).waitsFor(strategy+"-"+when, points[when])
			} else {
				w.in(t).diesAt(strategy+"-"+when, strategy, points[when])
			}
		})
	}
}

// prepared starts the application of a credential and adopts it.
func (w *world) prepared(credential string) {
	w.t.Helper()
	if err := w.apps.Start(w.t.Context(), credential); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.apps.Stop(context.Background(), credential) })
	if log, err := w.client.Do(w.t.Context(), credential, adopt); err != nil || log.Find(saga.Completed) == nil {
		w.t.Fatalf("%v %v %s", err, site.Events(log), failureOf(log))
	}
}

func (w *world) downBefore(credential string) {
	w.prepared(credential)
	worker := w.site.Node("worker-2").Server
	before := w.snapshot(credential)
	if err := worker.Kill(); err != nil {
		w.t.Fatal(err)
	}
	answer, err := w.client.Ask(w.t.Context(), credential, rotate)
	if err != nil || answer.GetOutcome() != pawlv1.Outcome_OUTCOME_REJECTED || !strings.Contains(answer.GetReason(), "worker-2") {
		w.t.Errorf("a dead worker was not refused by name: %v %v", answer, err)
	}
	if err := worker.Restart(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if w.snapshot(credential) != before {
		w.t.Error("something was touched")
	}
	w.turns(credential)
}

// snapshot is what all servers hold of the credential.
func (w *world) snapshot(credential string) (all string) {
	w.t.Helper()
	for _, n := range w.site.Nodes {
		for _, login := range []string{site.Role(credential), site.Role(credential) + "_b"} {
			held, err := w.holds(w.t.Context(), n, login)
			if err != nil {
				w.t.Fatal(err)
			}
			all += n.Name + held + "\n"
		}
	}
	return all
}

// turns asserts that the credential can be rotated, and is then the same
// everywhere.
func (w *world) turns(credential string) {
	w.t.Helper()
	log, err := w.client.Do(w.t.Context(), credential, rotate)
	if err != nil || log.Find(saga.Completed) == nil {
		w.t.Fatalf("%v %v %s", err, site.Events(log), failureOf(log))
	}
	if log, err = w.client.Await(w.t.Context(), credential, log.Rotation, saga.Erased); err == nil {
		err = w.everywhere(w.t.Context(), credential)
	}
	if err != nil {
		w.t.Error(err)
	}
}

// diesAt kills a worker while the rotation is held at the point. The rotation
// cannot end before the worker is back, and then everywhere alike.
func (w *world) diesAt(credential, strategy, point string) {
	w.prepared(credential)
	worker := w.site.Node("worker-2").Server
	before := w.snapshot(credential)
	if err := w.fleet.Order(credential, point, "STOP"); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 90*time.Second)
	defer cancel()
	oracle := w.site.Watch(ctx, credential, 25*time.Millisecond, drainWindow/2)
	answer, err := w.ask(ctx, credential, rotate)
	if err != nil {
		w.t.Fatal(err)
	}
	w.held(credential, point)
	if err := worker.Kill(); err != nil {
		w.t.Fatal(err)
	}
	w.fleet.Continue()
	turned := []saga.Event{saga.StageFailed, saga.PublishFailed, saga.RestartFailed, saga.VerifyFailed, saga.TimedOut, saga.Completed}
	log, err := w.client.Await(ctx, credential, answer.GetRotation(), turned...)
	if err == nil && log.Find(saga.Completed) != nil {
		w.t.Error("completed without one of its nodes")
	}
	if restarted := worker.Restart(ctx); restarted != nil {
		w.t.Fatal(restarted)
	}
	if err == nil {
		log, err = w.client.Await(ctx, credential, answer.GetRotation(), saga.Erased)
	}
	oracle.Stop()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Logf("%v %s", site.Events(log), failureOf(log))
	if log.Find(saga.RolledBack) == nil {
		w.t.Error("not rolled back")
	}
	if strategy == "alternating" && len(oracle.Refusals) > 0 {
		w.t.Errorf("refused: %v", oracle.Refusals)
	}
	if err := w.check(ctx, credential, log, strategy); err != nil {
		w.t.Error(err)
	}
	if now := w.snapshot(credential); strategy == "in-place" && now != before {
		w.t.Error("not every node is as it was")
	}
	w.turns(credential)
}

// waitsFor kills a worker past the point of no return: the rotation finishes
// when it is back.
func (w *world) waitsFor(credential, point string) {
	w.prepared(credential)
	notes, err := w.client.NATS.SubscribeSync("pawl.note." + saga.DBRotator)
	if err == nil {
		err = w.fleet.Order(credential, point, "STOP")
	}
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 90*time.Second)
	defer cancel()
	answer, err := w.ask(ctx, credential, rotate)
	if err != nil {
		w.t.Fatal(err)
	}
	w.held(credential, point)
	worker := w.site.Node("worker-2").Server
	if err := worker.Kill(); err != nil {
		w.t.Fatal(err)
	}
	w.fleet.Continue()
	for note := (&pawlv1.Note{}); note.GetCredential() != credential || note.GetKind() != "retrying" || !strings.Contains(note.GetText(), "worker-2"); {
		m, err := notes.NextMsgWithContext(ctx)
		if err == nil {
			err = bus.Decode(m.Header, m.Data, note)
		}
		if err != nil {
			log, _ := w.client.ReadRotation(w.t.Context(), credential, answer.GetRotation())
			w.t.Fatalf("nobody says that worker-2 is in the way: %v; at %v %s", err, site.Events(log), failureOf(log))
		}
	}
	if err := worker.Restart(ctx); err != nil {
		w.t.Fatal(err)
	}
	log, err := w.client.Await(ctx, credential, answer.GetRotation(), saga.Erased)
	if err != nil || log.Find(saga.Completed) == nil {
		w.t.Fatalf("%v %v", err, site.Events(log))
	}
	if err := w.everywhere(ctx, credential); err != nil {
		w.t.Error(err)
	}
}
