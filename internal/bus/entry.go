package bus

import (
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Entry is one stored event, or one stored note; the other is nil.
type Entry struct {
	At         time.Time // when it was stored, by the bus's clock
	Seq        uint64    // in its own stream
	Credential string
	Rotation   string
	Service    string // whose event or note it is
	Event      *Record
	Note       *pawlv1.Note
}

// ReadEntry decodes a stored message of StreamLog or StreamNote. An error is of
// a message that another version wrote; At and Seq are filled in all the same.
func ReadEntry(subject string, header nats.Header, body []byte, seq uint64, at time.Time) (Entry, error) {
	e := Entry{At: at, Seq: seq}
	if service, isNote := strings.CutPrefix(subject, NoteSubject("")); isNote {
		e.Service, e.Note = service, &pawlv1.Note{}
		if err := Decode(header, body, e.Note); err != nil {
			return e, err
		}
		e.Credential, e.Rotation = e.Note.GetCredential(), e.Note.GetRotation()
		return e, nil
	}
	record, err := decodeRecord(subject, header, body, seq, at)
	if err != nil {
		return e, err
	}
	e.Credential, e.Rotation, _, _ = ParseLogSubject(subject)
	e.Service, e.Event = saga.OwnerOf(record.Event), &record
	return e, nil
}

// ByRotation adds an event to the log of its rotation, among those of its credential. A
// rotation's last events may be stored after the next one's first.
func ByRotation(logs []Log, e Entry) []Log {
	i := slices.IndexFunc(logs, func(l Log) bool { return l.Rotation == e.Rotation })
	if i < 0 {
		i, logs = len(logs), append(logs, Log{Credential: e.Credential, Rotation: e.Rotation})
	}
	logs[i].Records = append(logs[i].Records, *e.Event)
	return logs
}
