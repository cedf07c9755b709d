package dockertest

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The proxies that deploy/stack has let through what docs/docker.md promises each
// service, and refuse what is another's, or nobody's.
func TestProxyRefusesWhatAServiceDoesNotNeed(t *testing.T) {
	Need(t)
	program, err := exec.Command("../../deploy/debian-for-tests.sh", "haproxy").Output()
	if err != nil {
		t.Fatal(err)
	}
	always := []string{"POST /containers/create", "POST /containers/none-such/exec", "POST /services/create", "DELETE /services/none-such", "GET /info", "POST /build",
		"GET /secrets/none-such/update", "GET /services/../info", "GET /services/%2e%2e%2finfo", "PUT /services/none-such/update", "GET /tasks/none-such/logs", "POST /v1.41/v1.41/services/none-such/update"}
	for _, service := range []string{"secret-publisher", "restarter"} {
		t.Run(service, func(t *testing.T) {
			ask := haproxy(t, strings.TrimSpace(string(program)), service)
			mine := documented(t, service)
			for _, call := range mine {
				if status := ask(strings.ReplaceAll(call, "*", "none-such")); status == http.StatusForbidden || status >= http.StatusInternalServerError && status != http.StatusServiceUnavailable {
					t.Errorf("%s: %d", call, status)
				}
			}
			nobodys := slices.Clone(always)
			for _, other := range []string{"secret-publisher", "restarter"} {
				for _, call := range documented(t, other) {
					if !slices.Contains(mine, call) {
						nobodys = append(nobodys, strings.ReplaceAll(call, "*", "none-such"))
					}
				}
			}
			for _, call := range nobodys {
				if status := ask(call); status != http.StatusForbidden {
					t.Errorf("%s: %d, want it refused", call, status)
				}
			}
		})
	}
}

// haproxy starts the proxy for a service, and returns what asks it for "METHOD PATH".
func haproxy(t *testing.T, program, service string) (ask func(call string) int) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "haproxy.sock") // a path: no port is lost to another between
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, "-f", "../../deploy/stack/docker-api-"+service+".cfg")
	cmd.Env = append(os.Environ(), "LISTEN=unix@"+socket)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	client := &http.Client{Timeout: 10 * time.Second, Transport: unixTransport(socket)}
	return func(call string) int {
		t.Helper()
		method, path, _ := strings.Cut(call, " ")
		request, err := http.NewRequestWithContext(t.Context(), method, "http://docker"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(request)
		for range 100 {
			if err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond) // it is starting
			answer, err = client.Do(request)
		}
		if err != nil {
			t.Fatalf("%s: %v", call, err)
		}
		_ = answer.Body.Close() // the status is all that matters
		return answer.StatusCode
	}
}
