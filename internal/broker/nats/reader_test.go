package nats_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	driver "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/natstest"
)

// readerPatience is how long a reader may take for what it has to return at once.
const readerPatience = 20 * time.Second

// lossy is on the way to a server. While it drops, nothing comes from there.
type lossy struct {
	listener net.Listener
	drops    atomic.Bool
	dropped  chan struct{} // takes a word when a message with the text was dropped
	text     string

	mu    sync.Mutex
	conns []net.Conn
}

func newLossy(t *testing.T, server, text string) *lossy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &lossy{listener: listener, dropped: make(chan struct{}, 1), text: text}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", server)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			running.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
			running.Go(func() { p.copy(client, server); _ = client.Close() })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		running.Wait()
	})
	return p
}

func (p *lossy) copy(client, server net.Conn) {
	for buffer := make([]byte, 1<<16); ; {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		if !p.drops.Load() {
			_, _ = client.Write(buffer[:n])
		} else if bytes.Contains(buffer[:n], []byte(p.text)) {
			p.dropped <- struct{}{}
		}
	}
}

// cut ends all connections there are.
func (p *lossy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// readOn reads a topic until n messages have come, with as many readers as that takes, and returns their payloads. It keeps the
// places.
func readOn(t *testing.T, b broker.Broker, r broker.Reader, places map[string]string, n int) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readerPatience)
	defer cancel()
	for len(got) < n {
		if r == nil {
			var err error
			if r, err = b.Reader(ctx, "user", places); err != nil {
				if ctx.Err() != nil {
					t.Fatalf("read only %q: %v", got, err)
				}
				continue
			}
		}
		batch, err := r.Next(ctx)
		if ctx.Err() != nil {
			_ = r.Close()
			t.Fatalf("read only %q: %v", got, err)
		}
		if err != nil {
			_ = r.Close()
			r = nil
			continue
		}
		places[batch.Partition] = batch.Place
		for _, m := range batch.Messages {
			got = append(got, string(m.Payload))
		}
	}
	_ = r.Close()
	return got
}

// TestInFlight: what was on its way to a reader when the connection was lost is read without anything else to come.
func TestInFlight(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	direct := provisioned(t, server.URL())
	way := newLossy(t, server.Addr(), `{"n":2}`)
	b := provisioned(t, "nats://"+way.listener.Addr().String())
	places := make(map[string]string)
	r, err := b.Reader(t.Context(), "user", places)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, direct, 1)
	batch, err := r.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	places[batch.Partition] = batch.Place
	way.drops.Store(true)
	publish(t, direct, 2)
	<-way.dropped
	way.drops.Store(false)
	way.cut()
	if got := readOn(t, b, r, places, 1); got[0] != `{"n":2}` {
		t.Errorf("read %q", got)
	}
}

// TestGapWhileReading: events that are gone are not passed over where the reader has not come to them yet, and what was before
// them is read.
func TestGapWhileReading(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := connect(t, server.URL())
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "postbus-user", Subjects: []string{"postbus.user.*"}})
	if err != nil {
		t.Fatal(err)
	}
	b := provisioned(t, server.URL()+"?provision=verify")
	for n := range 4 {
		publish(t, b, n)
	}
	if err := errors.Join(stream.DeleteMsg(t.Context(), 2), stream.DeleteMsg(t.Context(), 3)); err != nil {
		t.Fatal(err)
	}
	first, places := brokertest.Read(t, b, "user", nil, 1)
	if string(first[0].Payload) != `{"n":0}` {
		t.Errorf("read %s first", first[0].Payload)
	}
	r, err := b.Reader(t.Context(), "user", places)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), readerPatience)
	defer cancel()
	var gap *broker.GapError
	if batch, err := r.Next(ctx); !errors.As(err, &gap) || gap.Events != 1 {
		t.Errorf("read %d messages over a gap: %v", len(batch.Messages), err)
	}
	skipping := provisioned(t, server.URL()+"?provision=verify&gap=skip")
	if got := readOn(t, skipping, nil, places, 1); got[0] != `{"n":3}` {
		t.Errorf("read %q after the gap", got)
	}
}

// TestForeignMessages: what the driver takes for a word of the server, at any place, is read as any other message.
func TestForeignMessages(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := connect(t, server.URL())
	b := provisioned(t, server.URL())
	send := func(header driver.Header) {
		t.Helper()
		m := driver.NewMsg("postbus.user.1")
		m.Header = header
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	send(driver.Header{"Status": {"409"}, "Description": {"Consumer Deleted"}})
	publish(t, b, 1)
	send(driver.Header{"Status": {"404"}})
	send(driver.Header{"Status": {"100"}})
	publish(t, b, 2)
	send(driver.Header{"Status": {"409"}, "Description": {"Consumer Deleted"}})
	send(driver.Header{"Status": {"503"}})
	publish(t, b, 3)
	places := make(map[string]string)
	got := readOn(t, b, nil, places, 8)
	if want := `,{"n":1},,,{"n":2},,,{"n":3}`; strings.Join(got, ",") != want {
		t.Errorf("read %q, want %s", got, want)
	}
}

// TestLargeForeignMessage: what is larger than any event is read where the server takes it.
func TestLargeForeignMessage(t *testing.T) {
	t.Parallel()
	server := natstest.StartWith(t, "max_payload: 33554432")
	js := connect(t, server.URL())
	b := provisioned(t, server.URL())
	publish(t, b, 1)
	large := make([]byte, 17<<20)
	if _, err := js.Publish(t.Context(), "postbus.user.1", large); err != nil {
		t.Fatal(err)
	}
	publish(t, b, 2)
	got := readOn(t, b, nil, make(map[string]string), 3)
	if len(got[1]) != len(large) || got[2] != `{"n":2}` {
		t.Errorf("read a message of %d bytes, then %q", len(got[1]), got[2])
	}
}
