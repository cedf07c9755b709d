package sink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// kind is one way of publishing into a file: content is what that holds
// beforehand, entries what the configuration says of it.
type kind struct {
	name    string
	content string
	entries func(path string) []inventory.Sink
	lookup  bool
	stage   func(*testing.T) stage // of a kind that is no file
}

// stage is a sink that holds the login `before`.
type stage struct {
	Sink
	shows func() string // what of it is backed up
	marks func() string // differs after any change, also to what lies beside it
}

// bouncer is the pgbouncer of the userlists here, which it does not read.
var bouncer *pooltest.Pooler

func passwordFile(path string) []inventory.Sink {
	return []inventory.Sink{{Pgpass: &inventory.Pgpass{Path: path, Hosts: []string{"127.0.0.1:5432", "pooler:*"}}}}
}

func usersOf(path string) []inventory.Sink {
	return []inventory.Sink{{Pgbouncer: &inventory.Userlist{Path: path, AuthFile: bouncer.Userlist, Console: bouncer.Console}}}
}

func dotenvs(all ...inventory.Dotenv) func(string) []inventory.Sink {
	return func(path string) (entries []inventory.Sink) {
		for _, d := range all {
			d.Path = path
			entries = append(entries, inventory.Sink{Dotenv: &d})
		}
		return entries
	}
}

func files(format string) func(string) []inventory.Sink {
	return func(path string) []inventory.Sink {
		return []inventory.Sink{{File: &inventory.File{Path: path, Format: format, Mode: 0o640}}}
	}
}

var kinds = []kind{
	{name: "dotenv keys", content: "# db\nexport U='app' # who\r\nP=before\nOTHER=\"x $y\"", entries: dotenvs(inventory.Dotenv{User: "U", Password: "P"})},
	{name: "dotenv dsn", content: "D=postgresql://app:before@h1:1,h2:2/db?sslmode=require\nX=1\n", entries: dotenvs(inventory.Dotenv{DSN: "D"})},
	{name: "dotenv entries", content: "U=app\nP=before\nD=postgres://app:before@h/db\n", entries: dotenvs(inventory.Dotenv{User: "U"}, inventory.Dotenv{Password: "P"}, inventory.Dotenv{DSN: "D"})},
	{name: "dotenv list", content: "P=\"x, before ,z\"\n", entries: dotenvs(inventory.Dotenv{Password: "P[1]"})},
	{name: "file dsn", content: "postgres://app:before@pooler:6432/db\n", entries: files(inventory.FormatDSN)},
	{name: "file json", content: `{"user":"app","password":"before","host":"pooler","big":12345678901234567890}`, entries: files(inventory.FormatJSON)},
	{name: "file password", content: "before", entries: files(inventory.FormatPassword)},
	{name: "pgpass", content: "# mine\nother:5432:*:app:theirs\n127.0.0.1:5432:db:app:before\r\npooler:6432:*:app:before\n*:*:*:*:any", entries: passwordFile, lookup: true},
	{name: "docker_secret", stage: inSwarm},
	{name: "pgbouncer", content: "; ours\n\"boss\" \"b\"\"s\"\n  \"app\"  \"before\" \r\n\"z\" \"\"", entries: usersOf, lookup: true},
}

func (k kind) at(path string) Sink {
	sinks := Of(&inventory.Credential{
		Name: "app", Role: "app", Strategy: inventory.Alternating, Database: "db", Nodes: []inventory.Node{{Name: "n", Host: "127.0.0.1", Port: 5432}},
		Publish: k.entries(path),
	})
	if len(sinks) != 1 {
		panic("entries of one file are one sink")
	}
	return sinks[0]
}

func (k kind) fresh(t *testing.T) (Sink, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), ".env")
	put(t, path, k.content)
	return k.at(path), path
}

