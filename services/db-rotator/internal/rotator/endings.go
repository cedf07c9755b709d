package rotator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/postgres"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// endsWithin is how long a session may take to end. One that takes longer does not
// look whether it is told to: it hangs in the kernel, was stopped, or is inside a library.
const endsWithin = patience / 2

// endings are the sessions of one server that were told to end.
type endings struct {
	first map[postgres.SessionID]time.Time
	still []postgres.Ended // that have not ended within endsWithin, at the last look
}

// untilNone ends sessions until three looks find none, but for those that do not end: one
// that was just being let in shows only after its login. end returns those that there were.
func (t *endings) untilNone(ctx context.Context, end func(context.Context) ([]postgres.Ended, error)) error {
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for none := 0; none < 3; none++ {
		ended, err := end(ctx)
		if err != nil {
			return err
		}
		if t.waits(ended) {
			none = -1
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
	}
	return nil
}

// waits reports whether one of the sessions is to be waited for, and keeps the others.
func (t *endings) waits(ended []postgres.Ended) (waits bool) {
	if t.first == nil {
		t.first = map[postgres.SessionID]time.Time{}
	}
	t.still = nil
	for _, s := range ended {
		id := postgres.SessionID{PID: s.PID, BackendStart: s.BackendStart.UTC()}
		if _, known := t.first[id]; !known {
			t.first[id] = time.Now()
		}
		if time.Since(t.first[id]) < endsWithin {
			waits = true
			continue
		}
		t.still = append(t.still, s)
	}
	return waits
}

// named are those that have not ended on the node.
func (t *endings) named(node string) (all []*pawlv1.Unending) {
	for _, s := range t.still {
		all = append(all, &pawlv1.Unending{Node: node, Pid: int32(s.PID), Began: timestamppb.New(s.BackendStart), User: s.User, Application: s.Application, Client: s.Client})
	}
	return all
}

// unending says which sessions do not end.
func unending(all []*pawlv1.Unending) string {
	var texts []string
	for _, u := range all {
		texts = append(texts, fmt.Sprintf("process %d on %s (%s, %s@%s) was told to end and does not: it dies before its next command, and is told again until it has", u.GetPid(), u.GetNode(), u.GetUser(), u.GetApplication(), u.GetClient()))
	}
	return strings.Join(texts, "; ")
}

// unendingOn are those of one node.
func unendingOn(contained *pawlv1.Contained, node string) (all []postgres.SessionID) {
	for _, u := range contained.GetUnending() {
		if u.GetNode() == node {
			all = append(all, postgres.SessionID{PID: int(u.GetPid()), BackendStart: u.GetBegan().AsTime()})
		}
	}
	return all
}
