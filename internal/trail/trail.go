// Package trail reads and proves the audit trail: records in an append-only
// stream, and among them checkpoints, each the auditor's signature on a Merkle
// tree over all records before it. What is read here is believed only as far as
// a Chain has proved it. The services/auditor writes.
package trail

import (
	"fmt"
	"iter"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/proto"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Entry is one message of the trail: a record or a checkpoint, the other is nil.
type Entry struct {
	Record     *Record
	Checkpoint *Checkpoint
}

// Entries is a trail, read in stored order until its first error.
type Entries = iter.Seq2[Entry, error]

// Record is one leaf of the tree: Body, exactly as stored, is what was hashed.
type Record struct {
	*pawlv1.AuditRecord
	Index    int64  // among the records, from 0: its place in the tree
	Subject  string // of the record itself; GetSubject is that of what it records
	Sequence uint64 // in PAWL_AUDIT; 0 in an export
	Body     []byte
}

// Hash is the record's leaf in the tree.
func (r *Record) Hash() tlog.Hash { return tlog.RecordHash(r.Body) }

// Subject is where the record of a message lies: a place that takes one message
// only, so that recording twice is recording once.
func Subject(r *pawlv1.AuditRecord) string {
	kind := strings.ToLower(strings.TrimPrefix(r.GetStream(), "PAWL_"))
	return fmt.Sprintf("pawl.audit.%s.%d", kind, r.GetSequence())
}

// CheckpointSubject is where the checkpoint of so many records lies; "*": of any.
func CheckpointSubject(size string) string { return checkpoints + size }

const checkpoints = "pawl.audit.checkpoint."

// Subjects are those of all records and checkpoints.
const Subjects = "pawl.audit.>"

// Fault is what is wrong with a trail, and where it is first seen.
type Fault struct {
	Index   int64  // of the record; of a checkpoint, how many records it covers
	Subject string // of the record or the checkpoint; empty where it is gone
	What    string
}

func (f *Fault) Error() string {
	switch {
	case f.Subject == "":
		return fmt.Sprintf("record %d: %s", f.Index, f.What)
	case strings.HasPrefix(f.Subject, checkpoints):
		return fmt.Sprintf("checkpoint of %d records (%s): %s", f.Index, f.Subject, f.What)
	}
	return fmt.Sprintf("record %d (%s): %s", f.Index, f.Subject, f.What)
}

// readRecord decodes a record. One that cannot be decoded, or that lies where
// another belongs, is a Fault.
func readRecord(index int64, subject string, body []byte) (*Record, error) {
	r := &Record{AuditRecord: &pawlv1.AuditRecord{}, Index: index, Subject: subject, Body: body}
	if err := proto.Unmarshal(body, r.AuditRecord); err != nil || len(body) > bus.MaxEvent {
		return nil, &Fault{index, subject, "is not a record"}
	}
	if place := Subject(r.AuditRecord); place != subject {
		return nil, &Fault{index, subject, "holds the record that belongs to " + place}
	}
	return r, nil
}
