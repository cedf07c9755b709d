package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/compose"
	"pawl.dev/internal/saga"
)

// inContainers is how many rotations a layout is measured by.
const inContainers = 40

// stacks are the two layouts of docker-compose.yml, and the images that they share.
type stacks struct {
	Images    []image
	Layouts   []layout
	Rotations int
}

type image struct {
	Name string
	Size int64
}

// layout is docker-compose.yml with one server of the bus, or with three.
type layout struct {
	Servers  int
	Start    time.Duration    // of `up` on empty volumes, to the demo's adoption completed
	Rotation cell             // from the request to completed
	Memory   map[string]int64 // by service, the larger of two
}

// measureCompose starts one layout after the other.
func measureCompose(ctx context.Context, dir string) (all *stacks, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	all = &stacks{Rotations: inContainers}
	for _, service := range append([]string{"pawl"}, saga.Services...) {
		size, err := compose.Docker(ctx, "image", "inspect", "--format={{.Size}}", "pawl/"+service+":dev")
		if err != nil {
			return nil, fmt.Errorf("%w (`make images` builds it)", err)
		}
		i := image{Name: service}
		if _, err := fmt.Sscan(size, &i.Size); err != nil {
			return nil, err
		}
		all.Images = append(all.Images, i)
	}
	for servers, files := range map[int][]string{1: compose.OneServer, 3: compose.ThreeServers} {
		one, err := measureLayout(ctx, servers, files, dir)
		if err != nil {
			return nil, err
		}
		all.Layouts = append(all.Layouts, one)
	}
	slices.SortFunc(all.Layouts, func(a, b layout) int { return a.Servers - b.Servers })
	return all, nil
}

func measureLayout(ctx context.Context, servers int, files []string, dir string) (l layout, err error) {
	l = layout{Servers: servers, Memory: map[string]int64{}}
	hurried, err := withoutWaits(files, filepath.Join(dir, onServersName(servers)))
	if err != nil {
		return l, err
	}
	s := compose.New("pawl-bench", append(slices.Clone(files), hurried))
	defer func() { err = errors.Join(err, s.Down(context.WithoutCancel(ctx))) }()
	progress("compose: starting the layout of %d nats-servers", servers)
	began := time.Now()
	if err := s.Up(ctx); err != nil {
		return l, err
	}
	l.Start = time.Since(began)
	if err := l.rotate(ctx, s, dir); err != nil {
		return l, err
	}
	progress("compose, %d nats-servers: up in %.0f s, p50 %.1f ms", servers, l.Start.Seconds(), p50(l.Rotation))
	for _, service := range saga.Services {
		ids, err := s.Containers(ctx, service)
		if err != nil {
			return l, err
		}
		used, err := compose.Docker(ctx, append([]string{"stats", "--no-stream", "--format={{.MemUsage}}"}, ids...)...)
		if err != nil {
			return l, err
		}
		for line := range strings.Lines(used) {
			size, _, _ := strings.Cut(line, " ")
			bytes, err := units.RAMInBytes(size)
			if err != nil {
				return l, err
			}
			l.Memory[service] = max(l.Memory[service], bytes)
		}
	}
	return l, nil
}

// rotate asks again and again, as any client does, once the predecessor is erased.
func (l *layout) rotate(ctx context.Context, s *compose.Stack, dir string) error {
	b, err := s.Join(ctx, bus.Operator, filepath.Join(dir, onServersName(l.Servers)))
	if err != nil {
		return err
	}
	defer b.NATS.Close()
	listener, err := s.Join(ctx, bus.Provisioner, filepath.Join(dir, onServersName(l.Servers)+"-listens"))
	if err != nil {
		return err
	}
	defer listener.NATS.Close()
	// A consumer, since a subscription would hear of events before they are stored;
	// only the provisioner may make one.
	consumer, err := listener.JetStream.OrderedConsumer(ctx, bus.StreamLog, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if err != nil {
		return err
	}
	heard := make(chan string, 64)
	following, err := consumer.Consume(func(m jetstream.Msg) { heard <- m.Subject() })
	if err != nil {
		return err
	}
	defer following.Stop()
	for i := range 2 + inContainers { // the first make the second login, and open sessions
		sent := time.Now()
		if _, err := b.JetStream.Publish(ctx, bus.RequestSubject(compose.Credential), nil); err != nil {
			return err
		}
		for event := saga.Event(""); event != saga.Erased; {
			select {
			case subject := <-heard:
				if _, _, event, err = bus.ParseLogSubject(subject); err != nil {
					return err
				}
			case <-time.After(patience):
				return errors.New("compose: a rotation does not end")
			}
			if event == saga.RolledBack {
				return errors.New("compose: a rotation was rolled back")
			}
			if event == saga.Completed && i >= 2 {
				l.Rotation.took = append(l.Rotation.took, time.Since(sent))
			}
		}
	}
	l.Rotation.sort()
	return nil
}

// withoutWaits writes a file of Compose which has every container read the layout's
// pawl.yaml with nothing to wait for in it: neither for a drain, nor to erase.
func withoutWaits(files []string, dir string) (path string, err error) {
	config := "deploy/compose/pawl.yaml"
	if len(files) > 1 {
		config = "deploy/compose/pawl-three.yaml"
	}
	text, err := os.ReadFile(filepath.Join(compose.Root(), config))
	if err != nil {
		return "", err
	}
	hurried := strings.NewReplacer("drain: 5s", "drain: 0s", "keep: 10m", "keep: 0s").Replace(string(text))
	if strings.Count(hurried, ": 0s") != 2 {
		return "", fmt.Errorf("%s has another drain or keep than the bench knows", config)
	}
	var override strings.Builder
	override.WriteString("services:\n")
	for _, service := range append([]string{"init", "nats-config", "keys", "demo", "provision", "adopt", "pawl"}, saga.Services...) {
		fmt.Fprintf(&override, "  %s: {volumes: [%q]}\n", service, filepath.Join(dir, "pawl.yaml")+":/etc/pawl/pawl.yaml:ro")
	}
	path = filepath.Join(dir, "compose.yml")
	return path, errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "pawl.yaml"), []byte(hurried), 0o644), os.WriteFile(path, []byte(override.String()), 0o644))
}

// Rows of the table of layouts.
func (all *stacks) Rows() (rows []string) {
	one := all.Layouts[0].Rotation
	for _, l := range all.Layouts {
		most := int64(0)
		for _, bytes := range l.Memory {
			most = max(most, bytes)
		}
		rows = append(rows, fmt.Sprintf("| %d | %.0f | %.1f | %.1f | %.2f | %.0f |", l.Servers, l.Start.Seconds(), p50(l.Rotation), p99(l.Rotation), p50(l.Rotation)/p50(one), float64(most)/1e6))
	}
	return rows
}
