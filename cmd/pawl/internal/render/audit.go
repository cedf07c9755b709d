package render

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"pawl.dev/internal/trail"
)

// Audit is what was proved of the audit trail.
type Audit struct {
	Records     int64        `json:"records"`
	Checkpoints int          `json:"checkpoints"`
	Checkpoint  string       `json:"checkpoint"` // the newest, as signed
	Unsigned    int          `json:"unsigned"`
	Since       *time.Time   `json:"unsigned_since,omitempty"`
	Unrecorded  int          `json:"unrecorded"`
	Proved      *AuditRecord `json:"record,omitempty"`

	newest *trail.Checkpoint
}

// AuditRecord is one record, and the proof that it is in the checkpoint.
type AuditRecord struct {
	Index   int64           `json:"index"`
	Subject string          `json:"subject"`
	Body    []byte          `json:"body"` // what was hashed
	Record  json.RawMessage `json:"record"`
	Hashes  []string        `json:"proof"`
}

// NewAudit reads a result, and the proof of one record where there is one.
func NewAudit(r trail.Result, p *trail.Proof) (Audit, error) {
	a := Audit{Records: r.Records, Checkpoints: r.Checkpoints, Unsigned: r.Unsigned, Unrecorded: r.Unrecorded, newest: r.Newest}
	if r.Newest != nil {
		a.Checkpoint = r.Newest.Note
	}
	if r.Unsigned > 0 {
		a.Since = &r.Since
	}
	if p == nil {
		return a, nil
	}
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(p.Record.AuditRecord)
	if err != nil {
		return a, fmt.Errorf("record %d: %w", p.Record.Index, err)
	}
	a.Proved = &AuditRecord{Index: p.Record.Index, Subject: p.Record.Subject, Body: p.Record.Body, Record: text}
	for _, h := range p.Hashes {
		a.Proved.Hashes = append(a.Proved.Hashes, h.String())
	}
	return a, nil
}

// Text writes it for people.
func (a Audit) Text(w io.Writer, s Style) error {
	if a.newest == nil {
		fmt.Fprintln(w, "nothing is signed yet")
	} else {
		fmt.Fprintf(w, "%d records verify, in %d checkpoints, each of which contains the one before\n", a.Records, a.Checkpoints)
		fmt.Fprintf(w, "root %s, signed by %s\n", a.newest.Root, a.newest.Origin)
	}
	if a.Unrecorded > 0 {
		fmt.Fprintf(w, "%d messages are not recorded yet\n", a.Unrecorded)
	}
	if a.Since != nil {
		late := ""
		if time.Since(*a.Since) > time.Minute {
			late = ": is the auditor running?"
		}
		fmt.Fprintf(w, "%d records are not signed yet, the oldest of %s%s\n", a.Unsigned, s.date(*a.Since), late)
	}
	if a.Proved != nil {
		fmt.Fprintf(w, "record %d (%s) is one of them, by %d hashes:\n%s\n", a.Proved.Index, a.Proved.Subject, len(a.Proved.Hashes), a.Proved.Record)
	}
	return nil
}
