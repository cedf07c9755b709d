// Package webhook takes alerts by HTTP, from Alertmanager and Grafana, and
// publishes each on pawl.alert.NAME. It decides nothing. A sender is told 200
// only once every alert is stored on the bus, and 503 where the bus is not
// there, upon which both kinds of senders try again.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const maxBody = 1 << 20

// Server takes webhooks.
type Server struct {
	d       service.Dependencies
	working *slots // by receiver
	reading *slots // by address
	now     func() time.Time
	taken   metric.Int64Counter
	cut     metric.Int64Counter
	mu      sync.Mutex
	spoken  map[string]time.Time // by receiver and outcome: when a refusal was last noted
}

// New returns a server. It is an error where the TLS certificate cannot be used.
func New(d service.Dependencies) (*Server, error) {
	s := &Server{d: d, working: newSlots(perReceiver, 0), reading: newSlots(perAddress, inAll), now: time.Now, spoken: map[string]time.Time{}}
	meter := d.Metrics.Meter()
	var err, failed error
	s.taken, err = meter.Int64Counter("pawl_webhooks", metric.WithDescription("Webhooks answered, by receiver and outcome"))
	s.cut, failed = meter.Int64Counter("pawl_alerts_truncated", metric.WithDescription("Alerts that a sender cut from its webhooks, by receiver"))
	if err = errors.Join(err, failed); err == nil && d.Inventory.Alerts.TLS != nil {
		_, err = s.certificate(nil)
	}
	return s, err
}

// certificate is read at each handshake, so that a renewed one needs no restart.
func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(s.d.Inventory.Alerts.TLS.CertFile, s.d.Inventory.Alerts.TLS.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("alerts.tls: %w", err)
	}
	return &pair, nil
}

// Run serves until ctx ends; where there is no receiver it returns at once. An
// address that is taken is no error: the other replica on this machine may have
// it, and this one takes over when it ends.
func (s *Server) Run(ctx context.Context) {
	address := s.d.Inventory.Alerts.Listen
	for address != "" && ctx.Err() == nil {
		if listener := s.listen(ctx, address); listener != nil {
			if err := s.Serve(ctx, listener); err != nil {
				s.d.Log.Error("webhooks are no longer taken; listening anew", "error", err)
			}
		}
	}
}

// listen tries until the address is free; nil where ctx ends before.
func (s *Server) listen(ctx context.Context, address string) net.Listener {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for first := true; ; first = false {
		listener, err := net.Listen("tcp", address)
		if err == nil {
			return listener
		}
		if first {
			s.d.Log.Warn("no webhooks are taken here: another replica on this machine has the address, or alerts.listen is wrong; tried again every second", "error", err)
			s.d.Note(ctx, &pawlv1.Note{Kind: "webhooks not taken", Text: "alerts.listen: " + err.Error()})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Serve serves on the listener, which it closes, until ctx ends.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, Protocols: new(http.Protocols), // one request at a time on a connection
		ErrorLog: slog.NewLogLogger(s.d.Log.Handler(), slog.LevelDebug), // handshakes that fail, and the like
	}
	server.Protocols.SetHTTP1(true)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx) // a sender that is cut off sends again
		_ = server.Close()
	})
	defer stop()
	serve := server.Serve
	if s.d.Inventory.Alerts.TLS != nil {
		server.TLSConfig = &tls.Config{GetCertificate: s.certificate, MinVersion: tls.VersionTLS12}
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if err := serve(crowded{listener, newSlots(perConnection, 0)}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("alerts.listen: %w", err)
	}
	return nil
}

// Handler has a path for each receiver, /alerts/NAME, which takes POST alone.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for name, r := range s.d.Inventory.Alerts.Receivers {
		mux.HandleFunc("POST /alerts/"+name, func(w http.ResponseWriter, q *http.Request) {
			if err := s.take(w, q, name, r); err != nil {
				s.refuse(q.Context(), w, name, err)
				return
			}
			s.count(q.Context(), name, "taken")
		})
	}
	return mux
}

// outcome of a webhook, as the metric names it, and what the sender is told.
type outcome struct {
	name   string
	status int
}

var (
	unauthorized = outcome{"unauthorized", http.StatusUnauthorized}
	replayed     = outcome{"replayed", http.StatusUnauthorized}
	oversized    = outcome{"oversized", http.StatusRequestEntityTooLarge}
	malformed    = outcome{"malformed", http.StatusBadRequest}
	unavailable  = outcome{"unavailable", http.StatusServiceUnavailable}
	busy         = outcome{"busy", http.StatusServiceUnavailable}
)

// refusal is an error with what becomes of the webhook.
type refusal struct {
	outcome
	error
}

func (r refusal) Unwrap() error { return r.error }

// refuse answers, counts, and once a minute tells the trail.
func (s *Server) refuse(ctx context.Context, w http.ResponseWriter, receiver string, err error) {
	r := refusal{unavailable, err}
	errors.As(err, &r)
	told := r.Error()
	switch r.outcome {
	case unauthorized: // who does not know the secret learns nothing
		w.Header().Set("WWW-Authenticate", "Bearer")
		told = "not authorized"
	case unavailable:
		w.Header().Set("Retry-After", "1")
		told = "not stored: send it again"
	}
	http.Error(w, told, r.status)
	s.count(ctx, receiver, r.name)
	s.mu.Lock()
	key, now := receiver+" "+r.name, s.now()
	quiet := now.Sub(s.spoken[key]) < time.Minute
	if !quiet {
		s.spoken[key] = now
	}
	s.mu.Unlock()
	if quiet {
		return
	}
	s.d.Log.Warn("webhook refused", "receiver", receiver, "outcome", r.name, "error", r.error)
	s.d.Note(ctx, &pawlv1.Note{Kind: "webhook refused", Actor: "alert " + receiver, Text: fmt.Sprintf("%s: %v (more of the kind within a minute are only counted)", r.name, r.error)})
}

func (s *Server) count(ctx context.Context, receiver, outcome string) {
	s.taken.Add(ctx, 1, metric.WithAttributes(attribute.String("receiver", receiver), attribute.String("outcome", outcome)))
}
