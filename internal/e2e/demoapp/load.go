package main

import (
	"context"
	"errors"
	"log"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// concurrent bounds the logins under way at once.
const concurrent = 20

// Counts of the logins opened under load.
type Counts struct {
	Attempted int `json:"attempted"`
	Failed    int `json:"failed"` // refused by PostgreSQL: wrong password, or may not log in
	Broken    int `json:"broken"` // failed in another way
}

// load opens new logins at a fixed rate between start and stop.
type load struct {
	rate int // a second

	mu     sync.Mutex
	cancel context.CancelFunc
	ended  chan struct{}
	count  Counts
}

func (l *load) start(logIn func(context.Context) error) {
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.ended, l.count = cancel, make(chan struct{}), Counts{}
	go l.run(ctx, logIn, l.ended)
}

// stop lets the logins under way end, and returns the counts.
func (l *load) stop() Counts {
	l.mu.Lock()
	cancel, ended := l.cancel, l.ended
	l.cancel = nil
	l.mu.Unlock()
	if cancel != nil {
		cancel()
		<-ended
	}
	return l.counts()
}

func (l *load) counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

func (l *load) run(ctx context.Context, logIn func(context.Context) error, ended chan<- struct{}) {
	defer close(ended)
	tick := time.NewTicker(time.Second / time.Duration(l.rate))
	defer tick.Stop()
	slots := make(chan struct{}, concurrent)
	var underWay sync.WaitGroup
	defer underWay.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		slots <- struct{}{}
		underWay.Go(func() {
			defer func() { <-slots }()
			// Not ctx: a login that has begun is seen to its end.
			l.record(logIn(context.Background()))
		})
	}
}

func (l *load) record(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count.Attempted++
	answer := new(pgconn.PgError)
	switch {
	case err == nil:
	case errors.As(err, &answer) && (answer.Code == "28P01" || answer.Code == "28000"):
		l.count.Failed++
		log.Print("new login: ", refusal(err))
	default:
		l.count.Broken++
		log.Print("new login: ", refusal(err))
	}
}

// refusal is what PostgreSQL said, without the configuration that pgx adds.
func refusal(err error) string {
	if answer := new(pgconn.PgError); errors.As(err, &answer) {
		return answer.Message + " (SQLSTATE " + answer.Code + ")"
	}
	if failed := new(pgconn.ConnectError); errors.As(err, &failed) && failed.Unwrap() != nil {
		return failed.Unwrap().Error()
	}
	return err.Error()
}
