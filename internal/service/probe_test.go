package service

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func probeOn(t *testing.T, server *bustest.Server) (p *probe, ended chan error, stop func()) {
	t.Helper()
	ended = make(chan error, 10)
	p = newProbe(Dependencies{Bus: server.Connect(t, saga.Restarter), Log: slog.New(slog.DiscardHandler), Conditions: &condition.Set{}, End: func(err error) { ended <- err }}, saga.Restarter)
	stop, err := p.listen()
	if err != nil {
		t.Fatal(err)
	}
	return p, ended, stop
}

// TestServiceThatDoesNotHearItselfEnds: it publishes as if nothing were wrong.
func TestServiceThatDoesNotHearItselfEnds(t *testing.T) {
	p, ended, deafen := probeOn(t, bustest.Start(t))
	p.live(t.Context())
	if err := p.Conditions.Err(); err != nil {
		t.Error(err)
	}
	deafen()
	for n := 1; n <= endAt; n++ {
		for p.live(t.Context()); p.unheard < n; p.live(t.Context()) { // the connection is being made anew
			continue
		}
		if err := p.Conditions.Err(); err != nil != (n >= rebindAt) || err != nil && !strings.HasPrefix(err.Error(), "deaf: ") {
			t.Errorf("after %d times: %v", n, err)
		}
		if len(ended) > 0 != (n == endAt) {
			t.Errorf("after %d times: %d ends", n, len(ended))
		}
	}
}

// TestServiceThatHangsIsMissing: the server knows somebody who is asked, as of a
// process that is stopped.
func TestServiceThatHangsIsMissing(t *testing.T) {
	server := bustest.Start(t)
	p, _, stop := probeOn(t, server)
	defer stop()
	var answers atomic.Bool
	for _, name := range saga.Services {
		other := server.Connect(t, name)
		if _, err := other.NATS.Subscribe(bus.HealthSubject(name), func(m *nats.Msg) {
			if name == saga.Verifier && !answers.Load() {
				return
			}
			if err := bus.Respond(m, &pawlv1.Findings{}); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if err := other.NATS.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; n <= missedAt; n++ {
		p.ask(t.Context())
		if all := p.Conditions.List(); n < missedAt && len(all) > 0 || n == missedAt && (len(all) != 1 || all[0].Object != saga.Verifier) {
			t.Errorf("after %d questions: %v", n, all)
		}
	}
	answers.Store(true)
	p.ask(t.Context())
	if all := p.Conditions.List(); len(all) > 0 {
		t.Errorf("answered: %v", all)
	}
}

func TestReadinessIsRedWithoutAProbeAndAfterAnOldOne(t *testing.T) {
	p, _, stop := probeOn(t, bustest.Start(t))
	defer stop()
	if err := p.ready(); err == nil || !strings.HasPrefix(err.Error(), "starting: ") {
		t.Errorf("before the first probe: %v", err)
	}
	at := time.Now()
	p.ended.Store(&at)
	if err := p.ready(); err != nil {
		t.Error(err)
	}
	at = at.Add(-time.Minute)
	if err := p.ready(); err == nil || !strings.HasPrefix(err.Error(), "probe: ") {
		t.Errorf("after a probe of a minute ago: %v", err)
	}
	p.Bus.NATS.Close()
	if err := p.ready(); err == nil || !strings.HasPrefix(err.Error(), "bus: ") {
		t.Errorf("not connected: %v", err)
	}
}
