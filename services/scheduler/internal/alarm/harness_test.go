package alarm

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/scheduler/internal/admission"
)

// post is a desk, or several, on a real server, beside a real clerk. The other
// services are played.
type post struct {
	t         *testing.T
	server    *bustest.Server
	owners    map[string]*bus.Bus
	operator  *bus.Bus
	inventory *inventory.Inventory
	notes     chan *pawlv1.Note
	metrics   *telemetry.Metrics
	address   string // of the metrics
	fresh     int    // numbers fingerprints
}

// newPost has the credentials c0 to c3, all alternating, in the cluster main,
// and for each a rule that any source may tell.
func newPost(t *testing.T) *post {
	t.Helper()
	p := &post{t: t, server: bustest.Start(t), owners: map[string]*bus.Bus{}, notes: make(chan *pawlv1.Note, 1000),
		inventory: &inventory.Inventory{Credentials: map[string]*inventory.Credential{}, Contacts: map[string]string{"on_call": "nina"}}}
	cluster := &inventory.Cluster{Name: "main", Admin: inventory.Account{User: "pawl_admin", PasswordFile: "a"}}
	cluster.Observer = cluster.Admin
	p.inventory.Alerts = inventory.Alerts{Receivers: map[string]inventory.Receiver{"am": {}, "am-2": {}}, Cooldown: time.Hour, Storm: inventory.Storm{Credentials: 3, Within: 10 * time.Minute}, Grace: 5 * time.Minute}
	for i := range 4 {
		p.credential(fmt.Sprintf("c%d", i), cluster)
	}
	for _, name := range saga.Services {
		p.owners[name] = p.server.Connect(t, name)
	}
	p.operator = p.server.Connect(t, bus.Operator)
	var err error
	if p.metrics, err = telemetry.NewMetrics(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	_ = l.Close() // only the port is wanted
	if err := p.metrics.Serve(t.Context(), p.address, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *post) credential(name string, cluster *inventory.Cluster) *inventory.Credential {
	c := &inventory.Credential{Name: name, Role: name, Cluster: cluster, Strategy: inventory.Alternating, Keep: time.Hour}
	p.inventory.Credentials[name] = c
	for _, alert := range []string{"Leaked", "FailedLogins"} {
		p.inventory.Alerts.Rules = append(p.inventory.Alerts.Rules, inventory.AlertRule{Labels: map[string]string{"alertname": alert}, Credential: c})
	}
	return c
}

// start starts a replica; stop is its death: it settles nothing any more. In
// between stands what it does instead of beginning an emergency at once.
func (p *post) start(between func(ctx context.Context, die func(), contain func() (*pawlv1.Answer, error)) (*pawlv1.Answer, error)) (stop func()) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.t.Context())
	d := service.Dependencies{Inventory: p.inventory, Bus: p.server.Connect(p.t, saga.Scheduler), Log: slog.New(slog.DiscardHandler), Metrics: p.metrics,
		Tracer: trace.NewTracerProvider().Tracer("test"), Note: func(_ context.Context, n *pawlv1.Note) { p.notes <- n }}
	clerk := admission.New(d)
	desk, err := New(d, func(ctx context.Context, a admission.Alarm) (*pawlv1.Answer, error) {
		contain := func() (*pawlv1.Answer, error) { return clerk.Contain(ctx, a) }
		if between != nil {
			return between(ctx, cancel, contain)
		}
		return contain()
	})
	if err != nil {
		p.t.Fatal(err)
	}
	var ended sync.WaitGroup
	for _, run := range []func(context.Context) error{clerk.Run, desk.Run} {
		ended.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				p.t.Error(err)
			}
		})
	}
	stop = func() { cancel(); ended.Wait() }
	p.t.Cleanup(stop)
	return stop
}

// alert is a new one about a login, that begins now.
func (p *post) alert(name, role string) *pawlv1.Alert {
	p.fresh++
	return &pawlv1.Alert{Fingerprint: fmt.Sprintf("f-%d", p.fresh), StartsAt: timestamppb.Now(),
		Labels: map[string]string{"alertname": name, "cluster": "main", "pg_role": role, "instance": "x"}, Annotations: map[string]string{"summary": "canary"}}
}

func (p *post) raise(source string, a *pawlv1.Alert) {
	p.t.Helper()
	if err := p.owners[saga.Scheduler].Publish(p.t.Context(), bus.AlertSubject(source), a, nil); err != nil {
		p.t.Fatal(err)
	}
}

