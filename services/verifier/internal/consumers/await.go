package consumers

import (
	"context"
	"errors"
	"time"

	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// How often the nodes are asked: often at first, as most consumers are back
// when the step begins, then less.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// Unproven is returned by Await when the time is up; its text names the
// consumer and what was seen of it.
type Unproven struct{ Missing string }

func (u *Unproven) Error() string { return u.Missing }

// Await looks until the consumer is proven or until has passed. It looks at
// least once. An error of look, and the end of ctx, end it at once. tell is called
// after each look with what is missing.
func (l Logins) Await(ctx context.Context, until time.Time, c inventory.Consumer, look func(context.Context) (Seen, error), tell func(missing string)) (*pawlv1.Proof_Consumer, error) {
	up := time.NewTimer(time.Until(until))
	defer up.Stop()
	pause := firstPause
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		seen, err := look(ctx)
		if err != nil {
			return nil, err
		}
		proof, missing := l.Judge(c, seen)
		if proof != nil {
			return proof, nil
		}
		tell(missing)
		select {
		case <-ctx.Done():
			return nil, errors.Join(&Unproven{missing}, ctx.Err())
		case <-up.C:
			return nil, &Unproven{missing}
		case <-ticker.C:
			pause = min(pause*3/2, lastPause)
			ticker.Reset(pause)
		}
	}
}
