package site

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/published"
	"pawl.dev/internal/secret"
)

// Apps are small applications, one per credential, that hold a session with
// the published credential and read it anew when told to over HTTP.
type Apps struct {
	server *httptest.Server
	site   *Site

	mu       sync.Mutex
	sessions map[string]*pgx.Conn
	pools    map[string]*Pool
	shared   map[string][]string // by application: the credentials that it uses
	restarts map[string]int      // by credential, or by application
}

// NewApps listens; give RestartYAML's result to the credentials, then Use and Start.
func NewApps() *Apps {
	a := &Apps{sessions: map[string]*pgx.Conn{}, pools: map[string]*Pool{}, shared: map[string][]string{}, restarts: map[string]int{}}
	a.server = httptest.NewServer(http.HandlerFunc(a.restart))
	return a
}

// RestartYAML is the restart entry of a credential's application.
func (a *Apps) RestartYAML(credential string) string {
	return fmt.Sprintf("{http: {url: %q}}", a.server.URL+"/restart/"+credential)
}

// Share makes the credentials those of one application, which reads them all
// when it is restarted; its name is that of the consumer.
func (a *Apps) Share(application string, credentials ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shared[application] = credentials
}

// Restarts is how often an application was restarted.
func (a *Apps) Restarts(application string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.restarts[application]
}

// Use tells the applications where their .env files are.
func (a *Apps) Use(s *Site) { a.site = s }

// Start opens the application's session; Stop closes it.
func (a *Apps) Start(ctx context.Context, credential string) error {
	if err := a.reopen(ctx, credential); err != nil {
		return fmt.Errorf("application of %s: %w", credential, err)
	}
	return nil
}

// Stop closes the application's session.
func (a *Apps) Stop(ctx context.Context, credential string) {
	a.mu.Lock()
	conn := a.sessions[credential]
	delete(a.sessions, credential)
	a.mu.Unlock()
	if conn != nil {
		_ = conn.Close(ctx) // it may have been cut already
	}
}

// Close ends the applications.
func (a *Apps) Close() {
	a.server.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, conn := range a.sessions {
		_ = conn.Close(context.Background()) // the server may be gone already
	}
}

func (a *Apps) restart(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/restart/")
	a.mu.Lock()
	a.restarts[name]++
	a.mu.Unlock()
	if err := a.reopen(r.Context(), name); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// reopen has an application read its credentials: that of its name, or those
// that it shares.
func (a *Apps) reopen(ctx context.Context, name string) error {
	a.mu.Lock()
	credentials, shared := a.shared[name]
	pool := a.pools[name]
	a.mu.Unlock()
	if pool != nil {
		return pool.reopen(ctx)
	}
	if !shared {
		return a.login(ctx, name, name+"-app")
	}
	var failed error
	for _, c := range credentials {
		failed = errors.Join(failed, a.login(ctx, c, name))
	}
	return failed
}

func (a *Apps) login(ctx context.Context, credential, application string) error {
	conn, err := a.site.LoginPublished(ctx, credential, application)
	if err != nil {
		return err
	}
	a.mu.Lock()
	old := a.sessions[credential]
	a.sessions[credential] = conn
	a.mu.Unlock()
	if old != nil {
		_ = old.Close(ctx) // it may have been cut already
	}
	return nil
}

// Published reads what the credential's .env says now.
func (s *Site) Published(credential string) (inventory.Login, error) {
	return published.Read(inventory.Sink{Dotenv: &inventory.Dotenv{Path: s.Env(credential), User: "DB_USER", Password: "DB_PASSWORD"}})
}

// LoginPublished logs in to the first node as the .env says.
func (s *Site) LoginPublished(ctx context.Context, credential, application string) (*pgx.Conn, error) {
	login, err := s.Published(credential)
	if err != nil {
		return nil, err
	}
	return LoginAt(ctx, s.Nodes[0].Direct(), login, application)
}

// LoginAt logs in to a server, or to what stands before it.
func LoginAt(ctx context.Context, at inventory.Node, l inventory.Login, application string) (*pgx.Conn, error) {
	return postgres.Login(ctx, postgres.Target{Host: at.Host, Port: at.Port, Database: "postgres",
		User: l.User, Password: l.Password, SSLMode: "disable", ApplicationName: application})
}

// Oracle logs in with the published credential, over and over, and remembers
// each refusal: the live proof that a published credential works.
type Oracle struct {
	Logins   int
	Refusals []string
	// Outage is the longest time between two logins that worked, if any in
	// between was refused.
	Outage time.Duration
	// Seen is every password that was published meanwhile.
	Seen []secret.String

	stop context.CancelFunc
	done chan struct{}
}

// Watch is WatchAt the first node.
func (s *Site) Watch(ctx context.Context, credential string, every, patience time.Duration) *Oracle {
	return s.WatchAt(ctx, s.Nodes[0].Direct(), credential, every, patience)
}

// WatchAt starts an oracle. patience is how old a reading of the .env may be
// before its refusal is no longer held against the rotation, if another
// credential has been published since: the drain window.
func (s *Site) WatchAt(ctx context.Context, at inventory.Node, credential string, every, patience time.Duration) *Oracle {
	ctx, stop := context.WithCancel(ctx)
	o := &Oracle{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		var refusedSince time.Time
		for {
			read := time.Now()
			login, err := s.Published(credential)
			if err == nil {
				if len(o.Seen) == 0 || !o.Seen[len(o.Seen)-1].Equal(login.Password) {
					o.Seen = append(o.Seen, login.Password)
				}
				var conn *pgx.Conn
				conn, err = LoginAt(ctx, at, login, "oracle")
				if err == nil {
					_ = conn.Close(ctx) // the login is what counts
					o.Logins++
				}
			}
			switch {
			case ctx.Err() != nil:
				return
			case postgres.IsRefused(err, "28P01", "28000"):
				now, readErr := s.Published(credential)
				if readErr == nil && now.Password.Equal(login.Password) || time.Since(read) < patience {
					o.Refusals = append(o.Refusals, fmt.Sprintf("%s: %v", time.Now().Format(time.StampMicro), err))
				}
				if refusedSince.IsZero() {
					refusedSince = read
				}
			case err == nil && !refusedSince.IsZero():
				o.Outage = max(o.Outage, time.Since(refusedSince))
				refusedSince = time.Time{}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return o
}

// Stop ends the oracle; only then may its fields be read.
func (o *Oracle) Stop() {
	o.stop()
	<-o.done
}
