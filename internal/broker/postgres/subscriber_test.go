package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"postbus/internal/pgtest"
)

// TestMain runs the tests on a server apart. A partition is closed when all transactions have ended that began before the next
// one was there, in whatever database.
func TestMain(m *testing.M) {
	pgtest.Apart("log")
	goleak.VerifyTestMain(m)
}

func TestSubscriberDeliversInOrderForAKey(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	const keys, each = 5, 40
	for n := range each {
		for k := range keys {
			publish(t, l, event(fmt.Sprint("k", k), n))
		}
	}
	got := in.await(t, keys*each)
	last := make(map[string]int)
	for _, payload := range got {
		var key string
		var n int
		if _, err := fmt.Sscanf(payload, `{"key":%q,"n":%d}`, &key, &n); err != nil {
			t.Fatal(err)
		}
		if n != last[key] {
			t.Fatalf("key %s: %d came after %d", key, n, last[key]-1)
		}
		last[key]++
	}
}

// TestNewConsumerStartsNow: what was committed before its name was known is not its concern.
func TestNewConsumerStartsNow(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{})
	publish(t, l, event("k", 1))
	again := openLog(t, l.pool, Config{}, "newcomer")
	publish(t, l, event("k", 2))
	in := listen(t.Context(), t, subscriber(t, again, "newcomer"), nil)
	if got := in.await(t, 1); len(got) != 1 || !strings.Contains(got[0], `"n":2`) {
		t.Errorf("got %q", got)
	}
}

func TestRefusedMessageComesAgainAndHoldsUpOnlyItsKey(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{RetryMin: 10 * time.Millisecond}, "reader")
	var refusals atomic.Int32
	var refuse atomic.Bool
	refuse.Store(true)
	in := listen(t.Context(), t, subscriber(t, l, "reader"), func(m *message.Message) bool {
		m.Metadata.Set("scribble", "of a handler") // is not to be seen at the next delivery
		if refuse.Load() && m.Metadata.Get(keyAttribute) == "bad" {
			refusals.Add(1)
			return false
		}
		return true
	})
	publish(t, l, event("bad", 1), event("bad", 2), event("good", 1), event("good", 2))
	in.await(t, 2)
	eventually(t, "several attempts", func() bool { return refusals.Load() > 3 })
	refuse.Store(false)
	got := in.await(t, 4)
	if want := []string{`{"key":"bad","n":1}`, `{"key":"bad","n":2}`}; !slices.Equal(got[2:], want) {
		t.Errorf("then came %q", got[2:])
	}
}

// TestStopHandsOverExactly stops a subscriber in good order while one key is held up and others are done beyond it: the
// next subscriber gets what is left, no more.
func TestStopHandsOverExactly(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{RetryMin: time.Hour, RetryMax: time.Hour}, "reader")
	ctx, stop := context.WithCancel(t.Context())
	first := listen(ctx, t, subscriber(t, l, "reader"), func(m *message.Message) bool { return m.Metadata.Get(keyAttribute) != "bad" })
	publish(t, l, event("bad", 1))
	for n := range 50 {
		publish(t, l, event(fmt.Sprint("good", n%7), n))
	}
	first.await(t, 50)
	stop()
	<-first.ended
	second := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	publish(t, l, event("good", 99))
	got := second.await(t, 2)
	slices.Sort(got)
	if want := []string{`{"key":"bad","n":1}`, `{"key":"good","n":99}`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRunningHandlerFinishesOnStop: Close waits for it, and what it did is not delivered again.
func TestRunningHandlerFinishesOnStop(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	s := subscriber(t, l, "reader")
	started, finish := make(chan struct{}), make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	in := listen(t.Context(), t, s, func(m *message.Message) bool {
		start()
		<-finish
		return m.Context().Err() == nil
	})
	publish(t, l, event("k", 1))
	<-started
	closed := make(chan struct{})
	go func() { defer close(closed); _ = s.Close() }()
	select {
	case <-closed:
		t.Fatal("Close did not wait for the handler")
	case <-time.After(100 * time.Millisecond): // long enough to see it return too early
	}
	close(finish)
	<-closed
	in.await(t, 1)
	again := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	publish(t, l, event("k", 2))
	if got := again.await(t, 1); !strings.Contains(got[0], `"n":2`) {
		t.Errorf("delivered again: %q", got)
	}
}

// TestHandlerBeyondDrainIsCutOff: its context is cancelled, Close returns, the message comes again.
func TestHandlerBeyondDrainIsCutOff(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Drain: 50 * time.Millisecond, Lease: time.Second}, "reader")
	s := subscriber(t, l, "reader")
	started := make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	listen(t.Context(), t, s, func(m *message.Message) bool {
		start()
		<-m.Context().Done()
		return false
	})
	publish(t, l, event("k", 1))
	<-started
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	again.await(t, 1)
}

