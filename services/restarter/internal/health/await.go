package health

import (
	"context"
	"fmt"
	"time"
)

// Await looks at once and then every interval, until a look returns nil. When
// ctx ends first, the error wraps its cause and tells what was seen last.
func Await(ctx context.Context, every time.Duration, look func(context.Context) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // not the look that the end of ctx cut short
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), last)
		}
	}
}
