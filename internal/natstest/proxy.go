//go:build unix

package natstest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

const (
	parcelBytesMax = 16 << 10
	parcelsMax     = 64 // under way; what is behind them waits
)

// Proxy is a way to a server that can be interrupted, and be slow.
type Proxy struct {
	listener net.Listener
	server   string
	copying  sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	delay time.Duration // of each way
	rate  int           // bytes a second of each way, or 0 for no limit
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

// Slow has a round trip take that much longer, and lets no more than so many bytes through in a second, for all that is under
// way from now on; 0 and 0 for neither.
func (p *Proxy) Slow(roundTrip time.Duration, rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay, p.rate = roundTrip/2, rate
}

func (p *Proxy) pace() (delay time.Duration, rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay, p.rate
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
		p.copying.Go(func() { p.carry(server, client) })
		p.copying.Go(func() { p.carry(client, server) })
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

// parcel is what came at once, and when it is to arrive.
type parcel struct {
	bytes []byte
	due   time.Time
}

// carry copies until one end closes. What is under way is delayed, not held up: more may follow it meanwhile.
func (p *Proxy) carry(to, from net.Conn) {
	parcels := make(chan parcel, parcelsMax)
	p.copying.Go(func() {
		deliver(to, parcels)
		_ = to.Close()
		_ = from.Close()
	})
	defer close(parcels)
	free := time.Now() // when the way is free for the next
	for {
		buffer := make([]byte, parcelBytesMax)
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		delay, rate := p.pace()
		if now := time.Now(); free.Before(now) {
			free = now
		}
		if rate > 0 {
			free = free.Add(time.Duration(n) * time.Second / time.Duration(rate))
		}
		parcels <- parcel{buffer[:n], free.Add(delay)}
	}
}

// deliver writes what is due. After an error it takes what comes, and drops it.
func deliver(to io.Writer, parcels <-chan parcel) {
	var failed error
	for p := range parcels {
		if failed != nil {
			continue
		}
		if wait := time.Until(p.due); wait > 0 {
			<-time.After(wait) // that is what it is slow by
		}
		_, failed = to.Write(p.bytes)
	}
}
