// Package bustest is a NATS server for tests, in the test's own process or in
// another one that can be killed: file storage, every write synced, Pawl's
// streams, and its users with the permissions they have in production.
package bustest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// Server is a running server.
type Server struct {
	URL  string
	dir  string
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
	s.URL = nats.ClientURL()
	return s
}

// Connect joins as one of bus.Users, until the test ends.
func (s *Server) Connect(t *testing.T, user string) *bus.Bus {
	t.Helper()
	seed, err := bus.LoadSeed(bus.SeedFile(at(s.dir), user))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.Connect(bus.ConnectOptions{URL: s.URL, User: user, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.NATS.Close)
	return b
}

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

// Kill sends SIGKILL to the server's process, and waits for its end.
func (s *Server) Kill() { s.stop() }

func at(dir string) *inventory.Inventory {
	return &inventory.Inventory{DataDir: filepath.Join(dir, "data"), KeysDir: filepath.Join(dir, "keys")}
}

// serve makes what is missing in the folder and listens on a free port.
func serve(dir string) (*server.Server, error) {
	if _, err := bus.CreateSeeds(at(dir)); err != nil {
		return nil, err
	}
	account := server.NewAccount("PAWL")
	var users []*server.NkeyUser
	for _, name := range bus.Users {
		seed, err := bus.LoadSeed(bus.SeedFile(at(dir), name))
		if err != nil {
			return nil, err
		}
		pair, err := nkeys.FromSeed(seed)
		if err != nil {
			return nil, err
		}
		public, err := pair.PublicKey()
		if err != nil {
			return nil, err
		}
		p := bus.PermissionsFor(name)
		users = append(users, &server.NkeyUser{Nkey: public, Account: account, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: p.Publish}, Subscribe: &server.SubjectPermission{Allow: p.Subscribe}}})
	}
	nats, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: filepath.Join(dir, "nats"),
		SyncAlways: true, JetStreamCipher: server.ChaCha, JetStreamKey: "a key for tests", Accounts: []*server.Account{account}, Nkeys: users})
	if err != nil {
		return nil, err
	}
	nats.Start()
	if !nats.ReadyForConnections(15 * time.Second) {
		return nil, fmt.Errorf("NATS did not start within 15 s")
	}
	if found, err := nats.LookupAccount(account.Name); err != nil {
		return nil, err
	} else if !found.JetStreamEnabled() {
		if err := found.EnableJetStream(map[string]server.JetStreamAccountLimits{"": {MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1}}, nil); err != nil {
			return nil, err
		}
	}
	seed, err := bus.LoadSeed(bus.SeedFile(at(dir), bus.Provisioner))
	if err != nil {
		return nil, err
	}
	b, err := bus.Connect(bus.ConnectOptions{URL: nats.ClientURL(), User: bus.Provisioner, Seed: seed})
	if err != nil {
		return nil, err
	}
	defer b.NATS.Close()
	return nats, bus.Provision(context.Background(), b.JetStream, bus.Settings{Replicas: 1, AckWait: time.Second})
}
