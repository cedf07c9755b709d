// Package browser looks at the dashboard of a whole installation with a real
// Chromium.
package browser

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// hostile would call alert, were it not escaped.
const hostile = `"><script>alert(1)</script><img src=x onerror="alert(2)">`

// root of the repository, from here.
const root = "../../.."

// tools finds Chromium, and the source of axe-core.
func tools(t *testing.T) (chromium, axe string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(root, "deploy", "chromium-for-tests.sh")).Output()
	paths := strings.Fields(string(out))
	if err != nil || len(paths) != 2 {
		t.Fatalf("deploy/chromium-for-tests.sh: %v: %q", err, out)
	}
	source, err := os.ReadFile(paths[1])
	if err != nil {
		t.Fatal(err)
	}
	return paths[0], string(source)
}

// start runs Pawl on a PostgreSQL, and returns the dashboard's address.
func start(t *testing.T) (*site.Site, *site.Client, string) {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s, err := site.New(t.Context(), t.TempDir(), server, "", []site.Credential{
		{Name: "shop-api", Strategy: inventory.Alternating, Drain: "4s", Keep: "1h"},
		{Name: "reports", Strategy: inventory.InPlace}, {Name: "search", Strategy: inventory.Alternating}})
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.File)
	if err == nil {
		err = os.WriteFile(s.File, append(text, []byte(fmt.Sprintf("dashboard: {listen: %q}\n", listen))...), 0o600)
	}
	if err == nil {
		s.Inventory, err = inventory.Load(s.File)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	up, ended := make(chan struct{}), make(chan error, 1)
	var said bytes.Buffer
	go func() {
		ended <- embedded.Up(ctx, embedded.UpOptions{Inventory: s.Inventory, Log: &said, Ready: func() { close(up) }})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(said.String())
		}
	})
	select {
	case <-up:
	case err := <-ended:
		ended <- err
		t.Fatal("pawl up: ", err)
	}
	client, err := s.Operator()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.NATS.Close)
	return s, client, s.Inventory.Dashboard.URL()
}

// browser is one tab, and what went wrong in it.
type browser struct {
	t     *testing.T
	ctx   context.Context
	axe   string
	shots string

	mu     sync.Mutex
	faults []string
}

func open(t *testing.T, chromium, axe string) *browser {
	t.Helper()
	b := &browser{t: t, axe: axe, shots: filepath.Join(root, ".cache", "dashboard")}
	if err := os.MkdirAll(b.shots, 0o755); err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(2*time.Minute))
	ctx, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	ctx, stop = context.WithTimeout(ctx, 4*time.Minute)
	t.Cleanup(stop)
	b.ctx = ctx
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.fault("exception: " + e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
				b.fault(fmt.Sprintf("console: %v", e.Args))
			}
		case *log.EventEntryAdded:
			if e.Entry.Level == log.LevelError || e.Entry.Level == log.LevelWarning {
				b.fault("log: " + e.Entry.Text + " " + e.Entry.URL)
			}
		case *page.EventJavascriptDialogOpening:
			b.fault("a dialog was opened: what somebody wrote was run: " + e.Message)
			go func() { _ = chromedp.Run(ctx, page.HandleJavaScriptDialog(true)) }() // else the tab hangs
		}
	})
	b.do(log.Enable())
	return b
}

func (b *browser) fault(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, text)
}

func (b *browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatalf("%v; faults so far: %q", err, b.faults)
	}
}

// until waits, without loading the page again, until an expression is true.
func (b *browser) until(expression string) {
	b.t.Helper()
	b.do(chromedp.Poll(expression, nil, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(90*time.Second)))
}