// TestOneOwnerAtATime: of two subscribers one works; when it is gone without a word the other takes over within the
// lease, and the first cannot move the place any more.
func TestOneOwnerAtATime(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	ctx := t.Context()
	dead, err := holds(t, l, "reader", "a process that was killed").claim(ctx, shareCount)
	if err != nil || len(dead) != shareCount {
		t.Fatal(len(dead), err)
	}
	if more, err := holds(t, l, "reader", "another").claim(ctx, shareCount); len(more) > 0 || err != nil {
		t.Fatalf("claimed although held: %v, %v", more, err)
	}
	publish(t, l, event("k", 1))
	execute(t, l, `update postbus.consumer_shares set lease_until = clock_timestamp() - interval '1 ms'`) // so long has it been dead
	in := listen(ctx, t, subscriber(t, l, "reader"), nil)
	in.await(t, 1)
	var old []checkpoint
	var numbers []int16
	for _, c := range dead {
		old = append(old, checkpoint{number: c.number, epoch: c.epoch, place: c.place, release: true})
		numbers = append(numbers, c.number)
	}
	if stored, err := holds(t, l, "reader", "a process that was killed").store(ctx, old); len(stored) > 0 || err != nil {
		t.Errorf("the old owner stored %v: %v", stored, err)
	}
	if here, err := holds(t, l, "reader", "a process that was killed").renew(ctx, l.pool, numbers); len(here.held) > 0 || err != nil {
		t.Errorf("the old owner renewed %v: %v", here.held, err)
	}
}

// TestLostLeaseEndsTheHandlersContext: a process that finds its consumer taken stops working on it.
func TestLostLeaseEndsTheHandlersContext(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: time.Second}, "reader")
	var cut sync.Once
	cutOff := make(chan error, 1)
	listen(t.Context(), t, subscriber(t, l, "reader"), func(m *message.Message) bool {
		first := false
		cut.Do(func() { first = true })
		if !first {
			return true
		}
		if _, err := l.pool.Exec(t.Context(), `update postbus.consumer_shares set epoch = epoch + 1, owner = 'thief'`); err != nil {
			t.Error(err)
		}
		<-m.Context().Done()
		cutOff <- context.Cause(m.Context())
		return false
	})
	publish(t, l, event("k", 1))
	select {
	case err := <-cutOff:
		if !errors.Is(err, errLeaseLost) {
			t.Errorf("the context ended by %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the handler was not told")
	}
}

// TestPostgresGoesAwayAndComesBack: the subscriber goes on by itself, and nothing is lost.
func TestPostgresGoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	l, server := ownLog(t, Config{Lease: time.Second}, "reader")
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	publish(t, l, event("k", 1))
	in.await(t, 1)
	var err error
	server.Kill()
	server.Start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(err)
		}
	})
	eventually(t, "a commit", func() bool {
		_, err = l.pool.Exec(t.Context(), `insert into postbus.topic_user (slot, id, metadata, payload)
			values (0, gen_random_uuid(), '{}', 'after the crash')`)
		return err == nil
	})
	eventually(t, "the event after the crash", func() bool { return slices.Contains(in.all(), "after the crash") })
}

