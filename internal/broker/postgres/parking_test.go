package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"postbus/internal/servertest"
)

// reason is a refusal that says what its consumer's policy makes of it.
type reason struct {
	text      string
	class     string
	wait      time.Duration
	attempts  int // before it is dead
	pass      bool
	everybody bool
	told      func(attempt int)
}

func (r reason) Error() string   { return r.text }
func (r reason) Class() string   { return r.class }
func (r reason) Stack() string   { return "stack of " + r.text }
func (r reason) Hold() bool      { return !r.pass }
func (r reason) Everybody() bool { return r.everybody }

func (r reason) Next(attempt int) (time.Duration, bool) {
	if r.told != nil {
		r.told(attempt)
	}
	return r.wait, attempt < r.attempts
}

// soon is a failure that is tried again at once.
func soon() reason { return reason{text: "no", class: "transient", attempts: 100} }

// work lets the consumer reader handle messages as the router does: an error is the reason of a refusal.
func work(ctx context.Context, t *testing.T, l *Log, handle func(*message.Message) error) *inbox {
	t.Helper()
	return listen(ctx, t, subscriber(t, l, "reader"), func(m *message.Message) bool {
		err := handle(m)
		if err != nil {
			l.Refuse(m, err)
		}
		return err == nil
	})
}

// payloads is what events of a key look like.
func payloads(key string, from, to int) (all []string) {
	for n := from; n <= to; n++ {
		all = append(all, fmt.Sprintf(`{"key":%q,"n":%d}`, key, n))
	}
	return all
}

// of returns those of one key, in the order given.
func of(key string, all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(p string) bool { return !strings.Contains(p, fmt.Sprintf("%q", key)) })
}

// isParked tells how many rows of each state there are.
func isParked(t *testing.T, l *Log) (states map[string]int) {
	t.Helper()
	rows, err := l.pool.Query(t.Context(), `SELECT state, count(*)::int FROM postbus.parked GROUP BY state`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	states = make(map[string]int)
	for rows.Next() {
		var state string
		var n int
		if err := rows.Scan(&state, &n); err != nil {
			t.Fatal(err)
		}
		states[state] = n
	}
	return states
}

func waitingOf(t *testing.T, l *Log) int {
	t.Helper()
	status, _, err := l.Status(t.Context(), Subscription{Consumer: "reader", Topic: "user"})
	if err != nil {
		t.Fatal(err)
	}
	return status.Waiting
}

// TestFailedEventIsParkedWithItsKey: what is behind it waits in order, other keys and other consumers go on, and the place does too.
func TestFailedEventIsParkedWithItsKey(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader", "other")
	other := listen(t.Context(), t, subscriber(t, l, "other"), nil)
	var mended atomic.Bool
	in := work(t.Context(), t, l, func(m *message.Message) error {
		if !mended.Load() && string(m.Payload) == payloads("a", 1, 1)[0] {
			return soon()
		}
		return nil
	})
	publish(t, l, event("a", 0), event("a", 1), event("b", 1), event("a", 2), event("b", 2), event("a", 3))
	in.await(t, 3)
	publish(t, l, event("a", 4))
	eventually(t, "the place to pass what is parked", func() bool { return waitingOf(t, l) == 0 && isParked(t, l)["behind"] == 3 })
	if got := in.all(); len(got) != 3 || !slices.Equal(of("b", got), payloads("b", 1, 2)) {
		t.Errorf("while a is parked %q were handled", got)
	}
	if got := other.await(t, 7); !slices.Equal(of("a", got), payloads("a", 0, 4)) || !slices.Equal(of("b", got), payloads("b", 1, 2)) {
		t.Errorf("another consumer has handled %q", got)
	}
	mended.Store(true)
	if got := in.await(t, 7); !slices.Equal(of("a", got), payloads("a", 0, 4)) {
		t.Errorf("a was handled as %q", got)
	}
	eventually(t, "the line to end", func() bool { return len(isParked(t, l)) == 0 })
	publish(t, l, event("a", 5))
	if got := in.await(t, 8); !slices.Equal(of("a", got), payloads("a", 0, 5)) || len(got) != 8 {
		t.Errorf("in the end %q were handled", got)
	}
}

// TestParkingSurvivesARestart: the next process knows the key, and the number of the attempt.
func TestParkingSurvivesARestart(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	first := subscriber(t, l, "reader")
	listen(t.Context(), t, first, func(m *message.Message) bool {
		l.Refuse(m, reason{text: "no", wait: time.Hour, attempts: 9})
		return false
	})
	publish(t, l, event("a", 1))
	eventually(t, "it to be parked", func() bool { return isParked(t, l)["retry"] == 1 })
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	publish(t, l, event("a", 2), event("b", 1))
	attempts := make(chan int, 10)
	in := work(t.Context(), t, l, func(m *message.Message) error {
		if string(m.Payload) == payloads("a", 1, 1)[0] && len(attempts) == 0 {
			return reason{text: "no", attempts: 9, told: func(n int) { attempts <- n }}
		}
		return nil
	})
	in.await(t, 1)
	eventually(t, "the second to be behind", func() bool { return isParked(t, l)["behind"] == 1 })
	if _, err := l.pool.Exec(t.Context(), `UPDATE postbus.parked SET run_at = now() WHERE state = 'retry'`); err != nil {
		t.Fatal(err)
	}
	if got := in.await(t, 3); !slices.Equal(of("a", got), payloads("a", 1, 2)) {
		t.Errorf("a was handled as %q", got)
	}
	if n := <-attempts; n != 2 {
		t.Errorf("the attempt after the restart was number %d", n)
	}
}

// TestDeadEventHoldsItsKeyOrLetsItPass, as its consumer's policy says.
func TestDeadEventHoldsItsKeyOrLetsItPass(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pass    bool
		handled []string
		states  map[string]int
	}{
		"holds":     {false, nil, map[string]int{"held": 1, "behind": 2}},
		"lets pass": {true, payloads("a", 2, 3), map[string]int{"dead": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLog(t, Config{}, "reader")
			in := work(t.Context(), t, l, func(m *message.Message) error {
				if string(m.Payload) == payloads("a", 1, 1)[0] {
					return reason{text: "never \x00", class: "permanent", attempts: 2, pass: c.pass}
				}
				return nil
			})
			publish(t, l, event("a", 1), event("a", 2), event("b", 1), event("a", 3))
			got := in.await(t, 1+len(c.handled))
			eventually(t, "it to be dead", func() bool { return fmt.Sprint(isParked(t, l)) == fmt.Sprint(c.states) })
			if !slices.Equal(of("a", got), c.handled) {
				t.Errorf("of a %q were handled", got)
			}
			var attempts int
			var failures string
			if err := l.pool.QueryRow(t.Context(), `SELECT attempts, failures::text FROM postbus.parked WHERE dead_at IS NOT NULL`).
				Scan(&attempts, &failures); err != nil {
				t.Fatal(err)
			}
			if attempts != 2 || strings.Count(failures, `"class": "permanent"`) != 2 || !strings.Contains(failures, `"stack": "stack of never `) {
				t.Errorf("after %d attempts the failures are %s", attempts, failures)
			}
		})
	}
}

