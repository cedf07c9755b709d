package trail

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/proto"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Checkpoint is the auditor's word on the first Size records.
type Checkpoint struct {
	Origin string // names the installation
	Size   int64  // records, at least 1
	Root   tlog.Hash
	Last   uint64 // sequence of the last of them in PAWL_AUDIT

	// Note is the signed text, of which the above is the content: a C2SP
	// tlog-checkpoint (https://c2sp.org/tlog-checkpoint).
	Note string
	// Edge and Leaves are not signed, but hash to Root, or are refused: what it
	// takes to go on from here, and the records since the checkpoint before.
	Edge, Leaves []tlog.Hash
	Sequence     uint64 // in PAWL_AUDIT; 0 in an export
}

// Subject is where the checkpoint lies.
func (c *Checkpoint) Subject() string { return CheckpointSubject(strconv.FormatInt(c.Size, 10)) }

func (c *Checkpoint) fault(format string, args ...any) error {
	return &Fault{c.Size, c.Subject(), fmt.Sprintf(format, args...)}
}

// text is what is signed.
func (c *Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n%s %d\n", c.Origin, c.Size, c.Root, bus.StreamAudit, c.Last)
}

// Sign fills in the note. The same checkpoint and key give the same bytes.
func (c *Checkpoint) Sign(signer note.Signer) error {
	c.Origin = signer.Name()
	signed, err := note.Sign(&note.Note{Text: c.text()}, signer)
	if err != nil {
		return fmt.Errorf("sign a checkpoint: %w", err)
	}
	c.Note = string(signed)
	return nil
}

// OpenCheckpoint verifies the signature of a checkpoint's text and reads it.
func OpenCheckpoint(text string, keys note.Verifiers) (*Checkpoint, error) {
	opened, err := note.Open([]byte(text), keys)
	unverified, invalid := new(note.UnverifiedNoteError), new(note.InvalidSignatureError)
	switch {
	case errors.As(err, &unverified):
		return nil, fmt.Errorf("is signed by %s, which is no key that is trusted here", signers(unverified.Note.UnverifiedSigs))
	case errors.As(err, &invalid):
		return nil, errors.New("does not bear the signature of its text: it was altered, or forged")
	case err != nil:
		return nil, errors.New("is not a signed checkpoint")
	}
	c := &Checkpoint{Note: text}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) == 5 {
		c.Origin = lines[0]
		c.Size, err = strconv.ParseInt(lines[1], 10, 64)
		if err == nil {
			c.Root, err = tlog.ParseHash(lines[2])
		}
		if err == nil {
			c.Last, err = strconv.ParseUint(strings.TrimPrefix(lines[3], bus.StreamAudit+" "), 10, 64)
		}
	}
	if err != nil || c.Size < 1 || c.text() != opened.Text || c.Origin != opened.Sigs[0].Name {
		return nil, errors.New("is signed, but is not a checkpoint of an audit trail")
	}
	return c, nil
}

func signers(all []note.Signature) string {
	var names []string
	for _, s := range all {
		names = append(names, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
	}
	return strings.Join(names, ", ")
}

// Encode is the checkpoint's message.
func (c *Checkpoint) Encode() *pawlv1.AuditCheckpoint {
	return &pawlv1.AuditCheckpoint{Note: c.Note, Edge: join(c.Edge), Leaves: join(c.Leaves)}
}

// readCheckpoint decodes a checkpoint's message; what is wrong with it is a Fault.
func readCheckpoint(subject string, body []byte, keys note.Verifiers) (*Checkpoint, error) {
	size, _ := strconv.ParseInt(strings.TrimPrefix(subject, checkpoints), 10, 64) // 0 is no checkpoint's
	stored := &pawlv1.AuditCheckpoint{}
	if err := proto.Unmarshal(body, stored); err != nil {
		return nil, &Fault{size, subject, "is not a checkpoint"}
	}
	c, err := OpenCheckpoint(stored.GetNote(), keys)
	if err != nil {
		return nil, &Fault{size, subject, err.Error()}
	}
	if c.Subject() != subject {
		return nil, &Fault{size, subject, "holds the checkpoint that belongs to " + c.Subject()}
	}
	if c.Edge, err = split(stored.GetEdge()); err == nil {
		c.Leaves, err = split(stored.GetLeaves())
	}
	if err != nil {
		return nil, c.fault("%v", err)
	}
	return c, nil
}

func join(hashes []tlog.Hash) []byte {
	all := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		all = append(all, h[:]...)
	}
	return all
}

func split(all []byte) (hashes []tlog.Hash, err error) {
	if len(all)%tlog.HashSize != 0 {
		return nil, fmt.Errorf("%d bytes are no list of hashes", len(all))
	}
	for ; len(all) > 0; all = all[tlog.HashSize:] {
		hashes = append(hashes, tlog.Hash(all[:tlog.HashSize]))
	}
	return hashes, nil
}
