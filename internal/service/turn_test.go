package service

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// hangs is a restart of "slow" that hangs until it is released, and is told of.
func hangs(begun, released chan struct{}) Handler {
	return func(ctx context.Context, r *Rotation) (*pawlv1.Event, error) {
		if r.Credential.Name != "slow" {
			return nil, nil
		}
		select {
		case begun <- struct{}{}:
		default:
		}
		<-released
		return nil, ctx.Err()
	}
}

// consumerOf returns what the server says of a consumer of the restarter, once that is so.
func consumerOf(t *testing.T, server *bustest.Server, stream, durable string, so func(*jetstream.ConsumerInfo) bool) {
	t.Helper()
	consumer, err := server.Connect(t, bus.Provisioner).JetStream.Consumer(t.Context(), stream, durable)
	if err != nil {
		t.Fatal(err)
	}
	var info *jetstream.ConsumerInfo
	for began := time.Now(); time.Since(began) < 30*time.Second; {
		if info, err = consumer.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
		if so(info) {
			return
		}
		time.Sleep(5 * time.Millisecond) // nobody signals it
	}
	t.Fatalf("consumer %s of %s stays at %+v", durable, stream, info)
}

// wake publishes so many wake-ups of a credential, each once the one before is delivered.
func wake(t *testing.T, server *bustest.Server, durable, credential string, times int) {
	t.Helper()
	header := nats.Header{}
	if durable != saga.Restarter {
		bus.MarkUrgent(header)
	}
	scheduler := server.Connect(t, saga.Scheduler)
	for range times {
		if err := scheduler.Publish(t.Context(), bus.WakeSubject(saga.Restarter, credential), &pawlv1.Wake{}, header); err != nil {
			t.Fatal(err)
		}
		consumerOf(t, server, bus.StreamTimer, durable, func(info *jetstream.ConsumerInfo) bool { return info.NumPending == 0 })
	}
}

// restarted hears of a credential's restarts.
func restarted(t *testing.T, server *bustest.Server, credential string, e saga.Event) *nats.Subscription {
	t.Helper()
	operator := server.Connect(t, bus.Operator)
	s, err := operator.NATS.SubscribeSync(bus.LogSubject(credential, "r", e))
	if err == nil {
		err = operator.NATS.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestOneSlowCredentialKeepsNoOtherWaiting: a restart may take ten minutes, and the
// sweep wakes it meanwhile. Its wake-ups must not take the workers of the others.
func TestOneSlowCredentialKeepsNoOtherWaiting(t *testing.T) {
	for _, flow := range []string{saga.Alternating, saga.Emergency} {
		t.Run(flow, func(t *testing.T) {
			t.Parallel()
			server, begun, released := bustest.Start(t), make(chan struct{}, 1), make(chan struct{})
			restarts(t, server, hangs(begun, released), func(*pawlv1.Note) {}, "slow", "other")
			t.Cleanup(func() { close(released) })
			due(t, server, flow, "slow")
			<-begun
			wake(t, server, bus.ConsumerOf(saga.Restarter, flow == saga.Emergency), "slow", atOnce+8)
			other := restarted(t, server, "other", saga.Restarted)
			due(t, server, flow, "other")
			if _, err := other.NextMsg(20 * time.Second); err != nil {
				t.Fatalf("no other credential is restarted while one hangs: %v", err)
			}
		})
	}
}

// TestWhatComesWhileACredentialIsWorkedOnIsNotLost: of several events one waits, and
// the others are put back.
func TestWhatComesWhileACredentialIsWorkedOnIsNotLost(t *testing.T) {
	t.Parallel()
	server, begun, released := bustest.Start(t), make(chan struct{}, 1), make(chan struct{})
	restarts(t, server, hangs(begun, released), func(*pawlv1.Note) {}, "slow")
	release := sync.OnceFunc(func() { close(released) })
	t.Cleanup(release)
	due(t, server, saga.Alternating, "slow")
	<-begun
	wake(t, server, saga.Restarter, "slow", 3)
	rerestarted := restarted(t, server, "slow", saga.Rerestarted)
	happensTo(t, server, "slow", saga.Cancelled, &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "restart", Reason: "cancelled by anna"}}})
	happensTo(t, server, "slow", saga.Restored, &pawlv1.Event{})
	consumerOf(t, server, bus.StreamLog, saga.Restarter, func(info *jetstream.ConsumerInfo) bool {
		return info.NumPending == 0 && info.NumRedelivered > 0 // what was put back comes again
	})
	release()
	if _, err := rerestarted.NextMsg(20 * time.Second); err != nil {
		t.Fatalf("the event that came while the credential was worked on led to nothing: %v", err)
	}
	for _, stream := range []string{bus.StreamLog, bus.StreamTimer} {
		consumerOf(t, server, stream, saga.Restarter, func(info *jetstream.ConsumerInfo) bool { return info.NumPending == 0 && info.NumAckPending == 0 })
	}
}

