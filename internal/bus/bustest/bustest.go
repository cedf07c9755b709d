// Package bustest is a NATS server for tests, in the test's own process or in
// another one that can be killed: file storage, every write synced, Pawl's
// streams, and its users with the permissions they have in production.
package bustest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
)

// Server is a running server.
type Server struct {
	URL  string
	dir  string
	nats *server.Server // nil in a process of its own
	stop func()
}

// Start starts a server in this process, until the test ends.
func Start(t *testing.T) *Server {
	t.Helper()
	s := &Server{dir: t.TempDir()}
	nats, err := serve(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nats.Shutdown(); nats.WaitForShutdown() })
	s.URL, s.nats = nats.ClientURL(), nats
	return s
}

// ReplaceKey gives a user another key, by a reload of the server's configuration.
func (s *Server) ReplaceKey(t *testing.T, user string) {
	t.Helper()
	if err := os.Remove(s.SeedFile(user)); err != nil {
		t.Fatal(err)
	}
	options, err := configure(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	options.Port = s.nats.Addr().(*net.TCPAddr).Port
	if err := s.nats.ReloadOptions(options); err != nil {
		t.Fatal(err)
	}
}

// Connect joins as one of bus.Users, until the test ends.
func (s *Server) Connect(t *testing.T, user string) *bus.Bus {
	t.Helper()
	return s.ConnectWith(t, user, nil)
}

// ConnectWith is Connect for a user that tells of full streams.
func (s *Server) ConnectWith(t *testing.T, user string, conditions *condition.Set) *bus.Bus {
	t.Helper()
	seed, err := bus.LoadSeed(bus.SeedFile(at(s.dir), user))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(bus.ConnectOptions{URL: s.URL, User: user, Seed: seed, Conditions: conditions})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.NATS.Close)
	return b
}

// SeedFile is where a user's seed lies, for a client in another process.
func (s *Server) SeedFile(user string) string { return bus.SeedFile(at(s.dir), user) }

// child names, in the environment, the folder that a child process serves.
const child = "PAWL_BUSTEST"

// Main is TestMain's of a test that kills servers.
func Main(m *testing.M) {
	dir := os.Getenv(child)
	if dir == "" {
		os.Exit(m.Run())
	}
	nats, err := serve(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(nats.ClientURL())
	nats.WaitForShutdown() // for ever: it dies with the test, see StartProcess
}

// StartProcess starts a server on the folder in a process of its own, which
// Kill ends without warning. The package's TestMain must be Main.
func StartProcess(t *testing.T, dir string) *Server {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), child+"="+dir), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: dir, stop: func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed, as it says
	}}
	t.Cleanup(s.stop)
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the server did not start")
	}
	s.URL = lines.Text()
	return s
}

// FreeAddress is one on loopback where nobody listens at this moment.
func FreeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Kill sends SIGKILL to the server's process, and waits for its end.
func (s *Server) Kill() { s.stop() }

func at(dir string) *inventory.Inventory {
	return &inventory.Inventory{DataDir: filepath.Join(dir, "data"), KeysDir: filepath.Join(dir, "keys"),
		Alerts: inventory.Alerts{Rules: []inventory.AlertRule{{Source: "siem"}}}}
}

// StartThree starts a cluster of three servers in this process, each of which has
// every stream, until the test ends.
func StartThree(t *testing.T) (three [3]*Server) {
	t.Helper()
	dir, routes := t.TempDir(), freeAddresses(t, len(three))
	var started [len(three)]*server.Server
	for i := range three {
		options, err := configure(dir)
		if err != nil {
			t.Fatal(err)
		}
		options.ServerName = fmt.Sprintf("nats-%d", i+1)
		options.StoreDir = filepath.Join(dir, options.ServerName)
		port, err := strconv.Atoi(routes[i].Port())
		if err != nil {
			t.Fatal(err)
		}
		options.Cluster, options.Routes = server.ClusterOpts{Name: "pawl", Host: routes[i].Hostname(), Port: port}, routes
		nats, err := server.NewServer(options)
		if err != nil {
			t.Fatal(err)
		}
		nats.Start()
		t.Cleanup(func() { nats.Shutdown(); nats.WaitForShutdown() })
		started[i], three[i] = nats, &Server{dir: dir}
	}
	for i, nats := range started { // with each other
		if err := ready(nats); err != nil {
			t.Fatal(err)
		}
		three[i].URL = nats.ClientURL()
	}
	for last := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // who has no leader yet does not answer
		err := provision(ctx, dir, three[0].URL, len(three))
		cancel()
		if err == nil {
			return three
		}
		if t.Context().Err() != nil || time.Now().After(last) {
			t.Fatal(err)
		}
	}
}

func freeAddresses(t *testing.T, n int) (all []*url.URL) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // with the others, so that they differ
		all = append(all, &url.URL{Scheme: "nats", Host: l.Addr().String()})
	}
	return all
}

// serve makes what is missing in the folder and listens on a free port, or on the
// one on which the folder was served before.
func serve(dir string) (*server.Server, error) {
	options, err := configure(dir)
	if err != nil {
		return nil, err
	}
	if port, err := strconv.Atoi(readIfThere(filepath.Join(dir, "port"))); err == nil {
		options.Port = port
	}
	nats, err := server.NewServer(options)
	if err != nil {
		return nil, err
	}
	nats.Start()
	if err := ready(nats); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "port"), []byte(strconv.Itoa(nats.Addr().(*net.TCPAddr).Port)), 0o600); err != nil {
		return nil, err
	}
	return nats, provision(context.Background(), dir, nats.ClientURL(), 1)
}

// configure makes the users that are missing in the folder.
func configure(dir string) (*server.Options, error) {
	if _, err := bus.CreateSeeds(at(dir)); err != nil {
		return nil, err
	}
	options := &server.Options{}
	accounts, err := bus.Accounts(at(dir))
	if err == nil {
		err = options.ProcessConfigString(accounts)
	}
	options.Host, options.Port, options.NoSigs, options.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
	options.JetStream, options.StoreDir, options.SyncAlways = true, filepath.Join(dir, "nats"), true
	options.JetStreamMaxStore = 1 << 50 // whatever the disk has: the limits of all streams fit
	options.JetStreamCipher, options.JetStreamKey = server.ChaCha, "a key for tests"
	return options, err
}

func ready(nats *server.Server) error {
	if !nats.ReadyForConnections(15 * time.Second) {
		return errors.New("NATS did not start within 15 s")
	}
	return nil
}

func provision(ctx context.Context, dir, url string, replicas int) error {
	seed, err := bus.LoadSeed(bus.SeedFile(at(dir), bus.Provisioner))
	if err != nil {
		return err
	}
	b, err := bus.Connect(bus.ConnectOptions{URL: url, User: bus.Provisioner, Seed: seed})
	if err != nil {
		return err
	}
	defer b.NATS.Close()
	return bus.Provision(ctx, b.JetStream, bus.Settings{Replicas: replicas, AckWait: time.Second})
}

func readIfThere(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return string(text)
}
