package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	accepted  = pawlv1.Outcome_OUTCOME_ACCEPTED
	rejected  = pawlv1.Outcome_OUTCOME_REJECTED
	scheduled = pawlv1.Outcome_OUTCOME_SCHEDULED
)

// patience bounds one wait; nothing here takes as long.
const patience = 30 * time.Second

// house is an installation in this process: `pawl up`, with the race detector.
type house struct {
	site    *site.Site
	client  *site.Client
	streams *bus.Bus                    // as provisioner, who may look at all of them
	servers map[string]*pgserver.Server // of the credentials that are not on site.Postgres
	log     *journal
	down    func() error
}

func newHouse(t *testing.T, credentials []site.Credential) *house {
	t.Helper()
	server := startPostgres(t)
	s, err := site.New(t.Context(), t.TempDir(), server, "", credentials)
	if err != nil {
		t.Fatal(err)
	}
	return openHouse(t, s)
}

func startPostgres(t *testing.T) *pgserver.Server {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// openHouse brings an installation up. After the test its files and logs are
// searched for passwords.
func openHouse(t *testing.T, s *site.Site) *house {
	t.Helper()
	h := &house{site: s, servers: map[string]*pgserver.Server{}, log: &journal{}}
	t.Cleanup(func() {
		if err := h.down(); err != nil {
			t.Error(err)
		}
		h.scan(t)
		if t.Failed() {
			t.Log(h.log.warnings())
		}
	})
	h.up(t)
	return h
}

// up is `pawl up`; down its end.
func (h *house) up(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- embedded.Up(ctx, embedded.UpOptions{Inventory: h.site.Inventory, Log: h.log, Level: slog.LevelInfo, AckWait: ackWait, Ready: func() { close(ready) }})
	}()
	h.down = sync.OnceValue(func() error { stop(); return <-ended })
	select {
	case err := <-ended:
		h.down = func() error { return nil }
		t.Fatalf("pawl up: %v", err)
	case <-ready:
	}
	var err error
	if h.client, err = h.site.Operator(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.NATS.Close)
	if h.streams, err = h.site.Connect(bus.Provisioner); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.streams.NATS.Close)
}

func (h *house) stop(t *testing.T) {
	t.Helper()
	h.client.NATS.Close()
	h.streams.NATS.Close()
	if err := h.down(); err != nil {
		t.Fatal(err)
	}
}

func (h *house) restart(t *testing.T) {
	t.Helper()
	h.stop(t)
	h.up(t)
}

// journal is what Pawl logs.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// warnings are the last of them.
func (j *journal) warnings() string {
	var told []string
	for line := range strings.Lines(j.String()) {
		if !strings.Contains(line, `"level":"INFO"`) {
			told = append(told, line)
		}
	}
	return fmt.Sprintf("%d warnings, the last:\n%s", len(told), strings.Join(told[max(0, len(told)-30):], ""))
}

// await returns once Pawl has logged a line with all of the words.
func (j *journal) await(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, "a log line with "+strings.Join(words, ", "), func(context.Context) bool {
		for line := range strings.Lines(j.String()) {
			if holdsAll(line, words) {
				return true
			}
		}
		return false
	})
}

func holdsAll(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

func eventually(t *testing.T, what string, is func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// connect logs in as superuser where the credential's role is.
func (h *house) connect(ctx context.Context, credential string) (*pgx.Conn, error) {
	server := h.site.Postgres
	if other, ok := h.servers[credential]; ok {
		server = other
	}
	return postgres.Login(ctx, postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres",
		User: server.Superuser, Password: server.Password, SSLMode: "disable", ApplicationName: "test"})
}

// exec runs SQL as superuser where the credential's role is.
func (h *house) exec(t *testing.T, credential, sql string) {
	t.Helper()
	conn, err := h.connect(t.Context(), credential)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", credential, err)
	}
}

