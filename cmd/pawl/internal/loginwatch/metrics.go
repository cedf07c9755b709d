package loginwatch

import (
	"context"
	"errors"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// instruments of a watcher. Labels are kinds, and logins from pawl.yaml.
type instruments struct {
	failures, alerts, skipped, evicted metric.Int64Counter
	behind                             atomic.Int64
}

func newInstruments(meter metric.Meter) (*instruments, error) {
	i := &instruments{}
	var errs [6]error
	i.failures, errs[0] = meter.Int64Counter("pawl_login_failures", metric.WithDescription("Failed logins in PostgreSQL's log, by kind and, for logins of a credential, by role"))
	i.alerts, errs[1] = meter.Int64Counter("pawl_login_alerts", metric.WithDescription("Alerts published, by alertname and state (firing, repeated, resolved)"))
	i.skipped, errs[2] = meter.Int64Counter("pawl_login_log_skipped", metric.WithDescription("Records of the log that were not read, by reason (malformed, long)"))
	i.evicted, errs[3] = meter.Int64Counter("pawl_login_evicted", metric.WithDescription("Counts and alerts that were given up because too many addresses fail at once"))
	behind, err := meter.Int64ObservableGauge("pawl_login_log_behind", metric.WithUnit("By"), metric.WithDescription("Bytes of the log that are not read yet"))
	errs[4] = err
	_, errs[5] = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(behind, i.behind.Load())
		return nil
	}, behind)
	return i, errors.Join(errs[:]...)
}

func count(c metric.Int64Counter, n int64, pairs ...string) {
	set := make([]attribute.KeyValue, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		set = append(set, attribute.String(pairs[i], pairs[i+1]))
	}
	c.Add(context.Background(), n, metric.WithAttributes(set...))
}
