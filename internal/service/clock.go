package service

import (
	"context"
	"fmt"
	"os"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// readEvery is how often the clock of a bus on another machine is read.
const readEvery = 5 * time.Second

// keepTime gives the service the bus's clock, and does what a step of that clock
// needs. In one process with the bus, all services share one.
func keepTime(ctx context.Context, d *Dependencies, service string, shared *clock.Clock) {
	d.Clock = shared
	if shared == nil {
		d.Clock = clock.New()
		started := startClock(ctx, *d)
		go followBus(ctx, *d, started)
	}
	steps := make(chan clock.Step, 1)
	d.Clock.OnStep(ctx, func(s clock.Step) {
		if service == saga.Scheduler { // one is enough: it is the same clock for all
			go d.Note(ctx, &pawlv1.Note{Kind: "clock stepped", Text: fmt.Sprintf(
				"the clock of the bus went %v at %s, as %s saw it: somebody set it, or the machine slept. Waits go on by the time that really passes; due dates go by the clock",
				s, s.At.UTC().Format(time.RFC3339), process())})
		}
		select {
		case steps <- s:
		default: // the one before is yet to be seen to
		}
	})
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-steps:
				d.Log.Warn("the clock of the bus was stepped", "by", s.By, "at", s.At)
				redeliver(ctx, *d, service)
			}
		}
	}()
}

// startClock reads the bus's clock for the first time. Until that succeeds, the
// machine's counts: the streams may be yet to be made.
func startClock(ctx context.Context, d Dependencies) (started bool) {
	at, took, err := d.Bus.Time(ctx)
	if err == nil {
		d.Clock.Start(at.Add(took / 2))
	}
	return err == nil
}

// followBus reads the bus's clock until ctx ends, and says if this machine's is
// another: that does no harm to rotations, but to whoever compares logs.
func followBus(ctx context.Context, d Dependencies, started bool) {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	var told time.Duration
	for {
		if off := time.Since(d.Clock.Now()); (off - told).Abs() > clock.Tolerance {
			told = off
			tellOff(ctx, d, off)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !started {
			started = startClock(ctx, d)
		} else if at, took, err := d.Bus.Time(ctx); err == nil { // else the connection tells
			d.Clock.Observe(at.Add(took/2), took)
		}
	}
}

// tellOff raises or clears the condition "clock".
func tellOff(ctx context.Context, d Dependencies, off time.Duration) {
	host, _ := os.Hostname()
	wrong := off.Abs() > clock.Tolerance
	fast := "ahead of"
	if off < 0 {
		fast = "behind"
	}
	text := fmt.Sprintf("the clock of %s is %v %s the bus's. Pawl goes by the bus's clock; synchronize both with NTP (`timedatectl set-ntp true`)", host, off.Abs().Round(time.Second), fast)
	if !d.Conditions.Update(wrong, condition.Condition{Name: "clock", Text: text}) {
		return
	}
	if !wrong {
		text = fmt.Sprintf("the clock of %s agrees with the bus's again", host)
	}
	d.Log.Warn(text)
	d.Note(ctx, &pawlv1.Note{Kind: "clock", Text: text})
}

// redeliver has the server deliver again what this service was given and has not
// acknowledged. The server keeps the wall time of the next delivery: after a step
// back it comes too late by the whole step, also if the server is restarted.
//
// To be given a message twice does no harm, nor to be given one that is being worked
// on: what a message is about is folded from the log, its result is appended with
// compare-and-set, and a request begins the same rotation each time. A delivery may
// come again at any time in any case: a server that is killed forgets the
// acknowledgements of its last moments.
func redeliver(ctx context.Context, d Dependencies, service string) {
	for _, c := range bus.Consumers(bus.Settings{}) {
		if c.Owner != service {
			continue
		}
		if err := resetPending(ctx, d, c); err != nil && ctx.Err() == nil {
			d.Log.Warn("what is not acknowledged is not delivered again at once", "stream", c.Stream, "consumer", c.Config.Durable, "error", err)
		}
	}
}

func resetPending(ctx context.Context, d Dependencies, c bus.Consumer) error {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	consumer, err := d.Bus.JetStream.Consumer(ctx, c.Stream, c.Config.Durable)
	if err != nil {
		return err
	}
	info := consumer.CachedInfo()
	if info.NumAckPending == 0 {
		return nil
	}
	return d.Bus.Permitted(ctx, func(ctx context.Context) error {
		_, err := d.Bus.JetStream.ResetConsumerToSequence(ctx, c.Stream, c.Config.Durable, info.AckFloor.Stream+1)
		return err
	}, "$JS.API.CONSUMER.RESET."+c.Stream+"."+c.Config.Durable)
}
