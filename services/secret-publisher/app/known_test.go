package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var (
	envForeign = strings.ReplaceAll(envBefore, "oldpassword", "somebodyspassword")
	dsnForeign = strings.ReplaceAll(dsnBefore, "oldpassword", "somebodyspassword")
)

// refused asserts one clear refusal, which names the sink and the fix and no secret.
func refused(t *testing.T, text, path string) {
	t.Helper()
	for _, want := range []string{path + " holds a login that Pawl neither wrote nor adopted", "run `pawl adopt cred`", "delete that password there"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
	if strings.Contains(text, "somebodyspassword") || strings.Contains(text, "\n") {
		t.Errorf("%q tells a password, or is no one line", text)
	}
}

// preflight asks as `pawl plan` does, and returns what was refused.
func (b *bench) preflight() (text string) {
	s := b.app.service()
	for _, line := range append(s.Check(b.Context(), b.credential), s.CheckSealed(b.Context(), b.credential, []*sealed.Credential{b.store.held["r1"]})...) {
		if line.GetRefused() {
			text += line.GetFinding()
		}
	}
	return text
}

func TestSinkThatHoldsSomebodyElsesLoginIsNotWrittenOver(t *testing.T) {
	b := newBench(t)
	if text := b.preflight(); text != "" {
		t.Fatal(text)
	}
	b.put(b.dsn, dsnForeign) // the last of the two: the first must not be touched, either
	refused(t, b.preflight(), b.dsn)
	_, err := b.run("publish", "r2", rotate)
	if !saga.IsPermanent(err) {
		t.Fatal(err)
	}
	refused(t, err.Error(), b.dsn)
	if _, err := b.run("restore", "r2", rotate); err != nil { // as after every publish that failed
		t.Fatal(err)
	}
	if w := b.recorder.Warnings(); len(w) != 1 || !strings.Contains(w[0], "left as it is, this rotation never wrote it") {
		t.Errorf("warnings: %v", w)
	}
	b.want(envBefore, dsnForeign)
	if left := b.backups(); len(left) > 0 || len(b.notes) > 0 {
		t.Errorf("backups %v, notes %v", left, b.notes)
	}
}

func TestLoginThatIsWrittenAfterTheLookIsNotWrittenOver(t *testing.T) {
	b := newBench(t)
	b.stillDue = func() error { b.put(b.dsn, dsnForeign); return nil } // the .env is about to be written
	_, err := b.run("publish", "r2", rotate)
	if !saga.IsPermanent(err) {
		t.Fatal(err)
	}
	refused(t, err.Error(), b.dsn)
	b.want(envAfter, dsnForeign)
	b.stillDue = func() error { return nil }
	if _, err := b.run("restore", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.want(envBefore, dsnForeign)
}

func TestLoginThatIsWrittenAfterPublishIsKeptByTheWayBack(t *testing.T) {
	b := newBench(t)
	if _, err := b.run("publish", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.put(b.dsn, dsnForeign)
	_, err := b.run("restore", "r2", rotate)
	if err == nil {
		t.Fatal("restored over it")
	}
	refused(t, err.Error(), b.dsn)
	b.want(envBefore, dsnForeign)
	b.put(b.dsn, strings.Replace(dsnForeign, "somebodyspassword", "", 1)) // as the refusal says
	if _, err := b.run("restore", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
}

// Pawl wrote what a rotation left when its publisher died, what the rolled back
// rotation before it left, and what a restored file brings back.
func TestSinkThatARotationLeftHalfWayIsWritten(t *testing.T) {
	earlier, undone := "anearlierpassword", "anundonepassword"
	for _, left := range []string{"oldpassword", "newpassword", earlier, undone} {
		b := newBench(t)
		b.store.held["r1"].Earlier = []string{b.store.Fingerprint("app", secret.New(earlier))}
		b.store.held["r0"] = &sealed.Credential{User: "app_b", Password: secret.New(undone)}
		user := map[string]string{"newpassword": "app_b", undone: "app_b"}[left]
		b.put(b.dsn, "postgres://"+map[bool]string{true: user, false: "app"}[user != ""]+":"+left+"@pooler/db\n")
		if text := b.preflight(); text != "" {
			t.Errorf("%s: %s", left, text)
		}
		if _, err := b.run("publish", "r2", rotate); err != nil {
			t.Errorf("%s: %v", left, err)
			continue
		}
		b.want(envAfter, dsnAfter)
	}
}

// A new sink, or one whose password a person deleted, holds nothing that can be lost.
func TestSinkWithoutALoginIsWritten(t *testing.T) {
	for env, dsn := range map[string]string{
		"U=\nP=\n":             "",
		"U=app\nP=\n":          "\n",
		"U=somebody\nP=''\n#x": "postgres://app:@pooler/db\n",
	} {
		b := newBench(t)
		b.put(b.env, env)
		b.put(b.dsn, dsn)
		if text := b.preflight(); text != "" {
			t.Errorf("%q: %s", env, text)
		}
		if _, err := b.run("publish", "r2", rotate); err != nil {
			t.Errorf("%q: %v", env, err)
		}
	}
	b := newBench(t)
	if err := os.Remove(b.dsn); err != nil {
		t.Fatal(err)
	}
	if _, err := b.run("publish", "r2", rotate); err != nil || b.preflight() != "" {
		t.Error(err, b.preflight())
	}
}

// A file whose parts do not belong together holds no login, but somebody's password.
func TestForeignPasswordIsSeenInEveryShape(t *testing.T) {
	const foreign = "somebodyspassword"
	dotenv := func(d inventory.Dotenv) func(string) inventory.Sink {
		return func(path string) inventory.Sink { d.Path = path; return inventory.Sink{Dotenv: &d} }
	}
	file := func(format string) func(string) inventory.Sink {
		return func(path string) inventory.Sink {
			return inventory.Sink{File: &inventory.File{Path: path, Format: format}}
		}
	}
	for _, c := range []struct {
		name, content string
		sink          func(path string) inventory.Sink
	}{
		{"a user of another", "U=other\nP=oldpassword\n", dotenv(inventory.Dotenv{User: "U", Password: "P"})},
		{"no user", "U=\nP=" + foreign + "\n", dotenv(inventory.Dotenv{User: "U", Password: "P"})},
		{"one of two", "U=app\nP=" + foreign + "\nD=postgres://app:oldpassword@h/db\n", dotenv(inventory.Dotenv{User: "U", Password: "P", DSN: "D"})},
		{"beside an empty one", "P=" + foreign + "\nD=\n", dotenv(inventory.Dotenv{Password: "P", DSN: "D"})},
		{"that readers differ on", "U=app\nP=" + foreign + "$x\n", dotenv(inventory.Dotenv{User: "U", Password: "P"})},
		{"of a list", "P=a,b," + foreign + "\n", dotenv(inventory.Dotenv{Password: "P[2]"})},
		{"dsn", dsnForeign, file(inventory.FormatDSN)},
		{"json", `{"user":"app","password":"` + foreign + `"}`, file(inventory.FormatJSON)},
		{"password", foreign, file(inventory.FormatPassword)},
		{"a file that is none", "root:x:0:0\n" + foreign + ":x:1:1\n", file(inventory.FormatPassword)},
		{"pgpass", "h:1:*:app:oldpassword\nh:1:other:app:" + foreign + "\n", func(path string) inventory.Sink {
			return inventory.Sink{Pgpass: &inventory.Pgpass{Path: path, Hosts: []string{"h:1"}}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			path := filepath.Join(t.TempDir(), "sink")
			b.put(path, c.content)
			b.credential.Publish = append(b.credential.Publish, c.sink(path))
			refused(t, b.preflight(), path)
			_, err := b.run("publish", "r2", rotate)
			if !saga.IsPermanent(err) {
				t.Fatal(err)
			}
			refused(t, err.Error(), path)
			b.want(envBefore, dsnBefore)
		})
	}
}

// Neither the lines of other users nor that of the login that PostgreSQL refuses count.
func TestLinesOfOtherLoginsRefuseNothing(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), ".pgpass")
	const others = "h:1:*:boss:somebodyspassword\nother:1:*:app:somebodyspassword\n"
	b.put(path, others+"h:1:*:app:oldpassword\nh:1:*:app_b:fromlongago\n")
	b.credential.Publish = append(b.credential.Publish, inventory.Sink{Pgpass: &inventory.Pgpass{Path: path, Hosts: []string{"h:1"}}})
	if _, err := b.run("publish", "r2", rotate); err != nil || b.preflight() != "" {
		t.Fatal(err, b.preflight())
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != others+"h:1:*:app:oldpassword\nh:1:*:app_b:newpassword\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestUserlistIsJudgedByTheLineOfTheLoginInUse(t *testing.T) {
	b, p := newPooledBench(t)
	others := pooltest.Line("boss", "theirs") + pooltest.Line("app_b", "fromlongago")
	p.Rewrite(t, others+pooltest.Line("app", "somebodyspassword"))
	refused(t, b.preflight(), p.Userlist)
	if _, err := b.run("publish", "r2", rotate); !saga.IsPermanent(err) {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
	for _, own := range []string{"oldpassword", b.store.held["r1"].Verifier.Reveal(), ""} {
		p.Rewrite(t, others+pooltest.Line("app", own))
		if text := b.preflight(); text != "" {
			t.Error(text)
		}
	}
	if _, err := b.run("publish", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.want(envAfter, dsnAfter)
}

// An attacker who can edit the file must not keep the application from coming back.
func TestForeignLoginCannotBlockAnEmergency(t *testing.T) {
	b := newBench(t)
	b.fails, b.flow = "", saga.Emergency
	b.put(b.env, envForeign)
	b.put(b.dsn, dsnForeign)
	if _, err := b.run("publish", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.want(envAfter, dsnAfter)
	if len(b.notes) != 2 || len(b.recorder.Warnings()) != 2 {
		t.Fatalf("notes %v, warnings %v", b.notes, b.recorder.Warnings())
	}
	for i, path := range []string{b.env, b.dsn} {
		if n := b.notes[i]; n.GetKind() != "foreign login replaced" || n.GetRotation() != "r2" || !strings.Contains(n.GetText(), path+" held a login that Pawl neither wrote nor adopted") {
			t.Errorf("note %v", n)
		}
	}
	kept := ""
	for _, path := range b.backups() {
		box, _ := os.ReadFile(path)
		kept += b.decrypt(box)
	}
	if !strings.Contains(kept, envForeign) || !strings.Contains(kept, dsnForeign) || strings.Contains(fmt.Sprint(b.notes, b.recorder.Warnings()), "somebodyspassword") {
		t.Errorf("backups hold %q", kept)
	}
	if _, err := b.run("publish", "r2", rotate); err != nil || len(b.notes) != 2 { // a retry has nothing to tell
		t.Error(err, b.notes)
	}
}

// lost is a store with one envelope that was sealed to a key that is gone.
type lost struct{ memory }

func (l lost) Rotations(context.Context, string) ([]string, error) { return []string{"r1", "r0"}, nil }

func (l lost) Open(ctx context.Context, credential, rotation string) (*sealed.Credential, error) {
	if rotation == "r0" {
		return nil, sealed.ErrWrongKey
	}
	return l.memory.Open(ctx, credential, rotation)
}

func TestWhatCannotBeKnownIsAWarning(t *testing.T) {
	b := newBench(t)
	b.app.sealed = lost{b.store}
	b.put(b.dsn, dsnForeign)
	found := b.app.service().CheckSealed(t.Context(), b.credential, []*sealed.Credential{b.store.held["r1"]})
	if len(found) != 1 || found[0].GetRefused() || !strings.HasPrefix(found[0].GetFinding(), "warning: ") {
		t.Errorf("preflight: %v", found)
	}
	if _, err := b.run("publish", "r2", rotate); err != nil || len(b.recorder.Warnings()) == 0 {
		t.Fatal(err, b.recorder.Warnings())
	}
	b.want(envAfter, dsnAfter)
}

func TestRollbackIsRefusedBeforehandWhereASinkHoldsSomebodyElsesLogin(t *testing.T) {
	b := newBench(t)
	b.put(b.env, envAfter)
	b.put(b.dsn, dsnForeign)
	var text string
	for _, line := range b.app.service().CheckSealed(t.Context(), b.credential, []*sealed.Credential{b.store.held["r2"], b.store.held["r1"]}) {
		text += line.GetFinding()
	}
	refused(t, text, b.dsn)
	asked := &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROLLBACK, Generation: 3, Basis: "r2", BasisUser: "app_b", BasisGeneration: 2, Restores: "r1"}
	_, err := b.run("restore", "r3", asked) // it is edited later: stalled, and said so
	if err == nil {
		t.Fatal("restored over it")
	}
	refused(t, err.Error(), b.dsn)
	b.want(envBefore, dsnForeign)
}

// opening is a store that tells what was opened.
type opening struct {
	memory
	opened *[]string
}

func (o opening) Open(ctx context.Context, credential, rotation string) (*sealed.Credential, error) {
	*o.opened = append(*o.opened, rotation)
	return o.memory.Open(ctx, credential, rotation)
}

func (o opening) Rotations(context.Context, string) ([]string, error) { return []string{"r0"}, nil }

func TestOnlyALoginThatIsNotRecognisedHasAllThatIsSealedOpened(t *testing.T) {
	for held, want := range map[string]string{"oldpassword": "r2", "anundonepassword": "r2 r0"} {
		b := newBench(t)
		b.store.held["r2"].Earlier = []string{b.store.Fingerprint("app", secret.New("oldpassword"))} // as the db-rotator seals it
		b.store.held["r0"] = &sealed.Credential{User: "app", Password: secret.New("anundonepassword")}
		b.put(b.env, strings.ReplaceAll(envBefore, "oldpassword", held))
		b.put(b.dsn, strings.ReplaceAll(dsnBefore, "oldpassword", held))
		var opened []string
		b.app.sealed = opening{b.store, &opened}
		if text := b.preflight(); text != "" {
			t.Errorf("%s: %s", held, text)
		}
		if held == "oldpassword" && len(opened) > 0 {
			t.Errorf("preflight opened %v again", opened)
		}
		opened = nil
		if _, err := b.run("publish", "r2", rotate); err != nil {
			t.Fatal(err)
		}
		b.want(envAfter, dsnAfter)
		if got := strings.Join(opened, " "); got != want {
			t.Errorf("%s: opened %q; want %q", held, got, want)
		}
	}
}
