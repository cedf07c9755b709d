package rotator

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
)

// TestEmergenciesOfAThousandDoNotAllWaitForTheSameSessions: on one server only some
// are at it at a time; another server's are not kept waiting, and who gives up waits
// no longer.
func TestEmergenciesOfAThousandDoNotAllWaitForTheSameSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lanes
		var mu sync.Mutex
		var at, most int
		count := func(by int) {
			mu.Lock()
			defer mu.Unlock()
			at += by
			most = max(most, at)
		}
		for range 1000 {
			go func() {
				leave, err := l.enter(t.Context(), "main/a", containing)
				if err != nil {
					return
				}
				defer leave()
				count(1)
				time.Sleep(time.Millisecond)
				count(-1)
			}()
		}
		synctest.Wait()
		leave, err := l.enter(t.Context(), "main/b", containing)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		gaveUp, giveUp := context.WithCancel(t.Context())
		giveUp()
		if _, err := l.enter(gaveUp, "main/a", containing); err == nil {
			t.Error("a lane is entered that is full")
		}
		time.Sleep(time.Second)
		count(0)
		if most != containing || at != 0 {
			t.Errorf("%d at a time, %d left, not %d and 0", most, at, containing)
		}
	})
}

// TestServerThatIsAwayIsNotWaitedForByEachAnew, and is waited for in full once it is
// back, or may be.
func TestServerThatIsAwayIsNotWaitedForByEachAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lanes
		for _, name := range []string{"main/a", "main/b"} {
			leave, err := l.enter(t.Context(), name, containing)
			if err != nil {
				t.Fatal(err)
			}
			leave()
		}
		l.found("main/a", false)
		if a, b := l.patience("main/a"), l.patience("main/b"); a != awayPatience || b != patience {
			t.Errorf("who is away is waited for %v, another %v", a, b)
		}
		l.found("main/a", true)
		if a := l.patience("main/a"); a != patience {
			t.Errorf("who is back is waited for %v", a)
		}
		l.found("main/a", false)
		time.Sleep(awayFor)
		if a := l.patience("main/a"); a != patience {
			t.Errorf("who may be back is waited for %v", a)
		}
	})
}

// TestReplicaCountsAsContainedThoughItsPrimaryFailedAfterIt: it is not given the new
// password, and verify would ask for it for ever.
func TestReplicaCountsAsContainedThoughItsPrimaryFailedAfterIt(t *testing.T) {
	worker := inventory.Node{Name: "worker", Host: "127.0.0.1", Port: 1}
	replica := inventory.Node{Name: "replica", Host: "127.0.0.1", Port: 1, ReplicaOf: "worker"}
	c := &inventory.Credential{Name: "c", Role: "c", Nodes: []inventory.Node{worker}, Cluster: &inventory.Cluster{Name: "main", Nodes: map[string]inventory.Node{"worker": worker, "replica": replica}}}
	k := New(nil, nil).newContainment(c, postgres.Fence{}, nil)
	k.found.At["replica"] = timestamppb.Now()
	k.orphans(t.Context(), worker, errors.New("away"))
	if k.found.At["replica"] != nil || k.found.Pending["replica"] == "" {
		t.Errorf("contained: %v, late: %v", k.found.At, k.found.Pending)
	}
}
