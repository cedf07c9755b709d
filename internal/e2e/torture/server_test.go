// Package torture kills the embedded server again and again while messages are
// stored, and looks whether each one that was acknowledged is there afterwards.
package torture

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/telemetry"
)

var (
	full  = flag.Bool("full", false, "2,000 kills and 50 power cuts, not a sample")
	seed  = flag.Uint64("seed", 0, "of the sample; 0: a new one, which is printed")
	kills = flag.Int("kills", 0, "how many kills; 0: as -full says")
)

// child names, in the environment, the folder and the address that a child process
// serves.
const child = "PAWL_TORTURE"

func TestMain(m *testing.M) {
	if at := os.Getenv(child); at != "" {
		serve(at)
	}
	os.Exit(m.Run())
}

// serve starts the server as `pawl up` does, and runs until it is killed.
func serve(at string) {
	dir, address, _ := strings.Cut(at, "@")
	_, err := embedded.Start(context.Background(), embedded.Options{Inventory: inventoryOf(dir, address), Log: telemetry.NewLogger(os.Stderr, "nats", slog.LevelWarn)})
	if err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	select {} // until it is killed
}

func inventoryOf(dir, address string) *inventory.Inventory {
	return &inventory.Inventory{DataDir: filepath.Join(dir, "data"), KeysDir: filepath.Join(dir, "keys"), NATS: inventory.NATS{Listen: address}}
}

func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d (again with -args -seed %d)", s, s)
	return rand.New(rand.NewPCG(s, 0))
}

// process is a server in a process of its own.
type process struct {
	cmd   *exec.Cmd
	ready chan struct{} // closed when clients are let in, or it has ended
	ended chan struct{}
	says  string // when it has ended: why it refused to start
}

// start starts the server, as an argument of the command if one is given.
func start(t *testing.T, dir, address string, command ...string) *process {
	t.Helper()
	argv := append(command, os.Args[0])
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), ready: make(chan struct{}), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), child+"="+dir+"@"+address)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stderr = log
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		lines.Scan()
		p.says = lines.Text()
		close(p.ready)
		_ = p.cmd.Wait() // killed, as it says
	}()
	t.Cleanup(p.kill)
	return p
}

// up waits until clients are let in.
func (p *process) up() error {
	<-p.ready
	if p.says != "ready" {
		return fmt.Errorf("the server did not start: %s", p.says)
	}
	return nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// join connects as a user.
func join(dir, address, user string) (*bus.Bus, error) {
	seed, err := bus.LoadSeed(bus.SeedFile(inventoryOf(dir, address), user))
	if err != nil {
		return nil, err
	}
	return bus.Connect(bus.ConnectOptions{URL: "nats://" + address, User: user, Seed: seed, Log: slog.New(slog.DiscardHandler)})
}
