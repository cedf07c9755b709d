package command

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/durationpb"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const configuration = `nats: {listen: %q}
telemetry: {metrics: "127.0.0.1:0", jaeger: "http://127.0.0.1:16686"}
clusters:
  main:
    admin: {user: pawl_admin, password_file: admin}
    observer: {user: pawl_observer, password_file: admin}
    nodes: {coordinator: {host: 127.0.0.1, port: %d}}
credentials:
  app:
    cluster: main
    role: app
    strategy: alternating
    rotate_every: 30d
    publish: [dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}]
    consumers: [{name: api}]
`

// site is an installation made by init.
type site struct {
	t      *testing.T
	config string
	inv    *inventory.Inventory
	users  map[string]*bus.Bus
	server *embedded.Server
	late   time.Duration // how long answer waits
}

// newSite makes an installation; nothing answers on it, nor on its PostgreSQL.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, config: filepath.Join(t.TempDir(), "pawl.yaml"), users: map[string]*bus.Bus{}}
	write(t, s.config, fmt.Sprintf(configuration, freeAddress(t).String(), freeAddress(t).Port))
	write(t, filepath.Join(filepath.Dir(s.config), "admin"), "irrelevant")
	s.want(exitDone, "init")
	inv, err := inventory.Load(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.inv = inv
	return s
}

// newServer also starts the bus.
func newServer(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.start()
	t.Cleanup(func() { s.server.Stop() })
	s.connect(saga.Services...)
	return s
}

func (s *site) start() {
	s.t.Helper()
	server, err := embedded.Start(s.t.Context(), embedded.Options{Inventory: s.inv, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
}

// in is the site within a subtest. The users it needs must be connected.
func (s *site) in(t *testing.T) *site {
	return &site{t: t, config: s.config, inv: s.inv, users: s.users}
}

func freeAddress(t *testing.T) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pawl runs a command line on the site.
func (s *site) pawl(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = Run(ctx, append(args, "-c", s.config), &out, &errs)
	return code, out.String(), errs.String()
}

// want runs a command line that is to end with a code.
func (s *site) want(code int, args ...string) (stdout, stderr string) {
	s.t.Helper()
	got, stdout, stderr := s.pawl(s.t.Context(), args...)
	if got != code {
		s.t.Fatalf("pawl %v: exit code %d, want %d\nstdout: %s\nstderr: %s", args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

// connect connects the users that a test plays.
func (s *site) connect(users ...string) {
	s.t.Helper()
	for _, user := range users {
		seed, err := bus.LoadSeed(bus.SeedFile(s.inv, user))
		if err != nil {
			s.t.Fatal(err)
		}
		b, err := bus.Connect(bus.ConnectOptions{URL: "nats://" + s.inv.NATS.Listen, User: user, Seed: seed})
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(b.NATS.Close)
		s.users[user] = b
	}
}

// event appends as the event's owner.
func (s *site) event(rotation string, e saga.Event, body *pawlv1.Event) error {
	return s.eventOf("app", rotation, e, body)
}

func (s *site) eventOf(credential, rotation string, e saga.Event, body *pawlv1.Event) error {
	b := s.users[saga.OwnerOf(e)]
	log, err := b.ReadNewest(context.Background(), credential)
	if err != nil {
		return err
	}
	header := nats.Header{"traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}
	_, err = b.Append(context.Background(), credential, rotation, e, body, header, log.LastSeq())
	return err
}

func requested(action pawlv1.Action, flow string, generation uint64, basis string) *pawlv1.Event {
	return &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: action, Flow: flow, Generation: generation, Role: "app",
		Basis: basis, BasisUser: "app", Restores: basis, RestoresUser: "app", RequestedBy: "anna@laptop", Reason: "a test", Keep: durationpb.New(3600e9)}}}
}

func stagedAs(user, fingerprint string) *pawlv1.Event {
	return &pawlv1.Event{Summary: "verifier set", Operations: []*pawlv1.Operation{{Name: "alter role", Target: "coordinator"}},
		Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: user, Fingerprint: fingerprint}}}
}

// told is one event of a story.
type told struct {
	event saga.Event
	body  *pawlv1.Event
}

var none = &pawlv1.Event{}

// Stories of rotations, without their id.
var (
	adoption = []told{{saga.Requested, requested(pawlv1.Action_ACTION_ADOPT, saga.Adopt, 1, "")}, {saga.Adopted, stagedAs("app", "aaaaaaaaaaaa")},
		{saga.Matched, none}, {saga.Verified, none}, {saga.Completed, none}}
	rotation = []told{{saga.Requested, requested(pawlv1.Action_ACTION_ROTATE, saga.Alternating, 2, "r-1")}, {saga.Staged, stagedAs("app_b", "bbbbbbbbbbbb")},
		{saga.Published, none}, {saga.Restarted, none}, {saga.Verified, none}, {saga.Retired, none}, {saga.Confirmed, none}, {saga.Completed, none}}
	failing = []told{rotation[0], rotation[1],
		{saga.PublishFailed, &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "publish", Reason: ".env is read-only"}}}},
		{saga.Restored, none}, {saga.Unstaged, none}, {saga.RolledBack, none}}
	rollback = []told{{saga.Requested, requested(pawlv1.Action_ACTION_ROLLBACK, saga.RollbackAlternating, 3, "r-1")}, {saga.Reinstated, none},
		{saga.Restored, none}, {saga.Rerestarted, none}, {saga.Unstaged, none}, {saga.RolledBack, none}}
)

// tell appends a story.
func (s *site) tell(id string, story []told) error {
	for _, e := range story {
		if err := s.event(id, e.event, e.body); err != nil {
			return fmt.Errorf("%s: %w", e.event, err)
		}
	}
	return nil
}

func (s *site) mustTell(id string, story []told) {
	s.t.Helper()
	if err := s.tell(id, story); err != nil {
		s.t.Fatal(err)
	}
}

// answer plays the scheduler: it answers the next request, and then does more.
func (s *site) answer(a *pawlv1.Answer, then func() error) (requests <-chan *pawlv1.Request) {
	s.t.Helper()
	b := s.users[saga.Scheduler]
	received := make(chan *pawlv1.Request, 16)
	var busy sync.Mutex // the command may end before its answer is acknowledged
	hear := func(m *nats.Msg) {
		busy.Lock()
		defer busy.Unlock()
		request := &pawlv1.Request{}
		err := bus.Decode(m.Header, m.Data, request)
		time.Sleep(s.late)
		a.Request, a.Credential = m.Header.Get(nats.MsgIdHdr), "app"
		if err == nil {
			err = b.Publish(context.Background(), bus.AnswerSubject(a.Request), a, nil)
		}
		if err == nil && then != nil {
			err = then()
		}
		if err != nil {
			s.t.Error(err)
		}
		received <- request
	}
	for _, subject := range []string{bus.RequestSubject("*"), bus.EmergencySubject("*")} {
		sub, err := b.NATS.Subscribe(subject, hear)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() {
			busy.Lock()
			defer busy.Unlock()
			_ = sub.Unsubscribe() // the server is about to end
		})
	}
	if err := b.NATS.Flush(); err != nil {
		s.t.Fatal(err)
	}
	return received
}

func accepted(rotation string) *pawlv1.Answer {
	return &pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_ACCEPTED, Rotation: rotation}
}
