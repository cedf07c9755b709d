package rotator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// severalWorlds are credentials of one cluster, on one Rotator.
func severalWorlds(t *testing.T, prefix string, n int) (all []*world) {
	t.Helper()
	first := newWorld(t, prefix+" 0", inventory.Alternating)
	all = append(all, first)
	for i := 1; i < n; i++ {
		w := *first
		credential := *first.credential
		credential.Name, credential.Role = fmt.Sprint("app", i), fmt.Sprint(prefix, " ", i)
		w.credential, w.generation = &credential, uint64(1000*i)
		password, verifier := newPassword(t)
		w.sql("CREATE ROLE " + pgx.Identifier{credential.Role}.Sanitize() + " LOGIN PASSWORD '" + verifier.Reveal() + "'")
		w.publish(credential.Role, password)
		w.adopt()
		all = append(all, &w)
	}
	for _, w := range all {
		w.rotate(saga.Alternating)
		w.sql("ALTER ROLE " + pgx.Identifier{w.credential.Role}.Sanitize() + " LOGIN") // both may, and have a password
	}
	return all
}

// TestSeveralEmergenciesAtOneServerEachEndWhatIsTheirs: they share transactions and looks;
// what is found of each, who was ended for it and what it carried, is its own. One whose
// login is locked by a superuser keeps no other from being contained, and one with a
// prepared transaction has that rolled back.
func TestSeveralEmergenciesAtOneServerEachEndWhatIsTheirs(t *testing.T) {
	const several, locked, prepares = 24, 3, 5
	all := severalWorlds(t, "several", several)
	sessions := make([]*pgx.Conn, several)
	stolen := make([]*sealed.Credential, several)
	for i, w := range all {
		stolen[i] = w.envelope(w.basis)
		sessions[i] = w.connect(stolen[i].User, stolen[i].Password)
	}
	all[prepares].as(all[prepares].connect(stolen[prepares].User, stolen[prepares].Password), "BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'of a thief'")
	holder := all[locked].connect(server.Superuser, server.Password)
	all[locked].as(holder, "BEGIN; ALTER ROLE "+pgx.Identifier{stolen[locked].User}.Sanitize()+" CONNECTION LIMIT 7")

	rotations := make([]*service.Rotation, several)
	for i, w := range all {
		rotations[i] = w.emergency(nil)
	}
	leave := all[0].crowd.enter("ruvector/coordinator") // the first of them is not alone either
	defer leave()
	var both sync.WaitGroup
	for i, w := range all {
		both.Go(func() {
			if i == locked {
				if e, err := w.Contain(t.Context(), rotations[i]); err == nil || !strings.Contains(err.Error(), "holds a lock") {
					t.Errorf("contained though it is locked: %v, %v", e, err)
				}
				return
			}
			e, err := w.insistently(t.Context(), rotations[i])
			if err != nil {
				t.Errorf("%s: %v", w.credential.Role, err)
				return
			}
			found := e.GetContained()
			carried := w.envelopes.Fingerprint(stolen[i].User, stolen[i].Verifier)
			sessions := uint32(1)
			if i == prepares {
				sessions = 2
			}
			if found.GetSessions() != sessions || found.GetClean() || !slices.Contains(found.GetCarried(), carried) || !slices.Equal(found.GetLogins(), w.credential.Logins()) {
				t.Errorf("%s: contained: %v; want %d sessions ended, in place, of %v", w.credential.Role, found, sessions, w.credential.Logins())
			}
			if prepared := found.GetPrepared(); prepared > 0 != (i == prepares) {
				t.Errorf("%s: %d prepared transactions were rolled back", w.credential.Role, prepared)
			}
		})
	}
	both.Wait()
	for i, w := range all {
		if sessions[i].Ping(t.Context()) == nil {
			t.Errorf("%s: the thief's session lives", w.credential.Role)
		}
		if i != locked {
			w.refusedNow(stolen[i])
		}
	}
	all[locked].as(holder, "ROLLBACK")
	all[locked].do(all[locked].insistently, rotations[locked], saga.Contained)
	all[locked].refusedNow(stolen[locked])
}

