package sink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// shared is one way in which a file holds many credentials.
type shared struct {
	name  string
	line  func(i int, password string) string // of a credential; the file is all of them
	entry func(path string, i int) inventory.Sink
}

var sharings = []shared{
	{"dotenv", func(i int, password string) string { return fmt.Sprintf("P%02d=%s\n", i, password) }, func(path string, i int) inventory.Sink {
		return inventory.Sink{Dotenv: &inventory.Dotenv{Path: path, Password: fmt.Sprintf("P%02d", i)}}
	}},
	{"pgpass", func(i int, password string) string { return fmt.Sprintf("h:1:*:r%02d:%s\n", i, password) }, func(path string, _ int) inventory.Sink {
		return inventory.Sink{Pgpass: &inventory.Pgpass{Path: path, Hosts: []string{"h:1"}}}
	}},
	{"pgbouncer", func(i int, password string) string {
		if password != "old" {
			password = verifiers(secret.New(password)).Reveal()
		}
		return fmt.Sprintf("\"r%02d\" \"%s\"\n", i, password)
	}, func(path string, _ int) inventory.Sink {
		return inventory.Sink{Pgbouncer: &inventory.Userlist{Path: path}}
	}},
}

// crowd writes one file for many credentials. Number 0 begins, and has the file until
// release is closed.
type crowd struct {
	*testing.T
	shared
	path    string
	release chan struct{}
	all     sync.WaitGroup
	inotify int
	members []*member
}

type member struct {
	ctx     context.Context
	want    Content
	guard   Guard
	backup  string // what was kept
	done    chan struct{}
	changed bool
	err     error
}

func newCrowd(t *testing.T, s shared, n int) *crowd {
	t.Helper()
	c := &crowd{T: t, shared: s, path: filepath.Join(t.TempDir(), "file"), release: make(chan struct{})}
	put(t, c.path, c.text(n, func(int) string { return "old" }))
	var err error
	if c.inotify, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC); err == nil {
		_, err = unix.InotifyAddWatch(c.inotify, filepath.Dir(c.path), unix.IN_MOVED_FROM|unix.IN_MOVED_TO) // both: equal ones in a row would be told once
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(c.inotify) })
	for i := range n {
		c.members = append(c.members, newMember(t.Context(), i))
	}
	return c
}

func newMember(ctx context.Context, i int) *member {
	m := &member{ctx: ctx, guard: open, done: make(chan struct{})}
	m.want = Content{Login: inventory.Login{User: fmt.Sprintf("r%02d", i), Password: secret.New(fmt.Sprintf("new-%02d", i))}}
	m.want.Verifier = verifiers(m.want.Password)
	m.guard.Backup = func(_ context.Context, old []byte) error { m.backup += string(old); return nil }
	return m
}

func (c *crowd) text(n int, password func(i int) string) (text string) {
	for i := range n {
		text += c.line(i, password(i))
	}
	return text
}

// after is the file when those for whom written is true were.
func (c *crowd) after(written func(i int) bool) string {
	return c.text(len(c.members), func(i int) string {
		if written(i) {
			return fmt.Sprintf("new-%02d", i)
		}
		return "old"
	})
}

// start has number 0 take the file, and all others wait for it.
func (c *crowd) start() {
	c.Helper()
	looking, first := make(chan struct{}), c.members[0]
	first.guard.StillDue = func(ctx context.Context) error {
		close(looking)
		select {
		case <-c.release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.write(0)
	<-looking
	for i := 1; i < len(c.members); i++ {
		c.write(i)
	}
	awaitWaiting(c.path, len(c.members)-1)
}

func (c *crowd) write(i int) {
	m := c.members[i]
	s := c.sink(i)
	c.all.Go(func() {
		m.changed, m.err = s.Write(m.ctx, m.want, m.guard)
		close(m.done)
	})
}

func (c *crowd) sink(i int) Sink {
	return Of(&inventory.Credential{Name: fmt.Sprintf("c%02d", i), Role: fmt.Sprintf("r%02d", i), Strategy: inventory.InPlace,
		Nodes: []inventory.Node{{Name: "n", Host: "h", Port: 1}}, Publish: []inventory.Sink{c.entry(c.path, i)}})[0]
}

// awaitWaiting returns when n parts wait for the file; none: when nobody is at work for it.
func awaitWaiting(path string, n int) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // nobody signals it
		writes.mu.Lock()
		q := writes.of[path]
		enough := q == nil && n == 0 || q != nil && n > 0 && len(q.waiting) == n
		writes.mu.Unlock()
		if enough {
			return
		}
		if time.Now().After(deadline) {
			panic(fmt.Sprintf("%d parts never waited for %s", n, path))
		}
	}
}

func (c *crowd) finish() {
	close(c.release)
	c.all.Wait()
}

