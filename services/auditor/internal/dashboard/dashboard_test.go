package dashboard

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	"pawl.dev/internal/trail"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// hostile is what somebody may write into a reason, a name or a failure.
const hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>' {{.}} javascript:alert(3)`

// served is a dashboard on a real bus.
type served struct {
	*Dashboard
	t      *testing.T
	bus    *bustest.Server
	users  map[string]*bus.Bus
	url    string
	client *http.Client
	stop   func() error
}

// serve serves until the test ends; change edits the configuration.
func serve(t *testing.T, change func(*inventory.Dashboard)) *served {
	t.Helper()
	s := &served{t: t, bus: bustest.Start(t), users: map[string]*bus.Bus{}}
	keys := t.TempDir()
	if _, err := trail.CreateKeys(keys); err != nil {
		t.Fatal(err)
	}
	cluster := &inventory.Cluster{Name: "main", Environment: "production"}
	inv := &inventory.Inventory{KeysDir: keys, Credentials: map[string]*inventory.Credential{}, Dashboard: inventory.Dashboard{Listen: "127.0.0.1:0"}, Telemetry: inventory.Telemetry{Jaeger: "http://127.0.0.1:16686"}}
	for _, name := range []string{"app", "other"} {
		inv.Credentials[name] = &inventory.Credential{Name: name, Cluster: cluster, Nodes: []inventory.Node{{Name: "coordinator", Host: "127.0.0.1"}}, Role: name, Strategy: inventory.Alternating, RotateEvery: 90 * 24 * time.Hour}
	}
	if change != nil {
		change(&inv.Dashboard)
	}
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	s.Dashboard, err = New(service.Dependencies{Inventory: inv, Log: slog.New(slog.DiscardHandler), Bus: s.bus.Connect(t, saga.Auditor), Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + listener.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- s.posture.Run(ctx) }()
	go func() { ended <- s.Dashboard.serve(ctx, listener) }()
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		first := <-ended
		if second := <-ended; first == nil {
			first = second
		}
		return first
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	jar, _ := cookiejar.New(nil)
	s.client = &http.Client{Jar: jar, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return s
}

// event appends as the event's owner.
func (s *served) event(credential, rotation string, e saga.Event, body *pawlv1.Event) {
	s.t.Helper()
	b := s.user(saga.OwnerOf(e))
	log, err := b.ReadNewest(s.t.Context(), credential)
	if err == nil {
		_, err = b.Append(s.t.Context(), credential, rotation, e, body, map[string][]string{"traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}, log.LastSeq())
	}
	if err != nil {
		s.t.Fatalf("%s: %v", e, err)
	}
}

func (s *served) user(name string) *bus.Bus {
	if s.users[name] == nil {
		s.users[name] = s.bus.Connect(s.t, name)
	}
	return s.users[name]
}

func (s *served) note(from string, n *pawlv1.Note) {
	s.t.Helper()
	n.At = timestamppb.Now()
	if err := s.user(from).Publish(s.t.Context(), bus.NoteSubject(from), n, nil); err != nil {
		s.t.Fatal(err)
	}
}

func requested(action pawlv1.Action, flow string, generation uint64, basis string) *pawlv1.Event {
	return &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: action, Flow: flow, Generation: generation, Role: "app", Basis: basis, BasisUser: "app",
		RequestedBy: "by " + hostile, Reason: "since " + hostile}}}
}

func staged(user string) *pawlv1.Event {
	return &pawlv1.Event{Summary: "did " + hostile, Warnings: []string{"mind " + hostile}, Operations: []*pawlv1.Operation{{Name: "alter " + hostile, Target: "at " + hostile, StartedAt: timestamppb.Now(), Error: "no " + hostile}},
		Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: user}}}
}

