package postgres

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/servertest"
)

// delivering returns a delivery whose messages nobody takes, with all shares at one place.
func delivering(ctx context.Context, t *testing.T) *delivery {
	t.Helper()
	d := newDelivery(holder{log: &Log{config: Config{}.withDefaults()}}, func() bool { return true }, make(chan *message.Message))
	joinAll(ctx, d, 1, place{snapshot: "1:1:"})
	return d
}

func joinAll(ctx context.Context, d *delivery, epoch int64, at place) {
	var shares []claimed
	for n := range int16(shareCount) {
		shares = append(shares, claimed{number: n, epoch: epoch, place: at})
	}
	d.join(ctx, shares, nil)
}

func reachedAll(asked []checkpoint) map[int16]bool {
	reached := make(map[int16]bool)
	for _, c := range asked {
		reached[c.number] = true
	}
	return reached
}

// TestContextsOfSharesHandedOverEnd: they are children of one that lives as long as the subscriber, which would gather them,
// sixteen for each time that it rests.
func TestContextsOfSharesHandedOverEnd(t *testing.T) {
	t.Parallel()
	d := delivering(t.Context(), t)
	var contexts []context.Context
	for _, s := range d.shares {
		contexts = append(contexts, s.ctx)
	}
	d.giveUp(shareCount)
	due := d.due()
	if lost := d.stored(due, reachedAll(due)); lost > 0 || len(d.shares) > 0 {
		t.Fatalf("%d shares were lost, %d are left", lost, len(d.shares))
	}
	for _, ctx := range contexts {
		if ctx.Err() == nil {
			t.Fatal("the context of a share that was handed over is still there")
		}
	}
}

// TestLateAnswerLeavesAShareClaimedAnew: that a checkpoint did not reach its share says nothing of the same share that was
// claimed again meanwhile.
func TestLateAnswerLeavesAShareClaimedAnew(t *testing.T) {
	t.Parallel()
	d := delivering(t.Context(), t)
	gone := map[*share]bool{d.shares[3]: true}
	d.lose(3)
	d.join(t.Context(), []claimed{{number: 3, epoch: 2, place: place{snapshot: "1:1:"}}}, nil)
	if lost := d.loseShares(gone); lost > 0 || d.shares[3] == nil {
		t.Errorf("lost %d shares, the new one among them", lost)
	}
}

// TestFirstSharesStandAtTheCommonPlace: an own track is for shares that join others. For the first ones of a process, one
// message that fails for long would keep them on it, and all that is read after it ahead of their place.
func TestFirstSharesStandAtTheCommonPlace(t *testing.T) {
	t.Parallel()
	d := delivering(t.Context(), t)
	at := place{snapshot: "1:1:"}
	common, boundary, joining := d.takeUp()
	if len(common) != shareCount || boundary != at || len(joining) > 0 || len(d.tracks) > 0 {
		t.Fatalf("%d shares stand at %+v, %d tracks join", len(common), boundary, len(joining))
	}
	d.lose(3) // nothing was read yet, so the places are where they were
	if due := d.due(); len(due) > 0 {
		t.Errorf("there is something to store: %+v", due)
	}
	d.endWindow(1, place{snapshot: "2:2:"}, joining)
	d.giveUp(shareCount)
	due := d.due()
	d.stored(due, reachedAll(due))
	joinAll(t.Context(), d, 2, place{snapshot: "2:2:"}) // once more, as after a rest
	if common, boundary, _ := d.takeUp(); len(common) != shareCount || boundary.snapshot != "2:2:" {
		t.Errorf("after a rest %d shares stand at %+v", len(common), boundary)
	}
}

