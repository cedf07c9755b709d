// Package telemetry sets up what every service shows of itself: one trace per
// rotation (exported by OTLP where configured), Prometheus metrics, health
// endpoints, and JSON logs that carry the trace and rotation ids.
package telemetry

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// NewTracing returns the tracer provider of one service. endpoint is the base
// of an OTLP/HTTP receiver (http://host:4318); empty falls back on the standard
// OTEL_EXPORTER_OTLP_* variables; without those nothing is exported, but trace
// ids exist all the same: the log and the audit trail carry them.
func NewTracing(ctx context.Context, service, version, endpoint string) (*sdktrace.TracerProvider, error) {
	options := []sdktrace.TracerProviderOption{
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", service), attribute.String("service.namespace", "pawl"), attribute.String("service.version", version))),
	}
	var exporter []otlptracehttp.Option
	if endpoint != "" {
		// Without the path the exporter posts to / and nothing says so.
		exporter = append(exporter, otlptracehttp.WithEndpointURL(strings.TrimSuffix(endpoint, "/")+"/v1/traces"))
	}
	if endpoint != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		client, err := otlptracehttp.New(ctx, exporter...)
		if err != nil {
			return nil, fmt.Errorf("telemetry.otlp: %w", err)
		}
		options = append(options, sdktrace.WithBatcher(client))
	}
	return sdktrace.NewTracerProvider(options...), nil
}

var propagator = propagation.TraceContext{}

// carrier adapts nats.Header, whose keys are case-sensitive; the W3C names are
// lower case.
type carrier nats.Header

func (c carrier) Get(key string) string { return nats.Header(c).Get(key) }
func (c carrier) Set(key, value string) { nats.Header(c).Set(key, value) }
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}

// Inject returns a header that carries the span of ctx (W3C traceparent).
func Inject(ctx context.Context) nats.Header {
	h := nats.Header{}
	propagator.Inject(ctx, carrier(h))
	return h
}

// Extract returns the span context that a header carries; an invalid one where
// it carries none.
func Extract(h nats.Header) trace.SpanContext {
	return trace.SpanContextFromContext(propagator.Extract(context.Background(), carrier(h)))
}