// story adopts, fails a rotation, and leaves one open that waits; all of it in
// hostile words.
func (s *served) story() {
	s.t.Helper()
	s.event("app", "r-1", saga.Requested, requested(pawlv1.Action_ACTION_ADOPT, saga.Adopt, 1, ""))
	s.event("app", "r-1", saga.Adopted, staged("app"))
	for _, e := range []saga.Event{saga.Matched, saga.Verified, saga.Completed} {
		s.event("app", "r-1", e, &pawlv1.Event{})
	}
	s.event("app", "r-2", saga.Requested, requested(pawlv1.Action_ACTION_ROTATE, saga.Alternating, 2, "r-1"))
	s.event("app", "r-2", saga.Staged, staged("login "+hostile))
	s.event("app", "r-2", saga.PublishFailed, &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "publish", Reason: "failed " + hostile}}})
	for _, e := range []saga.Event{saga.Restored, saga.Unstaged, saga.RolledBack} {
		s.event("app", "r-2", e, &pawlv1.Event{})
	}
	s.event("app", "r-3", saga.Requested, requested(pawlv1.Action_ACTION_ROTATE, saga.Alternating, 3, "r-1"))
	s.note(saga.DBRotator, &pawlv1.Note{Kind: "waiting", Credential: "app", Rotation: "r-3", Step: "stage", Text: "waits " + hostile, Laggards: []string{"psql " + hostile}})
	s.note(saga.DBRotator, &pawlv1.Note{Kind: "drift", Credential: "app", Text: "coordinator: drifts " + hostile})
	record := &pawlv1.AuditRecord{Stream: bus.StreamLog, Sequence: 1, Subject: "pawl.rotation.app.r-1.requested", At: timestamppb.Now(), Event: "what " + hostile, Actor: "actor " + hostile, Summary: "summary " + hostile, Reason: "reason " + hostile, Service: saga.Scheduler}
	if err := s.user(saga.Auditor).Publish(s.t.Context(), trail.Subject(record), record, nil); err != nil {
		s.t.Fatal(err)
	}
}

func (s *served) get(path string, header ...string) (int, string, http.Header) {
	s.t.Helper()
	return s.do(http.MethodGet, path, nil, header...)
}

func (s *served) do(method, path string, body io.Reader, header ...string) (int, string, http.Header) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Accept", "text/html")
	for i := 0; i < len(header); i += 2 {
		if request.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			request.Host = header[i+1]
		}
	}
	answer, err := s.client.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer.StatusCode, string(text), answer.Header
}

// shows waits, on the page's own event stream, until a page has all the texts.
func (s *served) shows(path string, texts ...string) string {
	s.t.Helper()
	heard, stop := s.posture.Watch("")
	defer stop()
	patience := time.After(30 * time.Second)
	for {
		code, page, _ := s.get(path)
		missing := ""
		for _, text := range texts {
			if !strings.Contains(page, text) {
				missing = text
			}
		}
		if code == http.StatusOK && missing == "" {
			return page
		}
		select {
		case <-heard:
		case <-time.After(time.Second): // what changed between the two
		case <-patience:
			s.t.Fatalf("%s (%d) never showed %q:\n%s", path, code, missing, page)
		}
	}
}

func TestHostileNamesAreEscapedOnEveryPage(t *testing.T) {
	s := serve(t, nil)
	s.story()
	for path, texts := range map[string][]string{
		"/":                                  {"waits &#34;&gt;", "psql &#34;&gt;", "coordinator: drifts", "by &#34;&gt;"},
		"/credentials/app":                   {"by &#34;&gt;", "since &#34;&gt;", "failed &#34;&gt;", "drifts &#34;&gt;", "waits &#34;&gt;"},
		"/rotations/r-1":                     {"did &#34;&gt;", "mind &#34;&gt;", "alter &#34;&gt;", "at &#34;&gt;", "no &#34;&gt;", "in Jaeger"},
		"/rotations/r-2":                     {"failed &#34;&gt;", "login &#34;&gt;", "taking back"},
		"/rotations/r-3":                     {"waits &#34;&gt;", "running"},
		"/trail":                             {"what &#34;&gt;", "actor &#34;&gt;", "summary &#34;&gt;", "reason &#34;&gt;"},
		"/schedule":                          {"Schedule"},
		"/?q=" + url.QueryEscape(hostile):    {"&lt;script&gt;"},
		"/?show=" + url.QueryEscape(hostile): {"&lt;script&gt;"},
	} {
		page := s.shows(path, texts...)
		for _, raw := range []string{"<script>alert", "<img", "onerror=alert(2)>", `href="javascript:`} {
			if strings.Contains(strings.ReplaceAll(page, "&gt;", ""), raw) {
				t.Errorf("%s holds %q", path, raw)
			}
		}
		if strings.Contains(page, "<style") || strings.Contains(page, " style=") || strings.Contains(page, " onclick=") {
			t.Errorf("%s has inline style or script, which its policy forbids", path)
		}
	}
}

func TestEveryAnswerForbidsWhatItIsNotFor(t *testing.T) {
	s := serve(t, nil)
	for _, path := range []string{"/", "/nothing", "/style.css", "/script.js", "/icon.svg", "/credentials/none", "/rotations/none", "/rotations/NO", "/schedule", "/trail"} {
		code, _, h := s.get(path)
		if want := map[bool]int{true: 404, false: 200}[strings.Contains(path, "no") || strings.Contains(path, "NO")]; code != want {
			t.Errorf("%s: %d, not %d", path, code, want)
		}
		policy := h.Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	s := serve(t, nil)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, "PURGE"} {
		for _, path := range []string{"/", "/credentials/app", "/events", "/trail"} {
			if code, _, h := s.do(method, path, nil); code != http.StatusMethodNotAllowed || h.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, path, code, h.Get("Allow"))
			}
		}
	}
	if code, body, _ := s.do(http.MethodHead, "/", nil); code != http.StatusOK || body != "" {
		t.Errorf("HEAD: %d %q", code, body)
	}
}

