package restart

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
)

// recorder is a server that answers with statuses in turn, the last for ever.
type recorder struct {
	*httptest.Server
	mu       sync.Mutex
	statuses []int
	requests []*http.Request
}

func serve(t *testing.T, statuses ...int) *recorder {
	r := &recorder{statuses: statuses}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.requests = append(r.requests, req)
		status := r.statuses[0]
		if len(r.statuses) > 1 {
			r.statuses = r.statuses[1:]
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "I say %d, and my token is %s", status, canary)
	}))
	t.Cleanup(r.Close)
	return r
}

// header returns that header of each request so far.
func (r *recorder) header(name string) (values []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, req := range r.requests {
		values = append(values, req.Header.Get(name))
	}
	return values
}

func post(url, tokenFile string, timeout time.Duration) Kind {
	return For(inventory.Restart{HTTP: &inventory.HTTPCall{URL: url, Method: "POST", Timeout: timeout, TokenFile: tokenFile}})
}

func TestTransientAnswersAreTriedAgainUnderTheSameKey(t *testing.T) {
	server := serve(t, 503, 429, 408, 200)
	if err := post(server.URL, "", time.Minute).Restart(t.Context(), cause()); err != nil {
		t.Fatal(err)
	}
	if keys := server.header("Idempotency-Key"); len(keys) != 4 || len(slices.Compact(keys)) != 1 {
		t.Fatalf("keys %q", keys)
	}
}

func TestCompensationIsNotTakenForTheRestartThatItUndoes(t *testing.T) {
	server := serve(t, 200)
	for _, step := range []string{"restart", "rerestart"} {
		why := cause()
		why.Step = step
		if err := post(server.URL, "", time.Minute).Restart(t.Context(), why); err != nil {
			t.Fatal(err)
		}
	}
	if keys := server.header("Idempotency-Key"); !slices.Equal(keys, []string{"r1/restart/shop/api", "r1/rerestart/shop/api"}) {
		t.Fatalf("keys %q", keys)
	}
}

func TestRefusalIsNotTriedAgain(t *testing.T) {
	server := serve(t, 403)
	err := post(server.URL, "", time.Minute).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "403 Forbidden") || !strings.Contains(err.Error(), "I say 403") || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v", err)
	}
	if n := len(server.header("")); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestServerThatStaysBrokenEndsInItsLastAnswer(t *testing.T) {
	server := serve(t, 500)
	err := post(server.URL, "", 100*time.Millisecond).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "no success within 100ms") || !strings.Contains(err.Error(), "500 Internal") {
		t.Fatalf("got %v", err)
	}
}

func TestRedirectDoesNotCarryTheTokenElsewhere(t *testing.T) {
	other := serve(t, 200)
	server := httptest.NewServer(http.RedirectHandler(other.URL+"/x", http.StatusTemporaryRedirect))
	defer server.Close()
	err := post(server.URL, writePID(t, canary, time.Now()), time.Minute).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "redirect to "+other.URL) || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v", err)
	}
	if n := len(other.header("")); n != 0 {
		t.Error("the redirect was followed")
	}
}

func TestTokenIsReadAnew(t *testing.T) {
	server := serve(t, 200)
	file := filepath.Join(t.TempDir(), "token")
	kind := post(server.URL, file, time.Minute)
	for _, token := range []string{"one", "two"} {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := kind.Restart(t.Context(), cause()); err != nil {
			t.Fatal(err)
		}
	}
	if got := server.header("Authorization"); !slices.Equal(got, []string{"Bearer one", "Bearer two"}) {
		t.Errorf("got %q", got)
	}
	for want, content := range map[string]string{"one token": canary + "\nX-Injected: 1", "must hold": " \n"} {
		_ = os.WriteFile(file, []byte(content), 0o600)
		if err := kind.Restart(t.Context(), cause()); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), canary) {
			t.Errorf("got %v", err)
		}
	}
	_ = os.Remove(file)
	if _, err := kind.Check(t.Context()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v", err)
	}
}

func TestUselessURLIsRefusedWithoutRepeatingIt(t *testing.T) {
	for _, url := range []string{"http://app:" + canary + "@host:port/", "ftp://" + canary, "http://", canary} {
		if _, err := post(url, "", time.Second).Check(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "url: ") || strings.Contains(err.Error(), canary) {
			t.Errorf("got %v", err)
		}
	}
}
