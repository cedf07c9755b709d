package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// ledger matches every decision about alerts. Each is appended on condition that
// none was since the one it was made upon, so that replicas decide one after
// the other.
const ledger = "pawl.alarm.>"

// Decided is one stored decision.
type Decided struct {
	*pawlv1.Alarm
	Seq    uint64    // in StreamAlarm; 0: there is none
	Stored time.Time // by the bus's clock
}

// Episode names what an alert tells of: the same from whoever tells it, however
// often; another where it begins anew.
func Episode(fingerprint string, startsAt time.Time) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s", startsAt.UnixNano(), fingerprint))
	return hex.EncodeToString(sum[:16])
}

// FindAlarm returns what was decided about an episode. It may be stale on a
// follower of a clustered stream; then AppendAlarm conflicts.
func (b *Bus) FindAlarm(ctx context.Context, credential, episode string) (Decided, error) {
	return b.lastAlarm(ctx, AlarmSubject(credential, episode))
}

// NewestAlarm returns the newest decision, about whichever credential.
func (b *Bus) NewestAlarm(ctx context.Context) (Decided, error) { return b.lastAlarm(ctx, ledger) }

func (b *Bus) lastAlarm(ctx context.Context, subject string) (Decided, error) {
	d := Decided{Alarm: &pawlv1.Alarm{}}
	stream, err := b.Stream(ctx, StreamAlarm)
	if err != nil {
		return d, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	m, err := stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return d, nil
	}
	if err != nil {
		return d, fmt.Errorf("read %s: %w", subject, err)
	}
	d.Seq, d.Stored = m.Sequence, m.Time
	if err := Decode(m.Header, m.Data, d.Alarm); err != nil {
		return d, fmt.Errorf("%s (sequence %d): %w", m.Subject, m.Sequence, err)
	}
	return d, nil
}

// AppendAlarm stores a decision if, and only if, none was stored since lastSeq
// (0: there was none), and none ever about this episode. It returns ErrConflict
// otherwise; the decision may even be stored already, by an append whose answer
// was lost.
func (b *Bus) AppendAlarm(ctx context.Context, episode string, a *pawlv1.Alarm, header nats.Header, lastSeq uint64) error {
	data, err := Encode(a)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: AlarmSubject(a.GetCredential(), episode), Header: header, Data: data}
	setContentType(m)
	ctx, cancel := Bound(ctx)
	defer cancel()
	if _, err := b.PublishMsg(ctx, m, jetstream.WithExpectLastSequenceForSubject(lastSeq, ledger)); err != nil {
		return appendError("alarm", err)
	}
	return nil
}
