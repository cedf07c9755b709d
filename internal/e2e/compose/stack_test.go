package compose

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// stack is one that a test has started, and joined as two of its users.
type stack struct {
	*Stack
	t                   testing.TB
	operator, requester *bus.Bus
	events              <-chan *jetstream.RawStreamMsg // of the credential's log
}

// start returns when the demo's credential is adopted; afterwards all is removed.
func start(t testing.TB, files []string) *stack {
	t.Helper()
	s := &stack{Stack: New("pawl-compose", files), t: t}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		if t.Failed() {
			s.tell(ctx)
		}
		if err := s.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := s.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.operator, s.requester = s.join(bus.Operator), s.join(bus.Requester)
	s.events = s.operator.Tail(t.Context(), bus.StreamLog, bus.LogSubject(Credential, "*", "*"), bus.Start{Time: time.Now()})
	return s
}

// tell says, when a test has failed, which containers are not up, and what the bus
// and Pawl's services warned of.
func (s *stack) tell(ctx context.Context) {
	out, err := s.Compose(ctx, "ps")
	s.t.Log(out, err)
	out, err = s.Compose(ctx, "logs", "--no-color")
	var warned []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, `"WARN"`) || strings.Contains(line, `"ERROR"`) || strings.Contains(line, "[WRN]") || strings.Contains(line, "[ERR]") {
			warned = append(warned, line)
		}
	}
	s.t.Log(strings.Join(warned[max(0, len(warned)-100):], ""), err)
}

func (s *stack) join(user string) *bus.Bus {
	s.t.Helper()
	b, err := s.Join(s.t.Context(), user, s.t.TempDir())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(b.NATS.Close)
	return b
}

func (s *stack) docker(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	out, err := Docker(ctx, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *stack) container(service string) string {
	s.t.Helper()
	id, err := s.Container(s.t.Context(), service)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s *stack) address(service, port string) string {
	s.t.Helper()
	address, err := s.Address(s.t.Context(), service, port)
	if err != nil {
		s.t.Fatal(err)
	}
	return address
}

// get asks until the answer is what it should be; spans and samples are sent in
// batches, a few seconds late.
func (s *stack) get(url string, into any, enough func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		err := getJSON(ctx, url, into)
		if err == nil && enough() {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("%s: %v; last answer: %+v", url, err, into)
		case <-tick.C:
		}
	}
}

func getJSON(ctx context.Context, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

// send is for what answers at once.
func (s *stack) send(method, url, body string, into any) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s: %s", method, url, answer.Status)
	}
	if into != nil {
		if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
			s.t.Fatal(err)
		}
	}
}
