package service

import (
	"context"
	"slices"
	"sync"
	"time"
)

// How a message waits while another one of its credential is worked on.
const (
	longestWait = time.Minute     // bounds the heartbeats: a step that hangs must not keep the message from other instances
	forAWorker  = time.Second     // once the turn has come: who waits behind it may be urgent, and has workers of its own
	endAgain    = time.Second     // what the message makes moot is ended again: it may have just begun when the message came
	putBackFor  = 5 * time.Second // the message that waits already sees, in the log, what this one is about: no hurry
)

// turns lets one process work on a credential for one message at a time. That is an
// economy, not a guarantee: the compare-and-set is the guarantee.
type turns struct {
	mu      sync.Mutex
	waiting map[string][]turn // by credential that is worked on, the longest wait first
}

// turn is that of a message of a consumer. come is closed once the turn has come.
type turn struct {
	consumer string
	come     chan struct{}
}

// trigger is what a message says of itself: whose it is, and up to which event of the
// log it makes work moot.
type trigger struct {
	credential, consumer string
	seq                  uint64
}

// ask returns the turn of a message; let end follow. ok is false if another message
// of the consumer waits for the credential already: one is enough, since it reads the
// log after the work before it has ended.
func (t *turns) ask(credential, consumer string) (_ turn, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting, busy := t.waiting[credential]
	if slices.ContainsFunc(waiting, func(w turn) bool { return w.consumer == consumer }) {
		return turn{}, false
	}
	mine := turn{consumer, make(chan struct{})}
	if busy {
		t.waiting[credential] = append(waiting, mine)
		return mine, true
	}
	if t.waiting == nil {
		t.waiting = map[string][]turn{}
	}
	t.waiting[credential] = nil
	close(mine.come)
	return mine, true
}

// end ends a turn, and the next one comes; or it ends the wait for the turn.
func (t *turns) end(credential string, mine turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting := t.waiting[credential]
	switch i := slices.Index(waiting, mine); {
	case i >= 0:
		t.waiting[credential] = slices.Delete(waiting, i, i+1)
	case len(waiting) > 0:
		t.waiting[credential] = waiting[1:]
		close(waiting[0].come)
	default:
		delete(t.waiting, credential)
	}
}

// inTurn handles a message once no other one of its credential is worked on. It is
// called with a worker, and gives it back. A message that waits holds no worker:
// otherwise one credential that hangs would soon hold all of them.
func (l *loop) inTurn(ctx context.Context, m Message, t trigger, workers chan struct{}) {
	mine, ok := l.credentials.ask(t.credential, t.consumer)
	if !ok {
		<-workers
		l.putBack(m, t.credential)
		return
	}
	defer l.credentials.end(t.credential, mine)
	select {
	case <-mine.come:
	default:
		<-workers
		if !l.wait(ctx, m, t, mine, workers) {
			if ctx.Err() == nil { // else another instance, or the next start, gets it
				l.putBack(m, t.credential)
			}
			return
		}
	}
	defer func() { <-workers }()
	l.handle(ctx, m, t.credential)
}

// wait returns true once the turn has come and a worker is taken, false if ctx ends
// or it takes too long. The message stays this process's meanwhile.
func (l *loop) wait(ctx context.Context, m Message, t trigger, mine turn, workers chan struct{}) bool {
	ctx, stop := context.WithTimeout(ctx, longestWait)
	defer stop()
	go m.Heartbeat(ctx)
	again := time.NewTicker(endAgain)
	defer again.Stop()
	for come := false; !come; {
		select {
		case <-mine.come:
			come = true
		case <-again.C:
			l.working.interrupt(t.credential, t.seq)
		case <-ctx.Done():
			return false
		}
	}
	select {
	case workers <- struct{}{}:
		return true
	case <-time.After(forAWorker):
		return false
	case <-ctx.Done():
		return false
	}
}

// putBack has the message delivered again, here or to another instance.
func (l *loop) putBack(m Message, credential string) {
	l.log.Debug("put back: the credential is worked on", "credential", credential, "subject", m.Subject(), "again", putBackFor)
	if err := m.NakWithDelay(putBackFor); err != nil {
		l.log.Warn("message not put back; it will be delivered again", "subject", m.Subject(), "error", err)
	}
}
