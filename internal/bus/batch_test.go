package bus_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestMain(m *testing.M) { bustest.Main(m) }

func begin(generation uint64, group ...string) *pawlv1.Event {
	return &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Generation: generation, Role: "app", Group: group}}}
}

// parts appends requested to the log of each, which is as long as it says.
func parts(last map[string]uint64, names ...string) (all []bus.Part) {
	for _, name := range names {
		all = append(all, bus.Part{Credential: name, Body: begin(1, names...), LastSeq: last[name]})
	}
	return all
}

func lengths(t *testing.T, b *bus.Bus, rotation string, names ...string) (n []int) {
	t.Helper()
	for _, name := range names {
		log, err := b.ReadRotation(t.Context(), name, rotation)
		if err != nil {
			t.Fatal(err)
		}
		n = append(n, len(log.Records))
	}
	return n
}

func TestGroupBeginsUnderOneID(t *testing.T) {
	b := bustest.Start(t).Connect(t, saga.Scheduler)
	names := []string{"a", "b", "c"}
	if err := b.AppendAll(t.Context(), "r1", saga.Requested, parts(nil, names...)); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		log, err := b.ReadNewest(t.Context(), name)
		if err != nil || len(log.Records) != 1 || log.Rotation != "r1" || len(log.Records[0].Body.GetRequested().GetGroup()) != 3 {
			t.Fatalf("%s: %+v, %v", name, log, err)
		}
	}
	// Later events share the rotation's id as well: none may pass for the other.
	for _, name := range names {
		log, err := b.ReadNewest(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Append(t.Context(), name, "r1", saga.TimedOut, &pawlv1.Event{}, nil, log.LastSeq()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConflictOfOneMemberLeavesNothingBehind(t *testing.T) {
	b := bustest.Start(t).Connect(t, saga.Scheduler)
	for i, taken := range []string{"a", "b", "c"} {
		names := []string{fmt.Sprintf("a-%d", i), fmt.Sprintf("b-%d", i), fmt.Sprintf("c-%d", i)}
		taken += fmt.Sprintf("-%d", i)
		seq, err := b.Append(t.Context(), taken, "other", saga.Requested, begin(1), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.AppendAll(t.Context(), "r1", saga.Requested, parts(nil, names...)); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("%s was taken: %v", taken, err)
		}
		if n := lengths(t, b, "r1", names...); n[0]+n[1]+n[2] != 0 {
			t.Errorf("%s was taken: stored %v", taken, n)
		}
		if err := b.AppendAll(t.Context(), "r1", saga.Requested, parts(map[string]uint64{taken: seq}, names...)); err != nil {
			t.Errorf("once read again: %v", err)
		}
		// The answer was lost, and it is asked again with what was read before.
		if err := b.AppendAll(t.Context(), "r1", saga.Requested, parts(map[string]uint64{taken: seq}, names...)); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("a second time: %v", err)
		}
		if n := lengths(t, b, "r1", names...); n[0] != 1 || n[1] != 1 || n[2] != 1 {
			t.Errorf("stored %v", n)
		}
	}
}

// TestOneEventOfATypeHoldsInABatch: even where the condition holds, nothing is
// stored on a subject that has its message.
func TestOneEventOfATypeHoldsInABatch(t *testing.T) {
	b := bustest.Start(t).Connect(t, saga.Scheduler)
	seq, err := b.Append(t.Context(), "b", "r1", saga.Requested, begin(1), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.AppendAll(t.Context(), "r1", saga.Requested, parts(map[string]uint64{"b": seq}, "a", "b")); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("got %v", err)
	}
	if n := lengths(t, b, "r1", "a", "b"); n[0] != 0 || n[1] != 1 {
		t.Errorf("stored %v", n)
	}
}

func TestRacingGroupsBeginOnce(t *testing.T) {
	server := bustest.Start(t)
	b := server.Connect(t, saga.Scheduler)
	for round := range 20 {
		names := []string{fmt.Sprintf("a-%d", round), fmt.Sprintf("b-%d", round), fmt.Sprintf("c-%d", round)}
		var wait sync.WaitGroup
		won := make(chan string, 4)
		for i := range 4 {
			wait.Go(func() {
				mine := []string{names[i%3], names[(i+1)%3]} // any two of them overlap
				id := fmt.Sprintf("r%d", i)
				switch err := b.AppendAll(t.Context(), id, saga.Requested, parts(nil, mine...)); {
				case err == nil:
					won <- id
				case !errors.Is(err, bus.ErrConflict):
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d: %d began", round, len(won))
		}
		id, stored := <-won, 0
		for i := range 4 {
			for _, n := range lengths(t, b, fmt.Sprintf("r%d", i), names...) {
				stored += n
			}
		}
		if n := lengths(t, b, id, names...); n[0]+n[1]+n[2] != 2 || stored != 2 {
			t.Fatalf("round %d: stored %v of the winner, %d in all", round, n, stored)
		}
	}
}

func TestOlderInstallationLearnsToTakeBatches(t *testing.T) {
	server := bustest.Start(t)
	js := server.Connect(t, bus.Provisioner).JetStream
	for _, c := range bus.Streams(bus.Settings{}) {
		if c.AllowAtomicPublish = false; c.Name == bus.StreamLog {
			if _, err := js.UpdateStream(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := server.Connect(t, saga.Scheduler)
	if err := b.AppendAll(t.Context(), "r1", saga.Requested, parts(nil, "a", "b")); err == nil || errors.Is(err, bus.ErrConflict) {
		t.Errorf("without them: %v", err)
	}
	if err := bus.Provision(t.Context(), js, bus.Settings{AckWait: time.Second}); err != nil {
		t.Fatal(err)
	}
	if err := b.AppendAll(t.Context(), "r1", saga.Requested, parts(nil, "a", "b")); err != nil {
		t.Error(err)
	}
}

// TestServerKilledInMidBatchStoresAllOrNone kills the server while groups begin.
func TestServerKilledInMidBatchStoresAllOrNone(t *testing.T) {
	dir := t.TempDir()
	whole, partly, none := 0, 0, 0
	for round := range 12 {
		server := bustest.StartProcess(t, dir)
		b := server.Connect(t, saga.Scheduler)
		names := make([]string, 24)
		var asked []string
		ctx, cancel := context.WithCancel(t.Context())
		kill := make(chan struct{})
		go func() {
			<-kill
			time.Sleep(rand.N(3 * time.Millisecond)) // anywhere in a batch
			server.Kill()
			cancel()
		}()
		for i := 0; ctx.Err() == nil; i++ {
			for n := range names {
				names[n] = fmt.Sprintf("c-%d-%d-%d", round, i, n)
			}
			asked = append(asked, names[0])
			if i == 2 {
				close(kill)
			}
			err := b.AppendAll(ctx, "r", saga.Requested, parts(nil, names...))
			if err != nil && i < 2 {
				t.Fatal(err)
			}
			if err != nil {
				<-ctx.Done()
			}
		}
		b.NATS.Close()
		server = bustest.StartProcess(t, dir)
		b = server.Connect(t, saga.Scheduler)
		for i := range asked {
			for n := range names {
				names[n] = fmt.Sprintf("c-%d-%d-%d", round, i, n)
			}
			stored := 0
			for _, n := range lengths(t, b, "r", names...) {
				stored += n
			}
			switch stored {
			case len(names):
				whole++
			case 0:
				none++
				if err := b.AppendAll(t.Context(), "r", saga.Requested, parts(nil, names...)); err != nil {
					t.Errorf("begun anew: %v", err)
				}
			default:
				partly++
				t.Errorf("round %d: %d of %d began", round, stored, len(names))
			}
		}
		server.Kill()
	}
	t.Logf("%d stored whole, %d not at all, %d in part", whole, none, partly)
	if none == 0 {
		t.Error("no batch was cut: the server was not killed within one")
	}
}