// TestLongLineCatchesUpInOrder, longer than what is taken from a line at once and than what is parked at once.
func TestLongLineCatchesUpInOrder(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const n = 2*parkRowsMax + 7
	l := newLog(t, Config{}, "reader")
	var mended atomic.Bool
	in := work(t.Context(), t, l, func(*message.Message) error {
		if mended.Load() {
			return nil
		}
		return soon()
	})
	var all []*message.Message
	for i := range n {
		all = append(all, event("a", i))
	}
	publish(t, l, all...)
	eventually(t, "all to be parked", func() bool { return isParked(t, l)["behind"] == n-1 })
	mended.Store(true)
	publish(t, l, event("a", n))
	if got := in.await(t, n+1); !slices.Equal(got, payloads("a", 0, n)) {
		t.Errorf("%d were handled, or in another order", len(got))
	}
}

// TestEverythingFails: the consumer slows down instead of parking all, counts no attempts, and goes on by itself.
func TestEverythingFails(t *testing.T) {
	t.Parallel()
	const n = 10 * slowAfter
	l := newLog(t, Config{}, "reader")
	logs := &lines{}
	l.logger = slog.New(slog.NewTextHandler(logs, nil))
	var mended atomic.Bool
	var tries atomic.Int64
	in := work(t.Context(), t, l, func(*message.Message) error {
		if mended.Load() {
			return nil
		}
		tries.Add(1)
		return reason{text: "the server is down", class: "transient", wait: 10 * time.Millisecond, attempts: 3, everybody: true}
	})
	var all []*message.Message
	for i := range n {
		all = append(all, event(fmt.Sprint("key ", i), i))
	}
	publish(t, l, all...)
	eventually(t, "it to slow down", func() bool { return strings.Contains(logs.text(), "slows down") })
	began := tries.Load()
	<-time.After(2 * slowFirst) // what is tried meanwhile is counted
	if tried := tries.Load() - began; tried > 20 {
		t.Errorf("in %s it tried %d times", 2*slowFirst, tried)
	}
	parked := isParked(t, l)
	if parked["retry"] > slowAfter+16 || parked["held"] > 0 {
		t.Errorf("parked are %v", parked)
	}
	mended.Store(true)
	in.await(t, n)
	if got := in.all(); len(got) != n || strings.Count(logs.text(), "full pace") != 1 {
		t.Errorf("%d of %d were handled; it said %s", len(got), n, logs.text())
	}
}

