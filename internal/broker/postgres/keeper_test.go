package postgres

import (
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
	s := newSubscriber(l, "reader")
	held, err := l.claim(ctx, "reader", s.owner, shareCount)
	if err != nil {
		t.Fatal(err)
	}
	paused := newTerm(l.config.Lease)
	paused.until.Store(0)
	d := newDelivery(l.config, paused.valid, make(chan *message.Message))
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
