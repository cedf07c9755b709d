package command

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWatchLoginsRefusesWhatItCannotWatch(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		name, want string
		code       int
		args       []string
	}{
		{"no cluster", `--cluster "": `, exitUsage, nil},
		{"an unknown cluster", `has main`, exitUsage, []string{"--cluster", "mian", "--node", "coordinator"}},
		{"an unknown node", `cluster main has coordinator`, exitUsage, []string{"--cluster", "main", "--node", "worker"}},
		{"no directory", "name the server's log_directory", exitUsage, []string{"--cluster", "main", "--node", "coordinator", "--log-dir", filepath.Join(t.TempDir(), "absent")}},
		{"an address that is none", "must be host:port", exitUsage, []string{"--cluster", "main", "--node", "coordinator", "--log-dir", t.TempDir(), "--metrics", "9465"}},
		{"a server that does not answer", "or name it with --log-dir", exitFailed, []string{"--cluster", "main", "--node", "coordinator"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, stderr := s.in(t).want(c.code, append([]string{"watch-logins"}, c.args...)...); !strings.Contains(stderr, c.want) {
				t.Errorf("stderr %q does not say %q", stderr, c.want)
			}
		})
	}
}

func TestWatchLoginsStopsWhenToldTo(t *testing.T) {
	s := newServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	code, stdout, stderr := s.pawl(ctx, "watch-logins", "--cluster", "main", "--node", "coordinator", "--log-dir", t.TempDir(), "--metrics", "127.0.0.1:0")
	if code != exitDone || stdout != "" || !strings.Contains(stderr, "watching") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}