// replaced returns how often the file was replaced since it was last asked.
func (c *crowd) replaced() (n int) {
	c.Helper()
	events := make([]byte, 64<<10)
	for {
		size, err := unix.Read(c.inotify, events)
		if errors.Is(err, unix.EAGAIN) {
			return n
		}
		if err != nil {
			c.Fatal(err)
		}
		n += strings.Count(string(events[:size]), filepath.Base(c.path)+"\x00")
	}
}

// check compares the file, what each was told, and the number of replacements.
func (c *crowd) check(replacements int, fault func(i int) string) {
	c.Helper()
	ok := func(i int) bool { return fault(i) == "" }
	if got, want := get(c.T, c.path), c.after(ok); got != want {
		c.Errorf("the file holds\n%s\nwant\n%s", got, want)
	}
	for i, m := range c.members {
		if m.changed != ok(i) || (m.err == nil) != ok(i) || !ok(i) && !strings.Contains(m.err.Error(), fault(i)) {
			c.Errorf("%d: changed %v, %v; want %q", i, m.changed, m.err, fault(i))
		}
		if ok(i) {
			holds(c.T, c.sink(i), m.want)
		}
	}
	if n := c.replaced(); n != replacements {
		c.Errorf("the file was replaced %d times, want %d", n, replacements)
	}
	awaitWaiting(c.path, 0)
	if left := list(c.T, filepath.Dir(c.path)); len(left) != 1 {
		c.Errorf("left behind: %v", left)
	}
}

func none(int) string { return "" }

func TestFileIsNotReplacedOnceForEachOfItsCredentials(t *testing.T) {
	for _, s := range sharings {
		t.Run(s.name, func(t *testing.T) {
			c := newCrowd(t, s, 12)
			before := get(t, c.path)
			c.start()
			if n := c.replaced(); n != 0 || get(t, c.path) != before {
				t.Errorf("replaced %d times while the first still looked", n)
			}
			c.finish()
			c.check(2, none)
			for i, m := range c.members {
				want := before
				if i > 0 {
					want = c.after(func(j int) bool { return j == 0 })
				}
				if m.backup != want {
					t.Errorf("%d: the backup is not what its write replaced:\n%s", i, m.backup)
				}
			}
		})
	}
}

func TestCredentialAtFaultKeepsNoOtherFromTheFile(t *testing.T) {
	c := newCrowd(t, sharings[0], 12)
	faults := map[int]string{1: "somebody else's login", 3: "P03: no such key", 4: "no backup", 5: "file: no longer due", 9: "a later fence", 11: "P11: line 11: opens a quote"}
	c.members[1].guard.Admit = func([]Content) error { return errors.New(faults[1]) }
	c.members[4].guard.Backup = func(context.Context, []byte) error { return errors.New(faults[4]) }
	c.members[5].guard.StillDue = func(context.Context) error { return errors.New("no longer due") }
	asked := 0
	c.members[9].guard.StillDue = func(context.Context) error {
		if asked++; asked > 1 { // due when another one was not, and no longer at the look after that
			return errors.New(faults[9])
		}
		return nil
	}
	edited := strings.NewReplacer("P03=", "Q03=", "P11=old", "P11='old").Replace(get(t, c.path))
	put(t, c.path, edited)
	c.start()
	c.finish()
	for i, m := range c.members {
		fault, faulty := faults[i]
		if i == 11 {
			fault = "line 12: "
		}
		if m.changed == faulty || faulty && (m.err == nil || !strings.Contains(m.err.Error(), fault) || strings.Contains(m.err.Error(), "new-")) {
			t.Errorf("%d: changed %v, %v", i, m.changed, m.err)
		}
	}
	want := strings.NewReplacer("P03=", "Q03=", "P11=old", "P11='old").Replace(c.after(func(i int) bool { return faults[i] == "" }))
	if got := get(t, c.path); got != want {
		t.Errorf("the file holds\n%s\nwant\n%s", got, want)
	}
	if n := c.replaced(); n != 2 {
		t.Errorf("replaced %d times", n)
	}
}

func TestEndOfOneCallersContextFailsNoOther(t *testing.T) {
	c := newCrowd(t, sharings[0], 8)
	cancels := map[int]context.CancelFunc{}
	for _, i := range []int{0, 1, 5} { // who has the file, who would be first of the next, one of them
		c.members[i].ctx, cancels[i] = context.WithCancel(t.Context())
	}
	for _, i := range []int{1, 5} {
		untouched := func(context.Context) error { t.Errorf("%d was asked after it had left", i); return nil }
		c.members[i].guard = Guard{Admit: func([]Content) error { return untouched(nil) }, Backup: func(context.Context, []byte) error { return untouched(nil) }, StillDue: untouched}
	}
	c.start()
	for _, i := range []int{1, 5} {
		cancels[i]()
		<-c.members[i].done // while number 0 has the file
	}
	cancels[0]()
	<-c.members[0].done
	c.finish()
	c.check(1, func(i int) string {
		if _, cancelled := cancels[i]; cancelled {
			return "context canceled"
		}
		return ""
	})
}

