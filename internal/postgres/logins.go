package postgres

import (
	"context"
	"sync"
	"time"

	"pawl.dev/internal/inventory"
)

// lookEvery is how often the file of an account that Pawl turns is read: so
// long may idle sessions of its old login stay.
const lookEvery = 500 * time.Millisecond

// tryAgain is how long a login that is not the file's stands in for it before
// that is tried again: a standby that lagged may have it by now. Each try that
// fails is a line in the server's log.
const tryAgain = time.Minute

// Others returns the logins that the account of a credential may have beside
// the one in its file, the likeliest first.
type Others func(ctx context.Context, credential string) ([]inventory.Login, error)

// attempt logs in once.
type attempt func(context.Context, inventory.Login) error

// logins decides what an account's sessions are opened with.
type logins struct {
	account inventory.Account
	others  Others // nil: none
	moved   func() // ends the sessions of the login before

	searching sync.Mutex // one at a time: each refusal is a line in the server's log

	mu     sync.Mutex
	proven inventory.Login // what a session was last opened with; zero: none was
	file   inventory.Login // what the file said when it was last read; zero: never
	use    inventory.Login // that, or what was found to work instead
	at     time.Time       // when it was found, or the file's last tried
}

// look reads the file. What it says anew wins over what worked before; where it
// cannot be read, that stays.
func (l *logins) look() (inventory.Login, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	login, err := l.account.Login()
	if err != nil {
		if l.use.User != "" {
			err = nil
		}
		return l.use, err
	}
	if !same(login, l.file) {
		moved := l.use.User != "" && !same(login, l.use)
		l.file, l.use = login, login
		if moved {
			l.moved()
		}
	}
	return l.use, nil
}

// prove remembers what a session was opened with.
func (l *logins) prove(login inventory.Login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proven = login
}

// check reads the file, and tries what it holds unless a session was opened with
// that.
func (l *logins) check(ctx context.Context, try attempt) error {
	login, err := l.account.Login()
	if err != nil {
		return &hint{err, "open sessions do without, the next cannot: write it there"}
	}
	l.mu.Lock()
	proven := same(login, l.proven)
	l.mu.Unlock()
	if proven {
		return nil
	}
	if err = try(ctx, login); err == nil {
		l.prove(login)
	}
	return err
}

// inUse returns what the next session is opened with, as far as is known
// without reading the file again; zero where nothing is.
func (l *logins) inUse() inventory.Login {
	l.mu.Lock()
	use := l.use
	l.mu.Unlock()
	if use.User == "" {
		use, _ = l.look() // the session that is then opened says what is wrong
	}
	return use
}

// search looks for a login that the server accepts, after it refused one (zero:
// there was none to try). It reports whether there is another to use now.
func (l *logins) search(ctx context.Context, refused inventory.Login, try attempt) bool {
	if l.others == nil || l.account.Credential == "" {
		return false
	}
	l.searching.Lock()
	defer l.searching.Unlock()
	if now, err := l.look(); err == nil && !same(now, refused) {
		return true // written, or found by somebody else, meanwhile
	}
	candidates, err := l.others(ctx, l.account.Credential)
	if err != nil {
		return false
	}
	l.mu.Lock()
	if l.file.User != "" {
		candidates = append([]inventory.Login{l.file}, candidates...)
	}
	l.mu.Unlock()
	for _, candidate := range candidates {
		if same(candidate, refused) {
			continue
		}
		err := try(ctx, candidate)
		if err == nil {
			l.mu.Lock()
			l.use, l.at = candidate, time.Now()
			l.mu.Unlock()
			return true
		}
		if !IsRefused(err, WrongPassword, NoLogin) {
			return false
		}
	}
	return false
}

// back returns to the file's login, where another stands in for it and the
// file's works by now.
func (l *logins) back(ctx context.Context, try attempt) {
	l.mu.Lock()
	file, due := l.file, l.file.User != "" && !same(l.use, l.file) && time.Since(l.at) >= tryAgain
	l.mu.Unlock()
	if !due {
		return
	}
	err := try(ctx, file)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at = time.Now(); err == nil && same(l.file, file) {
		l.use = file
		l.moved()
	}
}

// watch follows the file until ctx ends.
func (l *logins) watch(ctx context.Context, try attempt) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = l.look() // whoever needs a session is told what is wrong
			l.back(ctx, try)
		}
	}
}

func same(a, b inventory.Login) bool { return a.User == b.User && a.Password.Equal(b.Password) }
