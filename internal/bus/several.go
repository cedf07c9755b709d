package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Several returns the record of an emergency of several credentials; nil if the
// rotation is none.
func (b *Bus) Several(ctx context.Context, rotation string) (*pawlv1.Note, error) {
	stream, err := b.Stream(ctx, StreamNote)
	if err != nil {
		return nil, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	m, err := stream.GetLastMsgForSubject(ctx, SeveralSubject(rotation))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	record := &pawlv1.Note{}
	if err == nil {
		err = Decode(m.Header, m.Data, record)
	}
	if err != nil {
		return nil, fmt.Errorf("record of emergency %s: %w", rotation, err)
	}
	return record, nil
}
