package pgserver

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
)

// Cut says on which side of a COMMIT the connection breaks.
type Cut int

const (
	// BeforeCommit: the server never gets it; the transaction is gone.
	BeforeCommit Cut = iota + 1
	// AfterCommit: it lands, and the client never hears of it.
	AfterCommit
)

// Cutter stands between a client and a server and breaks a connection at its
// COMMIT, so that the client cannot know what became of it; or it is an address
// that fails over from one server to another. It understands the protocol's
// framing, and declines TLS.
type Cutter struct {
	Host string
	Port uint16

	listener net.Listener

	mu     sync.Mutex
	target string
	armed  *trigger
	conns  map[net.Conn]bool
	closed bool
	wait   sync.WaitGroup
}

type trigger struct {
	cut   Cut
	after string
	done  chan struct{}
}

// NewCutter listens on a free port of 127.0.0.1 and forwards to target.
func NewCutter(target string) (*Cutter, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Cutter{Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port), listener: l, target: target, conns: map[net.Conn]bool{}}
	c.wait.Go(c.accept)
	return c, nil
}

// Arm breaks the next connection that sends COMMIT after a message that holds
// the text (empty: any). The channel is closed once that has happened.
func (c *Cutter) Arm(cut Cut, after string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = &trigger{cut, after, make(chan struct{})}
	return c.armed.done
}

// Retarget has new connections go to another server and breaks those there are.
func (c *Cutter) Retarget(target string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = target
	for conn := range c.conns {
		conn.Close()
	}
}

// Close breaks all connections and waits for them to end.
func (c *Cutter) Close() error {
	c.mu.Lock()
	c.closed = true
	err := c.listener.Close()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.wait.Wait()
	return err
}

func (c *Cutter) accept() {
	for {
		client, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		target := c.target
		c.mu.Unlock()
		server, err := net.Dial("tcp", target)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{cutter: c, client: client, server: server}
		if !c.track(target, client, server) {
			continue // closed, or retargeted since
		}
		for _, carry := range []func() error{l.forward, l.back} {
			c.wait.Go(func() {
				_ = carry() // however it ended, the connection has
				l.end()
			})
		}
	}
}

// track remembers the connections to target, or closes them where that is no
// longer the one.
func (c *Cutter) track(target string, conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	current := !c.closed && target == c.target
	for _, conn := range conns {
		if current {
			c.conns[conn] = true
		} else {
			conn.Close()
		}
	}
	return current
}

// take disarms the trigger if this message is the one it waits for.
func (c *Cutter) take(l *link, message []byte) *trigger {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.armed == nil {
		return nil
	}
	if strings.Contains(string(message), c.armed.after) {
		l.seen = c.armed
	}
	if l.seen != c.armed || !isCommit(message) {
		return nil
	}
	taken := c.armed
	c.armed = nil
	return taken
}

// isCommit looks at Query ('Q', text) and Parse ('P', name, text).
func isCommit(message []byte) bool {
	text := string(message[5:])
	if message[0] == 'P' {
		_, text, _ = strings.Cut(text, "\x00")
	}
	return (message[0] == 'P' || message[0] == 'Q') && strings.HasPrefix(strings.ToUpper(strings.TrimSpace(text)), "COMMIT")
}

// link is one connection.
type link struct {
	cutter         *Cutter
	client, server net.Conn
	seen           *trigger // whose text went by; read and written under the cutter's lock

	mu      sync.Mutex
	landing *trigger // COMMIT was forwarded: cut at its answer
}

var errCut = errors.New("cut")

func (l *link) end() {
	l.client.Close()
	l.server.Close()
	l.cutter.mu.Lock()
	defer l.cutter.mu.Unlock()
	delete(l.cutter.conns, l.client)
	delete(l.cutter.conns, l.server)
}

// forward carries the client's messages to the server.
func (l *link) forward() error {
	if err := l.startup(); err != nil {
		return err
	}
	for {
		message, err := read(l.client, 1)
		if err != nil {
			return err
		}
		switch t := l.cutter.take(l, message); {
		case t == nil:
		case t.cut == BeforeCommit:
			close(t.done) // before the client can notice
			return errCut
		default:
			l.mu.Lock()
			l.landing = t
			l.mu.Unlock()
		}
		if _, err := l.server.Write(message); err != nil {
			return err
		}
	}
}

// startup carries the first message, which has no type, after declining
// encryption ('N') as often as it is asked for.
func (l *link) startup() error {
	const sslRequest, gssRequest = 80877103, 80877104
	for {
		message, err := read(l.client, 0)
		if err != nil {
			return err
		}
		if code := binary.BigEndian.Uint32(message[4:]); code != sslRequest && code != gssRequest {
			_, err := l.server.Write(message)
			return err
		}
		if _, err := l.client.Write([]byte{'N'}); err != nil {
			return err
		}
	}
}

// back carries the server's messages to the client.
func (l *link) back() error {
	for {
		message, err := read(l.server, 1)
		if err != nil {
			return err
		}
		l.mu.Lock()
		landing := l.landing
		l.mu.Unlock()
		if landing != nil && message[0] == 'C' && strings.HasPrefix(string(message[5:]), "COMMIT") {
			close(landing.done)
			return errCut
		}
		if _, err := l.client.Write(message); err != nil {
			return err
		}
	}
}

// read reads one message whose length stands after `skip` bytes.
func read(r io.Reader, skip int) ([]byte, error) {
	head := make([]byte, skip+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[skip:])
	if size < 4 || size > 1<<24 {
		return nil, errors.New("not a PostgreSQL message")
	}
	message := append(head, make([]byte, size-4)...)
	_, err := io.ReadFull(r, message[skip+4:])
	return message, err
}