func TestManyMessagesAreBounded(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	batch := make([]*message.Message, 900)
	for range 5 {
		for i := range batch {
			batch[i] = event(fmt.Sprint(i%100), i)
		}
		publish(t, l, batch...)
	}
	shares, err := holds(t, l, "reader", "test").claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	d := newDelivery(holds(t, l, "reader", "test"), func() bool { return true }, make(chan *message.Message))
	d.join(t.Context(), shares, nil)
	readUntil(t, l, d, func() bool { return d.entries == unackedMax })
	if d.entries != unackedMax {
		t.Errorf("%d messages are open, the limit is %d", d.entries, unackedMax)
	}
}

// readUntil reads for a delivery whose messages nobody takes, until it has come that far.
func readUntil(t *testing.T, l *Log, d *delivery, enough func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- newSubscriber([]*Log{l}, "reader", testLanes).read(ctx, "user", d) }()
	eventually(t, "messages up to the limit", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return enough()
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("reading ended with %v", err)
	}
}

func TestProvisionByManyAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t, Migrations(DefaultSchema))
	var starters sync.WaitGroup
	for range 16 {
		starters.Go(func() {
			l, err := Open(pool, Config{}, quiet)
			if err == nil {
				err = l.Provision(t.Context(), []string{"user", "order"}, []Subscription{{Consumer: "a", Topic: "user"}, {Consumer: "b", Topic: "order"}})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	starters.Wait()
}

func TestProvisionRefuses(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	for _, name := range []string{"", "User", "1st", "a-b", `a"b`, "a b", strings.Repeat("a", 41), "naïve"} {
		if err := l.Provision(t.Context(), []string{name}, nil); !errors.Is(err, ErrTopicName) {
			t.Errorf("topic %q: %v", name, err)
		}
	}
	err := l.Provision(t.Context(), []string{"user", "order"}, []Subscription{{Consumer: "reader", Topic: "order"}})
	if !errors.Is(err, ErrTopicChanged) {
		t.Errorf("a consumer that changes its topic: %v", err)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	reader := Subscription{Consumer: "reader", Topic: "user"}
	for n := range 3 {
		publish(t, l, event("k", n))
	}
	status, known, err := l.Status(t.Context(), reader)
	if err != nil || !known || status.Waiting != 3 || status.More || status.Oldest <= 0 || len(status.Owners) != 0 {
		t.Fatalf("before reading: %+v, %t, %v", status, known, err)
	}
	listen(t.Context(), t, subscriber(t, l, "reader"), nil).await(t, 3)
	eventually(t, "nothing waits", func() bool {
		status, _, err := l.Status(t.Context(), reader)
		return err == nil && status.Waiting == 0 && len(status.Owners) == 1
	})
	if _, known, err := l.Status(t.Context(), Subscription{Consumer: "stranger", Topic: "user"}); known || err != nil {
		t.Errorf("a stranger: %t, %v", known, err)
	}
}

// TestLargeMessagesAreBounded: it is the bytes that stop the reading, long before the number of messages does.
func TestLargeMessagesAreBounded(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	for n := range 80 {
		m := event(fmt.Sprint(n), n)
		m.Payload = make([]byte, 256<<10)
		publish(t, l, m)
	}
	shares, err := holds(t, l, "reader", "test").claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	d := newDelivery(holds(t, l, "reader", "test"), func() bool { return true }, make(chan *message.Message))
	d.join(t.Context(), shares, nil)
	readUntil(t, l, d, func() bool { return d.bytes+(&row{payload: make([]byte, 256<<10)}).bytes() > unackedBytesMax })
	if d.bytes > unackedBytesMax {
		t.Errorf("%d bytes are open, the limit is %d", d.bytes, unackedBytesMax)
	}
}

// TestStoringTakesPartOfTheTimeOnly: many consumers take turns, and where it takes long it is done less often, but not for ever.
func TestStoringTakesPartOfTheTimeOnly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		busy       int32
		took, want time.Duration
	}{
		{1, time.Millisecond, storeEvery},
		{200, time.Millisecond, 200 * storeSpacing},
		{1, 10 * time.Millisecond, 190 * time.Millisecond},
		{1, 10 * time.Second, storeEveryMost},
		{200, 10 * time.Second, 200 * storeSpacing},
	} {
		if got := storePause(c.busy, c.took); got != c.want {
			t.Errorf("%d that store, after %s: %s, want %s", c.busy, c.took, got, c.want)
		}
	}
}
