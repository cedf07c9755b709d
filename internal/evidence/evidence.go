// Package evidence is what an emergency leaves to read: snapshots of what each
// server had to tell, sealed to the incident key and stored once, on
// pawl.evidence.CREDENTIAL.ROTATION.NODE.ID. Nothing replaces or erases one.
package evidence

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/sealed"
)

// Kinds of a snapshot.
const (
	Sessions  = "sessions"  // who was logged in, and is no more; taken as they were ended
	Catalogue = "catalogue" // what the logins have, and may have left; taken afterwards
)

// Snapshot is what one server had to tell at one moment.
type Snapshot struct {
	Credential string           `json:"credential"`
	Rotation   string           `json:"rotation,omitempty"` // empty: taken while the glass was broken, before there was one
	Node       string           `json:"node"`
	Kind       string           `json:"kind"`
	At         time.Time        `json:"at"` // the taker's clock
	Tables     []postgres.Table `json:"tables"`
}

// maxBox leaves room for subject and headers; maxPlain bounds what a stored box
// may unpack to.
const (
	maxBox   = bus.MaxEvent - 1024
	maxPlain = 16 << 20
)

// Seal packs the snapshot into a box that fits into one message. What makes it
// too large is cut, and each table says how much of it was.
func Seal(key *sealed.IncidentKey, s Snapshot) ([]byte, error) {
	s.Tables = append([]postgres.Table{}, s.Tables...)
	for {
		plain, err := json.Marshal(s)
		if err != nil {
			return nil, fmt.Errorf("evidence: %w", err)
		}
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		if _, err = w.Write(plain); err == nil {
			err = w.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("evidence: %w", err)
		}
		box, err := key.Seal(packed.Bytes())
		if err != nil || len(box) <= maxBox {
			return box, err
		}
		if !cut(s.Tables) {
			return nil, errors.New("evidence: too large, and nothing is left to cut")
		}
	}
}

// cut halves the largest table.
func cut(tables []postgres.Table) bool {
	largest, size := -1, 0
	for i, t := range tables {
		bytes := 0
		for _, row := range t.Rows {
			for _, cell := range row {
				bytes += len(cell)
			}
		}
		if bytes > size {
			largest, size = i, bytes
		}
	}
	if largest < 0 {
		return false
	}
	t := &tables[largest]
	keep := len(t.Rows) / 2
	t.Left += len(t.Rows) - keep
	t.Rows = t.Rows[:keep]
	return true
}

// Open is the inverse of Seal; its errors are those of sealed.IncidentKey.Open.
func Open(key *sealed.IncidentKey, box []byte) (s Snapshot, err error) {
	packed, err := key.Open(box)
	if err != nil {
		return s, err
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return s, fmt.Errorf("evidence: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPlain))
	if err == nil {
		err = json.Unmarshal(plain, &s)
	}
	if err != nil {
		return s, fmt.Errorf("evidence: %w", err)
	}
	return s, nil
}
