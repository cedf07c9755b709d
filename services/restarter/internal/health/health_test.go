package health

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
)

func TestAGateOpensOnceTheConsumerIsHealthy(t *testing.T) {
	var looks atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if looks.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	gate := New(inventory.Health{HTTP: server.URL, Command: []string{"true"}, Timeout: time.Minute}, "", nil)
	if err := gate.Await(t.Context()); err != nil || looks.Load() != 3 {
		t.Fatalf("after %d looks: %v", looks.Load(), err)
	}
}

func TestAGateThatNeverOpensTellsTheLastAnswer(t *testing.T) {
	login := httptest.NewServer(http.RedirectHandler("/login", http.StatusFound))
	defer login.Close()
	for want, health := range map[string]inventory.Health{
		"302 Found":          {HTTP: login.URL}, // a page that asks to log in is not health
		"connection refused": {HTTP: "http://127.0.0.1:1/healthz"},
		"exit status 1":      {Command: []string{"false"}},
	} {
		health.Timeout = 250 * time.Millisecond
		err := New(health, "", nil).Await(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "not healthy within 250ms") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestAwaitKeepsTheAnswerThatTheDeadlineDidNotCutShort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	answers := []error{errors.New("503"), context.Canceled}
	err := Await(ctx, time.Nanosecond, func(context.Context) error {
		answer := answers[0]
		if answers = answers[1:]; len(answers) == 0 {
			cancel()
		}
		return answer
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "503") {
		t.Fatalf("got %v", err)
	}
}