// examine photographs the page, light and dark, wide and narrow, and has axe-core
// look at it.
func (b *browser) examine(name string) {
	b.t.Helper()
	for _, look := range []struct {
		scheme string
		width  int64
	}{{"light", 1280}, {"dark", 1280}, {"dark", 390}} {
		var shot []byte
		var found string
		b.do(chromedp.EmulateViewport(look.width, 900), emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}),
			chromedp.FullScreenshot(&shot, 100), chromedp.Evaluate(b.axe+"; true", nil),
			chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations.map(v => ({impact: v.impact, id: v.id, nodes: v.nodes.map(n => n.html.slice(0, 200) + " " + n.failureSummary)}))))`, &found,
				func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
		file := filepath.Join(b.shots, fmt.Sprintf("%s-%s-%d.png", name, look.scheme, look.width))
		if err := os.WriteFile(file, shot, 0o644); err != nil {
			b.t.Fatal(err)
		}
		var violations []struct {
			Impact, ID string
			Nodes      []string
		}
		if err := json.Unmarshal([]byte(found), &violations); err != nil {
			b.t.Fatal(err)
		}
		for _, v := range violations {
			if v.Impact == "serious" || v.Impact == "critical" {
				b.t.Errorf("%s: axe: %s %s: %q", file, v.Impact, v.ID, v.Nodes)
			} else {
				b.t.Logf("%s: axe: %s %s: %q", file, v.Impact, v.ID, v.Nodes)
			}
		}
	}
	b.do(chromedp.EmulateViewport(1280, 900))
}

func ask(t *testing.T, c *site.Client, credential string, r *pawlv1.Request) {
	t.Helper()
	if err := c.Publish(t.Context(), bus.RequestSubject(credential), r, nil); err != nil {
		t.Fatal(err)
	}
}

// TestLiveRotationIsWatchedInABrowser follows a rotation from its request to its
// end without once loading a page again.
func TestLiveRotationIsWatchedInABrowser(t *testing.T) {
	chromium, axe := tools(t)
	s, client, url := start(t)
	for _, name := range []string{"shop-api", "reports"} {
		if _, err := client.Do(t.Context(), name, pawlv1.Action_ACTION_ADOPT); err != nil {
			t.Fatal(err)
		}
	}
	rotator, err := s.Connect(saga.DBRotator)
	if err != nil {
		t.Fatal(err)
	}
	defer rotator.NATS.Close()
	if err := rotator.Publish(t.Context(), bus.NoteSubject(saga.DBRotator), &pawlv1.Note{Kind: "drift", Credential: "reports", Text: "primary: drifts " + hostile, At: timestamppb.Now()}, nil); err != nil {
		t.Fatal(err)
	}
	b := open(t, chromium, axe)
	t.Logf("screenshots: %s", b.shots)

	b.do(chromedp.Navigate(url), chromedp.Evaluate(`window.stayed = true`, nil))
	b.until(`document.getElementById("live").classList.contains("on") && document.body.innerText.includes("primary: drifts")`)
	ask(t, client, "shop-api", &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, Reason: "quarterly " + hostile, RequestedBy: "anna " + hostile})
	b.until(`document.querySelector('[aria-label="Steps of shop-api"] .now')?.textContent.startsWith("retire")`)
	b.examine("overview-running")
	b.until(`window.stayed && !document.querySelector('[aria-label="Steps of shop-api"]')`) // it has ended
	b.examine("overview")

	ask(t, client, "reports", &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, Reason: "in place"})
	b.do(chromedp.Navigate(url+"credentials/shop-api"), chromedp.Evaluate(`window.stayed = true`, nil))
	b.until(`document.getElementById("live").classList.contains("on")`)
	ask(t, client, "shop-api", &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, Reason: "again " + hostile})
	b.until(`window.stayed && document.getElementById("rotations").innerText.includes("running")`)
	var link string
	b.do(chromedp.Evaluate(`document.querySelector("#rotations tbody tr:first-child a").getAttribute("href")`, &link))
	b.do(chromedp.Navigate(strings.TrimSuffix(url, "/")+link), chromedp.Evaluate(`window.stayed = true`, nil))
	b.until(`document.querySelector(".waterfall tr.busy")`)
	b.examine("rotation-running")
	b.until(`window.stayed && document.querySelector(".headline").innerText.includes("completed")`)
	b.examine("rotation")
	b.do(chromedp.Navigate(url + "credentials/shop-api"))
	b.until(`document.body.innerText.includes("again ")`)
	b.examine("credential")
	b.do(chromedp.Navigate(url + "trail"))
	b.until(`/[1-9]\d* of \d+ records stand under a signed checkpoint/.test(document.body.innerText)`)
	b.examine("trail")
	b.do(chromedp.Navigate(url + "schedule"))
	b.examine("schedule")

	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) > 0 {
		t.Errorf("the browser complained: %q", b.faults)
	}
}
