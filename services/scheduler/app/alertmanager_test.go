package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// sent is what the test sees of one between Alertmanager and the scheduler.
type sent struct {
	Status          string `json:"status"`
	GroupKey        string `json:"groupKey"`
	TruncatedAlerts int    `json:"truncatedAlerts"`
	answered        int
}

// storm is a scheduler at work, with an Alertmanager before it.
type storm struct {
	t         *testing.T
	ctx       context.Context // ends where the test has hung
	inventory *inventory.Inventory
	owners    map[string]*bus.Bus
	operator  *bus.Bus
	notes     chan *pawlv1.Note
	webhooks  chan sent
	manager   string // URL
}

const token = "a-token-of-alertmanager"

// TestRealAlertmanagersStormIsOneEmergencyPerCredential: 1,000 alerts about five
// logins, of which rules name four; the first webhooks are answered 503, each is
// cut, and all are sent again and again, and once more when they are over.
func TestRealAlertmanagersStormIsOneEmergencyPerCredential(t *testing.T) {
	s := newStorm(t)
	began := time.Now()
	s.post(began, time.Time{})
	fired := map[string]string{}
	for len(fired) < 4 {
		if n := s.note(); n.GetKind() == "alert fired" {
			if fired[n.GetCredential()] != "" {
				t.Errorf("%s fired twice", n.GetCredential())
			}
			fired[n.GetCredential()] = n.GetRotation()
		}
	}
	for credential := range fired { // over, so that it does not stand in the way of another
		s.ends(credential)
	}
	// Every group again, twice.
	refused, cut := 0, 0
	again := map[string]int{}
	s.until(func(w sent) bool {
		if w.answered == http.StatusServiceUnavailable {
			refused++
		}
		if w.answered == http.StatusOK {
			again[w.GroupKey]++
			cut += w.TruncatedAlerts
		}
		return len(again) == 5 && least(again) >= 3
	})
	if refused < 5 || cut == 0 {
		t.Errorf("%d webhooks refused, %d alerts cut: the storm was a breeze", refused, cut)
	}
	s.post(began, time.Now())
	over := map[string]int{}
	s.until(func(w sent) bool {
		if w.Status == "resolved" && w.answered == http.StatusOK {
			over[w.GroupKey]++
		}
		return len(over) == 5
	})
	s.drained()
	for name := range s.inventory.Credentials {
		events, err := s.operator.ReadSince(t.Context(), name, began)
		if err != nil {
			t.Fatal(err)
		}
		requested := 0
		for _, e := range events {
			if e.Event == saga.Requested {
				requested++
			}
		}
		if want := map[bool]int{true: 1}[fired[name] != ""]; requested != want {
			t.Errorf("%d rotations of %s began, want %d", requested, name, want)
		}
	}
	if len(fired) != 4 || fired["c4"] != "" {
		t.Errorf("fired %v", fired)
	}
}

func least(counts map[string]int) int {
	n := 1 << 30
	for _, count := range counts {
		n = min(n, count)
	}
	return n
}

func newStorm(t *testing.T) *storm {
	t.Helper()
	server := bustest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	s := &storm{t: t, ctx: ctx, owners: map[string]*bus.Bus{}, operator: server.Connect(t, bus.Operator), notes: make(chan *pawlv1.Note, 10_000), webhooks: make(chan sent, 10_000)}
	for _, name := range saga.Services {
		s.owners[name] = server.Connect(t, name)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster := &inventory.Cluster{Name: "main", Admin: inventory.Account{User: "pawl_admin"}}
	s.inventory = &inventory.Inventory{Credentials: map[string]*inventory.Credential{}, Alerts: inventory.Alerts{
		Listen: bustest.FreeAddress(t), Receivers: map[string]inventory.Receiver{"am": {Kind: inventory.Alertmanager, TokenFile: file}},
		Cooldown: time.Hour, Storm: inventory.Storm{Credentials: 10, Within: 10 * time.Minute}}}
	for i := range 5 {
		c := &inventory.Credential{Name: fmt.Sprintf("c%d", i), Role: fmt.Sprintf("c%d", i), Cluster: cluster, Strategy: inventory.Alternating}
		s.inventory.Credentials[c.Name] = c
		if i < 4 {
			s.inventory.Alerts.Rules = append(s.inventory.Alerts.Rules, inventory.AlertRule{Labels: map[string]string{"alertname": "CredentialLeaked"}, Credential: c, Source: "am"})
		}
	}
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	scheduler, err := New(service.Dependencies{Inventory: s.inventory, Bus: s.owners[saga.Scheduler], Log: slog.New(slog.DiscardHandler), Metrics: metrics,
		Tracer: trace.NewTracerProvider().Tracer("test"), Note: func(_ context.Context, n *pawlv1.Note) { s.notes <- n }})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- scheduler.Run(running) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	s.alertmanager(dir, s.between())
	return s
}

// between is what Alertmanager sends to: at first it answers as the scheduler
// does without a bus, then it hands on.
func (s *storm) between() *httptest.Server {
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.inventory.Alerts.Listen})
	away := make(chan struct{}, 5)
	for range cap(away) {
		away <- struct{}{}
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return // Alertmanager is ending
		}
		var seen sent
		if err := json.Unmarshal(body, &seen); err != nil {
			s.t.Error(err)
		}
		seen.answered = http.StatusServiceUnavailable
		select {
		case <-away:
			http.Error(w, "not stored: send it again", seen.answered)
		default:
			q.Body = io.NopCloser(bytes.NewReader(body))
			answer := httptest.NewRecorder()
			behind.ServeHTTP(answer, q)
			seen.answered = answer.Code
			w.WriteHeader(answer.Code)
		}
		s.webhooks <- seen
	}))
	s.t.Cleanup(proxy.Close)
	return proxy
}

