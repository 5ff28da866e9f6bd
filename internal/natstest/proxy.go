//go:build unix

package natstest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy is a way to a server that can be interrupted.
type Proxy struct {
	listener net.Listener
	server   string
	copying  sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

// NewProxy returns a way to that host and port.
func NewProxy(t testing.TB, server string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // ends with the test
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: listener, server: server}
	p.copying.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.Cut()
		p.copying.Wait()
	})
	return p
}

// Addr is host and port of the way in.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut ends all connections and lets none through, until Mend.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// Mend lets connections through again.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // the test is over
		}
		server, err := net.Dial("tcp", p.server) //nolint:noctx // ends with the test
		if err != nil || !p.keep(client, server) {
			_ = client.Close()
			continue
		}
		p.copying.Go(func() { carry(server, client) })
		p.copying.Go(func() { carry(client, server) })
	}
}

// keep notes a connection, unless none is let through.
func (p *Proxy) keep(client, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		_ = server.Close()
		return false
	}
	p.conns = append(p.conns, client, server)
	return true
}

func carry(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}
