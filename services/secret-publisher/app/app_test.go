package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// memory is a sealed store with real keys whose envelopes are not on a bus.
type memory struct {
	*sealed.Store
	held map[string]*sealed.Credential
}

func (m memory) Open(_ context.Context, credential, rotation string) (*sealed.Credential, error) {
	c, ok := m.held[rotation]
	if !ok {
		return nil, fmt.Errorf("%s under %s: %w", credential, rotation, sealed.ErrNotFound)
	}
	return c, nil
}

// bench is a service, a credential with a sink of each kind, and two logins.
type bench struct {
	*testing.T
	app        *app
	store      memory
	keys, data string
	env, dsn   string
	credential *inventory.Credential
	stillDue   func() error
	recorder   *effect.Recorder
	notes      []*pawlv1.Note
	fails      saga.Event // of the step that is run
	flow       string     // of the rotation
}

const (
	envBefore = "# mine\nU=app\nP='oldpassword'\n"
	dsnBefore = "postgres://app:oldpassword@pooler/db\n"
)

// decrypt opens a backup as the README has people do, by age and the key file alone.
func (b *bench) decrypt(box []byte) string {
	b.Helper()
	key, err := os.Open(filepath.Join(b.keys, "sealing", saga.SecretPublisher+".agekey"))
	if err != nil {
		b.Fatal(err)
	}
	defer key.Close()
	identities, err := age.ParseIdentities(key)
	if err != nil {
		b.Fatal(err)
	}
	opened, err := age.Decrypt(bytes.NewReader(box), identities...)
	if err != nil {
		b.Fatal(err)
	}
	plain, err := io.ReadAll(opened)
	if err != nil {
		b.Fatal(err)
	}
	return string(plain)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	keysDir, dir := t.TempDir(), t.TempDir()
	if _, err := sealed.CreateKeys(keysDir); err != nil {
		t.Fatal(err)
	}
	keys, err := sealed.LoadKeys(keysDir, saga.SecretPublisher)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{fails: saga.PublishFailed, flow: saga.Alternating, T: t, keys: keysDir, data: t.TempDir(), env: filepath.Join(dir, ".env"), dsn: filepath.Join(dir, "dsn"), stillDue: func() error { return nil }}
	b.store = memory{sealed.NewStore(nil, saga.SecretPublisher, keys), map[string]*sealed.Credential{
		"r1": {User: "app", Password: secret.New("oldpassword")},
		"r2": {User: "app_b", Password: secret.New("newpassword")},
	}}
	b.app = newApp(b.store, b.data, docker.NewEngine(inventory.Docker{}))
	b.app.note = func(_ context.Context, n *pawlv1.Note) { b.notes = append(b.notes, n) }
	b.put(b.env, envBefore)
	b.put(b.dsn, dsnBefore)
	b.credential = &inventory.Credential{
		Name: "cred", Role: "app", Strategy: inventory.Alternating, Database: "db", Nodes: []inventory.Node{{Host: "h", Port: 1}},
		Publish: []inventory.Sink{
			{Dotenv: &inventory.Dotenv{Path: b.env, User: "U", Password: "P"}},
			{File: &inventory.File{Path: b.dsn, Format: inventory.FormatDSN}},
		},
	}
	return b
}

func (b *bench) put(path, content string) {
	b.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) want(env, dsn string) {
	b.Helper()
	for path, want := range map[string]string{b.env: env, b.dsn: dsn} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			b.Fatalf("%s holds %q, want %q (%v)", path, got, want, err)
		}
	}
}

var (
	envAfter = strings.NewReplacer("=app", "=app_b", "old", "new").Replace(envBefore)
	dsnAfter = strings.NewReplacer("/app", "/app_b", "old", "new").Replace(dsnBefore)
)

// run does a step that may fail, unless fails is set to nothing.
func (b *bench) run(step, rotation string, requested *pawlv1.Requested) (*pawlv1.Event, error) {
	b.Helper()
	b.recorder = &effect.Recorder{Credential: "cred", Step: step}
	state, err := saga.Fold(b.flow, []saga.Entry{{Event: saga.Requested, Seq: 1}})
	if err != nil {
		b.Fatal(err)
	}
	return b.app.service().Steps[step](effect.With(b.Context(), b.recorder), &service.Rotation{
		ID: rotation, Credential: b.credential, State: state, Step: &saga.Step{Name: step, Fails: b.fails},
		Events:   map[saga.Event]*pawlv1.Event{saga.Requested: {Detail: &pawlv1.Event_Requested{Requested: requested}}},
		StillDue: func(context.Context) error { return b.stillDue() },
	})
}