// TestWhatIsAheadIsBoundedAndStored: a share joins with a message that stays open, and the others go on. What it handles with
// them is ahead of its place; it takes up room until the place has come after, and is stored although the place stays.
func TestWhatIsAheadIsBoundedAndStored(t *testing.T) {
	t.Parallel()
	d := newDelivery(holder{log: &Log{config: Config{}.withDefaults()}}, func() bool { return true }, make(chan *message.Message))
	places := []place{{snapshot: "1:1:"}, {snapshot: "2:2:"}, {snapshot: "3:3:"}}
	d.join(t.Context(), []claimed{{number: 0, epoch: 1, place: places[0]}}, nil)
	d.takeUp()
	d.endWindow(1, places[1], nil)
	d.join(t.Context(), []claimed{{number: 1, epoch: 1, place: places[0]}}, nil)
	_, _, joining := d.takeUp()
	if len(joining) != 1 {
		t.Fatalf("%d tracks join", len(joining))
	}
	late := d.shares[1]
	add := func(track *track, position int64, window uint64) *entry {
		t.Helper()
		if err := d.add(t.Context(), track, row{position: position, after: places[2]}, late, window, places[1]); err != nil {
			t.Fatal(err)
		}
		return track.open[len(track.open)-1]
	}
	stuck := add(joining[0], 1, 2)
	d.endWindow(2, places[2], joining)
	handle := func(e *entry) {
		e.done = true
		d.advance(e.track)
	}
	ahead := func() (stored [][]int64) {
		for _, c := range d.due() {
			if c.number == 1 {
				stored = append(stored, c.ahead)
			}
			d.stored([]checkpoint{c}, map[int16]bool{c.number: true})
		}
		return stored
	}
	ahead()
	for n := range int64(unackedMax - 1) {
		if d.full(0) {
			t.Fatalf("no room with %d messages ahead", n)
		}
		handle(add(&d.common, n+2, 3))
	}
	if !d.full(0) {
		t.Errorf("there is room although %d messages are ahead of one that is open", unackedMax-1)
	}
	if got := ahead(); len(got) != 1 || len(got[0]) != unackedMax-1 {
		t.Errorf("stored are %d checkpoints", len(got))
	}
	if got := ahead(); len(got) > 0 {
		t.Error("what is ahead is stored again, and nothing has changed")
	}
	handle(stuck)
	if d.full(0) || d.beyond != 0 || len(late.ahead) > 0 || late.track != &d.common {
		t.Errorf("the place has come after, and %d are ahead of it", d.beyond)
	}
}

// TestStuckMessageBoundsWhatIsHandledBeyondIt, also when it is the first that a process reads: what a crash would repeat and
// a checkpoint has to name stays within the limit on unacknowledged messages.
func TestStuckMessageBoundsWhatIsHandledBeyondIt(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newLog(t, Config{RetryMin: time.Hour, RetryMax: time.Hour}, "reader")
	publish(t, l, event("stuck", 0))
	s := subscriber(t, l, "reader")
	refused := make(chan struct{})
	refuse := sync.OnceFunc(func() { close(refused) })
	in := listen(t.Context(), t, s, func(m *message.Message) bool {
		if m.Metadata.Get(keyAttribute) == "stuck" {
			refuse()
			return false
		}
		return true
	})
	<-refused
	for range 3 {
		batch := make([]*message.Message, 900)
		for i := range batch {
			batch[i] = event(fmt.Sprint("k", i%50), i)
		}
		publish(t, l, batch...)
	}
	in.await(t, unackedMax-1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(in.all()); n != unackedMax-1 {
		t.Errorf("%d were handled beyond it", n)
	}
	var ahead int
	err := l.pool.QueryRow(t.Context(), `select sum(cardinality(ahead)) from postbus.consumer_shares`).Scan(&ahead)
	if err != nil || ahead > unackedMax-1 {
		t.Errorf("%d are stored as ahead, %v", ahead, err)
	}
	status, _, err := l.Status(t.Context(), Subscription{Consumer: "reader", Topic: "user"})
	if want := 1 + 3*900 - (unackedMax - 1); err != nil || status.Waiting != want {
		t.Errorf("%d wait, want %d, %v", status.Waiting, want, err)
	}
}
