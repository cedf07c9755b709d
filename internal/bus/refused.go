package bus

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/saga"
)

// ErrConflict means that the log has moved on since it was read: fold again.
var ErrConflict = errors.New("the log has moved on")

// Refusals of JetStream that Pawl tells apart.
const (
	errWrongLastSequence         jetstream.ErrorCode = 10071
	errWrongLastSequenceConstant jetstream.ErrorCode = 10164 // the same, in a cluster
	errBatchDuplicate            jetstream.ErrorCode = 10201 // a message of a batch has an id that is known already
	errInsufficientResources     jetstream.ErrorCode = 10023 // the server's own limit, not a stream's
	errStorageExceeded           jetstream.ErrorCode = 10047 // a stream's limit does not fit into the server's
	errNoPeers                   jetstream.ErrorCode = 10005 // the same, in a cluster
	// errNotStored stands for a subject that is taken, for a full stream and for a
	// message that is too large: only the description tells them apart.
	errNotStored jetstream.ErrorCode = 10077
)

// Descriptions of errNotStored.
const (
	subjectTaken = "maximum messages per subject exceeded"
	outOfBytes   = "maximum bytes exceeded"
	outOfSlots   = "maximum messages exceeded"
)

// FullError means that a stream is at its limit, or the server at its own: nothing
// was stored, and trying again at once is of no use.
type FullError struct {
	Stream  string
	refusal *jetstream.APIError
}

func (e *FullError) Error() string {
	if e.refusal.ErrorCode == errInsufficientResources {
		return fmt.Sprintf("the NATS server has no room left for stream %s (%s): the message was not stored. Fix: docs/runbooks/disk.md", e.Stream, e.refusal.Description)
	}
	return fmt.Sprintf("stream %s is full (%s): the message was not stored. Fix: docs/runbooks/disk.md", e.Stream, e.refusal.Description)
}

// Unwrap returns what the server said.
func (e *FullError) Unwrap() error { return e.refusal }

// IsTaken reports whether a publish was refused because its subject takes one
// message and has it.
func IsTaken(err error) bool {
	refused := new(jetstream.APIError)
	return errors.As(err, &refused) && refused.ErrorCode == errNotStored && refused.Description == subjectTaken
}

// IsConflict reports whether a publish was refused because its subject is taken,
// or because what it expected to be the newest is no longer.
func IsConflict(err error) bool {
	refused := new(jetstream.APIError)
	return IsTaken(err) || errors.As(err, &refused) && slices.Contains(conflicts, refused.ErrorCode)
}

var conflicts = []jetstream.ErrorCode{errWrongLastSequence, errWrongLastSequenceConstant, errBatchDuplicate}

// appendError tells a conflict from other refusals.
func appendError(e saga.Event, err error) error {
	if IsConflict(err) {
		return ErrConflict
	}
	return fmt.Errorf("append %s: %w", e, err)
}

// Refused takes how a publish on the subject ended, nil included. A full stream
// becomes a *FullError and the condition "stream"; a stored message clears it.
// PublishMsg and AppendAll call it by themselves.
func (b *Bus) Refused(subject string, err error) error {
	stream := streamOf(subject)
	if err == nil {
		b.writable(stream)
		return nil
	}
	refused := new(jetstream.APIError)
	if !errors.As(err, &refused) || refused.ErrorCode != errInsufficientResources &&
		(refused.ErrorCode != errNotStored || refused.Description != outOfBytes && refused.Description != outOfSlots) {
		return err
	}
	full := &FullError{stream, refused}
	b.refuses(stream, refusal{at: time.Now(), full: true}, full.Error())
	return full
}

// ConditionStream is raised while a stream takes no messages: it is full, or does not
// answer.
const ConditionStream = "stream"

// streamOf names the stream that stores a subject, "" if none does.
func streamOf(subject string) string { return streamByKind()[kindOf(subject)] }

var streamByKind = sync.OnceValue(func() map[string]string {
	names := map[string]string{}
	for _, s := range Streams(Settings{}) {
		names[kindOf(s.Subjects[0])] = s.Name
	}
	return names
})

// kindOf is the second token of a subject: each stream has one of its own.
func kindOf(subject string) string {
	_, rest, _ := strings.Cut(subject, ".")
	kind, _, _ := strings.Cut(rest, ".")
	return kind
}
