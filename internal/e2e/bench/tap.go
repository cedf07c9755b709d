package main

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"regexp"
	"strings"
	"sync"
)

// tap stands between Pawl and PostgreSQL and counts what Pawl asks for. The
// server's log and statistics cannot tell: Pawl keeps its own transactions out
// of both.
type tap struct {
	*proxy
	mu    sync.Mutex
	count asked
}

// Rows of what was asked of PostgreSQL.
const (
	passwordsRow   = "ALTER ROLE … PASSWORD with a verifier"
	otherAltersRow = "other ALTER ROLE"
	createsRow     = "CREATE ROLE"
	loginsRow      = "logins as the credential"
	sessionsRow    = "sessions opened as admin or observer"
	commitsRow     = "explicit transactions committed"
	statementsRow  = "SQL statements"
	roundTripsRow  = "round trips to PostgreSQL, logins' own left out"
)

var askedRows = []string{passwordsRow, otherAltersRow, createsRow, loginsRow, sessionsRow, commitsRow, statementsRow, roundTripsRow}

// asked is what was asked of PostgreSQL, by row.
type asked map[string]int

func newTap(target string) (t *tap, err error) {
	t = &tap{count: asked{}}
	t.proxy, err = newProxy(target, t.forward, func(to io.Writer, from io.Reader) error { _, err := io.Copy(to, from); return err })
	return t, err
}

func (t *tap) asked() asked {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.count)
}

// forward carries the client's messages, of which the first has no type.
func (t *tap) forward(server io.Writer, client io.Reader) error {
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
func (a asked) login(parameters string) {
	pairs := strings.Split(parameters, "\x00")
	for i := 0; i+1 < len(pairs); i += 2 {
		switch {
		case pairs[i] != "user":
		case pairs[i+1] == "postgres":
			a[sessionsRow]++
		default:
			a[loginsRow]++
		}
	}
}

var (
	alters = regexp.MustCompile(`^ALTER ROLE `)
	sets   = regexp.MustCompile(` PASSWORD\s+E?'`)
)

// message counts Query ('Q', text), Parse ('P', name, text) and Sync ('S').
func (a asked) message(kind byte, body string) {
	if kind == 'Q' || kind == 'S' {
		a[roundTripsRow]++
	}
	if kind == 'P' {
		_, body, _ = strings.Cut(body, "\x00")
	}
	if kind != 'Q' && kind != 'P' {
		return
	}
	a[statementsRow]++
	switch {
	case alters.MatchString(body) && sets.MatchString(body):
		a[passwordsRow]++
	case alters.MatchString(body):
		a[otherAltersRow]++
	case strings.HasPrefix(body, "CREATE ROLE"):
		a[createsRow]++
	case strings.HasPrefix(body, "COMMIT"):
		a[commitsRow]++
	}
}
