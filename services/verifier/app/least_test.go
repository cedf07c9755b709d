package app

import (
	"strings"
	"testing"

	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/services/verifier/internal/pgtest"
)

// TestLeastPrivilegedObserverSeesAllThatItNeeds: neither account is a superuser.
func TestLeastPrivilegedObserverSeesAllThatItNeeds(t *testing.T) {
	for _, c := range []struct {
		name string
		own  bool // the observer is the admin, which Pawl turns
	}{{"an observer", false}, {"the admin's own pair", true}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, saga.Alternating)
			cluster := b.rotation.Credential.Cluster
			cluster.Admin.User, cluster.Admin.PasswordFile = pgtest.Name()+" admin", cluster.Observer.PasswordFile
			pgtest.Create(t, cluster.Admin.User, "")
			pgtest.Exec(t, "REVOKE pg_monitor FROM "+pgtest.Quote(b.observer))
			credential := b.rotation.Credential
			if c.own {
				b.role = cluster.Admin.User
				credential.Role, cluster.Admin.Credential = b.role, credential.Name
				cluster.Observer, b.observer = cluster.Admin, b.role
				b.rotation.Requested().Role, b.rotation.Requested().BasisUser = b.role, b.role
				b.rotation.Staged().User, b.sealed.(*envelope).User = b.role+"_b", b.role+"_b"
			}
			sql := postgres.AdminSQL(cluster.Admin, cluster.Observer, credential.Logins())
			pgtest.Exec(t, sql)
			if c.own {
				verifier, err := postgres.Verifier(secret.New(pgtest.Password))
				if err != nil {
					t.Fatal(err)
				}
				pgtest.Exec(t, "CALL pawl.alter_login('"+b.user()+"', true, '"+verifier.Reveal()+"')")
			}

			checks := b.check(t.Context(), credential)
			var said strings.Builder
			for _, check := range checks {
				if said.WriteString(check.GetFinding() + "\n"); check.GetRefused() {
					t.Errorf("refused: %s", check.GetFinding())
				}
			}
			for _, login := range credential.Logins() {
				if want := `asks "` + login + `" for its password`; !strings.Contains(said.String(), want) {
					t.Errorf("preflight said\n%swant the line of pg_hba.conf that %s", said.String(), want)
				}
			}
			b.consumes("api", 1)
			pgtest.Login(t, b.user(), "api application")
			if _, err := b.run(t, b.verify); err != nil {
				t.Fatal(err)
			}
			pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.role)+" NOLOGIN")
			if _, err := b.run(t, b.confirm); err != nil {
				t.Error(err)
			}
		})
	}
}
