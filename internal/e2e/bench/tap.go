package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
)

// tap stands between Pawl and PostgreSQL and counts what Pawl asks for. The
// server's log and statistics cannot tell: Pawl keeps its own transactions out
// of both.
type tap struct {
	port     uint16
	listener net.Listener
	target   string
	wait     sync.WaitGroup

	mu    sync.Mutex
	count asked
	conns []net.Conn
}

// asked is what was asked of PostgreSQL.
type asked struct {
	passwords   int // ALTER ROLE … PASSWORD with a verifier
	otherAlters int
	creates     int
	logins      int // as the credential
	sessions    int // opened as the admin, and kept
	commits     int
	statements  int
	roundTrips  int
}

func newTap(target string) (*tap, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tap{port: uint16(l.Addr().(*net.TCPAddr).Port), listener: l, target: target}
	t.wait.Go(t.accept)
	return t, nil
}

func (t *tap) asked() asked {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count
}

// close breaks all connections and waits for them to end.
func (t *tap) close() error {
	err := t.listener.Close()
	t.mu.Lock()
	for _, conn := range t.conns {
		conn.Close()
	}
	t.mu.Unlock()
	t.wait.Wait()
	return err
}

func (t *tap) accept() {
	for {
		client, err := t.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", t.target)
		if err != nil {
			client.Close()
			continue
		}
		t.mu.Lock()
		t.conns = append(t.conns, client, server)
		t.mu.Unlock()
		carry := func(work func() error) {
			t.wait.Go(func() {
				_ = work() // however it ended, the connection has
				client.Close()
				server.Close()
			})
		}
		carry(func() error { return t.forward(client, server) })
		carry(func() error { _, err := io.Copy(client, server); return err })
	}
}

// forward carries the client's messages, of which the first has no type.
func (t *tap) forward(client io.Reader, server io.Writer) error {
	for kindSize := 0; ; kindSize = 1 {
		message, err := readMessage(client, kindSize)
		if err != nil {
			return err
		}
		t.mu.Lock()
		if kindSize == 0 {
			t.count.login(string(message[8:]))
		} else {
			t.count.message(message[0], string(message[5:]))
		}
		t.mu.Unlock()
		if _, err := server.Write(message); err != nil {
			return err
		}
	}
}

// readMessage reads one message of the protocol: a kind, the length, the rest.
func readMessage(r io.Reader, kindSize int) ([]byte, error) {
	head := make([]byte, kindSize+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[kindSize:])
	if size < 4 || size > 1<<24 {
		return nil, errors.New("not a PostgreSQL message")
	}
	message := append(head, make([]byte, size-4)...)
	_, err := io.ReadFull(r, message[kindSize+4:])
	return message, err
}

// login counts a start-up message: pairs of a parameter and its value.
func (a *asked) login(parameters string) {
	pairs := strings.Split(parameters, "\x00")
	for i := 0; i+1 < len(pairs); i += 2 {
		switch {
		case pairs[i] != "user":
		case pairs[i+1] == "postgres":
			a.sessions++
		default:
			a.logins++
		}
	}
}

var (
	alters = regexp.MustCompile(`^ALTER ROLE `)
	sets   = regexp.MustCompile(` PASSWORD\s+E?'`)
)

// message counts Query ('Q', text), Parse ('P', name, text) and Sync ('S').
func (a *asked) message(kind byte, body string) {
	if kind == 'Q' || kind == 'S' {
		a.roundTrips++
	}
	if kind == 'P' {
		_, body, _ = strings.Cut(body, "\x00")
	}
	if kind != 'Q' && kind != 'P' {
		return
	}
	a.statements++
	switch {
	case alters.MatchString(body) && sets.MatchString(body):
		a.passwords++
	case alters.MatchString(body):
		a.otherAlters++
	case strings.HasPrefix(body, "CREATE ROLE"):
		a.creates++
	case strings.HasPrefix(body, "COMMIT"):
		a.commits++
	}
}
