package service

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/telemetry"
)

// New makes a service from what it is given.
type New = func(Dependencies) (*Service, error)

// Main is the whole of a service's main: it reads pawl.yaml, joins the bus and
// works until SIGINT or SIGTERM. Exit codes: 0 stopped, 1 failed, 2
// configuration.
func Main(name string, create New) {
	config := flag.String("c", "pawl.yaml", "configuration file")
	metricsAddress := flag.String("metrics", "", "address of /metrics, /healthz and /readyz, instead of telemetry.metrics")
	healthy := flag.Bool("healthy", false, "ask the service that runs with this configuration whether it lives, and exit 0 or 1")
	printVersion := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *printVersion {
		fmt.Println(name, Version())
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := telemetry.NewLogger(os.Stderr, name, slog.LevelInfo)
	inv, err := inventory.Load(*config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if *metricsAddress != "" {
		inv.Telemetry.Metrics = *metricsAddress
	}
	if *healthy {
		if err := telemetry.Healthy(ctx, inv.Telemetry.Metrics); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// Else the exporter writes lines of its own form between ours.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry", "error", err) }))
	metrics, err := telemetry.NewMetrics()
	if err == nil {
		err = Run(ctx, Options{Name: name, New: create, Inventory: inv, Log: log, Metrics: metrics, Serve: true})
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Error("stopped", "error", err)
		os.Exit(1)
	}
}

// Options of Run.
type Options struct {
	Name      string
	New       New
	Inventory *inventory.Inventory
	Log       *slog.Logger
	Metrics   *telemetry.Metrics
	Serve     bool                       // answer /metrics, /healthz, /readyz for this service alone
	Server    nats.InProcessConnProvider // the bus, where it is in this process
	// Ready is called once the service is bound to its consumers, if set, with what
	// tells, then and later, what keeps the service from working.
	Ready func(readiness func() error)
	// Clock is the bus's, if the bus is in this process, which then follows it; nil: the
	// service follows the clock of the bus itself.
	Clock *clock.Clock
	// Conditions is where the service tells what keeps it from working; nil: a set of its own.
	Conditions *condition.Set
	// Process holds what is wrong with the process that the service shares with
	// others, such as a store that fails; nil: it has a process of its own. The
	// scheduler tells of it, too, when it is asked.
	Process *condition.Set
}

// Run runs one service until ctx ends.
func Run(ctx context.Context, o Options) error {
	tracing, err := telemetry.NewTracing(ctx, o.Name, Version(), o.Inventory.Telemetry.OTLP)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = tracing.Shutdown(ctx) // a lost span is no reason to fail
	}()
	connect, err := bus.For(o.Inventory, o.Name)
	if err != nil {
		return err
	}
	if o.Conditions == nil {
		o.Conditions = &condition.Set{}
	}
	connect.Wait, connect.Server, connect.Log, connect.Conditions = true, o.Server, o.Log, o.Conditions
	b, err := bus.Connect(connect)
	if err != nil {
		return err
	}
	defer b.NATS.Close()
	if err := b.Connected(ctx); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go b.Roam(ctx, o.Log)
	d, err := dependencies(ctx, o, b, tracing)
	if err != nil {
		return err
	}
	d.End = func(err error) { end(ended{err}) }
	s, err := o.New(d)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	if s.Close != nil {
		defer s.Close()
	}
	var bound atomic.Pointer[probe]
	if o.Serve && o.Inventory.Telemetry.Metrics != "" {
		if err := o.Metrics.Serve(ctx, o.Inventory.Telemetry.Metrics, func() error { return bound.Load().ready() }); err != nil {
			return err
		}
	}
	if o.Server != nil { // so nobody else works on what the last process left
		redeliver(ctx, d, o.Name)
	}
	defer noteStop(ctx, d, o.Name)
	err = s.run(ctx, d, tracing, func(p *probe) {
		noteStart(ctx, d, o.Name)
		o.Metrics.Started(o.Name, Version())
		bound.Store(p)
		if o.Ready != nil {
			o.Ready(p.ready)
		}
	})
	if by := (ended{}); errors.As(context.Cause(ctx), &by) {
		return by.error
	}
	return err
}

// dependencies are what New of the service is given.
func dependencies(ctx context.Context, o Options, b *bus.Bus, tracing trace.TracerProvider) (Dependencies, error) {
	d := Dependencies{Inventory: o.Inventory, Log: o.Log, Bus: b, Metrics: o.Metrics, Tracer: tracing.Tracer("pawl.dev/services/" + o.Name), Conditions: o.Conditions, Process: o.Process, Note: note(b, o.Name, o.Log)}
	if err := o.Conditions.Observe(o.Metrics.Meter(), o.Name); err != nil {
		return d, fmt.Errorf("metrics: %w", err)
	}
	keepTime(ctx, &d, o.Name, o.Clock)
	if slices.Contains(sealed.Recipients, o.Name) {
		keys, err := sealed.LoadKeys(o.Inventory.KeysDir, o.Name)
		if err != nil {
			return d, err
		}
		d.Sealed = sealed.NewStore(b, o.Name, keys)
	}
	return d, nil
}

// ended is why a service ends by itself.
type ended struct{ error }

// version is set where images are built: -ldflags "-X pawl.dev/internal/service.version=…".
var version string

// Version is what the build was told, else the commit that this binary was built
// from, where the build recorded it.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}
