package bus

import (
	"context"
	"fmt"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Several returns the record of an emergency of several credentials; nil if the
// rotation is none.
func (b *Bus) Several(ctx context.Context, rotation string) (*pawlv1.Note, error) {
	record := &pawlv1.Note{}
	m, err := b.Last(ctx, StreamNote, SeveralSubject(rotation), record)
	if err != nil {
		return nil, fmt.Errorf("record of emergency %s: %w", rotation, err)
	}
	if m == nil {
		return nil, nil
	}
	return record, nil
}
