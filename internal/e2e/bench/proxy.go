package main

import (
	"io"
	"net"
	"sync"
	"time"
)

// proxy stands between clients and a server.
type proxy struct {
	port     uint16
	listener net.Listener
	wait     sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

// carry brings what it reads to the other side, until the connection ends.
type carry func(to io.Writer, from io.Reader) error

func newProxy(target string, there, back carry) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{port: uint16(l.Addr().(*net.TCPAddr).Port), listener: l}
	p.wait.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			join := func(to, from net.Conn, carry carry) {
				_ = carry(to, from) // however it ended, the connection has
				client.Close()
				server.Close()
			}
			p.wait.Go(func() { join(server, client, there) })
			p.wait.Go(func() { join(client, server, back) })
		}
	})
	return p, nil
}

// close breaks all connections and waits for them to end.
func (p *proxy) close() error {
	err := p.listener.Close()
	p.mu.Lock()
	for _, conn := range p.conns {
		conn.Close()
	}
	p.mu.Unlock()
	p.wait.Wait()
	return err
}

// late delays without slowing: what follows is on its way meanwhile.
func late(by time.Duration) carry {
	type piece struct {
		bytes []byte
		due   time.Time
	}
	return func(to io.Writer, from io.Reader) (failed error) {
		underway := make(chan piece, 1024)
		go func() {
			defer close(underway)
			for {
				buffer := make([]byte, 16<<10)
				n, err := from.Read(buffer)
				if n > 0 {
					underway <- piece{buffer[:n], time.Now().Add(by)}
				}
				if err != nil {
					return
				}
			}
		}()
		for p := range underway { // also after a failure, to let the reader end
			if failed == nil {
				time.Sleep(time.Until(p.due))
				_, failed = to.Write(p.bytes)
			}
		}
		return failed
	}
}
