// Package dashboard serves what posture knows as pages that change nothing:
// HTML made here, live by server-sent events, whole without script. It answers
// GET and HEAD alone; what it shows comes from the log, the notes and the trail,
// none of which holds a secret, and its user of the bus has no right to any.
package dashboard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/service"
	"pawl.dev/services/auditor/internal/posture"
)

// Dashboard serves.
type Dashboard struct {
	d       service.Dependencies
	config  inventory.Dashboard
	posture *posture.Posture
	guard   *guard
	streams chan struct{} // one place for each event stream
	pages   pages

	forecast forecast
}

// atOnce is how many event streams there are at most; whoever comes later has
// the page reload itself.
const atOnce = 64

// New returns a dashboard, or an error that names the file that does not do.
// Without a section in pawl.yaml there is none: both are nil.
func New(d service.Dependencies) (*Dashboard, error) {
	config := d.Inventory.Dashboard
	if config.Listen == "" {
		return nil, nil
	}
	b := &Dashboard{d: d, config: config, posture: posture.New(d), guard: &guard{config: config}, streams: make(chan struct{}, atOnce), pages: parsePages()}
	if _, err := b.guard.token(); err != nil {
		return nil, err
	}
	if config.CertFile != "" {
		if _, err := b.tls(nil); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Run serves until ctx ends. Where the address is taken, by another auditor on
// this machine as it may be, it waits until it is free: the record must not
// suffer from the picture.
func (b *Dashboard) Run(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return b.posture.Run(ctx) })
	all.Go(func() error {
		listener, err := b.listen(ctx)
		if err != nil || listener == nil {
			return err
		}
		return b.serve(ctx, listener)
	})
	return all.Wait()
}

func (b *Dashboard) listen(ctx context.Context) (net.Listener, error) {
	for said := false; ; said = true {
		listener, err := net.Listen("tcp", b.config.Listen)
		if err == nil {
			return listener, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("dashboard.listen: %w", err)
		}
		if !said {
			b.d.Log.Warn("dashboard.listen is taken; it is served once the address is free", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(time.Second):
		}
	}
}

// serve ends the streams first: a server that shuts down waits for them.
func (b *Dashboard) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: b.handler(), BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(b.d.Log.Handler(), slog.LevelDebug), // of clients that do not speak TLS, and the like
	}
	if b.config.CertFile != "" {
		listener = tls.NewListener(listener, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetConfigForClient: b.tls})
	}
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(stopped)
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if server.Shutdown(ending) != nil {
			_ = server.Close() // somebody holds on
		}
	})
	b.d.Log.Info("dashboard", "url", b.config.URL())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("dashboard: %w", err)
	}
	<-stopped
	return nil
}

// tls reads the files for each client, so that a renewed certificate is used at once.
func (b *Dashboard) tls(*tls.ClientHelloInfo) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(b.config.CertFile, b.config.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("dashboard.tls: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{pair}}
	if b.config.ClientCAFile == "" {
		return config, nil
	}
	text, err := os.ReadFile(b.config.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("dashboard.tls.client_ca_file: %w", err)
	}
	config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !config.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("dashboard.tls.client_ca_file: %s holds no certificate in PEM", b.config.ClientCAFile)
	}
	return config, nil
}
