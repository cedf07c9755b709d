package telemetry

import (
	"context"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// NewLogger returns a JSON logger whose lines name the service and, where ctx
// has a span, the trace.
func NewLogger(w io.Writer, service string, level slog.Level) *slog.Logger {
	return slog.New(NewHandler(w, level)).With("service", service)
}

// NewHandler returns what writes such lines, one at a time. Loggers that share a
// writer share the handler, else they write into each other's lines.
func NewHandler(w io.Writer, level slog.Level) slog.Handler {
	return traced{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})}
}

type traced struct{ slog.Handler }

func (h traced) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		r.AddAttrs(slog.String("trace", s.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traced) WithAttrs(attrs []slog.Attr) slog.Handler { return traced{h.Handler.WithAttrs(attrs)} }
func (h traced) WithGroup(name string) slog.Handler       { return traced{h.Handler.WithGroup(name)} }
