package dockertest

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Proxy lets pass to Docker's socket what docs/docker.md allows a service, and
// nothing else. compare fails the test unless all of that was asked for, and
// nothing that was refused.
func Proxy(t testing.TB, service string) (host string, compare func()) {
	t.Helper()
	allowed := documented(t, service)
	var mu sync.Mutex
	used, refused := map[string]bool{}, map[string]bool{}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: unixTransport("/var/run/docker.sock"),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		call := ""
		for _, c := range allowed {
			method, path, _ := strings.Cut(c, " ")
			if r.Method == method && regexp.MustCompile("^(/v[0-9.]+)?"+strings.ReplaceAll(regexp.QuoteMeta(path), `\*`, "[^/]+")+"$").MatchString(r.URL.Path) {
				call = c
				if !strings.Contains(path, "*") {
					break // rather than by a pattern
				}
			}
		}
		if call == "" {
			refused[r.Method+" "+r.URL.Path] = true
		} else {
			used[call] = true
		}
		mu.Unlock()
		if call == "" {
			http.Error(w, `{"message": "refused by the proxy"}`, http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return "tcp://" + server.Listener.Addr().String(), func() {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if len(refused) > 0 {
			t.Errorf("not in docs/docker.md for %s: %v", service, refused)
		}
		for _, c := range allowed {
			if !used[c] {
				t.Errorf("docs/docker.md allows %s %s, which it never asks for", service, c)
			}
		}
	}
}

// unixTransport connects to a socket, whatever the address says.
func unixTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
}

// documented reads the table of docs/docker.md.
func documented(t testing.TB, service string) (calls []string) {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(here), "..", "..", "docs", "docker.md"))
	if err != nil {
		t.Fatal(err)
	}
	column := slices.Index([]string{"", "", "secret-publisher", "restarter"}, service)
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) == 6 && strings.HasPrefix(cells[1], " `") && strings.TrimSpace(cells[column]) == "yes" {
			calls = append(calls, strings.Trim(cells[1], " `"))
		}
	}
	if len(calls) == 0 {
		t.Fatalf("docs/docker.md has no table of calls for %s", service)
	}
	return calls
}