// A page of somebody else's, whose name leads to 127.0.0.1, must read nothing.
func TestRebindingIsRefused(t *testing.T) {
	s := serve(t, nil)
	for host, want := range map[string]int{"evil.example.org": 421, "evil.example.org:9466": 421, "127.0.0.1.evil.example.org": 421, "localhost:8000": 200, "127.0.0.1": 200, "[::1]:9466": 200, "10.0.0.1": 421} {
		if code, _, _ := s.get("/", "Host", host); code != want {
			t.Errorf("%s: %d, not %d", host, code, want)
		}
	}
}

func TestTokenIsAskedForAndNeverToldAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, second := strings.Repeat("a1", 20), strings.Repeat("b2", 20)
	write(first)
	s := serve(t, func(d *inventory.Dashboard) { d.TokenFile = file })
	for _, path := range []string{"/", "/credentials/app", "/rotations/r-1", "/schedule", "/trail", "/events"} {
		if code, _, h := s.get(path); code != http.StatusSeeOther || !strings.HasPrefix(h.Get("Location"), "/login?to=") {
			t.Errorf("%s without a token: %d, to %q", path, code, h.Get("Location"))
		}
		if code, _, _ := s.get(path, "Accept", "application/json"); code != http.StatusUnauthorized {
			t.Errorf("%s for a program: %d", path, code)
		}
		for _, wrong := range []string{"Bearer wrong", "Bearer ", "Basic " + first, "Bearer " + first + "x"} {
			if code, _, _ := s.get(path, "Authorization", wrong); code != http.StatusUnauthorized {
				t.Errorf("%s as %q: %d", path, wrong, code)
			}
		}
	}
	if code, _, _ := s.get("/?token="+first, "Accept", "text/html"); code != http.StatusSeeOther {
		t.Errorf("a token in a URL: %d", code)
	}
	if code, _, _ := s.get("/", "Authorization", "Bearer "+first); code != http.StatusOK {
		t.Errorf("the token: %d", code)
	}
	form := func(token, origin string) (int, string, http.Header) {
		return s.do(http.MethodPost, "/login", strings.NewReader(url.Values{"token": {token}, "to": {"/trail"}}.Encode()), "Content-Type", "application/x-www-form-urlencoded", "Origin", origin)
	}
	if code, page, _ := form("wrong "+hostile, s.url); code != http.StatusForbidden || strings.Contains(page, "wrong") {
		t.Errorf("a wrong token: %d\n%s", code, page)
	}
	if code, _, _ := form(first, "http://evil.example.org"); code != http.StatusForbidden {
		t.Errorf("another's form: %d", code)
	}
	code, _, h := form(first, s.url)
	cookie := h.Get("Set-Cookie")
	if code != http.StatusSeeOther || h.Get("Location") != "/trail" || !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Strict") || strings.Contains(cookie, first) {
		t.Fatalf("the form: %d to %q, cookie %q", code, h.Get("Location"), cookie)
	}
	if code, page, _ := s.get("/trail"); code != http.StatusOK || strings.Contains(page, first) {
		t.Errorf("with a session: %d", code)
	}
	write(second)
	if code, _, _ := s.get("/trail"); code != http.StatusSeeOther {
		t.Errorf("a session of the token before: %d", code)
	}
	write("short")
	if code, _, _ := s.get("/trail"); code != http.StatusServiceUnavailable {
		t.Errorf("a token that is too short: %d", code)
	}
}

func TestSessionsEndAndCannotBeForged(t *testing.T) {
	token, now := secret.New(strings.Repeat("a1", 20)), time.Now()
	text := newSession(token, now)
	if !valid(token, text, now.Add(session-time.Minute)) || valid(token, text, now.Add(session+time.Minute)) {
		t.Error("a session does not last as long as it should")
	}
	forged := []byte(text)
	forged[3] ^= 1
	if valid(token, string(forged), now) || valid(secret.New("another"), text, now) || valid(token, "", now) {
		t.Error("a forged session is taken for one")
	}
}

func TestLoginLeadsNowhereElse(t *testing.T) {
	for to, want := range map[string]string{"": "/", "/trail": "/trail", "/?show=due": "/?show=due", "//evil.example.org": "/", "https://evil.example.org/": "/", `/\evil.example.org`: "/", "javascript:alert(1)": "/", "trail": "/"} {
		if got := local(to); got != want {
			t.Errorf("%q leads to %q", to, got)
		}
	}
}

