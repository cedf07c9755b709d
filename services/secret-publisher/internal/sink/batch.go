package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// A file may hold the logins of many credentials. Those that become due while
// another write has the file are gathered, and one replacement writes them all.
// It is this process alone that gathers; the lock on the directory still keeps
// other processes out.

// part is what one credential wants of a file.
type part struct {
	ctx   context.Context
	file  *file
	want  Content
	guard Guard
	late  error // of its last StillDue

	// mu is held while a function of the guard runs, and from the last look to the
	// end of the replacement. A caller that leaves takes it first, so that nothing is
	// done for the part after Write has returned.
	mu   sync.Mutex
	left bool
	// done is closed once changed and err are final.
	done    chan struct{}
	changed bool
	err     error
}

// ask calls a function of the guard, unless the caller has left.
func (p *part) ask(f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left {
		return context.Canceled // nobody reads it
	}
	return f()
}

func (p *part) settle(changed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settleLocked(changed, err)
}

func (p *part) settleLocked(changed bool, err error) {
	p.changed, p.err = changed, err
	close(p.done)
}

// leave reports whether the caller was in time: the part is neither written nor refused,
// and never will be.
func (p *part) leave() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
		p.left = true
		return true
	}
}

// queue is what waits for one file.
type queue struct {
	waiting []*part
	writing bool               // for parts that were taken
	giveUp  context.CancelFunc // ends the wait for the lock; nil: not begun
}

// take returns what waits, at most one part of each credential: two of one could
// contradict each other.
func (q *queue) take() (parts []*part) {
	taken := map[string]bool{}
	q.waiting = slices.DeleteFunc(q.waiting, func(p *part) bool {
		if taken[p.file.credential] {
			return false
		}
		taken[p.file.credential] = true
		parts = append(parts, p)
		return true
	})
	return parts
}

// queues are those of the files that this process is writing, by path.
type queues struct {
	mu sync.Mutex
	of map[string]*queue
}

var writes = queues{of: map[string]*queue{}}

// write begins at once if nobody in this process writes the file, and otherwise joins
// those that wait. It returns when the part is settled or its context ends. It decides
// for its own part only: the others are written all the same.
func (all *queues) write(p *part) (changed bool, err error) {
	all.mu.Lock()
	q, busy := all.of[p.file.path]
	if !busy {
		q = &queue{}
		all.of[p.file.path] = q
	}
	q.waiting = append(q.waiting, p)
	all.mu.Unlock()
	if !busy {
		go all.serve(p.file.path, q)
	}
	select {
	case <-p.done:
	case <-p.ctx.Done():
		if p.leave() {
			return false, all.abandon(q, p)
		}
	}
	return p.changed, p.err
}

func (all *queues) abandon(q *queue, p *part) error {
	all.mu.Lock()
	defer all.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(w *part) bool { return w == p })
	if q.writing {
		return fmt.Errorf("%s was not written in time: %w", p.file.path, p.ctx.Err())
	}
	if len(q.waiting) == 0 && q.giveUp != nil {
		q.giveUp()
	}
	return fmt.Errorf("%s: its directory is locked by another process: %w", p.file.path, p.ctx.Err())
}

// serve writes the file until nobody waits for it.
func (all *queues) serve(path string, q *queue) {
	for {
		all.mu.Lock()
		if len(q.waiting) == 0 {
			delete(all.of, path)
			all.mu.Unlock()
			return
		}
		// No caller's context: each may end while others wait.
		ctx, cancel := context.WithCancel(context.Background())
		q.writing, q.giveUp = false, cancel
		all.mu.Unlock()

		t, old, err := lockTarget(ctx, path)

		all.mu.Lock()
		q.writing = true
		var parts []*part
		if err == nil || ctx.Err() == nil {
			parts = q.take()
		} // else all have left; who came since then is next
		all.mu.Unlock()
		cancel()
		if err == nil {
			writeParts(t, old, parts)
			continue
		}
		for _, p := range parts {
			p.settle(false, err)
		}
	}
}

// lockTarget returns the file, which nobody else can write until close, and what it
// holds.
func lockTarget(ctx context.Context, path string) (*target, []byte, error) {
	t, err := openTarget(path)
	if err != nil {
		return nil, nil, err
	}
	var old []byte
	if err = t.lock(ctx); err == nil {
		err = t.clean()
	}
	if err == nil {
		old, err = t.read()
	}
	if err != nil {
		t.close()
		return nil, nil, err
	}
	return t, old, nil
}

