package loginwatch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"pawl.dev/cmd/pawl/internal/pglog"
)

// state is what a restart goes on from: how far the log was read, and what had
// been counted until there. The alerts of all that are published.
type state struct {
	Version  int            `json:"version"`
	Position pglog.Position `json:"position"`
	Windows  []savedWindow  `json:"windows,omitempty"` // the oldest first, as Episodes
	Episodes []savedEpisode `json:"episodes,omitempty"`
}

type savedWindow struct {
	Key   key         `json:"key"`
	Times []time.Time `json:"times"`
}

type savedEpisode struct {
	Key     key      `json:"key"`
	Episode *episode `json:"episode"`
}

// stateFile is where the position is kept.
func stateFile(dir string) string { return filepath.Join(dir, "position.json") }

// load returns what was saved; not ok: nothing was.
func load(dir string) (s state, ok bool, err error) {
	path := stateFile(dir)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err == nil && s.Version != 1 {
		err = fmt.Errorf("version %d is not known", s.Version)
	}
	if err != nil {
		return s, false, fmt.Errorf("position: %s: %w: restore it, or delete it to begin at the end of the log", path, err)
	}
	return s, true, nil
}

// save replaces the file whole, or leaves it as it is.
func (s state) save(dir string) error {
	raw, err := json.Marshal(s)
	if err == nil {
		err = renameio.WriteFile(stateFile(dir), raw, 0o600) // which syncs
	}
	if err != nil {
		return fmt.Errorf("position: %w", err)
	}
	return nil
}

func (t *tracker) save(s *state) {
	for _, k := range t.windows.Keys() {
		w, _ := t.windows.Peek(k)
		s.Windows = append(s.Windows, savedWindow{k, w})
	}
	for _, k := range t.episodes.Keys() {
		e, _ := t.episodes.Peek(k)
		s.Episodes = append(s.Episodes, savedEpisode{k, e})
	}
}

func (t *tracker) restore(s state) {
	for _, w := range s.Windows {
		if len(w.Times) > 0 {
			t.windows.Add(w.Key, w.Times)
		}
	}
	for _, e := range s.Episodes {
		if e.Episode != nil {
			t.episodes.Add(e.Key, e.Episode)
		}
	}
}
