package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"pawl.dev/internal/loopback"
)

// Metrics are the instruments of a process. Labels are of low cardinality:
// names from the saga table and from pawl.yaml, never a rotation's id.
type Metrics struct {
	registry *prometheus.Registry
	provider *sdkmetric.MeterProvider

	steps        metric.Float64Histogram
	rotations    metric.Int64Counter
	rotationTime metric.Float64Histogram
	redeliveries metric.Int64Counter
	stalled      metric.Int64Gauge
	requests     metric.Int64Counter
	drift        metric.Int64Gauge
	services     metric.Int64Gauge
}

// NewMetrics makes the instruments.
func NewMetrics() (*Metrics, error) {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprom.New(otelprom.WithRegisterer(m.registry), otelprom.WithoutScopeInfo(), otelprom.WithoutTargetInfo())
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	m.provider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter))
	meter := m.provider.Meter("pawl")
	seconds := metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
	var errs [8]error
	m.steps, errs[0] = meter.Float64Histogram("pawl_step_duration", metric.WithUnit("s"), metric.WithDescription("Duration of one attempt at a step, by outcome"), seconds)
	m.rotations, errs[1] = meter.Int64Counter("pawl_rotations", metric.WithDescription("Rotations ended, by flow and outcome"))
	m.rotationTime, errs[2] = meter.Float64Histogram("pawl_rotation_duration", metric.WithUnit("s"), metric.WithDescription("From requested to the end, by flow and outcome"), seconds)
	m.redeliveries, errs[3] = meter.Int64Counter("pawl_redeliveries", metric.WithDescription("Triggers delivered more than once"))
	m.stalled, errs[4] = meter.Int64Gauge("pawl_stalled", metric.WithDescription("1 while a step of the credential's rotation is past its deadline and needs a person"))
	m.requests, errs[5] = meter.Int64Counter("pawl_requests", metric.WithDescription("Requests answered, by outcome"))
	m.drift, errs[6] = meter.Int64Gauge("pawl_drift", metric.WithDescription("1 while a node or sink holds of the credential what neither Pawl nor an earlier rotation put there"))
	m.services, errs[7] = meter.Int64Gauge("pawl_service", metric.WithDescription("1 for each service that works in this process, by version"))
	return m, errors.Join(errs[:]...)
}

// Meter makes the instruments of which one service alone knows.
func (m *Metrics) Meter() metric.Meter { return m.provider.Meter("pawl") }

// Started tells that a service works here.
func (m *Metrics) Started(service, version string) {
	m.services.Record(context.Background(), 1, labels("service", service, "version", version))
}

// Step records one attempt.
func (m *Metrics) Step(service, flow, step, outcome string, took time.Duration) {
	m.steps.Record(context.Background(), took.Seconds(), labels("service", service, "flow", flow, "step", step, "outcome", outcome))
}

// RotationEnded counts a rotation.
func (m *Metrics) RotationEnded(flow, outcome string, took time.Duration) {
	m.rotations.Add(context.Background(), 1, labels("flow", flow, "outcome", outcome))
	m.rotationTime.Record(context.Background(), took.Seconds(), labels("flow", flow, "outcome", outcome))
}

// Redelivered counts a trigger delivered again.
func (m *Metrics) Redelivered(service string) {
	m.redeliveries.Add(context.Background(), 1, labels("service", service))
}

// Stalled sets or clears the stalled mark of a credential.
func (m *Metrics) Stalled(credential, step string, stalled bool) {
	value := int64(0)
	if stalled {
		value = 1
	}
	m.stalled.Record(context.Background(), value, labels("credential", credential, "step", step))
}

// Drift sets or clears the drift mark of a credential at a node or sink.
func (m *Metrics) Drift(credential, at string, drifts bool) {
	value := int64(0)
	if drifts {
		value = 1
	}
	m.drift.Record(context.Background(), value, labels("credential", credential, "at", at))
}

// Answered counts an answer to a request.
func (m *Metrics) Answered(action, outcome string) {
	m.requests.Add(context.Background(), 1, labels("action", action, "outcome", outcome))
}

// ObserveCredentials reports gauges that are computed at scrape time: the age
// and the lateness of every credential, in seconds.
func (m *Metrics) ObserveCredentials(observe func(report func(credential string, age, overdue time.Duration))) error {
	meter := m.provider.Meter("pawl")
	age, err := meter.Float64ObservableGauge("pawl_credential_age", metric.WithUnit("s"), metric.WithDescription("Since the current credential was made or adopted"))
	if err != nil {
		return err
	}
	overdue, err := meter.Float64ObservableGauge("pawl_credential_overdue", metric.WithUnit("s"), metric.WithDescription("How long past its policy's interval; 0: in time"))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		observe(func(credential string, a, late time.Duration) {
			o.ObserveFloat64(age, a.Seconds(), labels("credential", credential))
			o.ObserveFloat64(overdue, max(0, late).Seconds(), labels("credential", credential))
		})
		return nil
	}, age, overdue)
	return err
}

func labels(pairs ...string) metric.MeasurementOption {
	set := make([]attribute.KeyValue, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		set = append(set, attribute.String(pairs[i], pairs[i+1]))
	}
	return metric.WithAttributes(set...)
}

// ownNames refuses, where only this machine reaches the address, the names by which a
// page of somebody else's could have a browser come here (DNS rebinding).
func ownNames(address string, h http.Handler) http.Handler {
	if !loopback.Address(address) {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "" && !loopback.Host(r.Host) { // HTTP/1.0 names no host, and no browser speaks it
			http.Error(w, "this address is 127.0.0.1 or localhost, and has no other name", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Serve answers /metrics, /healthz (the process lives) and /readyz (ready()
// returns nil) on address until ctx ends.
func (m *Metrics) Serve(ctx context.Context, address string, ready func() error) error {
	listener, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("telemetry.metrics: another process listens on %s, perhaps another Pawl: name another address in pawl.yaml", address)
	}
	if err != nil {
		return fmt.Errorf("telemetry.metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	server := &http.Server{Handler: ownNames(address, mux), ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }()
	return nil
}
