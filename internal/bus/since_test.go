package bus_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestLogIsReadFromAnyTimeOn(t *testing.T) {
	b := bustest.Start(t).Connect(t, saga.Scheduler)
	if all, err := b.ReadSince(t.Context(), "a", time.Now().Add(-time.Hour)); err != nil || len(all) != 0 {
		t.Errorf("of nobody: %v, %v", all, err)
	}
	var stored []bus.Happened
	for i, name := range []string{"a", "b", "a", "ab", "a"} {
		log, err := b.ReadNewest(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		rotation := fmt.Sprintf("r-%d", i)
		if _, err := b.Append(t.Context(), name, rotation, saga.Requested, begin(1), nil, log.LastSeq()); err != nil {
			t.Fatal(err)
		}
		if log, err = b.ReadNewest(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if name == "a" {
			stored = append(stored, bus.Happened{Entry: log.Records[0].Entry, Rotation: rotation})
		}
	}
	for i, h := range stored {
		all, err := b.ReadSince(t.Context(), "a", h.At)
		if err != nil || len(all) != len(stored)-i || all[0] != h || all[len(all)-1].Rotation != "r-4" {
			t.Errorf("since %v: %v, %v", h.At, all, err)
		}
	}
	if all, err := b.ReadSince(t.Context(), "a", time.Now().Add(time.Hour)); err != nil || len(all) != 0 {
		t.Errorf("since later: %v, %v", all, err)
	}
	if last, err := b.LastOf(t.Context(), "a", saga.Requested); err != nil || last != stored[2] {
		t.Errorf("last: %v, %v", last, err)
	}
	if last, err := b.LastOf(t.Context(), "a", saga.Contained); err != nil || last != (bus.Happened{}) {
		t.Errorf("never: %v, %v", last, err)
	}
}

// TestReplicasDecideOneAfterTheOther: whoever appends has seen all decisions
// before his, so a count that each hands on is right.
func TestReplicasDecideOneAfterTheOther(t *testing.T) {
	server := bustest.Start(t)
	var all sync.WaitGroup
	for replica := range 4 {
		b := server.Connect(t, saga.Scheduler)
		all.Go(func() {
			for i := range 25 {
				for {
					newest, err := b.NewestAlarm(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					a := &pawlv1.Alarm{Source: "s", At: timestamppb.Now(), Sequence: newest.GetSequence() + 1}
					err = b.AppendAlarm(t.Context(), fmt.Sprintf("%d-%d", replica, i), a, nil, newest.Seq)
					if err == nil {
						break
					}
					if !errors.Is(err, bus.ErrConflict) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	b := server.Connect(t, saga.Scheduler)
	newest, err := b.NewestAlarm(t.Context())
	if err != nil || newest.GetSequence() != 100 {
		t.Errorf("counted %d, %v", newest.GetSequence(), err)
	}
	again := &pawlv1.Alarm{Source: "s", At: timestamppb.Now()}
	if err := b.AppendAlarm(t.Context(), "0-0", again, nil, newest.Seq); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("an episode decided twice: %v", err)
	}
	again.Credential = "a" // the rule was written meanwhile
	if err := b.AppendAlarm(t.Context(), "0-0", again, nil, newest.Seq); err != nil {
		t.Error(err)
	}
}