// TestSeveralEmergenciesTakeFewTransactions: where nothing is in the way, none of them
// refuses its logins by itself.
func TestSeveralEmergenciesTakeFewTransactions(t *testing.T) {
	const several = 40
	all := severalWorlds(t, "few", several)
	first := all[0]
	admin, err := first.admin(first.credential, first.credential.Primary())
	if err != nil {
		t.Fatal(err)
	}
	var transactions atomic.Int32
	refusals := &first.jointlyOn(admin, first.credential.Cluster).refusals
	refuse := refusals.run
	refusals.run = func(ctx context.Context, together []postgres.Refusal) ([]postgres.Met, error) {
		transactions.Add(1)
		return refuse(ctx, together)
	}
	rotations := make([]*service.Rotation, several)
	for i, w := range all {
		rotations[i] = w.emergency(nil)
	}
	defer first.crowd.enter(serverOf(first.credential, "coordinator"))()
	var both sync.WaitGroup
	for i, w := range all {
		both.Go(func() {
			if _, err := w.insistently(t.Context(), rotations[i]); err != nil {
				t.Errorf("%s: %v", w.credential.Role, err)
			}
		})
	}
	both.Wait()
	if n := transactions.Load(); n > several/2 || len(first.lanes.by) > 0 {
		t.Errorf("%d transactions for %d emergencies; refused by themselves: %v", n, several, len(first.lanes.by) > 0)
	}
	var logins int
	err = super.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'few %' AND rolcanlogin").Scan(&logins)
	if err != nil || logins > 0 {
		t.Errorf("%d logins may still log in: %v", logins, err)
	}
}

// TestLostAnswerOfASharedTransactionMakesNoLoginClean: the sibling had no password when it
// was refused, was given one before passwords were taken, and the answer of that was lost.
// If it returned as clean, whoever had begun to log in with that password would stay.
func TestLostAnswerOfASharedTransactionMakesNoLoginClean(t *testing.T) {
	for name, lost := range map[string]func([]postgres.Met) ([]postgres.Met, error){
		"the outcome is unknown":     func(met []postgres.Met) ([]postgres.Met, error) { return met, postgres.ErrUnknownOutcome },
		"nobody waits for it longer": func([]postgres.Met) ([]postgres.Met, error) { return nil, context.DeadlineExceeded },
	} {
		t.Run(name, func(t *testing.T) {
			role := "answer_lost_" + strings.ReplaceAll(name, " ", "_")
			w := newWorld(t, role, inventory.Alternating)
			w.rotate(saga.Alternating)
			w.rotate(saga.Alternating) // the sibling is idle now
			sibling := pgx.Identifier{w.credential.Sibling()}.Sanitize()
			w.sql("ALTER ROLE " + sibling + " PASSWORD NULL")
			admin, err := w.admin(w.credential, w.credential.Primary())
			if err != nil {
				t.Fatal(err)
			}
			refusals := &w.jointlyOn(admin, w.credential.Cluster).refusals
			refuse := refusals.run
			refusals.run = func(ctx context.Context, all []postgres.Refusal) ([]postgres.Met, error) {
				if !all[0].Strip {
					return refuse(ctx, all)
				}
				_, verifier := newPassword(t)
				w.sql("ALTER ROLE " + sibling + " PASSWORD '" + verifier.Reveal() + "'")
				met, err := refuse(ctx, all)
				if err != nil {
					return met, err
				}
				return lost(met)
			}
			r := w.emergency(nil)
			r.Requested().BareSince = timestamppb.New(time.Now().Add(-time.Hour))
			r.State = w.startedNow(r)
			defer w.crowd.enter(serverOf(w.credential, "coordinator"))()
			found := w.do(w.insistently, r, saga.Contained).GetContained()
			if found.GetClean() || found.GetReturns() != w.user {
				t.Errorf("returns: %s, clean: %v; nobody knows what the sibling had", found.GetReturns(), found.GetClean())
			}
		})
	}
}

// TestServerThatIsReachedLateIsLookedAtThoughTheFirstLookStillWaits: the look at the first
// one waits while others are being contained there.
func TestServerThatIsReachedLateIsLookedAtThoughTheFirstLookStillWaits(t *testing.T) {
	w := newWorld(t, "late_evidence", inventory.InPlace)
	d := w.watched()
	second := w.credential.Primary()
	second.Name = "second"
	both := *w.credential
	both.Nodes = append(slices.Clone(both.Nodes), second)
	leave := w.crowd.enter(serverOf(&both, "coordinator"))
	at := map[string]*timestamppb.Timestamp{"coordinator": timestamppb.Now()}
	w.gather(&both, "r", &pawlv1.Contained{Logins: both.Logins(), At: at})
	w.gather(&both, "r", everywhereAt(&both, &pawlv1.Contained{Logins: both.Logins(), At: at}))
	d.awaits(t, evidence.Catalogue, 1)
	if first := d.of(evidence.Catalogue)[0].Node; first != "second" {
		t.Errorf("looked at %s while somebody is being contained there", first)
	}
	leave()
	d.awaits(t, evidence.Catalogue, 2)
}
