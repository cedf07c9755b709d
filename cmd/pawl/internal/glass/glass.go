// Package glass remembers what was done while there was no bus to tell it to: a
// file per break in DATA_DIR/glass, written before anything is touched, and
// carried into the log once there is a bus again.
package glass

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Record is one break.
type Record struct {
	ID         string     `json:"id"` // the request that tells of it has the same
	Credential string     `json:"credential"`
	By         string     `json:"by"`
	Reason     string     `json:"reason,omitempty"`
	Began      time.Time  `json:"began"`
	Ended      *time.Time `json:"ended,omitempty"` // absent: how it ended is not known
	// What was done.
	Logins   []string             `json:"logins,omitempty"`
	Nodes    map[string]time.Time `json:"nodes,omitempty"` // contained, by each one's own clock
	Pending  map[string]string    `json:"pending,omitempty"`
	Sessions uint32               `json:"sessions_ended"`
	Prepared uint32               `json:"prepared_rolled_back"`
	Unending []string             `json:"do_not_end,omitempty"` // processes that were told to end
	Evidence []Piece              `json:"evidence,omitempty"`   // until it is told
	// Once it is told.
	Told     *time.Time `json:"told,omitempty"`
	Rotation string     `json:"rotation,omitempty"` // the emergency that followed

	dir  string
	keys string
	mu   sync.Mutex
}

// Piece is a snapshot, sealed to the incident key.
type Piece struct {
	Node string `json:"node"`
	ID   string `json:"id"`
	Box  []byte `json:"box"`
}

// folder is where the records lie.
func folder(inv *inventory.Inventory) string { return filepath.Join(inv.DataDir, "glass") }

// Begin writes that the glass is about to be broken. The record works, but for
// Save, also where it cannot be written: containing must not wait for a disk.
func Begin(inv *inventory.Inventory, credential, by, reason string) (*Record, error) {
	r := &Record{ID: "glass-" + strings.ToLower(rand.Text()), Credential: credential, By: by, Reason: reason, Began: time.Now().UTC(), dir: folder(inv), keys: inv.KeysDir}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return r, fmt.Errorf("record of the broken glass: %w", err)
	}
	return r, r.Save()
}

// Contained takes over what was done.
func (r *Record) Contained(c *pawlv1.Contained) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().UTC()
	r.Ended, r.Logins, r.Pending, r.Sessions, r.Prepared = &now, c.GetLogins(), c.GetPending(), c.GetSessions(), c.GetPrepared()
	r.Unending = nil
	for _, u := range c.GetUnending() {
		r.Unending = append(r.Unending, fmt.Sprintf("process %d of %s on %s", u.GetPid(), u.GetUser(), u.GetNode()))
	}
	r.Nodes = map[string]time.Time{}
	for name, at := range c.GetAt() {
		r.Nodes[name] = at.AsTime()
	}
}

// Keep seals a snapshot into the record: it is an evidence.Keeper.
func (r *Record) Keep(_ context.Context, s evidence.Snapshot) error {
	key, err := sealed.LoadIncidentKey(r.keys)
	if err != nil {
		return err
	}
	box, err := evidence.Seal(key, s)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.Evidence = append(r.Evidence, Piece{s.Node, evidence.NewID(s.Kind), box})
	r.mu.Unlock()
	return r.Save()
}

// Catalogued is never asked for while the glass is broken.
func (r *Record) Catalogued(context.Context, string, string) ([]string, error) { return nil, nil }

// Save writes the record durably, for its owner alone.
func (r *Record) Save() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = renameio.WriteFile(filepath.Join(r.dir, r.ID+".json"), text, 0o600, renameio.WithTempDir(r.dir))
	}
	if err == nil {
		err = syncDir(r.dir)
	}
	if err != nil {
		return fmt.Errorf("record of the broken glass: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Untold returns the records that no log has learned of yet, oldest first: of
// the credential, or of all where it is empty. What cannot be read is an error
// that names the file; the others are returned all the same.
func Untold(inv *inventory.Inventory, credential string) (all []*Record, err error) {
	files, err := os.ReadDir(folder(inv))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("records of broken glass: %w", err)
	}
	var unread error
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".json" {
			continue
		}
		r := &Record{dir: folder(inv), keys: inv.KeysDir}
		path := filepath.Join(r.dir, f.Name())
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, r)
		}
		if err == nil && r.ID+".json" != f.Name() {
			err = fmt.Errorf("holds the record %q", r.ID)
		}
		if err != nil {
			unread = errors.Join(unread, fmt.Errorf("record of broken glass %s: %w: correct it, or move it away", path, err))
			continue
		}
		if r.Told == nil && (credential == "" || r.Credential == credential) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *Record) int { return a.Began.Compare(b.Began) })
	return all, unread
}

// summary is the record in a line, for the trail.
func (r *Record) summary() string {
	text := fmt.Sprintf("%s: by %s at %s", r.ID, r.By, r.Began.Format(time.RFC3339))
	if r.Reason != "" {
		text += fmt.Sprintf(" (%q)", r.Reason)
	}
	if r.Ended == nil {
		return text + ": how it ended is not known"
	}
	text += fmt.Sprintf(": %s refused on %s, %s ended, %s rolled back", strings.Join(r.Logins, " and "),
		strings.Join(slices.Sorted(maps.Keys(r.Nodes)), ", "), service.Count(r.Sessions, "session"), service.Count(r.Prepared, "prepared transaction"))
	if len(r.Unending) > 0 {
		text += "; told to end, and does not: " + strings.Join(r.Unending, ", ")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Pending)) {
		text += fmt.Sprintf("; not on %s (%s)", name, r.Pending[name])
	}
	return text
}