// TestOneFailingKeyDelaysNoOther, however often it fails with no success in between: its attempts count, and it dies of them.
func TestOneFailingKeyDelaysNoOther(t *testing.T) {
	t.Parallel()
	const attempts = slowAfter + 2
	l := newLog(t, Config{}, "reader")
	logs := &lines{}
	l.logger = slog.New(slog.NewTextHandler(logs, nil))
	var tries atomic.Int64
	in := work(t.Context(), t, l, func(m *message.Message) error {
		if m.Metadata.Get(keyAttribute) == "good" {
			return nil
		}
		tries.Add(1)
		return reason{text: "of this event alone", class: "transient", attempts: attempts, everybody: true}
	})
	publish(t, l, event("bad", 1))
	eventually(t, "it to have failed often", func() bool { return tries.Load() >= slowAfter })
	publish(t, l, event("good", 1))
	in.await(t, 1)
	eventually(t, "it to be dead", func() bool { return isParked(t, l)["held"] == 1 })
	if n := tries.Load(); n != attempts || strings.Contains(logs.text(), "slows down") {
		t.Errorf("of %d attempts it had %d; the log says %s", attempts, n, logs.text())
	}
}

// TestLineOfALostShareIsLeftAlone: an owner whose epoch is over changes nothing.
func TestLineOfALostShareIsLeftAlone(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	held, err := holds(t, l, "reader", "owner").claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	s := &share{number: 3, epoch: held[3].epoch}
	e := &entry{row: row{position: 1, id: madeAt(0), raw: "{}", payload: []byte("x")}}
	v, ok := judge(soon(), 1)
	park := func(consumer, owner string, epoch int64) bool {
		t.Helper()
		s.epoch = epoch
		got, err := holds(t, l, consumer, owner).park(t.Context(),
			[]change{{share: s, key: "a", position: 1, kind: changePark, entry: e, state: v.state, failure: &v.failure}})
		if err != nil {
			t.Fatal(err)
		}
		return got[3]
	}
	if !ok || park("reader", "owner", held[3].epoch-1) || park("reader", "other", held[3].epoch) || len(isParked(t, l)) != 0 {
		t.Errorf("a stranger parked: %v", isParked(t, l))
	}
	if !park("reader", "owner", held[3].epoch) || isParked(t, l)["retry"] != 1 {
		t.Errorf("the owner did not park: %v", isParked(t, l))
	}
}

// TestLinesFollowTheirShares: processes come and go while keys are parked; each key keeps its order, one at a time.
func TestLinesFollowTheirShares(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const keys, each = 24, 20
	l := newLog(t, Config{}, "reader")
	var mu sync.Mutex
	running := make(map[string]bool)
	tries := make(map[string]int)
	all := &inbox{}
	var third message.Subscriber
	handle := func(m *message.Message) error {
		key := m.Metadata.Get(keyAttribute)
		mu.Lock()
		defer mu.Unlock()
		if running[key] {
			t.Errorf("two of %s at once", key)
		}
		tries[m.UUID]++
		if tries[m.UUID] <= int(m.UUID[0])%4 { // fails up to three times
			return soon()
		}
		all.mu.Lock()
		all.payloads = append(all.payloads, string(m.Payload))
		all.mu.Unlock()
		return nil
	}
	work(t.Context(), t, l, handle)
	for n := range each {
		var batch []*message.Message
		for k := range keys {
			batch = append(batch, event(fmt.Sprint("key ", k), n))
		}
		publish(t, l, batch...)
		switch n {
		case 5:
			work(t.Context(), t, l, handle)
		case 10: // leaves again, and takes nothing along
			third = subscriber(t, l, "reader")
			listen(t.Context(), t, third, func(m *message.Message) bool {
				err := handle(m)
				if err != nil {
					l.Refuse(m, err)
				}
				return err == nil
			})
		case 15:
			if err := third.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	got := all.await(t, keys*each)
	for k := range keys {
		if key := fmt.Sprint("key ", k); !slices.Equal(of(key, got), payloads(key, 0, each-1)) {
			t.Errorf("%s was handled as %q", key, of(key, got))
		}
	}
	eventually(t, "the lines to end", func() bool { return len(isParked(t, l)) == 0 })
}

// TestRestingConsumerIsWokenForWhatIsParked, with nothing new in the topic.
func TestRestingConsumerIsWokenForWhatIsParked(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: time.Second, Rest: 50 * time.Millisecond, Poll: 50 * time.Millisecond}, "reader")
	var mended atomic.Bool
	in := work(t.Context(), t, l, func(*message.Message) error {
		if mended.Load() {
			return nil
		}
		return reason{text: "no", wait: time.Hour, attempts: 9}
	})
	publish(t, l, event("a", 1))
	eventually(t, "it to rest", func() bool {
		status, _, err := l.Status(t.Context(), Subscription{Consumer: "reader", Topic: "user"})
		return err == nil && len(status.Owners) == 0 && isParked(t, l)["retry"] == 1
	})
	mended.Store(true)
	if _, err := l.pool.Exec(t.Context(), `UPDATE postbus.parked SET run_at = now()`); err != nil {
		t.Fatal(err)
	}
	in.await(t, 1)
}

