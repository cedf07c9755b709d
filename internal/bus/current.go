package bus

import (
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Current is the credential that is published after the newest rotation ended.
type Current struct {
	Rotation   string // under which it is sealed; empty: never adopted, or locked
	User       string
	Generation uint64
}

// CurrentOf derives it from the newest rotation alone.
func CurrentOf(log Log, state saga.State) Current {
	begin := log.Records[0].Body.GetRequested()
	ended, _ := state.Ended()
	if state.Flow.Locks {
		return Current{"", begin.GetBasisUser(), begin.GetGeneration()}
	}
	if ended.Event == saga.Completed {
		for _, e := range []saga.Event{saga.Staged, saga.Adopted} {
			if r := log.Find(e); r != nil {
				return Current{log.Rotation, r.Body.GetStaged().GetUser(), begin.GetGeneration()}
			}
		}
	}
	if begin.GetAction() == pawlv1.Action_ACTION_ROLLBACK {
		return Current{begin.GetRestores(), begin.GetRestoresUser(), begin.GetGeneration()}
	}
	return Current{begin.GetBasis(), begin.GetBasisUser(), begin.GetBasisGeneration()}
}