func (h *house) role(credential string) string {
	return pgx.Identifier{h.site.Inventory.Credentials[credential].Role}.Sanitize()
}

// ask asks and returns the answer.
func (h *house) ask(t *testing.T, credential string, action pawlv1.Action) *pawlv1.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answer, err := h.client.Ask(ctx, credential, action)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// refused asks, and fails the test unless the answer is a refusal that says all
// of the words.
func (h *house) refused(t *testing.T, credential string, action pawlv1.Action, says ...string) *pawlv1.Answer {
	t.Helper()
	answer := h.ask(t, credential, action)
	if answer.GetOutcome() != rejected || !holdsAll(answer.GetReason(), says) || strings.Contains(answer.GetReason(), "\n") {
		t.Errorf("%v: answered %v %q, want a refusal with %q", action, answer.GetOutcome(), answer.GetReason(), says)
	}
	return answer
}

// await returns the rotation's log once it has one of the events.
func (h *house) await(t *testing.T, answer *pawlv1.Answer, events ...saga.Event) bus.Log {
	t.Helper()
	if answer.GetOutcome() != accepted {
		t.Fatalf("%v: %s", answer.GetOutcome(), answer.GetReason())
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	log, err := h.client.Await(ctx, answer.GetCredential(), answer.GetRotation(), events...)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// do asks and sees it completed, with a published login that works.
func (h *house) do(t *testing.T, credential string, action pawlv1.Action) bus.Log {
	t.Helper()
	log := h.await(t, h.ask(t, credential, action), saga.Completed, saga.RolledBack)
	if log.Find(saga.Completed) == nil {
		t.Fatalf("%v of %s: %v %s", action, credential, site.Events(log), failureOf(log))
	}
	h.works(t, credential)
	if action == rotate && h.site.Inventory.Credentials[credential].Keep == 0 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := h.client.Await(ctx, credential, log.Rotation, saga.Erased); err != nil {
			t.Fatal(err)
		}
	}
	return log
}

// password that the .env holds.
func (h *house) password(t *testing.T, credential string) string {
	t.Helper()
	text, err := os.ReadFile(h.site.Env(credential))
	if err != nil {
		t.Fatal(err)
	}
	_, password, _ := strings.Cut(string(text), "DB_PASSWORD=")
	return strings.TrimSpace(password)
}

// works logs in as is published.
func (h *house) works(t *testing.T, credential string) {
	t.Helper()
	if err := h.logsIn(t, credential); err != nil {
		t.Fatalf("the published credential of %s does not log in: %v", credential, err)
	}
}

func (h *house) logsIn(t *testing.T, credential string) error {
	t.Helper()
	c := h.site.Inventory.Credentials[credential]
	login, err := published.Read(c.Publish...)
	if err != nil {
		t.Fatal(err)
	}
	node := c.Primary()
	conn, err := postgres.Login(t.Context(), postgres.Target{Host: node.Host, Port: node.Port, Database: c.Database, User: login.User, Password: login.Password, SSLMode: "disable", ApplicationName: "test"})
	if err != nil {
		return err
	}
	_ = conn.Close(t.Context()) // the login is what counts
	return nil
}

// scan searches everything that Pawl has written for what is secret.
func (h *house) scan(t *testing.T) {
	secrets := map[string]bool{}
	for _, c := range h.site.Inventory.Credentials {
		if login, err := published.Read(c.Publish...); err == nil {
			secrets[login.Password.Reveal()] = true
		}
	}
	needles := newCanaries(secrets)
	if needles.in([]byte(h.log.String())) > 0 {
		t.Error("Pawl's log holds a password")
	}
	rightful := func(path string) bool { return strings.HasPrefix(path, filepath.Join(h.site.Dir, "apps")) }
	for _, p := range files("file", h.site.Dir, rightful) {
		if text, err := p.read(); err == nil && needles.in(text) > 0 {
			t.Errorf("a password is in %s", p.name)
		}
	}
}
