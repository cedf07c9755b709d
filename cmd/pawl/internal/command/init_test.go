package command

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
)

// tree maps each file below dir to its content, and each folder to nothing.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found[path] = read(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestInitMakesPrivateKeysThatLoad(t *testing.T) {
	s := &site{t: t, config: filepath.Join(t.TempDir(), "pawl.yaml")}
	stdout, stderr := s.want(exitDone, "init")
	inv, err := inventory.Load(s.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range bus.Users {
		if _, err := bus.LoadSeed(bus.SeedFile(inv, user)); err != nil {
			t.Error(err)
		}
	}
	if _, err := sealed.LoadKeys(inv.KeysDir, saga.DBRotator); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{inv.DataDir, inv.KeysDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
			info, err := d.Info()
			want := fs.FileMode(0o600)
			if d.IsDir() {
				want = 0o700
			}
			if err == nil && info.Mode().Perm() != want {
				t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	for path := range strings.Lines(stdout) {
		if _, err := os.Stat(strings.TrimSpace(path)); err != nil {
			t.Errorf("said to be made: %v", err)
		}
	}
	if !strings.HasPrefix(stdout, s.config+"\n") || !strings.Contains(stderr, "next:") {
		t.Errorf("stdout %q\nstderr %q", stdout, stderr)
	}
}

func TestInitAgainOverwritesNothingAndReplacesWhatIsLost(t *testing.T) {
	s := newSite(t)
	lost := bus.SeedFile(s.inv, bus.Operator)
	before := tree(t, filepath.Dir(s.config))
	delete(before, lost)
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	stdout, _ := s.want(exitDone, "init", "--json")
	var made []string
	if err := json.Unmarshal([]byte(stdout), &made); err != nil || len(made) != 1 || made[0] != lost {
		t.Errorf("made %q (%v), want only %s", stdout, err, lost)
	}
	after := tree(t, filepath.Dir(s.config))
	for path, content := range before {
		if after[path] != content {
			t.Errorf("%s was changed", path)
		}
	}
	if stdout, stderr := s.want(exitDone, "init"); stdout != "" || !strings.Contains(stderr, "nothing was missing") {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

func TestInitKeepsAConfigurationAndAddsWhatItLacks(t *testing.T) {
	s := &site{t: t, config: filepath.Join(t.TempDir(), "pawl.yaml")}
	mine := "# mine\nnats:   {listen: \"127.0.0.1:4999\"}   # kept\ndata_dir: here"
	write(t, s.config, mine)
	s.want(exitDone, "init")
	text := read(t, s.config)
	if !strings.HasPrefix(text, mine+"\n") || !strings.Contains(text, "\nkeys_dir:") || strings.Count(text, "\nnats:") != 1 {
		t.Errorf("pawl.yaml is now:\n%s", text)
	}
	if info, err := os.Stat(s.config); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), was 0600", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(s.config), "here", "clients", "operator.nk")); err != nil {
		t.Error(err)
	}
}

func TestInitTouchesNothingWhereTheConfigurationIsWrong(t *testing.T) {
	s := &site{t: t, config: filepath.Join(t.TempDir(), "pawl.yaml")}
	write(t, s.config, "natz: {}\n")
	stdout, stderr := s.want(exitUsage, "init")
	if !strings.Contains(stderr, "natz") || stdout != "" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	if found := tree(t, filepath.Dir(s.config)); len(found) != 1 || found[s.config] != "natz: {}\n" {
		t.Errorf("left behind: %v", found)
	}
}

func TestInitWarnsOfKeysInAGitWorkTree(t *testing.T) {
	dir := t.TempDir()
	s := &site{t: t, config: filepath.Join(dir, "deep", "pawl.yaml")}
	for _, folder := range []string{".git", "deep"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, ".gitignore"), "/deep/.pawl/\n")
	_, stderr := s.want(exitDone, "init")
	if !strings.Contains(stderr, "/deep/pawl-keys/") || strings.Contains(stderr, "/deep/.pawl/") {
		t.Errorf("stderr %q", stderr)
	}
}

func TestAdminSQLWritesNothing(t *testing.T) {
	s := newSite(t)
	before := tree(t, filepath.Dir(s.config))
	stdout, _ := s.want(exitDone, "init", "--admin-sql")
	for _, want := range []string{"-- Cluster main", "pawl_admin", "pawl_observer", "'app_b'", "What the admin account can do"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
	s.want(exitUsage, "init", "--admin-sql", "--cluster", "mian")
	write(t, s.config, strings.NewReplacer("    observer: {user: pawl_observer, password_file: admin}\n", "", "    role: app\n", "    role: app\n    database: shop\n").Replace(read(t, s.config)))
	if _, stderr := s.want(exitDone, "init", "--admin-sql"); !strings.Contains(stderr, "clusters.main.observer: is missing") {
		t.Errorf("said %q, want the missing observer", stderr)
	}
	if after := tree(t, filepath.Dir(s.config)); len(after) != len(before) {
		t.Errorf("%d files, were %d", len(after), len(before))
	}
}

func TestAdminSQLMakesThePairOfAnAdminThatPawlTurns(t *testing.T) {
	s := newSite(t)
	if stdout, _ := s.want(exitDone, "init", "--admin-sql"); strings.Contains(stdout, "pawl_admin_b") {
		t.Errorf("a pair that nobody asked for:\n%s", stdout)
	}
	text := strings.NewReplacer("pawl_admin, password_file: admin", "pawl_admin, password_file: own.json", "\ncredentials:\n", `
credentials:
  pawl-admin: {cluster: main, role: pawl_admin, strategy: alternating, publish: [{file: {path: FILE, format: json}}]}
`).Replace(read(t, s.config))
	write(t, s.config, strings.Replace(text, "FILE", "elsewhere.json", 1)) // nobody would tell Pawl the new login
	s.want(exitUsage, "init", "--admin-sql")
	write(t, s.config, strings.Replace(text, "FILE", "own.json", 1))
	stdout, _ := s.want(exitDone, "init", "--admin-sql")
	for _, want := range []string{`CREATE ROLE "pawl_admin_b" NOLOGIN`, "PROCEDURE pawl.alter_login", `GRANT "pawl_admin" TO "pawl_admin_b"`} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
}
