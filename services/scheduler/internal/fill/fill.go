// Package fill watches the streams, on an embedded NATS server and on one of your own:
// how full each is, and whether it is as Pawl configured it.
package fill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/service"
)

const (
	// Condition warns of a stream that is nearly at its limit.
	Condition = "stream-fill"
	// ConditionAltered is raised while the server does more with a stream's messages
	// than Pawl has it do.
	ConditionAltered = "altered"
)

const (
	every   = 30 * time.Second
	percent = 90 // of the limit, from which on the condition is raised
)

// Watch looks at the streams of one bus.
type Watch struct {
	d service.Dependencies

	mu    sync.Mutex
	sizes []bus.Size // as last seen
}

// New registers the metrics.
func New(d service.Dependencies) (*Watch, error) {
	w := &Watch{d: d}
	meter := d.Metrics.Meter()
	bytes, err := meter.Int64ObservableGauge("pawl_stream_bytes", metric.WithDescription("Bytes of messages in the stream"))
	limit, err2 := meter.Int64ObservableGauge("pawl_stream_limit_bytes", metric.WithDescription("At how many bytes the stream refuses messages, or drops its oldest; missing where the disk is the limit"))
	if err := errors.Join(err, err2); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, s := range w.sizes {
			of := metric.WithAttributes(attribute.String("stream", s.Stream))
			o.ObserveInt64(bytes, int64(s.Bytes), of)
			if s.Limit > 0 {
				o.ObserveInt64(limit, int64(s.Limit), of)
			}
		}
		return nil
	}, bytes, limit)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return w, nil
}

// Run looks every 30 s until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for said := ""; ; {
		sizes, err := w.d.Bus.Sizes(ctx)
		switch {
		case err == nil:
			said = ""
			w.see(sizes)
		case ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			w.d.Log.Warn("how full the streams are is not known", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// see takes the sizes, and raises or clears the condition of each stream.
func (w *Watch) see(sizes []bus.Size) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sizes = sizes
	for _, s := range sizes {
		nearly := s.Limit > 0 && s.Bytes >= s.Limit/100*percent
		c := condition.Condition{Name: Condition, Object: s.Stream, Text: fmt.Sprintf("the stream holds more than %d %% of its %d MiB. Fix: docs/runbooks/disk.md", percent, s.Limit>>20)}
		if w.d.Conditions.Update(nearly, c) && nearly {
			w.d.Log.Warn("a stream is nearly full", "stream", s.Stream, "bytes", s.Bytes, "limit", s.Limit)
		}
		c = condition.Condition{Name: ConditionAltered, Object: s.Stream, Failing: true, Text: fmt.Sprintf("the stream was altered: Pawl has not set %s. Fix: docs/runbooks/altered.md", s.Altered)}
		if w.d.Conditions.Update(s.Altered != "", c) && s.Altered != "" {
			w.d.Log.Error("a stream was altered", "stream", s.Stream, "set", s.Altered)
		}
	}
}
