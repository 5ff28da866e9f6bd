package postgres

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// TestLostSharesGoBeforeTheTermIsExtended: a process that wakes up after its lease finds its shares with another. Until they
// are taken away it may not take its leases to hold, or a lane hands out what the other is at.
func TestLostSharesGoBeforeTheTermIsExtended(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: time.Minute}, "reader")
	ctx := t.Context()
	s := newSubscriber([]*Log{l}, "reader", testLanes)
	h := holds(t, l, "reader", s.owner)
	held, err := h.claim(ctx, shareCount)
	if err != nil {
		t.Fatal(err)
	}
	paused := newTerm(l.config.Lease)
	paused.until.Store(0)
	d := newDelivery(h, paused.valid, make(chan *message.Message))
	d.join(ctx, held, nil)
	lost := 0
	for _, s := range d.shares {
		cancel := s.cancel
		s.cancel = func(cause error) {
			if paused.valid() {
				t.Error("the term was extended while there was a share of somebody else")
			}
			lost++
			cancel(cause)
		}
	}
	execute(t, l, `update postbus.consumer_shares set owner = 'heir', epoch = epoch + 1, lease_until = clock_timestamp() + '1 min'`)
	k := keeper{Subscriber: s, topic: "user", delivery: d, term: paused, reading: ctx, handling: ctx}
	if err := k.balance(ctx); err != nil {
		t.Fatal(err)
	}
	if lost != shareCount || !paused.valid() {
		t.Errorf("%d shares were lost, the term holds: %t", lost, paused.valid())
	}
}

// TestNoRestWhileEventsCome: a process whose keys have no events stays while the topic has some. It would be woken at once,
// claim its shares again and give them up again, and everybody else's with them.
func TestNoRestWhileEventsCome(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	ctx, cancel := context.WithCancel(t.Context())
	s := newSubscriber([]*Log{l}, "reader", testLanes)
	h := holds(t, l, "reader", s.owner)
	claimed, err := h.claim(ctx, shareCount)
	if err != nil {
		t.Fatal(err)
	}
	d := newDelivery(h, func() bool { return true }, make(chan *message.Message))
	quietForLong := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.active = time.Now().Add(-time.Hour)
	}
	quietForLong()
	d.join(ctx, claimed, nil)
	if d.idle(time.Minute) {
		t.Error("it rests when it has just claimed shares")
	}
	quietForLong()
	ended := make(chan error)
	go func() { ended <- s.read(ctx, "user", d) }()
	eventually(t, "the topic is heard", func() bool {
		l.wakeup.signal("user") // there is nothing for this process
		return !d.idle(time.Minute)
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("reading ended with %v", err)
	}
}
