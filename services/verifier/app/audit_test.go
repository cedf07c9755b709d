package app

import (
	"strings"
	"testing"

	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/verifier/internal/pgtest"
)

// topic returns the findings of a topic, one a line.
func (b *bed) topic(t *testing.T, topic string) string {
	t.Helper()
	var all []string
	for _, check := range b.check(t.Context(), b.rotation.Credential) {
		if check.GetTopic() == topic {
			all = append(all, check.GetFinding())
		}
		if check.GetRefused() {
			t.Errorf("refused: %s", check.GetFinding())
		}
	}
	return strings.Join(all, "\n")
}

func TestReportsLearnWhoMayUseALogin(t *testing.T) {
	b := newBed(t, saga.Alternating)
	direct, through, owner := pgtest.Name()+` "x"`, pgtest.Name(), pgtest.Name()
	pgtest.Exec(t, "CREATE ROLE "+pgtest.Quote(direct)+" NOLOGIN IN ROLE "+pgtest.Quote(b.role), "CREATE ROLE "+pgtest.Quote(through)+" LOGIN IN ROLE "+pgtest.Quote(direct),
		"CREATE ROLE "+pgtest.Quote(owner)+" LOGIN CREATEROLE", "GRANT "+pgtest.Quote(b.role)+" TO "+pgtest.Quote(owner)+" WITH ADMIN OPTION")
	got := b.topic(t, service.TopicMembers)
	for _, want := range []string{
		`"` + b.role + `": members `, `"` + b.user() + `"`, `"` + strings.ReplaceAll(direct, `"`, `\"`) + `"`, `"` + through + `"`, `"` + owner + `" (admin)`,
		`superusers "` + pgtest.Server.Superuser + `"`, `may create roles `,
		`"` + b.user() + `": members none`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestReportsLearnWhatAServerRecords(t *testing.T) {
	b := newBed(t, saga.InPlace)
	if got := b.topic(t, service.TopicSettings); !strings.Contains(got, "log_disconnections off, pgaudit.log not loaded, password_encryption scram-sha-256, ssl off") {
		t.Error(got)
	}
}
