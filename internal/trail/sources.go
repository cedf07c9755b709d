package trail

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// Recorded are the streams of which each message has a record.
var Recorded = []string{bus.StreamLog, bus.StreamNote, bus.StreamDead}

// sources are the recorded messages, read in step with their records. Records of
// one stream come nearly in its order: no more is kept than what several auditors
// at once may have recorded out of it.
type sources map[string]*source

type source struct {
	next  func() (*jetstream.RawStreamMsg, error, bool)
	stop  func()
	read  uint64           // the newest message that was read
	ahead map[uint64]facts // read, and not yet met in the trail
	done  uint64           // all up to here the auditor has acknowledged as recorded
}

// facts are what a record says of its message.
type facts struct {
	subject, sha256 string
	at              time.Time
}

func recorded(ctx context.Context, b *bus.Bus) (sources, error) {
	all := sources{}
	for _, stream := range Recorded {
		consumer, err := b.JetStream.Consumer(ctx, stream, saga.Auditor)
		if err != nil {
			all.stop()
			return nil, fmt.Errorf("how far %s is recorded: %w", stream, err)
		}
		s := &source{ahead: map[uint64]facts{}, done: consumer.CachedInfo().AckFloor.Stream}
		s.next, s.stop = iter.Pull2(stored(ctx, b, stream))
		all[stream] = s
	}
	return all, nil
}

func (all sources) stop() {
	for _, s := range all {
		s.stop()
	}
}

// compare says whether the record is of a message that is there.
func (all sources) compare(r *Record) error {
	s, ok := all[r.GetStream()]
	if !ok {
		return &Fault{r.Index, r.Subject, fmt.Sprintf("is of the stream %q, which is not recorded", r.GetStream())}
	}
	for s.read < r.GetSequence() {
		if more, err := s.advance(); err != nil {
			return err
		} else if !more {
			break
		}
	}
	is, ok := s.ahead[r.GetSequence()]
	delete(s.ahead, r.GetSequence())
	says := facts{r.GetSubject(), r.GetBodySha256(), r.GetAt().AsTime()}
	switch {
	case !ok:
		return &Fault{r.Index, r.Subject, fmt.Sprintf("is of message %d of %s, which is not there", r.GetSequence(), r.GetStream())}
	case says.sha256 != is.sha256:
		return &Fault{r.Index, r.Subject, fmt.Sprintf("is not of the message that is now at %d in %s: the body differs", r.GetSequence(), r.GetStream())}
	case says != is:
		return &Fault{r.Index, r.Subject, fmt.Sprintf("says subject %s at %s, and message %d of %s has %s at %s", says.subject, says.at, r.GetSequence(), r.GetStream(), is.subject, is.at)}
	}
	return nil
}

func (s *source) advance() (more bool, err error) {
	m, err, more := s.next()
	if err != nil || !more {
		return false, err
	}
	sum := sha256.Sum256(m.Data)
	s.read = m.Sequence
	s.ahead[s.read] = facts{m.Subject, hex.EncodeToString(sum[:]), m.Time.UTC()}
	return true, nil
}

// rest counts the messages that the trail has not met: those that the auditor
// has yet to come to. One that it has been past is a Fault.
func (all sources) rest() (unrecorded int, err error) {
	for _, stream := range Recorded {
		s := all[stream]
		for more := true; more; {
			if more, err = s.advance(); err != nil {
				return 0, err
			}
		}
		var left []uint64
		for sequence := range s.ahead {
			left = append(left, sequence)
		}
		slices.Sort(left)
		if len(left) > 0 && left[0] <= s.done {
			return 0, fmt.Errorf("message %d of %s (%s) has no record, and the auditor has been past it", left[0], stream, s.ahead[left[0]].subject)
		}
		unrecorded += len(left)
	}
	return unrecorded, nil
}
