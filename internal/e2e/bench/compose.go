package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	Start    time.Duration // of `up` on empty volumes, to the demo's adoption completed
	Rotation cell          // from the request to completed
	Memory   int64         // of the largest service
}

// measureCompose starts one layout after the other.
func measureCompose(p *part) {
	check(os.MkdirAll(p.dir, 0o755))
	p.stacks = &stacks{Rotations: inContainers}
	for _, service := range append([]string{"pawl"}, saga.Services...) {
		size, err := compose.Docker(p, "image", "inspect", "--format={{.Size}}", "pawl/"+service+":dev")
		if err != nil {
			check(fmt.Errorf("%w (`make images` builds it)", err))
		}
		p.stacks.Images = append(p.stacks.Images, image{service, must(strconv.ParseInt(strings.TrimSpace(size), 10, 64))})
	}
	for i, files := range [][]string{compose.OneServer, compose.ThreeServers} {
		p.within(func() { p.stacks.Layouts = append(p.stacks.Layouts, p.layout(onServers[i], files)) })
	}
}

func (p *part) layout(servers int, files []string) layout {
	l := layout{Servers: servers}
	s := compose.New("pawl-bench", append(slices.Clone(files), must(withoutWaits(files, filepath.Join(p.dir, onServersName(servers))))))
	p.later(func() error { return s.Down(context.WithoutCancel(p)) })
	progress("compose: starting the layout of %d nats-servers", servers)
	began := time.Now()
	check(s.Up(p))
	l.Start = time.Since(began)
	l.Rotation = p.rotateIn(s, servers)
	progress("compose, %d nats-servers: up in %.0f s, p50 %.1f ms", servers, l.Start.Seconds(), p50(l.Rotation))
	for _, service := range saga.Services {
		used := must(compose.Docker(p, append([]string{"stats", "--no-stream", "--format={{.MemUsage}}"}, must(s.Containers(p, service))...)...))
		for line := range strings.Lines(used) {
			size, _, _ := strings.Cut(line, " ")
			l.Memory = max(l.Memory, must(units.RAMInBytes(size)))
		}
	}
	return l
}

// rotateIn asks again and again, as any client does, once the predecessor is erased.
func (p *part) rotateIn(s *compose.Stack, servers int) cell {
	join := func(user, dir string) *bus.Bus {
		b := must(s.Join(p, user, filepath.Join(p.dir, dir)))
		p.later(func() error { b.NATS.Close(); return nil })
		return b
	}
	asks, listens := join(bus.Operator, onServersName(servers)), join(bus.Provisioner, onServersName(servers)+"-listens")
	// A consumer, since a subscription would hear of events before they are stored;
	// only the provisioner may make one.
	consumer := must(listens.JetStream.OrderedConsumer(p, bus.StreamLog, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy}))
	heard := make(chan string, 64)
	following := must(consumer.Consume(func(m jetstream.Msg) { heard <- m.Subject() }))
	defer following.Stop()
	var took []time.Duration
	for i := range 2 + inContainers { // the first make the second login, and open sessions
		sent := time.Now()
		must(asks.JetStream.Publish(p, bus.RequestSubject(compose.Credential), nil))
		for event := saga.Event(""); event != saga.Erased; {
			select {
			case subject := <-heard:
				var err error
				_, _, event, err = bus.ParseLogSubject(subject)
				check(err)
			case <-time.After(patience):
				check(errors.New("compose: a rotation does not end"))
			}
			if event == saga.RolledBack {
				check(errors.New("compose: a rotation was rolled back"))
			}
			if event == saga.Completed && i >= 2 {
				took = append(took, time.Since(sent))
			}
		}
	}
	return cellOf(took)
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
		rows = append(rows, fmt.Sprintf("| %d | %.0f | %.1f | %.1f | %.2f | %.0f |", l.Servers, l.Start.Seconds(), p50(l.Rotation), p99(l.Rotation), p50(l.Rotation)/p50(one), float64(l.Memory)/1e6))
	}
	return rows
}
