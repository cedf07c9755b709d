package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// canaries are secrets that may be found nowhere but in their one rightful
// place. They are found by their first bytes, in one pass over any amount of
// text, and then compared whole.
type canaries struct {
	byPrefix map[[prefix]byte][]string
}

const prefix = 16

func newCanaries(secrets map[string]bool) canaries {
	c := canaries{map[[prefix]byte][]string{}}
	for s := range secrets {
		c.add(s)
		c.add(base64.StdEncoding.EncodeToString([]byte(s)))
		// A verifier is "SCRAM-SHA-256$4096:SALT$STOREDKEY:SERVERKEY"; any of the
		// three is as bad as the whole.
		if _, keys, ok := strings.Cut(s, "$4096:"); ok {
			for _, part := range strings.FieldsFunc(keys, func(r rune) bool { return r == '$' || r == ':' }) {
				c.add(part)
			}
		}
	}
	return c
}

func (c canaries) add(s string) {
	if len(s) >= prefix && !strings.HasPrefix(s, "SCRAM-SHA-256$40") {
		key := [prefix]byte([]byte(s[:prefix]))
		c.byPrefix[key] = append(c.byPrefix[key], s)
	}
}

// in reports how many canaries the text holds; never which.
func (c canaries) in(text []byte) (found int) {
	for i := 0; i+prefix <= len(text); i++ {
		for _, s := range c.byPrefix[[prefix]byte(text[i:i+prefix])] {
			if bytes.HasPrefix(text[i:], []byte(s)) {
				found++
			}
		}
	}
	return found
}

// place is somewhere to look.
type place struct {
	name string
	read func() ([]byte, error)
}

func files(of string, dir string, except func(path string) bool) (all []place) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !except(path) {
			all = append(all, place{of + " " + path, func() ([]byte, error) { return os.ReadFile(path) }})
		}
		return nil // a file that has just gone holds nothing
	})
	return all
}

// places lists everything that anybody but the rightful holder could read.
func (w *world) places(ctx context.Context) ([]place, error) {
	rightful := func(path string) bool {
		return strings.HasSuffix(path, "/.env") || strings.HasSuffix(path, "/admin.json")
	}
	all := files("file of the installation", w.site.Dir, rightful) // NATS store, logs, backups, keys, configuration
	for _, n := range w.site.Nodes {
		all = append(all, files("file of PostgreSQL", filepath.Dir(n.Server.LogFile), func(path string) bool { return path != n.Server.LogFile })...)
	}
	all = append(all, place{"spans", func() ([]byte, error) { return w.spans.all(), nil }})
	for name, address := range w.fleet.Metrics() {
		all = append(all, place{"metrics of " + name, func() ([]byte, error) { return get(ctx, "http://"+address+"/metrics") }})
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		for _, what := range []string{"cmdline", "environ"} {
			all = append(all, place{p + "/" + what, func() ([]byte, error) { return os.ReadFile(filepath.Join(p, what)) }})
		}
	}
	asking, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	messages, err := w.messages(asking)
	for err != nil && pause(asking, 200*time.Millisecond) { // servers that have just been joined again may elect a leader
		messages, err = w.messages(asking)
	}
	return append(all, append(messages, w.tables(ctx)...)...), err
}

// messages is every stored message with its headers.
func (w *world) messages(ctx context.Context) (all []place, err error) {
	provisioner, err := w.site.Connect(bus.Provisioner)
	if err != nil {
		return nil, err
	}
	defer provisioner.NATS.Close()
	for _, config := range bus.Streams(bus.Settings{}) {
		stream, err := provisioner.Stream(ctx, config.Name)
		if err != nil {
			return nil, err
		}
		var text bytes.Buffer
		for seq := uint64(1); ; {
			m, err := stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(">"))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			}
			if err != nil {
				return nil, err
			}
			fmt.Fprintln(&text, m.Subject, m.Header)
			text.Write(m.Data)
			seq = m.Sequence + 1
		}
		all = append(all, place{"messages of " + config.Name, func() ([]byte, error) { return text.Bytes(), nil }})
	}
	return all, nil
}

// tables is what PostgreSQL's statistics show.
func (w *world) tables(ctx context.Context) (all []place) {
	for _, view := range []string{"pg_stat_statements", "pg_stat_activity", "pg_prepared_statements"} {
		all = append(all, place{view, func() ([]byte, error) {
			conn, err := w.site.Superuser(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Close(ctx)
			if _, err := conn.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
				return nil, err
			}
			var text string
			err = conn.QueryRow(ctx, "SELECT coalesce(string_agg(v::text, E'\n'), '') FROM "+view+" v").Scan(&text)
			return []byte(text), err
		}})
	}
	return all
}

// leaks looks everywhere and returns where canaries were found.
func (w *world) leaks(ctx context.Context) (found []string, looked int, err error) {
	if err := w.collect(ctx); err != nil {
		return nil, 0, err
	}
	places, err := w.places(ctx)
	if err != nil {
		return nil, 0, err
	}
	w.seen.mu.Lock()
	needles := newCanaries(maps.Clone(w.seen.secrets))
	w.seen.mu.Unlock()
	for _, p := range places {
		text, err := p.read()
		if errors.Is(err, fs.ErrNotExist) || strings.HasPrefix(p.name, "/proc/") && err != nil {
			continue // it has gone
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", p.name, err)
		}
		looked += len(text)
		if n := needles.in(text); n > 0 {
			found = append(found, fmt.Sprintf("%d in %s", n, p.name))
		}
	}
	return found, looked, nil
}

// collect adds what is published and stored now to the secrets seen.
func (w *world) collect(ctx context.Context) error {
	conn, err := w.site.Superuser(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL")
	if err != nil {
		return err
	}
	for rows.Next() {
		var verifier string
		if err := rows.Scan(&verifier); err != nil {
			return err
		}
		w.seen.add(verifier)
	}
	for name := range w.site.Inventory.Credentials {
		if login, err := w.site.Published(name); err == nil {
			w.seen.add(login.Password.Reveal())
		}
	}
	return rows.Err()
}

// scan fails the test where a secret has leaked.
func (w *world) scan() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	found, looked, err := w.leaks(ctx)
	switch {
	case err != nil:
		w.t.Errorf("the scan for secrets could not look everywhere: %v", err)
	case len(found) > 0:
		w.t.Errorf("secrets leaked:\n%s", strings.Join(found, "\n"))
	default:
		w.t.Logf("none of %d secrets found in %d MB of logs, messages, stores, spans, metrics, statistics and processes", len(w.seen.secrets), looked>>20)
	}
}

func (s *sightings) add(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[secret] = true
}

// collector receives spans by OTLP and keeps them as they came.
type collector struct {
	server *httptest.Server
	mu     sync.Mutex
	bodies bytes.Buffer
}

func newCollector(t *testing.T) *collector {
	c := &collector{}
	c.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, _ = io.Copy(&c.bodies, r.Body) // a torn span is no leak
	}))
	t.Cleanup(c.server.Close)
	return c
}

func (c *collector) all() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.bodies.Bytes())
}

func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fs.ErrNotExist // the process is being started again
	}
	defer answer.Body.Close()
	return io.ReadAll(answer.Body)
}
