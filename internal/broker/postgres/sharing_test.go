package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/servertest"
)

// ledger notes which delivery came when, over all subscribers.
type ledger struct {
	mu    sync.Mutex
	seen  map[string][]int // by key, in order of delivery
	by    map[string]int   // how many each subscriber got
	total int
}

func newLedger() *ledger { return &ledger{seen: make(map[string][]int), by: make(map[string]int)} }

func (l *ledger) note(who string, m *message.Message) {
	var key string
	var n int
	if _, err := fmt.Sscanf(string(m.Payload), `{"key":%q,"n":%d}`, &key, &n); err != nil {
		panic(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[key] = append(l.seen[key], n)
	l.by[who]++
	l.total++
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// distinct counts the messages that were delivered, each once.
func (l *ledger) distinct() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, got := range l.seen {
		n += len(slices.Compact(slices.Sorted(slices.Values(got))))
	}
	return n
}

// check fails unless every key was delivered from 0 to n-1, each once and in order.
func (l *ledger) check(t *testing.T, keys, n int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.seen) != keys {
		t.Errorf("%d keys, want %d", len(l.seen), keys)
	}
	for key, got := range l.seen {
		for i, v := range got {
			if v != i {
				t.Errorf("key %s: %v", key, got)
				break
			}
		}
		if len(got) != n {
			t.Errorf("key %s: %d deliveries, want %d", key, len(got), n)
		}
	}
}

func listenAs(ctx context.Context, t *testing.T, l *Log, who string, to *ledger, busy time.Duration) *inbox {
	t.Helper()
	return listen(ctx, t, subscriber(t, l, "reader"), func(m *message.Message) bool {
		time.Sleep(busy) //nolint:forbidigo // the handler's work
		to.note(who, m)
		return true
	})
}

type lines struct {
	mu  sync.Mutex
	all []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, p...)
	return len(p), nil
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.all)
}

// TestSubscribersShareTheWork: both get some of the keys, no key is with two, and the order of each is kept.
func TestSubscribersShareTheWork(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Poll: 20 * time.Millisecond}, "reader")
	all := newLedger()
	listenAs(t.Context(), t, l, "a", all, 0)
	listenAs(t.Context(), t, l, "b", all, 0)
	eventually(t, "an even division", func() bool {
		status, _, err := l.Status(t.Context(), Subscription{Consumer: "reader", Topic: "user"})
		if err != nil || len(status.Owners) != 2 {
			return false
		}
		for _, n := range status.Owners {
			if n != shareCount/2 {
				return false
			}
		}
		return true
	})
	const keys, each = 40, 20
	for n := range each {
		for k := range keys {
			publish(t, l, event(fmt.Sprint("k", k), n))
		}
	}
	eventually(t, "all messages", func() bool { return all.distinct() >= keys*each })
	all.check(t, keys, each)
	if all.by["a"] == 0 || all.by["b"] == 0 {
		t.Errorf("they got %v", all.by)
	}
}

// TestRollingRestartsUnderLoad stops and starts subscribers in good order, fifty times, while others publish: nothing is
// lost, nothing is delivered twice, the order of each key is kept.
func TestRollingRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newLog(t, Config{Poll: 20 * time.Millisecond}, "reader")
	logs := &lines{}
	l.logger = slog.New(slog.NewTextHandler(logs, nil))
	all := newLedger()
	const keys, restarts = 30, 50
	random := rand.New(rand.NewPCG(3, 4))
	load, endLoad := context.WithCancel(t.Context())
	var published int
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for ; load.Err() == nil; published++ {
			for k := range keys {
				publish(t, l, event(fmt.Sprint("k", k), published))
			}
		}
	})
	type instance struct {
		in   *inbox
		stop context.CancelFunc
	}
	var running []instance
	start := func(n int) {
		ctx, stop := context.WithCancel(t.Context())
		running = append(running, instance{listenAs(ctx, t, l, fmt.Sprint(n), all, time.Duration(n%3)*time.Millisecond), stop})
	}
	start(0)
	start(1)
	for n := range restarts {
		start(n + 2)
		before := all.count()
		eventually(t, "progress", func() bool { return all.count() > before+random.IntN(200) })
		oldest := running[0]
		running = running[1:]
		oldest.stop()
		<-oldest.in.ended
	}
	endLoad()
	publishing.Wait()
	eventually(t, "all messages", func() bool { return all.distinct() >= published*keys })
	for _, i := range running {
		i.stop()
		<-i.in.ended
	}
	all.check(t, keys, published)
	if t.Failed() {
		t.Log(logs.text())
	}
	t.Logf("%d messages, %d instances", all.count(), len(all.by))
}
