package service

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// of is a message of a log, which counts its heartbeats.
type of struct {
	jetstream.Msg
	event saga.Event
	beats *atomic.Int32
}

func (m of) Subject() string   { return bus.LogSubject("c", "r", m.event) }
func (m of) InProgress() error { m.beats.Add(1); return nil }

// TestContainmentWaitsForNoEmergencyThatComesBack: with a thousand of them at once, all
// workers are at what follows the first containments. What waits stays this process's
// message meanwhile.
func TestContainmentWaitsForNoEmergencyThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		p := newPools(true)
		for range atOnce {
			p.workers <- struct{}{}
		}
		var beats atomic.Int32
		begins, follows := Message{of{nil, saga.Requested, &beats}, time.Second}, Message{of{nil, saga.Contained, &beats}, time.Second}
		if workers := p.of(begins); workers == p.workers || !hold(ctx, begins, workers) {
			t.Error("a containment waits for what comes back")
		}
		held := make(chan bool)
		go func() { held <- hold(ctx, follows, p.of(follows)) }()
		time.Sleep(time.Minute)
		if beats.Load() < 60 {
			t.Errorf("%d heartbeats in a minute of waiting: the message is given to another process", beats.Load())
		}
		<-p.workers
		if !<-held {
			t.Error("a worker is free, and the message is not taken")
		}
		go func() { held <- hold(ctx, follows, p.of(follows)) }()
		synctest.Wait()
		end()
		if <-held {
			t.Error("taken after the end")
		}
		ordinary := newPools(false)
		if ordinary.of(begins) != ordinary.workers {
			t.Error("an ordinary rotation begins beside the workers there are")
		}
	})
}
