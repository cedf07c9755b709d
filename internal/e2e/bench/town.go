package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/template"
	"time"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// town has many credentials, NATS, and a scheduler as a process of its own. It
// has no PostgreSQL: what the other services would do is played.
type town struct {
	dir, file string
	n         int
	port      int
	inventory *inventory.Inventory
	nats      *embedded.Server
	played    *played
	streams   streams
	scheduler *exec.Cmd
	log       *os.File
}

const townClusters = 10

// newTown has every credential adopted but the probes.
func (p *part) newTown(dir string, n int) *town {
	t := &town{dir: dir, file: filepath.Join(dir, "pawl.yaml"), n: n}
	check(os.MkdirAll(dir, 0o700))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	t.port = l.Addr().(*net.TCPAddr).Port
	check(l.Close())
	t.configure(0, 200, 200) // the probes come due together, and none is to wait
	must(embedded.CreateKeys(t.inventory))
	t.nats = must(embedded.Start(p, embedded.Options{Inventory: t.inventory, Log: slog.New(slog.DiscardHandler)}))
	p.later(func() error { t.nats.Stop(); return nil })
	t.streams.Bus = must(t.connect(bus.Provisioner))
	p.later(func() error { t.streams.NATS.Close(); return nil })
	t.played = p.play(t)
	p.later(t.stopScheduler)
	for some := range slices.Chunk(t.names(false), 200) {
		check(t.played.adopt(p, some))
	}
	return t
}

// configure writes and reads pawl.yaml. Its first credentials are the probes;
// overdue of the others have to be turned every minute.
func (t *town) configure(overdue, perCluster, inAll int) {
	type credential struct{ Name, Cluster, Every string }
	var all []credential
	for i := range t.n {
		c := credential{fmt.Sprintf("c-%05d", i), fmt.Sprintf("k-%d", i%townClusters), "365d"}
		switch {
		case i < probes:
			c.Name = fmt.Sprintf("probe-%05d", i)
			if overdue == 0 { // else they have served
				c.Every = "1m"
			}
		case i >= t.n-overdue:
			c.Every = "1m"
		}
		all = append(all, c)
	}
	var text bytes.Buffer
	check(townYAML.Execute(&text, map[string]any{"Port": t.port, "PerCluster": perCluster, "InAll": inAll, "Clusters": townClusters, "All": all}))
	check(os.WriteFile(t.file, text.Bytes(), 0o600))
	t.inventory = must(inventory.Load(t.file))
}

// names of the probes, or of the others.
func (t *town) names(ofProbes bool) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(t.inventory.Credentials)) {
		if strings.HasPrefix(name, "probe-") == ofProbes {
			names = append(names, name)
		}
	}
	return names
}

// start starts the scheduler.
func (t *town) start(binary string) {
	t.log = must(os.Create(filepath.Join(t.dir, "scheduler.log")))
	t.scheduler = exec.Command(binary, "-c", t.file)
	t.scheduler.Stdout, t.scheduler.Stderr = t.log, t.log
	t.scheduler.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t.scheduler.Start())
}

// untilArmed waits until every credential that was adopted has its timer.
func (t *town) untilArmed(ctx context.Context) {
	const patience = 5 * time.Minute // each timer is a synced write, and the disk may be busy
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		armed := must(t.streams.Stored(ctx, bus.StreamTimer, bus.ArmSubject("due", "*")))
		if len(armed) == t.n-probes {
			return
		}
		if err := waitUntil(ctx, time.Now().Add(200*time.Millisecond)); err != nil {
			check(fmt.Errorf("%d of %d credentials have a timer after %v: %w", len(armed), t.n-probes, patience, err))
		}
	}
}

func (t *town) stopScheduler() error {
	if t.scheduler == nil {
		return nil
	}
	stopping := t.scheduler
	t.scheduler = nil
	return errors.Join(stopping.Process.Signal(syscall.SIGTERM), stopping.Wait(), t.log.Close())
}

// warnings counts what the scheduler complained of.
func (t *town) warnings() int {
	text := must(os.ReadFile(t.log.Name()))
	return bytes.Count(text, []byte(`"level":"WARN"`)) + bytes.Count(text, []byte(`"level":"ERROR"`))
}

func (t *town) stored(ctx context.Context) (all uint64, err error) {
	stored, err := t.streams.stored(ctx)
	for _, n := range stored {
		all += n
	}
	return all, err
}

func (t *town) connect(user string) (*bus.Bus, error) {
	seed, err := bus.LoadSeed(bus.SeedFile(t.inventory, user))
	if err != nil {
		return nil, err
	}
	return bus.Connect(bus.ConnectOptions{User: user, Seed: seed, Server: t.nats})
}

//go:embed town.yaml.tmpl
var townText string

var townYAML = template.Must(template.New("pawl.yaml").Parse(townText))
