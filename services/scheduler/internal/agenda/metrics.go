package agenda

import (
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// meters are what the process measures with.
type meters interface {
	Meter() metric.Meter
	ObserveCredentials(observe func(report func(credential string, age, overdue time.Duration))) error
}

// ages reports, at scrape time, how old each credential is and how late.
func (a *Agenda) ages(report func(credential string, age, overdue time.Duration)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	for _, s := range a.shown {
		for name, t := range s.past {
			age, overdue := now.Sub(t.Since), time.Duration(0)
			if every := a.inv.Credentials[name].RotateEvery; every > 0 && !t.Locked {
				overdue = age - every
			}
			report(name, age, overdue)
		}
	}
}

// dues reports when each credential is due.
func (a *Agenda) dues(report func(credential string, in time.Duration, soon, blocked bool)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	for _, s := range a.shown {
		if s.due.Deadline.IsZero() {
			continue
		}
		for name, t := range s.past {
			soon := !t.Running && !now.Before(a.book.Remind(s.due)) && now.Before(s.due.Deadline)
			report(name, s.due.Planned.Sub(now), soon, s.due.Blocked != "" && !t.Running && !now.Before(s.due.Planned))
		}
	}
}

func label(key, value string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String(key, value))
}

func one(is bool) int64 {
	if is {
		return 1
	}
	return 0
}