var rotate = &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Generation: 2, Basis: "r1", BasisUser: "app", BasisGeneration: 1}

func (b *bench) backups() []string {
	found, err := filepath.Glob(filepath.Join(b.data, "backups", "cred", "*", "*"))
	if err != nil {
		b.Fatal(err)
	}
	return found
}

func TestServiceHasExactlyItsStepsOfTheTable(t *testing.T) {
	var owned []string
	for _, flow := range saga.Flows {
		for _, step := range slices.Concat(flow.Forward, flow.Undo, flow.Tail) {
			if step.Owner == saga.SecretPublisher {
				owned = append(owned, step.Name)
			}
		}
	}
	slices.Sort(owned)
	var have []string
	for name := range newBench(t).app.service().Steps {
		have = append(have, name)
	}
	slices.Sort(have)
	if owned = slices.Compact(owned); !slices.Equal(owned, have) {
		t.Fatalf("owns %v, has %v", owned, have)
	}
}

func TestPublishAndRestoreEverySink(t *testing.T) {
	b := newBench(t)
	event, err := b.run("publish", "r2", rotate)
	if err != nil {
		t.Fatal(err)
	}
	b.want(envAfter, dsnAfter)
	if want := "all 2 sinks hold the login of app_b, 2 written now"; event.GetSummary() != want {
		t.Errorf("summary %q", event.GetSummary())
	}
	if _, err := b.run("restore", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
	backups := b.backups()
	if len(backups) != 2 {
		t.Fatalf("backups: %v", backups)
	}
	for _, path := range backups {
		box, err := os.ReadFile(path)
		if err != nil || strings.Contains(string(box), "password") {
			t.Fatalf("%s is readable: %v", path, err)
		}
		if info, _ := os.Stat(path); info.Mode() != 0o600 {
			t.Errorf("%s: %v", path, info.Mode())
		}
		if plain := b.decrypt(box); plain != envBefore && plain != dsnBefore {
			t.Errorf("%s holds %q", path, plain)
		}
	}
}

func TestRollbackRestoresWhatIsAskedFor(t *testing.T) {
	b := newBench(t)
	b.put(b.env, envAfter)
	b.put(b.dsn, dsnAfter)
	asked := &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROLLBACK, Generation: 3, Basis: "r2", BasisGeneration: 2, Restores: "r1"}
	if _, err := b.run("restore", "r3", asked); err != nil {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
}

func TestPublishTouchesNothingWhereOneSinkWouldRefuse(t *testing.T) {
	b := newBench(t)
	b.credential.Publish[1] = inventory.Sink{Dotenv: &inventory.Dotenv{Path: b.dsn, User: "NONE", Password: "P"}}
	_, err := b.run("publish", "r2", rotate)
	if !saga.IsPermanent(err) || !strings.Contains(err.Error(), b.dsn+": NONE: no such key") {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
	if left := b.backups(); len(left) > 0 {
		t.Fatalf("backups: %v", left)
	}
}

func TestInAnEmergencyABrokenSinkKeepsNoOtherFromTheNewCredential(t *testing.T) {
	b := newBench(t)
	b.fails = "" // its publish is tried for ever
	broken := b.credential.Publish[1]
	b.credential.Publish[1] = b.credential.Publish[0]
	b.credential.Publish[0] = inventory.Sink{Dotenv: &inventory.Dotenv{Path: b.dsn, User: "NONE", Password: "P"}}
	if _, err := b.run("publish", "r2", rotate); err == nil || saga.IsPermanent(err) {
		t.Fatal(err)
	}
	b.want(envAfter, dsnBefore)
	b.credential.Publish[0] = broken
	if _, err := b.run("publish", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.want(envAfter, dsnAfter)
}

func TestPublishAfterACrashBetweenTwoSinksFinishes(t *testing.T) {
	b := newBench(t)
	crash := errors.New("crash")
	looks := 0
	b.stillDue = func() error {
		if looks++; looks == 2 {
			return crash
		}
		return nil
	}
	if _, err := b.run("publish", "r2", rotate); !errors.Is(err, crash) || saga.IsPermanent(err) {
		t.Fatal(err)
	}
	b.want(envAfter, dsnBefore)
	event, err := b.run("publish", "r2", rotate)
	if err != nil || event.GetSummary() != "all 2 sinks hold the login of app_b, 1 written now" {
		t.Fatal(event.GetSummary(), err)
	}
	b.want(envAfter, dsnAfter)
	for _, path := range b.backups() {
		box, _ := os.ReadFile(path)
		if strings.Contains(b.decrypt(box), "newpassword") {
			t.Errorf("a retry overwrote %s", path)
		}
	}
}

func TestZombieWritesNothingLate(t *testing.T) {
	b := newBench(t)
	late := errors.New("the step is no longer due")
	b.stillDue = func() error { return late }
	for _, step := range []string{"publish", "restore"} {
		if step == "restore" { // which has something to write, too
			b.store.held["r1"], b.store.held["r2"] = b.store.held["r2"], b.store.held["r1"]
		}
		if _, err := b.run(step, "r2", rotate); !errors.Is(err, late) || saga.IsPermanent(err) {
			t.Fatalf("%s: %v", step, err)
		}
		b.want(envBefore, dsnBefore)
	}
}

func TestRestoreEndsWherePublishNeverGotToASink(t *testing.T) {
	b := newBench(t)
	if err := os.Remove(b.env); err != nil {
		t.Fatal(err)
	}
	if _, err := b.run("publish", "r2", rotate); !saga.IsPermanent(err) {
		t.Fatal(err)
	}
	if _, err := b.run("restore", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	if w := b.recorder.Warnings(); len(w) != 1 || !strings.Contains(w[0], "left as it is") {
		t.Fatalf("warnings: %v", w)
	}
}

func TestRestoreOfABrokenSinkGoesOnForEverAndRestoresTheOthers(t *testing.T) {
	b := newBench(t)
	if _, err := b.run("publish", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(b.env); err != nil {
		t.Fatal(err)
	}
	if _, err := b.run("restore", "r2", rotate); err == nil || !strings.Contains(err.Error(), b.env) {
		t.Fatal(err)
	}
	b.put(b.env, envAfter)
	b.want(envAfter, dsnBefore)
	if _, err := b.run("restore", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
}

func TestMatchNamesTheSinkThatHoldsAnotherLogin(t *testing.T) {
	b := newBench(t)
	adopt := &pawlv1.Requested{Action: pawlv1.Action_ACTION_ADOPT, Generation: 1}
	if _, err := b.run("match", "r1", adopt); err != nil {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
	b.put(b.dsn, dsnAfter)
	if _, err := b.run("match", "r1", adopt); !saga.IsPermanent(err) || !strings.Contains(err.Error(), "file:"+b.dsn+" holds another login") {
		t.Fatal(err)
	}
	b.put(b.dsn, dsnBefore)
	if err := os.Link(b.env, b.env+".other"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.run("match", "r1", adopt); !saga.IsPermanent(err) || !strings.Contains(err.Error(), "hard links") {
		t.Fatal(err)
	}
}

func TestPreflightAndDoctorTellOfEachSinkAndNoSecret(t *testing.T) {
	b := newBench(t)
	b.put(b.dsn, "postgres://app:oldpassword@x@h/db")
	s := b.app.service()
	examined := s.Examine(t.Context(), b.credential)
	if len(examined) != 2 || examined[0].GetFinding() != "holds "+b.store.Fingerprint("app", secret.New("oldpassword"))+" of app" || !examined[1].GetRefused() {
		t.Errorf("examine: %v", examined)
	}
	checked := s.Check(t.Context(), b.credential)
	if len(checked) != 2 || checked[0].GetFinding() != "can be written" || !checked[1].GetRefused() {
		t.Errorf("check: %v", checked)
	}
	if strings.Contains(fmt.Sprint(examined, checked), "oldpassword") {
		t.Error("tells a password")
	}
	b.want(envBefore, "postgres://app:oldpassword@x@h/db")
}
