package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
)

// Manifest says which streams were made, and what was acknowledged in them last. It
// lies outside the store, which may be lost without it.
type Manifest []Known

// Known is what the manifest says of one stream.
type Known struct {
	Name     string
	Last     uint64 // the last sequence that is known to have been acknowledged
	Messages uint64 // how many there were then
	Counted  bool   // Last and Messages are known
}

func (k Known) missing() uint64 { return k.Last - min(k.Last, k.Messages) }

func (m Manifest) find(name string) Known {
	i := slices.IndexFunc(m, func(k Known) bool { return k.Name == name })
	if i < 0 {
		return Known{Name: name}
	}
	return m[i]
}

// With adds streams, and what is newer of those that it has. What a stream has lost
// since is not forgotten.
func (m Manifest) With(streams []Stream) Manifest {
	m = slices.Clone(m)
	for _, s := range streams {
		newer := Known{s.Name, s.Last, s.Messages, true}
		i := slices.IndexFunc(m, func(k Known) bool { return k.Name == s.Name })
		switch {
		case i < 0:
			m = append(m, newer)
		case s.Last >= m[i].Last:
			if s.Keeps && m[i].Counted {
				newer.Messages = s.Last - min(m[i].missing(), newer.missing())
			}
			m[i] = newer
		}
	}
	return m
}

// Last is the last sequence of a stream that is known to have been acknowledged.
func (m Manifest) Last(stream string) uint64 { return m.find(stream).Last }

// Names lists the streams.
func (m Manifest) Names() (names []string) {
	for _, k := range m {
		names = append(names, k.Name)
	}
	return names
}

const manifestHead = `# The streams that Pawl has made on its NATS; of the embedded one, also the last
# message that was acknowledged, and how many there were. If one of these is missing,
# none is made in its place: the server has lost its store. See docs/nats.md.
`

// ReadManifest reads a manifest; a file that is missing is an empty one.
func ReadManifest(path string) (m Manifest, err error) {
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		k := Known{Name: fields[0], Counted: len(fields) == 3}
		if k.Counted {
			var wrong error
			k.Last, err = strconv.ParseUint(fields[1], 10, 64)
			k.Messages, wrong = strconv.ParseUint(fields[2], 10, 64)
			err = errors.Join(err, wrong)
		}
		if err != nil || len(fields) > 1 && !k.Counted {
			return nil, fmt.Errorf("%s: %q is not a stream, its last sequence and the number of its messages", path, strings.TrimSpace(line))
		}
		m = append(m, k)
	}
	return m, nil
}

// Write replaces the manifest, if it says something else.
func (m Manifest) Write(path string) error {
	text := bytes.NewBufferString(manifestHead)
	for _, k := range m {
		if k.Counted {
			fmt.Fprintln(text, k.Name, k.Last, k.Messages)
		} else {
			fmt.Fprintln(text, k.Name)
		}
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text.Bytes()) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	if err := renameio.WriteFile(path, text.Bytes(), 0o600); err != nil {
		return fmt.Errorf("data_dir: what the NATS server holds is recorded here: %w", err)
	}
	return nil
}
