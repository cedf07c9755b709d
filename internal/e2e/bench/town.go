package main

import (
	"bytes"
	"context"
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

	"github.com/nats-io/nats.go/jetstream"

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
func newTown(ctx context.Context, dir string, n int) (t *town, err error) {
	t = &town{dir: dir, file: filepath.Join(dir, "pawl.yaml"), n: n}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, err
	}
	if err := t.configure(0, 200, 200); err != nil { // the probes come due together, and none is to wait
		return nil, err
	}
	if _, err := embedded.CreateKeys(t.inventory); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.nats, err = embedded.Start(ctx, embedded.Options{Inventory: t.inventory, Log: slog.New(slog.DiscardHandler)}); err != nil {
		return t, err
	}
	if t.streams.Bus, err = t.connect(bus.Provisioner); err != nil {
		return t, err
	}
	if t.played, err = play(ctx, t); err != nil {
		return t, err
	}
	for some := range slices.Chunk(t.names(false), 200) {
		if err := t.played.adopt(ctx, some); err != nil {
			return t, err
		}
	}
	return t, nil
}

// configure writes and reads pawl.yaml. Its first credentials are the probes;
// overdue of the others have to be turned every minute.
func (t *town) configure(overdue, perCluster, inAll int) (err error) {
	type credential struct{ Name, Cluster, Every string }
	var all []credential
	for i := range t.n {
		c := credential{fmt.Sprintf("c-%05d", i), fmt.Sprintf("k-%d", i%townClusters), "365d"}
		switch {
		case i < probes:
			c.Name, c.Every = fmt.Sprintf("probe-%05d", i), "1m"
		case i >= t.n-overdue:
			c.Every = "1m"
		}
		if i < probes && overdue > 0 {
			c.Every = "365d" // they have served
		}
		all = append(all, c)
	}
	var text bytes.Buffer
	if err := townYAML.Execute(&text, map[string]any{"Port": t.port, "PerCluster": perCluster, "InAll": inAll, "Clusters": townClusters, "All": all}); err != nil {
		return err
	}
	if err := os.WriteFile(t.file, text.Bytes(), 0o600); err != nil {
		return err
	}
	t.inventory, err = inventory.Load(t.file)
	return err
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
func (t *town) start(binary string) (err error) {
	if t.log, err = os.Create(filepath.Join(t.dir, "scheduler.log")); err != nil {
		return err
	}
	t.scheduler = exec.Command(binary, "-c", t.file)
	t.scheduler.Stdout, t.scheduler.Stderr = t.log, t.log
	t.scheduler.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return t.scheduler.Start()
}

// untilArmed waits until every credential that was adopted has its timer.
func (t *town) untilArmed(ctx context.Context) error {
	const patience = 5 * time.Minute // each timer is a synced write, and the disk may be busy
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		stream, err := t.streams.JetStream.Stream(ctx, bus.StreamTimer)
		if err != nil {
			return err
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(bus.ArmSubject("due", "*")))
		if err != nil {
			return err
		}
		if len(info.State.Subjects) == t.n-probes {
			return nil
		}
		if err := waitUntil(ctx, time.Now().Add(200*time.Millisecond)); err != nil {
			return fmt.Errorf("%d of %d credentials have a timer after %v: %w", len(info.State.Subjects), t.n-probes, patience, err)
		}
	}
}

func (t *town) stopScheduler() error {
	if t.scheduler == nil {
		return nil
	}
	if err := t.scheduler.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := t.scheduler.Wait()
	t.scheduler = nil
	return errors.Join(err, t.log.Close())
}

// warnings counts what the scheduler complained of.
func (t *town) warnings() (n int, err error) {
	text, err := os.ReadFile(t.log.Name())
	return bytes.Count(text, []byte(`"level":"WARN"`)) + bytes.Count(text, []byte(`"level":"ERROR"`)), err
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

func (t *town) close() (err error) {
	err = t.stopScheduler()
	if t.played != nil {
		t.played.close()
	}
	if t.streams.Bus != nil {
		t.streams.NATS.Close()
	}
	if t.nats != nil {
		t.nats.Stop()
	}
	return err
}

var townYAML = template.Must(template.New("pawl.yaml").Parse(`
nats: {listen: "127.0.0.1:{{.Port}}"}
telemetry: {metrics: "127.0.0.1:0"}
schedule: {per_cluster: {{.PerCluster}}, in_all: {{.InAll}}, jitter: 50%}
environments:
  test: {rotate_every: 365d, remind: 0s}
clusters:
{{- range .Clusters}}
  k-{{.}}:
    environment: test
    admin: {user: postgres, password_file: admin.password, sslmode: disable}
    nodes: {primary: {host: 127.0.0.1, port: 1}}
{{- end}}
credentials:
{{- range .All}}
  {{.Name}}: {cluster: {{.Cluster}}, database: postgres, role: {{.Name}}, strategy: in-place, rotate_every: {{.Every}}, publish: [{dotenv: {path: "{{.Name}}/.env", password: DB_PASSWORD}}]}
{{- end}}
`))
