package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
)

// state is all that a credential consists of, by name. Values are digests, so
// that a failed test prints no secret.
type state map[string]string

func (s state) set(what string, value any) {
	s[what] = fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, value)))[:8]
}

// diff names what differs, but for what begins with one of except.
func (s state) diff(other state, except ...string) (names []string) {
	all := maps.Clone(s)
	maps.Copy(all, other)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if s[name] != other[name] && !slices.ContainsFunc(except, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			names = append(names, fmt.Sprintf("%s (%q, was %q)", name, s[name], other[name]))
		}
	}
	return names
}

// look returns the credential's state. A server that does not answer is a
// state, too.
func (h *house) look(t *testing.T, credential string) state {
	t.Helper()
	s := state{}
	c := h.site.Inventory.Credentials[credential]
	if err := h.lookAtRoles(t.Context(), s, c); err != nil {
		s["postgres"] = "down"
	}
	for _, sink := range c.Publish {
		if err := lookAtFolder(s, filepath.Dir(published.Path(sink))); err != nil {
			t.Fatal(err)
		}
	}
	if err := lookAtFolder(s, filepath.Join(h.site.Inventory.DataDir, "backups", credential)); err != nil {
		t.Fatal(err)
	}
	for what, of := range map[string]struct{ stream, filter string }{
		"log ":    {bus.StreamLog, "pawl.rotation." + credential + ".>"},
		"sealed ": {bus.StreamSealed, "pawl.sealed." + credential + ".>"},
	} {
		stream, err := h.streams.JetStream.Stream(t.Context(), of.stream)
		if err != nil {
			t.Fatal(err)
		}
		info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(of.filter))
		if err != nil {
			t.Fatal(err)
		}
		for subject, n := range info.State.Subjects {
			s.set(what+subject, n)
		}
	}
	return s
}

func (h *house) lookAtRoles(ctx context.Context, s state, c *inventory.Credential) error {
	conn, err := h.connect(ctx, c.Name)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT rolname::text, rolcanlogin, coalesce(rolpassword, '') FROM pg_authid WHERE rolname = ANY ($1)", []string{c.Role, c.Sibling()})
	if err != nil {
		return err
	}
	var name, verifier string
	var may bool
	_, err = pgx.ForEachRow(rows, []any{&name, &may, &verifier}, func() error {
		s.set("role "+name, fmt.Sprint(may, verifier))
		return nil
	})
	if err != nil {
		return err
	}
	var made bool
	var fence int64
	err = conn.QueryRow(ctx, "SELECT to_regclass('pawl.fence') IS NOT NULL").Scan(&made)
	if err == nil && made {
		err = conn.QueryRow(ctx, "SELECT coalesce(max(generation * 10 + phase), 0) FROM pawl.fence WHERE role = $1", c.Role).Scan(&fence)
	}
	s.set("fence", fence)
	return err
}

func lookAtFolder(s state, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			s[path] = "unreadable"
			return nil
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		sys := fmt.Sprint(info.Mode(), owner(info))
		if d.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				content = []byte("unreadable")
			}
			sys += info.ModTime().String() + string(content)
		}
		s.set(path, sys)
		return nil
	})
}
