package site

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"pawl.dev/cmd/pawl/natsconf"
)

// partitions are the routes between the servers of a bus: each server reaches each
// other one through a link of its own, so that any of them can be cut off.
type partitions map[[2]string]*link // from, to

// divide puts a link into every route of what `pawl nats-config` has written.
func (s *Site) divide() error {
	s.routes = partitions{}
	if len(s.Servers) == 1 {
		return nil
	}
	for _, from := range s.Servers {
		file := filepath.Join(s.natsDir(), from.Name, "nats.conf")
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		conf := string(text)
		for _, to := range s.Servers {
			if to.Name == from.Name {
				continue
			}
			l, err := newLink(to.Cluster)
			if err != nil {
				return err
			}
			s.routes[[2]string{from.Name, to.Name}] = l
			if conf, err = replaced(conf, route(to.Host, to.Cluster), route(to.Host, l.listener.Addr().String())); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		// What servers tell each other of where they listen would lead around the links.
		own := fmt.Sprintf("  advertise: %q\n", strings.TrimPrefix(route(from.Host, from.Cluster), "tls://"))
		if conf, err = replaced(conf, own, "  advertise: \"127.0.0.1:1\"\n"); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func route(host, address string) string {
	_, port, _ := net.SplitHostPort(address) // ours
	return fmt.Sprintf("tls://%s:%s", host, port)
}

func replaced(text, old, with string) (string, error) {
	if strings.Count(text, old) != 1 {
		return "", fmt.Errorf("it does not hold %q once", old)
	}
	return strings.Replace(text, old, with, 1), nil
}

// Isolate cuts a server of the bus off from the other servers: nothing passes, and
// no connection breaks. Clients still reach it. Call heal in the end.
func (s *Site) Isolate(n natsconf.Node) (heal func()) {
	var cut []*link
	for between, l := range s.routes {
		if between[0] == n.Name || between[1] == n.Name {
			l.cut()
			cut = append(cut, l)
		}
	}
	return func() {
		for _, l := range cut {
			l.heal()
		}
	}
}

// link passes on what comes to its listener, unless it is cut.
type link struct {
	listener net.Listener
	to       string

	mu     sync.Mutex
	whole  chan struct{} // closed while it is
	opened map[net.Conn]struct{}
}

func newLink(to string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{listener: listener, to: to, whole: make(chan struct{}), opened: map[net.Conn]struct{}{}}
	close(l.whole)
	go l.accept()
	return l, nil
}

// accept ends with the listener.
func (l *link) accept() {
	for {
		from, err := l.listener.Accept()
		if err != nil {
			return
		}
		go l.join(from)
	}
}

func (l *link) join(from net.Conn) {
	defer l.forget(l.keep(from))
	l.wait()
	to, err := net.Dial("tcp", l.to)
	if err != nil {
		return // that server is down
	}
	defer l.forget(l.keep(to))
	ended := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		go func() {
			defer func() { ended <- struct{}{} }()
			_, _ = io.Copy(gate{pair[1], l}, pair[0]) // it ends with either
		}()
	}
	<-ended
}

// gate lets nothing through while the link is cut.
type gate struct {
	net.Conn
	link *link
}

func (g gate) Write(p []byte) (int, error) {
	g.link.wait()
	return g.Conn.Write(p)
}

func (l *link) wait() {
	l.mu.Lock()
	whole := l.whole
	l.mu.Unlock()
	<-whole
}

func (l *link) keep(c net.Conn) net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened[c] = struct{}{}
	return c
}

func (l *link) forget(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.opened, c)
	_ = c.Close() // the other side may have
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = make(chan struct{})
}

// heal lets go of the connections of before: what they held back is too old.
func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.opened {
		_ = c.Close()
	}
	close(l.whole)
}

// close ends what was passed on; nobody listens any more.
func (p partitions) close() {
	for _, l := range p {
		l.close()
	}
}

func (l *link) close() {
	_ = l.listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.opened {
		_ = c.Close()
	}
}
