package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
)

// poolSize is how many connections the application keeps open.
const poolSize = 4

type app struct {
	source         inventory.Sink
	name           string
	host, database string
	port           uint

	mu   sync.RWMutex
	pool *pgxpool.Pool
	load load
}

// reload opens a pool with the login that the .env holds now, and only then
// closes the old one: the application is never without.
func (a *app) reload(ctx context.Context) error {
	login, err := published.Read(a.source)
	if err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(fmt.Sprintf("%s pool_min_conns=%d pool_max_conns=%d", a.conninfo(), poolSize, poolSize))
	if err != nil {
		return errors.New("pool: invalid configuration") // pgx would quote it
	}
	a.authenticate(config.ConnConfig, login)
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), config) // it outlives who asked for it
	if err != nil {
		return errors.New("pool: cannot be made")
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return fmt.Errorf("log in as %s: %s", login.User, refusal(err))
	}
	a.mu.Lock()
	old := a.pool
	a.pool = pool
	a.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return nil
}

func (a *app) close() {
	a.load.stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool.Close()
}

// logIn opens a connection with what the .env says now, and closes it.
func (a *app) logIn(ctx context.Context) error {
	login, err := published.Read(a.source)
	if err != nil {
		return err
	}
	config, err := pgx.ParseConfig(a.conninfo())
	if err != nil {
		return errors.New("invalid configuration")
	}
	a.authenticate(config, login)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (a *app) conninfo() string {
	return fmt.Sprintf("host=%s port=%d sslmode=disable connect_timeout=5", a.host, a.port)
}

func (a *app) authenticate(config *pgx.ConnConfig, login inventory.Login) {
	config.Database, config.User, config.Password = a.database, login.User, login.Password.Reveal()
	config.RuntimeParams["application_name"] = a.name
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		a.mu.RLock()
		defer a.mu.RUnlock()
		if _, err := a.pool.Exec(r.Context(), "SELECT 1"); err != nil {
			http.Error(w, refusal(err), http.StatusServiceUnavailable)
		}
	})
	answer := func(w http.ResponseWriter, c Counts) { _ = json.NewEncoder(w).Encode(c) } // or the client has gone
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if err := a.reload(r.Context()); err != nil {
			log.Print(err) // and go on with the pool there is
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /load", func(w http.ResponseWriter, _ *http.Request) { a.load.start(a.logIn); answer(w, a.load.counts()) })
	mux.HandleFunc("GET /counts", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.load.counts()) })
	mux.HandleFunc("DELETE /load", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.load.stop()) })
	return mux
}