// alertmanager starts one, until the test ends.
func (s *storm) alertmanager(dir string, to *httptest.Server) {
	s.t.Helper()
	script := exec.Command("../../../deploy/alertmanager-for-tests.sh")
	script.Stderr = os.Stderr
	binary, err := script.Output()
	if err != nil {
		s.t.Fatalf("no Alertmanager: %v", err)
	}
	config := fmt.Sprintf(`route: {receiver: pawl, group_by: [cluster, pg_role], group_wait: 0s, group_interval: 1s, repeat_interval: 1s}
receivers:
  - name: pawl
    webhook_configs: [{url: "%s/alerts/am", max_alerts: 150, http_config: {authorization: {credentials: %s}}}]
`, to.URL, token)
	if err := os.WriteFile(filepath.Join(dir, "alertmanager.yml"), []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	address := bustest.FreeAddress(s.t)
	s.manager = "http://" + address
	cmd := exec.Command(strings.TrimSpace(string(binary)), "--config.file="+filepath.Join(dir, "alertmanager.yml"), "--storage.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--cluster.listen-address=", "--log.level=error")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // Pdeathsig is sent when the thread ends
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, as it says
		}
	}()
	if err := <-started; err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended }) // it may have ended
	for {
		r, err := http.Get(s.manager + "/-/ready")
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-s.ctx.Done():
			s.t.Fatal("Alertmanager did not start")
		case <-ended:
			s.t.Fatal("Alertmanager has ended")
		case <-time.After(50 * time.Millisecond): // it tells nobody when it is up
		}
	}
}

// post tells Alertmanager of 1,000 alerts, 200 about each login.
func (s *storm) post(began, ended time.Time) {
	s.t.Helper()
	type alert struct {
		Labels   map[string]string `json:"labels"`
		StartsAt time.Time         `json:"startsAt"`
		EndsAt   *time.Time        `json:"endsAt,omitempty"`
	}
	var all []alert
	for i := range 1000 {
		a := alert{Labels: map[string]string{"alertname": "CredentialLeaked", "cluster": "main", "pg_role": fmt.Sprintf("c%d", i%5), "instance": fmt.Sprint(i)}, StartsAt: began}
		if !ended.IsZero() {
			a.EndsAt = &ended
		}
		all = append(all, a)
	}
	body, err := json.Marshal(all)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := http.Post(s.manager+"/api/v2/alerts", "application/json", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	if told, _ := io.ReadAll(r.Body); r.StatusCode != http.StatusOK {
		s.t.Fatalf("%d %s", r.StatusCode, told)
	}
}

func (s *storm) note() *pawlv1.Note {
	s.t.Helper()
	select {
	case n := <-s.notes:
		return n
	case <-s.ctx.Done():
		s.t.Fatal("nothing was decided")
		return nil
	}
}

// until looks at webhooks until enough were seen.
func (s *storm) until(enough func(sent) bool) {
	s.t.Helper()
	for {
		select {
		case w := <-s.webhooks:
			if enough(w) {
				return
			}
		case <-s.ctx.Done():
			s.t.Fatal("Alertmanager has fallen silent")
		}
	}
}

// drained waits until every alert that is stored was decided upon.
func (s *storm) drained() {
	s.t.Helper()
	for {
		consumer, err := s.operator.JetStream.Consumer(s.ctx, bus.StreamAlert, bus.ConsumerAlerts)
		if err != nil {
			s.t.Fatal(err)
		}
		if info := consumer.CachedInfo(); info.NumPending == 0 && info.NumAckPending == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond) // the bus tells nobody
	}
}

// ends appends the rest of the newest rotation's steps.
func (s *storm) ends(credential string) {
	s.t.Helper()
	for {
		log, err := s.operator.ReadNewest(s.ctx, credential)
		if err != nil {
			s.t.Fatal(err)
		}
		state, err := log.Fold()
		if err != nil {
			s.t.Fatal(err)
		}
		if !state.Open() {
			return
		}
		step, body := state.Next(), &pawlv1.Event{}
		if step.Emits == saga.Staged {
			body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: credential}}
		}
		if _, err := s.owners[step.Owner].Append(s.ctx, credential, log.Rotation, step.Emits, body, nil, log.LastSeq()); err != nil {
			s.t.Fatal(err)
		}
	}
}
