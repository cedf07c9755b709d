package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
)

// services asks each service what keeps it from working. Of one that does not
// answer, it looks at what waits for it.
func services(ctx context.Context, c *client.Client) ([]render.Service, error) {
	all, errs := make([]render.Service, len(saga.Services)), make([]error, len(saga.Services))
	var wait sync.WaitGroup
	for i, name := range saga.Services {
		wait.Go(func() {
			h, err := service.AskHealth(ctx, c.Bus, name)
			all[i], errs[i] = render.Service{Service: name, Version: h.Version, Instance: h.Instance, Running: h.Version != "", Conditions: []render.Condition{}, Waiting: []render.Waiting{}}, err
			for _, told := range h.Conditions {
				if told.Name == "service" && told.Object != name {
					continue // that one was asked as well
				}
				all[i].Conditions = append(all[i].Conditions, render.Condition{Of: told.Of, Name: told.Name, Object: told.Object, Failing: told.Failing, Text: told.Text})
			}
			if err == nil && !all[i].Running {
				all[i].Waiting, errs[i] = waiting(ctx, c, name)
			}
		})
	}
	wait.Wait()
	return all, errors.Join(errs...)
}

// waiting returns what waits for a service in its consumers.
func waiting(ctx context.Context, c *client.Client, name string) (all []render.Waiting, err error) {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	all = []render.Waiting{}
	for _, own := range bus.Consumers(bus.Settings{}) {
		if own.Owner != name {
			continue
		}
		consumer, err := c.JetStream.Consumer(ctx, own.Stream, own.Config.Durable)
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			continue // of another version
		}
		if err != nil {
			return all, fmt.Errorf("consumer %s of %s: %w", own.Config.Durable, own.Stream, err)
		}
		info := consumer.CachedInfo()
		if info.NumPending == 0 {
			continue
		}
		w := render.Waiting{Stream: own.Stream, Consumer: own.Config.Durable, Messages: info.NumPending}
		if oldest := oldestWaiting(ctx, c, own, info.Delivered.Stream+1); !oldest.IsZero() {
			w.Oldest = &oldest
		}
		all = append(all, w)
	}
	return all, nil
}

// oldestWaiting is when the oldest message from a sequence on was stored that the
// consumer is to get; zero where the operator may not read the stream.
func oldestWaiting(ctx context.Context, c *client.Client, consumer bus.Consumer, from uint64) (oldest time.Time) {
	if !slices.Contains([]string{bus.StreamLog, bus.StreamTimer, bus.StreamNote, bus.StreamDead, bus.StreamAlert}, consumer.Stream) {
		return time.Time{}
	}
	stream, err := c.Stream(ctx, consumer.Stream)
	if err != nil {
		return time.Time{}
	}
	for _, subject := range consumer.Config.FilterSubjects {
		m, err := stream.GetMsg(ctx, from, jetstream.WithGetMsgSubject(subject))
		if err == nil && (oldest.IsZero() || m.Time.Before(oldest)) { // an error only leaves the age untold
			oldest = m.Time
		}
	}
	return oldest
}

// tellServices says what is wrong with the services, and returns those that fail.
func tellServices(cmd *cobra.Command, conn *client.Client) (failing []string) {
	all, err := services(cmd.Context(), conn)
	if err != nil {
		say(cmd, "the state of the services is not known: NATS does not answer as it should: %v", err)
		return []string{"NATS"}
	}
	if !slices.ContainsFunc(all, func(s render.Service) bool { return s.Running }) {
		say(cmd, "no service of Pawl answers on %s: is `pawl up` running, or are the services? What is shown is what the bus holds", conn.NATS.ConnectedUrlRedacted())
		return slices.Sorted(slices.Values(saga.Services))
	}
	for _, s := range all {
		for _, line := range s.Lines(time.Now()) {
			say(cmd, "%s", line)
		}
		failing = append(failing, s.Failing()...)
	}
	slices.Sort(failing)
	return slices.Compact(failing)
}

func showServices(cmd *cobra.Command, conn *client.Client) error {
	all, err := services(cmd.Context(), conn)
	if err != nil {
		return fmt.Errorf("NATS does not answer as it should: %w", err)
	}
	return output(cmd, all, func(w io.Writer, s render.Style) error { return render.ServiceTable(w, all, time.Now(), s) })
}

// failingError names them; nil if there are none.
func failingError(failing []string) error {
	if len(failing) == 0 {
		return nil
	}
	return errors.New("failing: " + strings.Join(failing, ", "))
}
