package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/sdk/trace"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestMain(m *testing.M) { bustest.Main(m) }

const proof = "canary-0123456789abcdef"

// post is a server on a real bus, with a receiver of each kind.
type post struct {
	t      *testing.T
	bus    *bustest.Server
	server *Server
	url    string
	dir    string

	mu    sync.Mutex
	notes []string
}

func newPost(t *testing.T, server *bustest.Server) *post {
	t.Helper()
	p := &post{t: t, bus: server, dir: t.TempDir()}
	file := func(name string) string {
		path := filepath.Join(p.dir, name)
		if err := os.WriteFile(path, []byte(proof+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	d := service.Dependencies{
		Bus: server.Connect(t, saga.Scheduler), Log: slog.New(slog.DiscardHandler), Metrics: metrics, Tracer: trace.NewTracerProvider().Tracer("test"),
		Note: func(_ context.Context, n *pawlv1.Note) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.notes = append(p.notes, n.GetKind()+": "+n.GetText())
		},
		Inventory: &inventory.Inventory{Alerts: inventory.Alerts{Receivers: map[string]inventory.Receiver{
			"am":    {Kind: inventory.Alertmanager, TokenFile: file("token")},
			"basic": {Kind: inventory.Alertmanager, User: "am", PasswordFile: file("password")},
			"g":     {Kind: inventory.Grafana, HMACFile: file("hmac")},
		}}},
	}
	if p.server, err = New(d); err != nil {
		t.Fatal(err)
	}
	listening := httptest.NewServer(p.server.Handler())
	t.Cleanup(listening.Close)
	p.url = listening.URL
	return p
}

func (p *post) noted(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.notes {
		if strings.Contains(n, proof) {
			p.t.Errorf("a note tells the secret: %s", n)
		}
		if strings.Contains(n, text) {
			return true
		}
	}
	return false
}

// webhook is one as a sender makes it.
type webhook struct {
	method, path string
	body         []byte
	header       http.Header
}

func payloadOf(version string, truncated int, alerts ...string) []byte {
	return fmt.Appendf(nil, `{"receiver":"pawl","status":"firing","version":%q,"groupKey":"{}:{cluster=\"main\"}","truncatedAlerts":%d,"externalURL":"http://x","orgId":1,"alerts":[%s]}`,
		version, truncated, strings.Join(alerts, ","))
}

func alertOf(fingerprint, status string, labels ...string) string {
	return fmt.Sprintf(`{"status":%q,"labels":{"alertname":"Leaked","cluster":"main","pg_role":"app"%s},"annotations":{"summary":"s"},"startsAt":"2026-11-25T03:00:00.123456789Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://x","fingerprint":%q,"valueString":"x"}`,
		status, strings.Join(append([]string{""}, labels...), ","), fingerprint)
}

// alertmanagers is a webhook as Alertmanager sends it to the receiver am.
func alertmanagers(body []byte) webhook {
	return webhook{http.MethodPost, "/alerts/am", body, http.Header{"Authorization": {"Bearer " + proof}, "Content-Type": {"application/json"}}}
}

// grafanas is one as Grafana signs it, at that time.
func grafanas(body []byte, at time.Time) webhook {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(proof))
	mac.Write([]byte(stamp + ":"))
	mac.Write(body)
	return webhook{http.MethodPost, "/alerts/g", body, http.Header{signatureHeader: {hex.EncodeToString(mac.Sum(nil))}, timestampHeader: {stamp}}}
}

// send returns the status, and what the sender is told.
func (p *post) send(w webhook) (int, string) {
	p.t.Helper()
	q, err := http.NewRequestWithContext(p.t.Context(), w.method, p.url+w.path, bytes.NewReader(w.body))
	if err != nil {
		p.t.Fatal(err)
	}
	q.Header = w.header
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	told, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if strings.Contains(string(told), proof) || strings.Contains(string(told), p.dir) {
		p.t.Errorf("the answer tells a secret or where it is: %s", told)
	}
	return r.StatusCode, string(told)
}

// stored returns the alerts on the bus, by subject and fingerprint.
func (p *post) stored() (all []string) {
	p.t.Helper()
	operator := p.bus.Connect(p.t, bus.Operator)
	alerts, err := operator.JetStream.Stream(p.t.Context(), bus.StreamAlert)
	if err != nil {
		p.t.Fatal(err)
	}
	for seq := uint64(1); seq <= alerts.CachedInfo().State.LastSeq; seq++ {
		m, err := alerts.GetMsg(p.t.Context(), seq)
		if err != nil {
			p.t.Fatal(err)
		}
		a := &pawlv1.Alert{}
		if err := bus.Decode(m.Header, m.Data, a); err != nil {
			p.t.Fatal(err)
		}
		if m.Header.Get(jetstream.MsgIDHeader) != "" || m.Header.Get("traceparent") == "" {
			p.t.Errorf("headers %v", m.Header)
		}
		all = append(all, fmt.Sprintf("%s %s %v", m.Subject, a.GetFingerprint(), a.GetResolved()))
	}
	return all
}

func TestWebhooksBecomeAlerts(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	basic := alertmanagers(payloadOf("4", 0, alertOf("c", "firing")))
	basic.path, basic.header = "/alerts/basic", http.Header{}
	request := http.Request{Header: basic.header}
	request.SetBasicAuth("am", proof)
	for _, w := range []webhook{
		alertmanagers(payloadOf("4", 0, alertOf("a", "firing"), alertOf("b", "resolved"))),
		alertmanagers(payloadOf("4", 0, alertOf("a", "firing"), alertOf("a", "resolved"))), // the first again
		basic,
		grafanas(payloadOf("1", 0, alertOf("d", "firing")), time.Now()),
		grafanas(payloadOf("1", 0, alertOf("e", "firing")), time.Now().Add(-4*time.Minute)),
		alertmanagers(payloadOf("4", 0)),
	} {
		if status, told := p.send(w); status != http.StatusOK || told != "" {
			t.Errorf("%s: %d %s", w.body, status, told)
		}
	}
	want := []string{"pawl.alert.am a false", "pawl.alert.am b true", "pawl.alert.am a false", "pawl.alert.am a true", "pawl.alert.basic c false", "pawl.alert.g d false", "pawl.alert.g e false"}
	if got := p.stored(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestForgedReplayedAndOversizedWebhooksAreRefused(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	body := payloadOf("4", 0, alertOf("a", "firing"))
	with := func(w webhook, change func(w *webhook)) webhook {
		w.header = w.header.Clone()
		change(&w)
		return w
	}
	authorization := func(value string) func(w *webhook) {
		return func(w *webhook) { w.header.Set("Authorization", value) }
	}
	signed := grafanas(payloadOf("1", 0, alertOf("a", "firing")), time.Now())
	untimed := hmac.New(sha256.New, []byte(proof))
	untimed.Write(signed.body)
	for name, c := range map[string]struct {
		webhook
		status int
	}{
		"no token":              {with(alertmanagers(body), func(w *webhook) { w.header.Del("Authorization") }), 401},
		"another token":         {with(alertmanagers(body), authorization("Bearer "+proof+"0")), 401},
		"the token's beginning": {with(alertmanagers(body), authorization("Bearer "+proof[:16])), 401},
		"the token alone":       {with(alertmanagers(body), authorization(proof)), 401},
		"an empty token":        {with(alertmanagers(body), authorization("Bearer ")), 401},
		"the token for Basic":   {with(alertmanagers(body), func(w *webhook) { w.path = "/alerts/basic" }), 401},
		"the token for HMAC":    {with(alertmanagers(body), func(w *webhook) { w.path = "/alerts/g" }), 401},
		"another user":          {with(alertmanagers(body), func(w *webhook) { w.path = "/alerts/basic"; basicly(w, "an", proof) }), 401},
		"another password":      {with(alertmanagers(body), func(w *webhook) { w.path = "/alerts/basic"; basicly(w, "am", proof[1:]) }), 401},
		"another body":          {with(signed, func(w *webhook) { w.body = payloadOf("1", 0, alertOf("b", "firing")) }), 401},
		"another time":          {with(signed, func(w *webhook) { w.header.Set(timestampHeader, strconv.FormatInt(time.Now().Unix()+1, 10)) }), 401},
		"no time":               {with(signed, func(w *webhook) { w.header.Del(timestampHeader) }), 401},
		"no time, signed so": {with(signed, func(w *webhook) {
			w.header.Del(timestampHeader)
			w.header.Set(signatureHeader, hex.EncodeToString(untimed.Sum(nil)))
		}), 401},
		"no signature":           {with(signed, func(w *webhook) { w.header.Del(signatureHeader) }), 401},
		"a signature of nothing": {with(signed, func(w *webhook) { w.header.Set(signatureHeader, "zz") }), 401},
		"replayed":               {grafanas(signed.body, time.Now().Add(-6*time.Minute)), 401},
		"signed ahead":           {grafanas(signed.body, time.Now().Add(6*time.Minute)), 401},
		"oversized":              {alertmanagers(append(bytes.Repeat([]byte(" "), maxBody), body...)), 413},
		"oversized and signed":   {grafanas(append(bytes.Repeat([]byte(" "), maxBody), body...), time.Now()), 413},
		"by GET":                 {with(alertmanagers(body), func(w *webhook) { w.method = http.MethodGet }), 405},
		"by PUT":                 {with(alertmanagers(body), func(w *webhook) { w.method = http.MethodPut }), 405},
		"to nobody":              {with(alertmanagers(body), func(w *webhook) { w.path = "/alerts/am2" }), 404},
		"to a path below":        {with(alertmanagers(body), func(w *webhook) { w.path = "/alerts/am/x" }), 404},
		"not JSON":               {alertmanagers([]byte("alert!")), 400},
		"of another version":     {alertmanagers(payloadOf("3", 0, alertOf("a", "firing"))), 400},
		"of another kind":        {alertmanagers(payloadOf("1", 0, alertOf("a", "firing"))), 400},
	} {
		if status, told := p.send(c.webhook); status != c.status || status == 401 && name != "replayed" && name != "signed ahead" && strings.TrimSpace(told) != "not authorized" {
			t.Errorf("%s: %d %s, want %d", name, status, told, c.status)
		}
	}
	if got := p.stored(); len(got) != 0 {
		t.Errorf("stored %q", got)
	}
	for _, want := range []string{"webhook refused: unauthorized: ", "webhook refused: replayed: ", "webhook refused: oversized: ", "webhook refused: malformed: "} {
		if !p.noted(want) {
			t.Errorf("no note %q in %q", want, p.notes)
		}
	}
	if len(p.notes) > 9 { // a kind for each of three receivers
		t.Errorf("a flood of notes: %q", p.notes)
	}
}

func basicly(w *webhook, user, password string) {
	q := http.Request{Header: w.header}
	q.SetBasicAuth(user, password)
}

func TestSecretIsReadAnewAndAFeebleOneLetsNobodyIn(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	w := alertmanagers(payloadOf("4", 0))
	for _, c := range []struct {
		file, token string
		status      int
	}{
		{proof, proof, 200}, {"another-0123456789", proof, 401}, {"another-0123456789\r\n", "another-0123456789", 200},
		{"", "", 503}, {"\n", "", 503}, {"short", "short", 503}, {proof, proof, 200},
	} {
		if err := os.WriteFile(filepath.Join(p.dir, "token"), []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		w.header.Set("Authorization", "Bearer "+c.token)
		if status, told := p.send(w); status != c.status {
			t.Errorf("%+v: %d %s", c, status, told)
		}
	}
	if err := os.Remove(filepath.Join(p.dir, "token")); err != nil {
		t.Fatal(err)
	}
	if status, _ := p.send(w); status != 503 || !p.noted("the receiver's secret: ") {
		t.Errorf("%d, %q", status, p.notes)
	}
}

func TestWhatWasCutIsToldAndWhatCannotBeReadIsKept(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	large := strings.Repeat("x", bus.MaxEvent)
	body := payloadOf("4", 998, alertOf("a", "firing"), alertOf("", "firing"), alertOf("b", "pending"), alertOf("c", "firing", `"log":"`+large+`"`),
		strings.Replace(alertOf("d", "firing"), `"summary":"s"`, `"summary":"`+large+`"`, 1), strings.Replace(alertOf("e", "firing"), "2026-11-25T03:00:00.123456789Z", "0001-01-01T00:00:00Z", 1))
	if status, told := p.send(alertmanagers(body)); status != 200 {
		t.Errorf("%d %s", status, told)
	}
	if got := p.stored(); fmt.Sprint(got) != "[pawl.alert.am a false pawl.alert.am d false]" {
		t.Errorf("stored %q", got)
	}
	if !p.noted("alerts truncated: 998 alerts were cut") {
		t.Errorf("%q", p.notes)
	}
	operator := p.bus.Connect(t, bus.Operator)
	dead, err := operator.Stream(t.Context(), bus.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	m, err := dead.GetLastMsgForSubject(t.Context(), bus.DeadSubject(saga.Scheduler))
	if err != nil || !strings.Contains(string(m.Data), "4 of 6 alerts cannot be read; the first: alerts[1]: ") {
		t.Errorf("dead %q, %v", m.Data, err)
	}
}

// TestWithoutTheBusNothingIsTaken: Alertmanager and Grafana send again after 503.
func TestWithoutTheBusNothingIsTaken(t *testing.T) {
	dir := t.TempDir()
	server := bustest.StartProcess(t, dir)
	p := newPost(t, server)
	w := alertmanagers(payloadOf("4", 0, alertOf("a", "firing"), alertOf("b", "firing")))
	server.Kill()
	for range 3 {
		if status, _ := p.send(w); status != 503 {
			t.Fatalf("the bus is gone: %d", status)
		}
	}
	stranger := w
	stranger.header = nil
	if status, _ := p.send(stranger); status != 401 {
		t.Errorf("a stranger learns of it: %d", status)
	}
}

func TestTooManyAtOnceAreToldToComeAgain(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	var release func()
	for range perReceiver {
		var err error
		if release, err = p.server.working.take("am"); err != nil {
			t.Fatal(err)
		}
	}
	w := alertmanagers(payloadOf("4", 0))
	if status, _ := p.send(w); status != 503 {
		t.Errorf("%d", status)
	}
	release()
	if status, _ := p.send(w); status != 200 {
		t.Errorf("with room: %d", status)
	}
}

func TestServesByTLSAndTakesARenewedCertificate(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	pair := &inventory.KeyPair{CertFile: filepath.Join(p.dir, "cert"), KeyFile: filepath.Join(p.dir, "key")}
	p.server.d.Inventory.Alerts.TLS = pair
	if _, err := New(p.server.d); err == nil || !strings.Contains(err.Error(), "alerts.tls: open "+pair.CertFile) {
		t.Errorf("without a certificate: %v", err)
	}
	renew(t, pair, 1)
	ctx, stop := context.WithCancel(t.Context())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.server.Serve(ctx, listener) }()
	for serial := int64(1); serial <= 2; serial++ {
		renew(t, pair, serial)
		c, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); got != serial {
			t.Errorf("certificate %d, want %d", got, serial)
		}
		if got := c.ConnectionState().NegotiatedProtocol; got == "h2" {
			t.Error("many requests at once on one connection")
		}
		_ = c.Close() // it has served
	}
	if _, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestReplicaTakesTheAddressOverWhenTheOtherEnds(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.server.d.Inventory.Alerts.Listen = taken.Addr().String()
	p.url = "http://" + taken.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	waits, ended := make(chan struct{}), make(chan struct{})
	note := p.server.d.Note
	p.server.d.Note = func(ctx context.Context, n *pawlv1.Note) { note(ctx, n); close(waits) }
	go func() { p.server.Run(ctx); close(ended) }()
	<-waits
	if !p.noted("webhooks not taken: alerts.listen: ") {
		t.Errorf("%q", p.notes)
	}
	_ = taken.Close() // the other replica ends
	for {
		c, err := net.Dial("tcp", taken.Addr().String())
		if err == nil {
			_ = c.Close() // it listens
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if status, told := p.send(alertmanagers(payloadOf("4", 0, alertOf("a", "firing")))); status != 200 {
		t.Errorf("%d %s", status, told)
	}
	stop()
	<-ended
}

// renew writes a certificate of its own signature.
func renew(t *testing.T, pair *inventory.KeyPair, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{pair.CertFile: {Type: "CERTIFICATE", Bytes: cert}, pair.KeyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzPayload: whatever is sent, by who may, is stored or refused; nothing panics.
func FuzzPayload(f *testing.F) {
	f.Add(payloadOf("4", 0, alertOf("a", "firing"), alertOf("b", "resolved")))
	f.Add([]byte(`{"version":"4","alerts":[{"startsAt":"9999-99-99T00:00:00Z"},null,{"labels":null}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var p payload
		if json.Unmarshal(body, &p) != nil {
			return
		}
		for _, a := range p.Alerts {
			m, err := message(t.Context(), "am", a)
			if err != nil {
				continue
			}
			stored := &pawlv1.Alert{}
			if err := bus.Decode(m.Header, m.Data, stored); err != nil || stored.GetFingerprint() != a.Fingerprint || !stored.GetStartsAt().AsTime().Equal(a.StartsAt) {
				t.Errorf("%v became %v, %v", a, stored, err)
			}
		}
	})
}

// TestNobodyHasAWebhooksAlertBeTakenForARepetition: by publishing first under the
// message id by which the server would know it.
func TestNobodyHasAWebhooksAlertBeTakenForARepetition(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	w := alertmanagers(payloadOf("4", 0, alertOf("a", "firing")))
	var sent payload
	if err := json.Unmarshal([]byte(w.body), &sent); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s", sent.Alerts[0].StartsAt.UnixNano(), "a"))
	id := "am/" + hex.EncodeToString(sum[:16]) + "/firing"
	if _, err := p.bus.Connect(t, bus.Requester).JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.AlertSubject("x"), Data: []byte("{}"), Header: nats.Header{jetstream.MsgIDHeader: {id}}}); err != nil {
		t.Fatal(err)
	}
	if status, told := p.send(w); status != http.StatusOK {
		t.Errorf("%d %s", status, told)
	}
	operator := p.bus.Connect(t, bus.Operator)
	heard := 0
	if _, err := operator.Scan(t.Context(), bus.StreamAlert, bus.AlertSubject("am"), bus.Start{}, func(*jetstream.RawStreamMsg) bool { heard++; return true }); err != nil || heard != 1 {
		t.Errorf("heard %d, %v", heard, err)
	}
}