// TestHeadIsFoundHoweverLongTheLine: the next row becomes the head by index, not by reading the line.
func TestHeadIsFoundHoweverLongTheLine(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newLog(t, Config{}, "reader")
	if _, err := l.pool.Exec(t.Context(), `INSERT INTO postbus.parked (consumer, key_hash, position, share, state, attempts, event_id, type,
			key, metadata, payload, failures)
		SELECT 'reader', $1, n, 0, 'behind', 0, gen_random_uuid(), 't', 'a', '{}', 'x', '[]' FROM generate_series(1, 100000) AS n`,
		keyHash("a")); err != nil {
		t.Fatal(err)
	}
	read := blocksOf(t, l, l.promoteSQL(), "reader", []any{keyHash("a")})
	if read > 60 || isParked(t, l)["retry"] != 1 {
		t.Errorf("to find the head %d pages were read; parked are %v", read, isParked(t, l))
	}
}

// TestParkedEventIsNotReadOnceMore: a process dies when an event is parked and its place is still before that event. The
// successor works the line off, and does not take the event from the log as well.
func TestParkedEventIsNotReadOnceMore(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	held, err := holds(t, l, "reader", "dead").claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, l, event("a", 1), event("b", 1))
	found, err := holds(t, l, "reader", "test").read(t.Context(), "user", held[0].place, nil)
	if err != nil || len(found.rows) != 2 {
		t.Fatalf("read %d rows, %v", len(found.rows), err)
	}
	r := found.rows[0]
	v, _ := judge(soon(), 1)
	changes := []change{{
		share: &share{number: r.share, epoch: held[r.share].epoch}, key: "a", position: r.position, kind: changePark,
		entry: &entry{row: r}, state: v.state, failure: &v.failure,
	}}
	if _, err := holds(t, l, "reader", "dead").park(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	if _, err := l.pool.Exec(t.Context(), `UPDATE postbus.consumer_shares SET lease_until = now() - interval '1 s'`); err != nil {
		t.Fatal(err)
	}
	in := work(t.Context(), t, l, func(*message.Message) error { return nil })
	in.await(t, 2)
	eventually(t, "the line to end", func() bool { return len(isParked(t, l)) == 0 && waitingOf(t, l) == 0 })
	publish(t, l, event("b", 2))
	if got := in.await(t, 3); len(got) != 3 || !slices.Equal(of("a", got), payloads("a", 1, 1)) {
		t.Errorf("handled were %q", got)
	}
}

// TestPausedInAChange: a process that is stopped while it holds the locks of its shares does not keep them for longer than a
// lease. It begins the change anew, and finds what has become of its shares.
func TestPausedInAChange(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: time.Second}, "reader")
	held, err := holds(t, l, "reader", "paused").claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	inside, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var had []bool
	go func() {
		ended <- l.change(t.Context(), func(tx pgx.Tx) error {
			locked, err := holds(t, l, "reader", "paused").lockShares(t.Context(), tx, map[int16]int64{3: held[3].epoch})
			if had = append(had, locked[3]); len(had) == 1 {
				close(inside)
			}
			<-goOn
			return err
		})
	}()
	<-inside
	var heir []claimed
	eventually(t, "the heir to have all shares", func() bool {
		more, err := holds(t, l, "reader", "heir").claim(t.Context(), shareCount)
		if err != nil {
			t.Fatal(err)
		}
		heir = append(heir, more...)
		return slices.ContainsFunc(heir, func(c claimed) bool { return c.number == 3 })
	})
	close(goOn)
	if err := <-ended; err != nil || !slices.Equal(had, []bool{true, false}) {
		t.Errorf("whether the share was its own at each attempt: %v; %v", had, err)
	}
}