// waits stands for a message of a consumer, and tells how it is settled.
type waits struct {
	jetstream.Msg
	settled chan string
}

func (w waits) Subject() string { return "pawl.timer.wake.restarter.c" }
func (w waits) InProgress() error {
	w.settled <- "heartbeat"
	return nil
}
func (w waits) NakWithDelay(again time.Duration) error {
	w.settled <- fmt.Sprint("again in ", again)
	return nil
}

// TestMessageThatWaitsHoldsNeitherAWorkerNorTheEnd: it is kept from being delivered
// again for as long as a step takes, not for one that hangs for longer, and ends with
// the service, unsettled. A second one is put back.
func TestMessageThatWaitsHoldsNeitherAWorkerNorTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &loop{log: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		workers := make(chan struct{}, 1)
		arrives := func() (settled chan string) {
			m := waits{settled: make(chan string, 100)}
			workers <- struct{}{}
			go l.inTurn(ctx, Message{m, 3 * time.Second}, trigger{credential: "c", consumer: "timer"}, workers)
			synctest.Wait()
			if len(workers) != 0 {
				t.Error("a message that waits, or is put back, holds a worker")
			}
			return m.settled
		}
		if _, ok := l.credentials.ask("c", "timer"); !ok {
			t.Fatal("a credential that is not worked on is kept")
		}
		first := arrives()
		if said := <-arrives(); said != "again in 5s" {
			t.Errorf("a second message that would wait: %s", said)
		}
		for range longestWait/time.Second - 1 {
			if said := <-first; said != "heartbeat" {
				t.Errorf("a message that waits: %s", said)
			}
		}
		said := <-first
		if said == "heartbeat" { // of the same moment
			said = <-first
		}
		if said != "again in 5s" {
			t.Errorf("a message that has waited for a minute: %s", said)
		}
		last := arrives()
		stop()
		synctest.Wait()
		if len(last) != 0 {
			t.Errorf("a message that waits as the service ends: %s", <-last)
		}
	})
}

// TestTurnThatComesWithoutAWorkerIsGivenOn: all workers of what is not urgent may hang,
// and what is urgent of the same credential has its own.
func TestTurnThatComesWithoutAWorkerIsGivenOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &loop{log: slog.New(slog.DiscardHandler)}
		before, _ := l.credentials.ask("c", "log")
		workers := make(chan struct{}, 1)
		m := waits{settled: make(chan string, 100)}
		workers <- struct{}{}
		go l.inTurn(t.Context(), Message{m, 30 * time.Second}, trigger{credential: "c", consumer: "timer"}, workers)
		synctest.Wait()
		workers <- struct{}{} // a step that hangs
		urgent, _ := l.credentials.ask("c", "urgent")
		l.credentials.end("c", before)
		began := time.Now()
		<-urgent.come
		if took := time.Since(began); took > forAWorker {
			t.Errorf("what is urgent waits %v behind a message that has no worker", took)
		}
		if said := <-m.settled; said != "again in 5s" {
			t.Errorf("the message without a worker: %s", said)
		}
	})
}

// TestStepThatBeginsAsSomethingUrgentComesIsInterrupted: the message came between the
// reading of the log and the step.
func TestStepThatBeginsAsSomethingUrgentComesIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &loop{log: slog.New(slog.DiscardHandler)}
		working, _ := l.credentials.ask("c", "log")
		urgent := trigger{credential: "c", consumer: "urgent", seq: math.MaxUint64}
		l.working.interrupt(urgent.credential, urgent.seq)
		workers := make(chan struct{}, 1)
		workers <- struct{}{}
		ctx, stop := context.WithCancel(t.Context())
		go l.inTurn(ctx, Message{waits{settled: make(chan string, 100)}, 30 * time.Second}, urgent, workers)
		synctest.Wait()
		within, end := l.working.begin(ctx, "c", 1)
		defer end()
		<-within.Done()
		stop()
		synctest.Wait()
		l.credentials.end("c", working)
	})
}
