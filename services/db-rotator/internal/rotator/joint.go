package rotator

import (
	"context"
	"errors"
	"sync"
	"time"
)

// joint runs one kind of work on one server for everybody who asks: whoever asks while
// it runs shares the next run. A thousand emergencies so cost the server a few runs,
// however they come.
type joint[Q, A any] struct {
	// run answers all questions at once, in their order. If it fails, it may return what it
	// has seen of each all the same.
	run    func(ctx context.Context, questions []Q) ([]A, error)
	most   int           // of a run, so that one of them holds few locks and ends soon
	within time.Duration // a run ends

	mu      sync.Mutex
	running bool
	waiting []*asked[Q, A]
}

// asked is a question, and its answer once answered is closed.
type asked[Q, A any] struct {
	question Q
	alive    context.Context
	answered chan struct{}
	answer   A
	err      error
}

var errUnanswered = errors.New("not every question was answered")

// ask returns the answer of a run that begins after the call. A question whose ctx has
// ended before its run began is not asked; one that has been asked may take effect all
// the same.
func (j *joint[Q, A]) ask(ctx context.Context, question Q) (answer A, err error) {
	mine := &asked[Q, A]{question: question, alive: ctx, answered: make(chan struct{})}
	j.mu.Lock()
	j.waiting = append(j.waiting, mine)
	if !j.running {
		j.running = true
		go j.runAll()
	}
	j.mu.Unlock()
	select {
	case <-mine.answered:
		return mine.answer, mine.err
	case <-ctx.Done():
		return answer, ctx.Err()
	}
}

// runAll runs until nobody waits.
func (j *joint[Q, A]) runAll() {
	for {
		j.mu.Lock()
		if len(j.waiting) == 0 {
			j.running = false
			j.mu.Unlock()
			return
		}
		now := j.waiting[:min(len(j.waiting), j.most)]
		j.waiting = j.waiting[len(now):]
		j.mu.Unlock()
		j.runOnce(now)
	}
}

func (j *joint[Q, A]) runOnce(now []*asked[Q, A]) {
	var due []*asked[Q, A]
	var questions []Q
	for _, a := range now {
		if a.alive.Err() == nil { // else nobody waits for it
			due, questions = append(due, a), append(questions, a.question)
		}
	}
	if len(due) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.within)
	defer cancel()
	answers, err := j.run(ctx, questions)
	if err == nil && len(answers) != len(questions) {
		err = errUnanswered
	}
	for i, a := range due {
		if a.err = err; i < len(answers) {
			a.answer = answers[i]
		}
		close(a.answered)
	}
}

// crowd counts the emergencies that are at a server at the same time.
type crowd struct {
	mu sync.Mutex
	at map[string]*party
}

type party struct {
	many int
	gone chan struct{} // closed once none of them is left
}

// enter counts one more until leave.
func (c *crowd) enter(server string) (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = map[string]*party{}
	}
	p := c.at[server]
	if p == nil {
		p = &party{gone: make(chan struct{})}
		c.at[server] = p
	}
	p.many++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if p.many--; p.many == 0 {
			delete(c.at, server)
			close(p.gone)
		}
	}
}

// isOne reports whether there is no more than one of them.
func (c *crowd) isOne(server string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[server] == nil || c.at[server].many <= 1
}

// awaitNone waits until none is left, or until ctx ends.
func (c *crowd) awaitNone(ctx context.Context, server string) {
	c.mu.Lock()
	p := c.at[server]
	c.mu.Unlock()
	if p == nil {
		return
	}
	select {
	case <-p.gone:
	case <-ctx.Done():
	}
}
