package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/inventory"
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

// Episode names what an alert tells of: the same however often it is told, another
// where it begins anew. A source that is no receiver has episodes of its own, so that
// nobody can have another's alert be taken for a repetition.
func Episode(inv *inventory.Inventory, source string, a *pawlv1.Alert) string {
	if _, received := inv.Alerts.Receivers[source]; received { // a pair of Alertmanagers tells each alert twice
		return olderEpisode(a)
	}
	return episode("source %q\n%d\n%s", source, a.GetStartsAt().AsTime().UnixNano(), a.GetFingerprint())
}

// olderEpisode is that of versions which asked for no source.
func olderEpisode(a *pawlv1.Alert) string {
	return episode("%d\n%s", a.GetStartsAt().AsTime().UnixNano(), a.GetFingerprint())
}

func episode(format string, of ...any) string {
	sum := sha256.Sum256(fmt.Appendf(nil, format, of...))
	return hex.EncodeToString(sum[:16])
}

// FindAlarm returns what was decided about the episode of an alert. It may be stale on
// a follower of a clustered stream; then AppendAlarm conflicts.
func (b *Bus) FindAlarm(ctx context.Context, inv *inventory.Inventory, credential, source string, a *pawlv1.Alert) (Decided, error) {
	d, err := b.lastAlarm(ctx, AlarmSubject(credential, Episode(inv, source, a)))
	if err != nil || d.Seq > 0 {
		return d, err
	}
	older, err := b.lastAlarm(ctx, AlarmSubject(credential, olderEpisode(a)))
	if older.GetSource() != source {
		return d, err
	}
	return older, err
}

// NewestAlarm returns the newest decision, about whichever credential.
func (b *Bus) NewestAlarm(ctx context.Context) (Decided, error) { return b.lastAlarm(ctx, ledger) }

func (b *Bus) lastAlarm(ctx context.Context, subject string) (Decided, error) {
	d := Decided{Alarm: &pawlv1.Alarm{}}
	m, err := b.Last(ctx, StreamAlarm, subject, d.Alarm)
	if m != nil {
		d.Seq, d.Stored = m.Sequence, m.Time
	}
	if err != nil {
		return d, fmt.Errorf("read %s (sequence %d): %w", subject, d.Seq, err)
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