// note is the next one of the trail.
func (p *post) note() *pawlv1.Note {
	p.t.Helper()
	select {
	case n := <-p.notes:
		if strings.Contains(n.String(), "canary") {
			p.t.Errorf("a note tells an annotation: %v", n)
		}
		return n
	case <-time.After(20 * time.Second):
		p.t.Fatal("nothing was decided")
		return nil
	}
}

// fires asserts that the alert begins an emergency, and returns its id.
func (p *post) fires(source string, a *pawlv1.Alert) string {
	p.t.Helper()
	p.raise(source, a)
	n := p.note()
	if n.GetKind() != "alert fired" || n.GetRotation() == "" {
		p.t.Fatalf("want it to fire: %v", n)
	}
	if log := p.newest(n.GetCredential()); log.Rotation != n.GetRotation() {
		p.t.Fatalf("newest of %s is %s, decided was %s", n.GetCredential(), log.Rotation, n.GetRotation())
	}
	return n.GetRotation()
}

// held asserts that the guard holds the alert back, in these words, and that
// nothing begins.
func (p *post) held(source string, a *pawlv1.Alert, guard string, want ...string) *pawlv1.Note {
	p.t.Helper()
	role := strings.TrimSuffix(a.GetLabels()["pg_role"], "_b")
	before, counted := p.newest(role).LastSeq(), p.counted(guard)
	p.raise(source, a)
	n := p.note()
	for _, text := range append(want, guard+": ", a.GetLabels()["alertname"]+"{cluster=\"main\",pg_role=") {
		if n.GetKind() != "alert held back" || n.GetStep() != guard || !strings.Contains(n.GetText(), text) {
			p.t.Errorf("want %s to hold it back with %q: %v", guard, text, n)
		}
	}
	if after := p.newest(role).LastSeq(); after != before {
		p.t.Errorf("something began: %d, %d", before, after)
	}
	if now := p.counted(guard); now != counted+1 {
		p.t.Errorf("%s is counted %d times, was %d", guard, now, counted)
	}
	return n
}

// counted returns pawl_alerts_total of a guard.
func (p *post) counted(guard string) (n int) {
	p.t.Helper()
	for line := range strings.SplitSeq(p.scrape(), "\n") {
		if rest, ok := strings.CutPrefix(line, `pawl_alerts_total{guard="`+guard+`"} `); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	return n
}

func (p *post) scrape() string {
	p.t.Helper()
	r, err := http.Get("http://" + p.address + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

func (p *post) newest(credential string) bus.Log {
	p.t.Helper()
	log, err := p.operator.ReadNewest(p.t.Context(), credential)
	if err != nil {
		p.t.Fatal(err)
	}
	return log
}

// emergencies counts those that ever began of a credential.
func (p *post) emergencies(credential string) (n int) {
	p.t.Helper()
	all, err := p.operator.ReadSince(p.t.Context(), credential, time.Now().Add(-time.Hour))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range all {
		if e.Event == saga.Requested {
			n++
		}
	}
	return n
}

// begin appends requested of a flow.
func (p *post) begin(credential, rotation, flow string) {
	p.t.Helper()
	body := &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: flow, Generation: 1, Role: credential,
		Basis: "before", BasisUser: credential}}}
	if _, err := p.owners[saga.Scheduler].Append(p.t.Context(), credential, rotation, saga.Requested, body, nil, p.newest(credential).LastSeq()); err != nil {
		p.t.Fatal(err)
	}
}

// step appends what is next, and returns it; "" where the rotation has ended. The
// new login is the sibling.
func (p *post) step(credential string) saga.Event {
	p.t.Helper()
	log := p.newest(credential)
	state, err := log.Fold()
	if err != nil {
		p.t.Fatal(err)
	}
	if !state.Open() {
		return ""
	}
	step, body := state.Next(), &pawlv1.Event{}
	if step.Emits == saga.Staged {
		body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: credential + "_b"}}
	}
	if _, err := p.owners[step.Owner].Append(p.t.Context(), credential, log.Rotation, step.Emits, body, nil, log.LastSeq()); err != nil {
		p.t.Fatal(err)
	}
	return step.Emits
}

func (p *post) ends(credential string) {
	p.t.Helper()
	for p.step(credential) != "" {
		continue
	}
}