// TestCallerThatLeftIsNotWrittenAfterwards: it was still due, and left while another one
// was being asked.
func TestCallerThatLeftIsNotWrittenAfterwards(t *testing.T) {
	c := newCrowd(t, sharings[0], 4)
	ctx, cancel := context.WithCancel(t.Context())
	c.members[2].ctx = ctx
	due := make(chan struct{})
	c.members[2].guard.StillDue = func(context.Context) error { close(due); return nil }
	asked := 0
	c.members[3].guard.StillDue = func(context.Context) error {
		if asked++; asked == 1 {
			<-due
			cancel()
			<-c.members[2].done
		}
		return nil
	}
	c.start()
	c.finish()
	c.check(2, func(i int) string {
		if i == 2 {
			return "not written in time: context canceled"
		}
		return ""
	})
}

func TestWriteThatEndsWithItsContextTellsWhatTheFileHolds(t *testing.T) {
	for range 20 {
		c := newCrowd(t, sharings[0], 2)
		ctx, cancel := context.WithCancel(t.Context())
		c.members[1].ctx = ctx
		c.members[1].guard.StillDue = func(context.Context) error {
			time.AfterFunc(rand.N(2*time.Millisecond), cancel) // anywhere up to the rename
			return nil
		}
		c.start()
		c.finish()
		told := c.members[1].err == nil && c.members[1].changed
		if held := get(t, c.path); strings.Contains(held, "new-01") != told {
			t.Fatalf("told %v (%v), and the file holds\n%s", told, c.members[1].err, held)
		}
		cancel()
		awaitWaiting(c.path, 0)
		if held := get(t, c.path); strings.Contains(held, "new-01") != told {
			t.Fatalf("written after Write had returned: %v\n%s", c.members[1].err, held)
		}
	}
}

func TestThoseThatWaitForAnotherProcessAreWrittenTogetherOrLeave(t *testing.T) {
	c := newCrowd(t, sharings[0], 6)
	other, out := process(t, "locker", c.path)
	if !out.Scan() || out.Text() != "locked <nil>" {
		t.Fatal(out.Text())
	}
	left, leave := context.WithCancel(t.Context())
	defer leave()
	c.members[0].ctx, c.members[1].ctx = left, left
	c.write(0)
	c.write(1)
	awaitWaiting(c.path, 2)
	leave()
	awaitWaiting(c.path, 0)
	first, end := context.WithCancel(t.Context())
	defer end()
	c.members[2].ctx = first
	c.write(2)
	awaitWaiting(c.path, 1)
	for i := 3; i < 6; i++ {
		c.write(i)
	}
	awaitWaiting(c.path, 4)
	end()
	<-c.members[2].done
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.finish()
	c.check(1, func(i int) string {
		if i < 3 {
			return "locked by another process: context canceled"
		}
		return ""
	})
}

// TestTwoWritesOfOneCredentialAreNotMixed, such as a rotation's and the reconciler's: the
// second one judges by what the first one wrote.
func TestTwoWritesOfOneCredentialAreNotMixed(t *testing.T) {
	c := newCrowd(t, sharings[0], 3)
	c.start()
	again := newMember(t.Context(), 1)
	again.want.Password = secret.New("newer-01")
	var judged string
	again.guard.Admit = func(held []Content) error { judged = held[0].Password.Reveal(); return nil }
	c.all.Go(func() { again.changed, again.err = c.sink(1).Write(t.Context(), again.want, again.guard) })
	awaitWaiting(c.path, 3)
	c.finish()
	if judged != "new-01" || again.err != nil || !again.changed || c.members[1].err != nil || c.replaced() != 3 {
		t.Errorf("judged by %q: %v, %v", judged, again.err, c.members[1].err)
	}
	holds(t, c.sink(1), again.want)
}

func TestCredentialThatAnotherOverwritesIsNotToldThatItWasWritten(t *testing.T) {
	s := sharings[0] // what pawl.yaml refuses
	s.entry = func(path string, i int) inventory.Sink {
		return inventory.Sink{Dotenv: &inventory.Dotenv{Path: path, Password: fmt.Sprintf("P%02d", min(i, 1))}}
	}
	c := newCrowd(t, s, 3)
	c.start()
	c.finish()
	for i := 1; i < 3; i++ {
		told := c.members[i].err == nil
		if held := strings.Contains(get(t, c.path), fmt.Sprintf("P01=new-%02d", i)); held != told || !told && !IsRefusal(c.members[i].err) {
			t.Errorf("%d: held %v, %v", i, held, c.members[i].err)
		}
	}
}