func (s *served) stream(of string) (*http.Response, *bufio.Scanner) {
	s.t.Helper()
	answer, err := http.Get(s.url + "/events" + of)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = answer.Body.Close() })
	return answer, bufio.NewScanner(answer.Body)
}

// look waits for the next event.
func look(t *testing.T, lines *bufio.Scanner) {
	t.Helper()
	for lines.Scan() {
		if lines.Text() == "event: look" {
			return
		}
	}
	t.Fatal("the stream ended:", lines.Err())
}

func TestStreamTellsOfAChangeAndEndsOnShutdown(t *testing.T) {
	s := serve(t, nil)
	s.event("other", "r-0", saga.Requested, requested(pawlv1.Action_ACTION_ADOPT, saga.Adopt, 1, ""))
	s.shows("/", "requested")
	answer, lines := s.stream("?of=app")
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("%d %s", answer.StatusCode, kind)
	}
	look(t, lines) // at once
	s.event("app", "r-1", saga.Requested, requested(pawlv1.Action_ACTION_ADOPT, saga.Adopt, 1, ""))
	look(t, lines)
	if page := s.shows("/credentials/app", "running"); !strings.Contains(page, "/rotations/r-1") {
		t.Error("what was told of is not shown")
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
	}
	if lines.Err() != nil {
		t.Errorf("the stream was cut off: %v", lines.Err())
	}
}

func TestThereIsAMostOfStreams(t *testing.T) {
	s := serve(t, nil)
	for range atOnce {
		answer, lines := s.stream("")
		if answer.StatusCode != http.StatusOK {
			t.Fatal(answer.Status)
		}
		look(t, lines)
	}
	answer, _ := s.stream("")
	if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %s", answer.Status)
	}
	if code, _, _ := s.get("/"); code != http.StatusOK {
		t.Errorf("pages beside them: %d", code)
	}
}

// What an auditor finds when it starts must be what one that was there has seen.
func TestPostureIsTheSameForWhoeverComesLater(t *testing.T) {
	s := serve(t, nil)
	s.story()
	early := s.shows("/credentials/app", "waits &#34;&gt;", "drifts", "rolled-back", "completed")
	for _, text := range []string{"running: stage", "Drift"} {
		if !strings.Contains(strings.ReplaceAll(early, "</span>", ""), text) {
			t.Errorf("%q is not shown", text)
		}
	}
	s.note(saga.DBRotator, &pawlv1.Note{Kind: "drift over", Credential: "app", Text: "coordinator holds what it should again"})
	heard, stop := s.posture.Watch("app")
	defer stop()
	for {
		if one, _ := s.posture.One("app", time.Now()); len(one.Drift) == 0 {
			break
		}
		select {
		case <-heard:
		case <-time.After(20 * time.Second):
			t.Fatal("drift that is over is still shown")
		}
	}
}

func TestUnusableFilesAreNamedBeforeAnythingIsServed(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	for want, config := range map[string]inventory.Dashboard{
		"dashboard.token_file: ": {Listen: "127.0.0.1:0", TokenFile: missing},
		"dashboard.tls: ":        {Listen: "127.0.0.1:0", CertFile: missing, KeyFile: missing},
	} {
		if _, err := New(service.Dependencies{Inventory: &inventory.Inventory{Dashboard: config}}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if d, err := New(service.Dependencies{Inventory: &inventory.Inventory{}}); d != nil || err != nil {
		t.Error("a dashboard that nobody asked for")
	}
}

// A forecast is made anew for what has happened, and not for everybody who looks.
func TestForecastIsMadeAnewWhenSomethingHasHappened(t *testing.T) {
	s := serve(t, nil)
	s.shows("/schedule", "app is not adopted", "other is not adopted")
	now := time.Now()
	_, first := s.forecast.at(now, s.posture, s.d.Inventory)
	if _, again := s.forecast.at(now.Add(time.Second), s.posture, s.d.Inventory); !again.Equal(first) {
		t.Error("made anew though nothing has happened")
	}
	if _, again := s.forecast.at(now.Add(2*forecastLasts), s.posture, s.d.Inventory); again.Equal(first) {
		t.Error("not made anew though its time is over")
	}
	s.event("app", "r-1", saga.Requested, requested(pawlv1.Action_ACTION_ADOPT, saga.Adopt, 1, ""))
	s.event("app", "r-1", saga.Adopted, staged("app"))
	for _, e := range []saga.Event{saga.Matched, saga.Verified, saga.Completed} {
		s.event("app", "r-1", e, &pawlv1.Event{})
	}
	if page := s.shows("/schedule", `<section aria-label="`); strings.Contains(page, "app is not adopted") || strings.Contains(page, "0001-01-01") {
		t.Errorf("what was adopted is blocked, or what was not has a date:\n%s", page)
	}
}