func (k kind) begin(t *testing.T) stage {
	t.Helper()
	if k.stage != nil {
		return k.stage(t)
	}
	s, path := k.fresh(t)
	return stage{s, func() string { return get(t, path) }, func() string {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(get(t, path), list(t, filepath.Dir(path)), info.ModTime(), info.Sys().(*syscall.Stat_t).Ino)
	}}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// login number i: user and password belong together by it.
func login(i int) Content {
	password := secret.New(fmt.Sprintf("password%d", i))
	return Content{Login: inventory.Login{User: fmt.Sprintf("app_%d", i), Password: password}, Verifier: verifiers(password), Generation: uint64(i), Rotation: fmt.Sprintf("r%d", i), Fingerprint: fmt.Sprintf("fingerprint%d", i)}
}

// verifiers returns one for each password, always the same.
var verifiers = func() func(secret.String) secret.String {
	var made sync.Map
	return func(password secret.String) secret.String {
		v, err := postgres.Verifier(password)
		if err != nil {
			panic(err)
		}
		first, _ := made.LoadOrStore(password, v)
		return first.(secret.String)
	}
}()

// login number i, of a lookup sink for a name that it knows.
func (k kind) login(i int) Content {
	c := login(i)
	if k.lookup {
		c.User = "app"
	}
	return c
}

var (
	before = Content{Login: inventory.Login{User: "app", Password: secret.New("before")}, Fingerprint: "fingerprint0"}
	open   = Guard{
		Admit:    func([]Content) error { return nil },
		Backup:   func(context.Context, []byte) error { return nil },
		StillDue: func(context.Context) error { return nil },
	}
	errStop = errors.New("stop")
)

// TestSinks is what every kind of sink must pass.
func TestSinks(t *testing.T) {
	bouncer = pooltest.Start(t, 1, "", nil)
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			t.Run("writing twice changes once", func(t *testing.T) { writingTwice(t, k) })
			t.Run("going back restores every byte", func(t *testing.T) { goingBack(t, k) })
			t.Run("checking touches nothing", func(t *testing.T) { checking(t, k) })
			t.Run("a guard's error prevents the change", func(t *testing.T) { guarded(t, k) })
			t.Run("readers see one login or the other", func(t *testing.T) { atomicity(t, k) })
		})
	}
}

func holds(t *testing.T, s Sink, want Content) {
	t.Helper()
	if err := Holds(t.Context(), s, want); err != nil {
		t.Fatal(err)
	}
}

func writingTwice(t *testing.T, k kind) {
	s := k.begin(t)
	holds(t, s, before)
	backups, shown := 0, s.shows()
	guard := open
	guard.Backup = func(_ context.Context, old []byte) error {
		backups++
		if string(old) != shown {
			t.Errorf("backup of %q", old)
		}
		return nil
	}
	for i := range 2 {
		changed, err := s.Write(t.Context(), k.login(1), guard)
		if err != nil || changed != (i == 0) {
			t.Fatalf("write %d: changed %v, %v", i, changed, err)
		}
		holds(t, s, k.login(1))
		if i == 0 {
			shown = s.shows()
		}
	}
	if backups != 1 || s.shows() != shown {
		t.Fatalf("%d backups, content %q", backups, s.shows())
	}
}

func goingBack(t *testing.T, k kind) {
	s := k.begin(t)
	if _, err := s.Write(t.Context(), k.login(1), open); err != nil {
		t.Fatal(err)
	}
	first := s.shows()
	for _, want := range []Content{k.login(2), k.login(1)} {
		if _, err := s.Write(t.Context(), want, open); err != nil {
			t.Fatal(err)
		}
		holds(t, s, want)
	}
	if got := s.shows(); got != first {
		t.Fatalf("got  %q\nwant %q", got, first)
	}
}

func checking(t *testing.T, k kind) {
	s := k.begin(t)
	was := s.marks()
	if _, err := s.Check(t.Context(), k.login(1)); err != nil {
		t.Fatal(err)
	}
	if s.marks() != was {
		t.Fatalf("changed; %v", s.marks())
	}
}

func guarded(t *testing.T, k kind) {
	s := k.begin(t)
	was := s.marks()
	stop := func(context.Context) error { return errStop }
	for name, guard := range map[string]Guard{
		"foreign": {Admit: func([]Content) error { return errStop }, Backup: open.Backup, StillDue: open.StillDue},
		"backup":  {Admit: open.Admit, Backup: func(context.Context, []byte) error { return errStop }, StillDue: open.StillDue},
		"late":    {Admit: open.Admit, Backup: open.Backup, StillDue: stop},
	} {
		if _, err := s.Write(t.Context(), k.login(1), guard); !errors.Is(err, errStop) || IsRefusal(err) {
			t.Fatalf("%s: %v", name, err)
		}
		if s.marks() != was {
			t.Fatalf("%s: changed; %v", name, s.marks())
		}
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// atomicity reads all the while as a consumer would: never an error, never the
// user of one login with the password of the other.
func atomicity(t *testing.T, k kind) {
	s := k.begin(t)
	both := []Content{k.login(1), k.login(2)}
	if _, err := s.Write(t.Context(), both[0], open); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	faults := make(chan string, 1)
	go func() {
		defer close(faults)
		for !done.Load() {
			got, err := s.Read(context.Background())
			if err != nil || !slices.ContainsFunc(both, func(c Content) bool { return c.in(got) == nil }) {
				faults <- fmt.Sprintf("torn: %v", err)
				return
			}
		}
	}()
	writes := 16
	if k.name == kinds[0].name { // two keys: what is most easily torn
		writes = 200
	}
	for i := range writes {
		if _, err := s.Write(t.Context(), both[(i+1)%2], open); err != nil {
			t.Error(err)
			break
		}
	}
	done.Store(true)
	for fault := range faults {
		t.Error(fault)
	}
	holds(t, s, both[0])
}
