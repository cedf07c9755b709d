package bus

import (
	"context"
	"fmt"
	"strings"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Waiting returns the requests of a credential that wait for their time, and the
// sequence by which PublishAfter replaces the list; 0: no request ever waited.
func (b *Bus) Waiting(ctx context.Context, credential string) (list *pawlv1.Waiting, seq uint64, err error) {
	list = &pawlv1.Waiting{}
	m, err := b.Last(ctx, StreamTimer, WaitingSubject(credential), list)
	if err != nil {
		return nil, 0, fmt.Errorf("requests of %s that wait: %w", credential, err)
	}
	if m == nil {
		return list, 0, nil
	}
	return list, m.Sequence, nil
}

// AllWaiting returns the requests that wait, by credential. Those that were
// cancelled, or whose time has come, are left out.
func (b *Bus) AllWaiting(ctx context.Context) (map[string][]*pawlv1.WaitingRequest, error) {
	subjects, err := b.Stored(ctx, StreamTimer, WaitingSubject("*"))
	if err != nil {
		return nil, err
	}
	all := map[string][]*pawlv1.WaitingRequest{}
	for _, subject := range subjects {
		credential := strings.TrimPrefix(subject, WaitingSubject(""))
		list, _, err := b.Waiting(ctx, credential)
		if err != nil {
			return nil, err
		}
		for _, w := range list.GetRequests() {
			if w.GetCancelled() == "" && !w.GetDue() {
				all[credential] = append(all[credential], w)
			}
		}
	}
	return all, nil
}
