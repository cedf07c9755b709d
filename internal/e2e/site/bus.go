package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pawl.dev/cmd/pawl/natsconf"
	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/telemetry"
)

// NewOnServers is NewCluster on a bus of stock nats-servers, configured as `pawl
// nats-config` does. Isolate cuts one of them off.
func NewOnServers(ctx context.Context, dir string, servers int, nodes []Node, otlp string, credentials []Credential) (*Site, error) {
	s := &Site{Dir: dir, Nodes: nodes, Postgres: nodes[0].Server, File: filepath.Join(dir, "pawl.yaml")}
	for i := range servers {
		n := natsconf.Node{Name: fmt.Sprintf("nats-%d", i+1), Host: "localhost"}
		for _, address := range []*string{&n.Listen, &n.Cluster, &n.Monitor} {
			port, err := freePort()
			if err != nil {
				return nil, err
			}
			*address = fmt.Sprintf("127.0.0.1:%d", port)
		}
		s.Servers = append(s.Servers, n)
	}
	if err := s.write(ctx, otlp, credentials); err != nil {
		return nil, err
	}
	return s, s.divide()
}

// bus is what pawl.yaml says of it.
func (s *Site) bus() (string, error) {
	if s.Servers == nil {
		port, err := freePort()
		return fmt.Sprintf(`listen: "127.0.0.1:%d"`, port), err
	}
	var urls []string
	for _, n := range s.Servers {
		urls = append(urls, "tls://"+strings.Replace(n.Listen, "127.0.0.1", n.Host, 1))
	}
	return fmt.Sprintf("url: %q, replicas: %d", strings.Join(urls, ","), len(s.Servers)), nil
}

func (s *Site) natsDir() string { return filepath.Join(s.Dir, "nats") }

// startBus starts the servers, and has them provisioned where they are not
// embedded.
func (s *Site) startBus(f *Fleet, binaries string, ackWait time.Duration) error {
	if s.Servers == nil {
		f.keep("natsd", filepath.Join(binaries, "natsd"), []string{"-c", s.File, "-ack-wait", ackWait.String()}, nil)
		return nil
	}
	context.AfterFunc(f.ctx, s.routes.close)
	for _, n := range s.Servers {
		f.keep(n.Name, filepath.Join(binaries, "nats-server"), []string{"-c", filepath.Join(s.natsDir(), n.Name, "nats.conf")}, nil)
	}
	return provision.Server(f.ctx, provision.Options{Inventory: s.Inventory, Log: telemetry.NewLogger(os.Stderr, "provision", slog.LevelError), Wait: 2 * time.Minute, AckWait: ackWait})
}

// Healthy waits until a nats-server has caught up with the others.
func (s *Site) Healthy(ctx context.Context, n natsconf.Node) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	client := http.Client{Timeout: 2 * time.Second}
	for {
		answer, err := client.Get("http://" + n.Monitor + "/healthz?details=true")
		if err == nil {
			text, unread := io.ReadAll(answer.Body)
			_ = answer.Body.Close() // it was read
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.Join(fmt.Errorf("it answers %s: %s", answer.Status, text), unread)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not recover: %w", n.Name, err)
		case <-tick.C:
		}
	}
}

// Leader is the nats-server that leads a stream.
func (s *Site) Leader(ctx context.Context, stream string) (natsconf.Node, error) {
	b, err := s.Connect(bus.Operator)
	if err != nil {
		return natsconf.Node{}, err
	}
	defer b.NATS.Close()
	found, err := b.Stream(ctx, stream)
	if err != nil {
		return natsconf.Node{}, err
	}
	cluster := found.CachedInfo().Cluster
	for _, n := range s.Servers {
		if cluster != nil && n.Name == cluster.Leader {
			return n, nil
		}
	}
	return natsconf.Node{}, fmt.Errorf("%s has no leader", stream)
}
