// Package condition collects what keeps a process from working, or soon will:
// a store that refuses writes, a consumer that hears nothing, a disk that fills.
// Whoever notices it raises a condition and clears it again; readiness, metrics,
// `pawl status` and `pawl doctor` all show the same set.
package condition

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Condition is one thing that is wrong.
type Condition struct {
	// Name is short, of low cardinality, and the same each time: it is a metric
	// label, and names the runbook. Raising a name again replaces the condition.
	Name string
	// Object is what the condition is about, where there are several of a name: a
	// stream, a consumer. May be empty.
	Object string
	// Failing means that the process cannot do its work: it is not ready. Otherwise
	// the condition is a warning.
	Failing bool
	// Text says what is wrong and what to do, in one sentence or two. Never a secret.
	Text string
}

// Set holds the conditions of one process or service. The zero Set is ready to
// use; a nil *Set takes and tells nothing. Safe for concurrent use.
type Set struct {
	mu  sync.Mutex
	all []Condition
}

// Raise adds a condition, or replaces the one of the same name and object. It
// reports whether that changed anything, so that the caller logs it once.
func (s *Set) Raise(c Condition) (changed bool) {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearchFunc(s.all, c, compare)
	if !found {
		s.all = slices.Insert(s.all, i, c)
		return true
	}
	changed = s.all[i] != c
	s.all[i] = c
	return changed
}

// Clear removes a condition, and reports whether it was there. Idempotent.
func (s *Set) Clear(name, object string) (changed bool) {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearchFunc(s.all, Condition{Name: name, Object: object}, compare)
	if found {
		s.all = slices.Delete(s.all, i, i+1)
	}
	return found
}

// Update raises the condition if wrong is true, and clears it otherwise.
func (s *Set) Update(wrong bool, c Condition) (changed bool) {
	if wrong {
		return s.Raise(c)
	}
	return s.Clear(c.Name, c.Object)
}

// List returns the conditions by name and object.
func (s *Set) List() []Condition {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// Err joins the failing conditions; nil means that the process can work.
func (s *Set) Err() error {
	var all []error
	for _, c := range s.List() {
		if c.Failing {
			all = append(all, errors.New(c.String()))
		}
	}
	return errors.Join(all...)
}

// Observe reports each condition of the set as the gauge pawl_condition, 1 while
// it lasts, with the labels service, condition and object.
func (s *Set) Observe(meter metric.Meter, service string) error {
	gauge, err := meter.Int64ObservableGauge("pawl_condition", metric.WithDescription("1 while something keeps the service from working (severity=failing) or soon will (severity=warning)"))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, c := range s.List() {
			o.ObserveInt64(gauge, 1, metric.WithAttributes(attribute.String("service", service), attribute.String("condition", c.Name),
				attribute.String("object", c.Object), attribute.String("severity", c.severity())))
		}
		return nil
	}, gauge)
	return err
}

func (c Condition) severity() string {
	if c.Failing {
		return "failing"
	}
	return "warning"
}

// String is the condition as people read it.
func (c Condition) String() string {
	if c.Object == "" {
		return fmt.Sprintf("%s: %s", c.Name, c.Text)
	}
	return fmt.Sprintf("%s %s: %s", c.Name, c.Object, c.Text)
}

func compare(a, b Condition) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Object, b.Object))
}
