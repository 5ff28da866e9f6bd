package proof_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// wire is the way from one reader process to Postgres. A checkpoint can be held up on it: it then arrives when its sender has
// long been given up, as after a fault of the network.
type wire struct {
	listener net.Listener
	server   string
	copying  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	jam   *jam // nil when everything gets through
}

// jam holds up what a process sends, from a checkpoint on.
type jam struct {
	began   chan struct{} // closed when a checkpoint is held up
	ended   chan struct{} // closed when what was held up goes on
	arrived chan struct{} // closed when Postgres has carried that checkpoint out
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

// hold lets everything through until a checkpoint comes, and from that one on nothing, until release: what was said waits, and
// new connections are refused, among them those that would ask Postgres to cancel what waits.
func (w *wire) hold() *jam {
	j := &jam{began: make(chan struct{}), ended: make(chan struct{}), arrived: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jam = j
	return j
}

// release lets go on what was held up.
func (w *wire) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.jam.ended)
	w.jam = nil
}

// pass returns when messages may go on, and with the checkpoint that began a jam also that.
func (w *wire) pass(checkpoint bool) (began *jam) {
	w.mu.Lock()
	j := w.jam
	if j != nil && checkpoint && !j.hasBegun() {
		close(j.began)
		began = j
	}
	w.mu.Unlock()
	if j != nil && j.hasBegun() {
		<-j.ended
	}
	return began
}

func (j *jam) hasBegun() bool {
	select {
	case <-j.began:
		return true
	default:
		return false
	}
}

func (w *wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return // the test is over
		}
		server, err := w.dial()
		if err != nil {
			_ = client.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, client, server)
		w.mu.Unlock()
		awaited := &atomic.Pointer[jam]{}
		w.copying.Go(func() { w.send(client, server, awaited) })
		w.copying.Go(func() { answer(client, server, awaited) })
	}
}

// dial connects to Postgres, which may be away.
func (w *wire) dial() (net.Conn, error) {
	w.mu.Lock()
	j := w.jam
	w.mu.Unlock()
	if j != nil && j.hasBegun() {
		return nil, errors.New("nothing gets through")
	}
	return net.Dial("tcp", w.server)
}

// send carries what the client says to the server. What it had said before it hung up arrives nevertheless. Of a checkpoint
// that was held up the answer is awaited.
func (w *wire) send(client, server net.Conn, awaited *atomic.Pointer[jam]) {
	defer func() { _ = server.(*net.TCPConn).CloseWrite() }()
	f := frontend{Reader: bufio.NewReaderSize(client, 64<<10), checkpoints: make(map[string]bool)}
	for {
		messages, checkpoint, err := f.next()
		if err != nil {
			return
		}
		if began := w.pass(checkpoint); began != nil {
			awaited.Store(began)
		}
		if _, err := server.Write(messages); err != nil {
			return
		}
	}
}

// answer carries what the server says to the client, which may have hung up.
func answer(client, server net.Conn, awaited *atomic.Pointer[jam]) {
	defer server.Close()
	defer client.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if j := awaited.Swap(nil); j != nil {
			close(j.arrived)
		}
		if err != nil {
			return
		}
		_, _ = client.Write(buffer[:n])
	}
}

// frontend reads what a client says, in whole messages.
type frontend struct {
	*bufio.Reader
	begun       bool            // the first message of a connection has no kind
	checkpoints map[string]bool // its prepared statements that store places
}

// checkpointPart is in the statement that stores places, and in no other.
const checkpointPart = "SET snapshot = c.snapshot"

// next returns the messages that are there, at least one, and whether one of them stores places.
func (f *frontend) next() (messages []byte, checkpoint bool, err error) {
	for len(messages) == 0 || f.Buffered() > 0 {
		m, err := f.message()
		if err != nil {
			return nil, false, err
		}
		messages = append(messages, m...)
		stores, err := f.stores(m)
		if err != nil {
			return nil, false, err
		}
		checkpoint = checkpoint || stores
	}
	return messages, checkpoint, nil
}

func (f *frontend) message() ([]byte, error) {
	const lengthSize = 4
	kindSize := 1
	if !f.begun {
		kindSize = 0
	}
	head, err := f.Peek(kindSize + lengthSize)
	if err != nil {
		return nil, err
	}
	f.begun = true
	m := make([]byte, kindSize+int(binary.BigEndian.Uint32(head[kindSize:])))
	_, err = io.ReadFull(f, m)
	return m, err
}

// stores tells whether a message runs a statement that stores places, and learns which those are.
func (f *frontend) stores(m []byte) (bool, error) {
	switch body := m[min(5, len(m)):]; m[0] {
	case 'P':
		var parse pgproto3.Parse
		if err := parse.Decode(body); err != nil {
			return false, err
		}
		f.checkpoints[parse.Name] = bytes.Contains([]byte(parse.Query), []byte(checkpointPart))
	case 'B':
		var bind pgproto3.Bind
		if err := bind.Decode(body); err != nil {
			return false, err
		}
		return f.checkpoints[bind.PreparedStatement], nil
	}
	return false, nil
}
