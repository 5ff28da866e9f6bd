package proof_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// wire is the way from one reader process to Postgres. It can hold up what the process sends, and let it through later:
// a statement then arrives when its sender has long been given up, as after a fault of the network.
type wire struct {
	listener net.Listener
	server   string
	gate     sync.RWMutex // held while nothing is to get through
	copying  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// newWire returns a wire to the server of that URL, and the URL to use instead.
func newWire(t *testing.T, address string) (*wire, string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{server: u.Host}
	if w.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.Host = w.listener.Addr().String()
	w.copying.Go(w.accept)
	t.Cleanup(func() {
		_ = w.listener.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			_ = c.Close()
		}
		w.mu.Unlock()
		w.copying.Wait()
	})
	return w, u.String()
}

func (w *wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return // the test is over
		}
		server, err := net.Dial("tcp", w.server)
		if err != nil {
			_ = client.Close() // Postgres is away
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, client, server)
		w.mu.Unlock()
		w.copying.Go(func() { w.send(client, server) })
		w.copying.Go(func() {
			_, _ = io.Copy(client, server)
			_ = client.Close()
		})
	}
}

// send carries what the client says to the server. What it had said before it hung up arrives nevertheless.
func (w *wire) send(client, server net.Conn) {
	defer server.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		w.gate.RLock()
		_, failed := server.Write(buffer[:n])
		w.gate.RUnlock()
		if err != nil || failed != nil {
			return
		}
	}
}
