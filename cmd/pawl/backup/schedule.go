package backup

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric"

	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
)

// conditionName names what is wrong with the backups; see docs/runbooks/backup.md.
const conditionName = "backup"

// Schedule backs up as often as pawl.yaml says.
type Schedule struct {
	inv        *inventory.Inventory
	log        *slog.Logger
	conditions *condition.Set
	server     nats.InProcessConnProvider

	mu     sync.Mutex
	newest stored // the zero value: there is none
	failed error  // of the last try
	began  time.Time
}

// NewSchedule returns the schedule of pawl.yaml, and has the meter show the age and
// the size of the newest backup. server is nil if it is in another process.
func NewSchedule(inv *inventory.Inventory, log *slog.Logger, conditions *condition.Set, server nats.InProcessConnProvider, meter metric.Meter) (*Schedule, error) {
	s := &Schedule{inv: inv, log: log, conditions: conditions, server: server}
	return s, s.observe(meter)
}

// Run backs up until ctx ends. Which backups there are is read from their folder:
// a restart of Pawl neither delays nor doubles one.
func (s *Schedule) Run(ctx context.Context) error {
	if s.inv.Backup.Every == 0 {
		return nil
	}
	s.began = time.Now()
	for ctx.Err() == nil {
		wait := s.look(time.Now())
		if wait <= 0 {
			s.attempt(ctx)
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(wait, time.Minute)): // the wall clock may be stepped, and the folder emptied
		}
	}
	return nil
}

// look reads the folder, and returns how long it is until the next backup.
func (s *Schedule) look(now time.Time) time.Duration {
	all, err := list(s.inv.Backup.To)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = stored{}
	if err != nil {
		s.failed = err
	}
	for _, one := range all {
		if !one.at.After(now) { // else the clock was ahead when it was made: it says nothing, perhaps for years
			s.newest = one
		}
	}
	s.tell(now)
	return s.newest.at.Add(s.inv.Backup.Every).Sub(now)
}

// attempt makes one backup, and rests if that failed.
func (s *Schedule) attempt(ctx context.Context) {
	w, err := Write(ctx, Options{Inventory: s.inv, Server: s.server})
	if err == nil {
		s.log.Info("backed up", "file", w.File, "bytes", w.Bytes, "messages", w.Messages, "took", w.Took)
	}
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	s.failed = err
	s.tell(time.Now())
	s.mu.Unlock()
	if err == nil {
		return
	}
	s.log.Warn("not backed up; tried again soon", "error", err)
	select {
	case <-ctx.Done():
	case <-time.After(min(s.inv.Backup.Every, 5*time.Minute)):
	}
}

// tell raises the condition, or clears it. The lock is held.
func (s *Schedule) tell(now time.Time) {
	text := ""
	switch since := s.newest.at; {
	case s.failed != nil:
		text = fmt.Sprintf("the last backup failed: %v", s.failed)
	case since.IsZero() && now.Sub(s.began) > 2*s.inv.Backup.Every:
		text = fmt.Sprintf("%s holds no backup", s.inv.Backup.To)
	case !since.IsZero() && now.Sub(since) > 2*s.inv.Backup.Every:
		text = fmt.Sprintf("the newest backup is of %s, and one is wanted every %v", since.Format(time.RFC3339), s.inv.Backup.Every)
	}
	s.conditions.Update(text != "", condition.Condition{Name: conditionName, Text: text + ". See docs/runbooks/backup.md"})
}

// observe reports the age and the size of the newest backup. If there is none, the
// age is counted from when Pawl was started, so that an alert needs no second rule.
func (s *Schedule) observe(meter metric.Meter) error {
	if s.inv.Backup.Every == 0 {
		return nil
	}
	age, err := meter.Float64ObservableGauge("pawl_backup_age_seconds", metric.WithDescription("How long ago the newest backup was made"))
	if err != nil {
		return err
	}
	every, err := meter.Float64ObservableGauge("pawl_backup_every_seconds", metric.WithDescription("How often pawl.yaml wants a backup"))
	if err != nil {
		return err
	}
	size, err := meter.Int64ObservableGauge("pawl_backup_bytes", metric.WithDescription("Size of the newest backup"))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		from := s.newest.at
		if from.IsZero() {
			from = s.began
		}
		if !from.IsZero() {
			o.ObserveFloat64(age, time.Since(from).Seconds())
		}
		o.ObserveFloat64(every, s.inv.Backup.Every.Seconds())
		o.ObserveInt64(size, s.newest.bytes)
		return nil
	}, age, every, size)
	return err
}
