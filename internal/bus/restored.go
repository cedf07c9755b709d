package bus

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/saga"
)

// BackedUp lists the streams of a backup in the order in which their snapshots
// are taken. Each snapshot is of one moment, and these moments differ, so the
// order decides what may be missing in the later one:
//
//   - The audit trail comes before what it records. Otherwise it would hold
//     records of events that the backup lacks, at places that other events take
//     after a restore.
//   - Answers come before requests, so that no number of a request that has an
//     answer is given to another request.
//   - The log comes before the sealed credentials: they are stored before the
//     event that names them. A credential that was erased between the two
//     snapshots is missing; after a restore the db-rotator notices that.
//
// Timers are left out: the scheduler makes them from the log, and one that has
// fired would fire again.
var BackedUp = []string{StreamAudit, StreamAnswer, StreamAlarm, StreamAlert, StreamEvidence, StreamNote, StreamDead,
	StreamLog, StreamSealed, StreamRequest, StreamAsked, StreamEmergency}

// RestoreMark says that the streams were restored from a backup: what they hold up
// to there may be older than the databases and sinks. It is in the metadata of
// StreamLog, where only the provisioner writes.
type RestoreMark struct {
	At     time.Time // of the restore
	Backup time.Time // of the backup
	Log    uint64    // the newest event that was restored
	Notes  uint64    // the newest note that was restored
}

// Keys of the metadata.
const (
	markAt     = "pawl-restored-at"
	markBackup = "pawl-restored-from"
	markLog    = "pawl-restored-log"
	markNotes  = "pawl-restored-notes"
)

// Everything is the mark's Log and Notes while a restore is under way.
const Everything = math.MaxUint64

// AddTo writes the mark into a stream's metadata, and returns it.
func (m RestoreMark) AddTo(metadata map[string]string) map[string]string {
	if metadata == nil {
		metadata = map[string]string{}
	}
	metadata[markAt], metadata[markBackup] = m.At.UTC().Format(time.RFC3339Nano), m.Backup.UTC().Format(time.RFC3339Nano)
	metadata[markLog], metadata[markNotes] = strconv.FormatUint(m.Log, 10), strconv.FormatUint(m.Notes, 10)
	return metadata
}

// ProvisionRestored is Provision for streams that were restored a moment ago and
// have no consumers. Services begin behind what was restored: the scheduler's sweep
// finds what is due, and an alert of the past begins no emergency. The auditor
// begins at the start, since its trail may lack the newest records: recording
// twice is recording once.
func ProvisionRestored(ctx context.Context, js jetstream.JetStream, s Settings) error {
	for _, c := range Consumers(s) {
		if c.Owner == saga.Auditor || c.Stream != StreamLog && c.Stream != StreamAlert {
			continue
		}
		c.Config.DeliverPolicy = jetstream.DeliverNewPolicy
		if err := provisionConsumer(ctx, js, c); err != nil {
			return fmt.Errorf("consumer %s of %s: %w", c.Config.Durable, c.Stream, err)
		}
	}
	return Provision(ctx, js, s)
}

// Mark writes the mark, once the streams are restored.
func Mark(ctx context.Context, js jetstream.JetStream, m RestoreMark) error {
	stream, err := js.Stream(ctx, StreamLog)
	if err != nil {
		return fmt.Errorf("stream %s: %w", StreamLog, err)
	}
	config := stream.CachedInfo().Config
	config.Metadata = m.AddTo(config.Metadata)
	if _, err := js.UpdateStream(ctx, config); err != nil {
		return fmt.Errorf("stream %s: %w", StreamLog, err)
	}
	return nil
}

// marks is the mark as last read.
type marks struct {
	mu   sync.Mutex
	mark *RestoreMark
	read time.Time
}

// markIsOld is how old a mark may be that was read. It comes, and changes, while
// services are connected, where `pawl restore` was run beside them.
const markIsOld = time.Second

// Restored returns the mark; nil of streams that were never restored.
func (b *Bus) Restored(ctx context.Context) (*RestoreMark, error) {
	b.marks.mu.Lock()
	defer b.marks.mu.Unlock()
	if !b.marks.read.IsZero() && time.Since(b.marks.read) < markIsOld {
		return b.marks.mark, nil
	}
	stream, err := b.Stream(ctx, StreamLog)
	if err != nil {
		return nil, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", StreamLog, err)
	}
	mark, err := readMark(info.Config.Metadata)
	if err == nil {
		b.marks.mark, b.marks.read = mark, time.Now()
	}
	return mark, err
}

func readMark(metadata map[string]string) (*RestoreMark, error) {
	if _, marked := metadata[markAt]; !marked {
		return nil, nil
	}
	m := &RestoreMark{}
	var errs [4]error
	m.At, errs[0] = time.Parse(time.RFC3339Nano, metadata[markAt])
	m.Backup, errs[1] = time.Parse(time.RFC3339Nano, metadata[markBackup])
	m.Log, errs[2] = strconv.ParseUint(metadata[markLog], 10, 64)
	m.Notes, errs[3] = strconv.ParseUint(metadata[markNotes], 10, 64)
	for _, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("stream %s: the mark of its restore cannot be read: %w", StreamLog, err)
		}
	}
	return m, nil
}
