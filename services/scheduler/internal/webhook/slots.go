package webhook

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

const (
	perReceiver   = 32 // webhooks that are worked on at once, of senders who have proved who they are
	perAddress    = 8  // bodies that are read at once, before it is known whose they are
	perConnection = 64 // connections at once from one address
	inAll         = 64 // bodies that are read so, from whichever address
)

// slots limits what goes on at once, for each key by itself: who fills his own takes
// none from another.
type slots struct {
	most int // of one key
	all  int // of all keys; 0: any number

	mu    sync.Mutex
	taken map[string]int
	used  int
}

func newSlots(most, all int) *slots { return &slots{most: most, all: all, taken: map[string]int{}} }

// take returns what gives the slot back, or a refusal.
func (s *slots) take(key string) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[key] >= s.most || s.all > 0 && s.used >= s.all {
		return nil, refusal{busy, errors.New("too many at once: send it again")}
	}
	s.taken[key]++
	s.used++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.used--
		if s.taken[key]--; s.taken[key] == 0 {
			delete(s.taken, key)
		}
	}), nil
}

// host is an address without its port; of IPv6 the network, a /64, which one machine
// may have for itself.
func host(address string) string {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return address
	}
	ip := at.Addr().Unmap()
	if network, err := ip.Prefix(64); ip.Is6() && err == nil {
		return network.String()
	}
	return ip.String()
}

// crowded accepts so many connections from one address, and closes what is more.
type crowded struct {
	net.Listener
	slots *slots
}

func (c crowded) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		release, err := c.slots.take(host(conn.RemoteAddr().String()))
		if err == nil {
			return counted{conn, release}, nil
		}
		_ = conn.Close() // nothing was read from it
	}
}

// counted gives its slot back when it is closed.
type counted struct {
	net.Conn
	release func()
}

func (c counted) Close() error {
	defer c.release()
	return c.Conn.Close()
}
