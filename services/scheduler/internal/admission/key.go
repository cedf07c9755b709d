package admission

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// keySince returns since when the operator has the key that is in force, as far as a
// scheduler saw; zero: since before any looked. Only an operator may have a request
// wait, so one that is older was asked for with a key that was replaced.
func (c *Clerk) keySince(ctx context.Context) (time.Time, error) {
	public, err := c.d.Bus.OperatorKey(ctx)
	for err == nil {
		last, since, seq, err := c.d.Bus.LastOperatorKey(ctx)
		if err != nil || last.GetPublic() == public {
			return since, err
		}
		_, err = c.d.Bus.PublishAfter(ctx, bus.OperatorSubject, &pawlv1.OperatorKey{Public: public, First: seq == 0}, bus.OperatorSubject, seq)
		if err != nil && !errors.Is(err, bus.ErrConflict) {
			return time.Time{}, err
		}
	}
	return time.Time{}, err
}

// watchKey looks often, so that a request of a key's first moments is not taken for
// one of the key before.
func (c *Clerk) watchKey(ctx context.Context) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for ctx.Err() == nil {
		if _, err := c.keySince(ctx); err != nil && ctx.Err() == nil {
			c.d.Log.Warn("requests with not_before do not begin: it is not known which key the operator has", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// lapsed says why a request is no longer valid; empty while it is.
func (c *Clerk) lapsed(ctx context.Context, q *request) (why string, err error) {
	since, err := c.keySince(ctx)
	if err != nil || !q.at.Before(since) {
		return "", err
	}
	return fmt.Sprintf("lapsed: the operator's key was replaced after it was asked for (seen on %s). Ask again, if it is still wanted", since.UTC().Format(time.RFC3339)), nil
}
