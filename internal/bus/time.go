package bus

import (
	"context"
	"fmt"
	"time"
)

// Time reads the clock by which events are stored: that of the server which leads
// the log. The answer is from between the call and its return, which took so long.
func (b *Bus) Time(ctx context.Context) (at time.Time, took time.Duration, err error) {
	stream, err := b.Stream(ctx, StreamLog)
	if err != nil {
		return at, 0, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	asked := time.Now()
	info, err := stream.Info(ctx)
	if err != nil {
		return at, 0, fmt.Errorf("read the clock of the bus: %w", err)
	}
	return info.TimeStamp, time.Since(asked), nil
}