// writeParts settles each part, and closes the target. One that is refused keeps no other
// from the file.
func writeParts(t *target, old []byte, parts []*part) {
	defer t.close()
	parts = those(parts, func(p *part) bool { return p.prepare(t, old) })
	for len(parts) > 0 {
		parts = replaceFor(t, old, parts)
	}
}

// those returns the parts for which f is true. It asks all at the same time: each may
// wait for a disk or the bus. They are no more than a service's workers.
func those(parts []*part, f func(*part) bool) (found []*part) {
	is := make([]bool, len(parts))
	var asked sync.WaitGroup
	for i, p := range parts {
		asked.Go(func() { is[i] = f(p) })
	}
	asked.Wait()
	for i, p := range parts {
		if is[i] {
			found = append(found, p)
		}
	}
	return found
}

// prepare judges the part by what the file holds, and backs that up. False: the part is
// settled, as it is in the file already or cannot be written.
func (p *part) prepare(t *target, old []byte) bool {
	if logins, err := p.file.format.read(old); err == nil && p.want.in(logins) == nil {
		// Maybe by a predecessor that died before this.
		p.settle(false, t.dir.Sync())
		return false
	}
	_, err := p.render(t, old)
	var held []Content
	if err == nil {
		held, err = p.file.held(old)
	}
	if err == nil {
		err = p.ask(func() error { return p.guard.Admit(held) })
	}
	if err == nil {
		err = p.ask(func() error { return p.guard.Backup(p.ctx, old) })
	}
	if err != nil {
		p.settle(false, err)
	}
	return err == nil
}

func (p *part) render(t *target, old []byte) ([]byte, error) {
	next, err := p.file.render(old, p.want)
	if err != nil {
		return nil, err
	}
	return next, t.refusal(len(next))
}

// replaceFor replaces the file once with what all parts want. It returns those that are
// to be tried once more, as another one fell out and nothing was written.
func replaceFor(t *target, old []byte, parts []*part) (again []*part) {
	next := old
	fits := func(p *part) bool {
		rendered, err := p.render(t, next)
		if err != nil {
			p.settle(false, err)
			return false
		}
		next = rendered
		return true
	}
	parts = slices.DeleteFunc(parts, func(p *part) bool { return !fits(p) })
	whole := those(parts, func(p *part) bool { return p.readsBack(next) })
	if len(whole) < len(parts) || len(parts) == 0 {
		return whole
	}
	var ready []*part
	err := t.replace(next, cmp.Or(parts[0].file.mode, 0o600), func() error {
		ready = those(parts, (*part).stillDue)
		ready = slices.DeleteFunc(ready, func(p *part) bool { return !p.hold() })
		if len(ready) < len(parts) {
			return errFewer
		}
		return nil
	})
	if errors.Is(err, errFewer) {
		for _, p := range ready {
			p.mu.Unlock()
		}
		for _, p := range parts {
			if p.late != nil { // told only now, when nothing half-done lies there any more
				p.settle(false, fmt.Errorf("%s: %w", t.path(), p.late))
			}
		}
		return ready
	}
	t.close() // what a caller writes next may lie in the same directory
	for _, p := range parts {
		if len(ready) == 0 { // the disk failed before anybody was asked
			p.mu.Lock()
		}
		p.settleLocked(err == nil, err)
		p.mu.Unlock()
	}
	return nil
}

var errFewer = errors.New("a part fell out")

// readsBack settles a part that another one would overwrite.
func (p *part) readsBack(next []byte) bool {
	logins, err := p.file.format.read(next)
	if err == nil {
		err = p.want.in(logins)
	}
	if err != nil {
		p.settle(false, refuse("%s: another credential writes the same place: give each a key of its own", p.file.path))
	}
	return err == nil
}

func (p *part) stillDue() bool {
	p.late = p.ask(func() error { return p.guard.StillDue(p.ctx) })
	return p.late == nil
}

// hold keeps the caller from leaving, until mu is given back.
func (p *part) hold() bool {
	p.mu.Lock()
	if p.left {
		p.mu.Unlock()
		return false
	}
	return true
}
