package postgres

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/servertest"
)

// graveyard has, for the consumer "reader", three dead events that hold their keys, with one behind each, and one that let its
// key pass. They fail until mended.
func graveyard(t *testing.T) (l *Log, in *inbox, mended *atomic.Bool) {
	t.Helper()
	l = newLog(t, Config{Poll: 50 * time.Millisecond}, "reader")
	mended = new(atomic.Bool)
	in = work(t.Context(), t, l, func(m *message.Message) error {
		key, first := m.Metadata.Get(keyAttribute), strings.Contains(string(m.Payload), `"n":1}`)
		if mended.Load() || !first {
			return nil
		}
		if key == "pass" {
			return reason{text: "passes 7", class: "permanent", pass: true}
		}
		return reason{text: fmt.Sprintf("no %d", len(m.UUID)*int(m.UUID[3])), class: "permanent"} // alike but for a number
	})
	for _, key := range []string{"a", "b", "c", "pass"} {
		publish(t, l, event(key, 1), event(key, 2))
	}
	eventually(t, "them to be dead", func() bool {
		parked := isParked(t, l)
		return parked["held"] == 3 && parked["behind"] == 3 && parked["dead"] == 1 && len(in.all()) == 1
	})
	return l, in, mended
}

func TestDeadEventsAreGroupedAndKept(t *testing.T) {
	t.Parallel()
	l, _, _ := graveyard(t)
	groups, err := l.DeadGroups(t.Context())
	if err != nil || len(groups) != 2 || groups[0].Count+groups[1].Count != 4 || groups[0].Class != "permanent" {
		t.Fatalf("the groups are %+v, %v", groups, err)
	}
	letters, err := l.DeadLetters(t.Context(), Dead{Consumer: "reader", Key: "a"})
	if err != nil || len(letters) != 1 {
		t.Fatalf("the letters are %+v, %v", letters, err)
	}
	d := letters[0]
	if !d.Holds || d.Behind != 1 || d.Attempts != 1 || string(d.Payload) != payloads("a", 1, 1)[0] ||
		!strings.Contains(string(d.Metadata), `"a"`) || !strings.Contains(string(d.Failures), "stack of no") ||
		!strings.Contains(string(d.Failures), `"version"`) {
		t.Errorf("the letter is %+v", d)
	}
	execute(t, l, `UPDATE postbus.parked SET dead_at = dead_at - interval '10 years'`)
	if err := l.sweepResolved(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := l.DeadLetters(t.Context(), Dead{Consumer: "reader"}); err != nil || len(left) != 4 {
		t.Errorf("of those that nobody has resolved %d are left, %v", len(left), err)
	}
	status, _, err := l.Status(t.Context(), Subscription{Consumer: "reader", Topic: "user"})
	if err != nil || status.Parked != 3 || status.Dead != 4 {
		t.Errorf("the status is %+v, %v", status, err)
	}
}

// TestAttemptsOfADeadEventAreKept with their times; of more than its policy allows by default the first and the latest.
func TestAttemptsOfADeadEventAreKept(t *testing.T) {
	t.Parallel()
	const attempts = failuresMax + 3
	began := time.Now()
	l := newLog(t, Config{Poll: 10 * time.Millisecond, RetryMin: time.Millisecond}, "reader")
	work(t.Context(), t, l, func(*message.Message) error { return reason{text: "no", class: "transient", attempts: attempts} })
	publish(t, l, event("a", 1))
	eventually(t, "it to be dead", func() bool { return isParked(t, l)["held"] == 1 })
	letters, err := l.DeadLetters(t.Context(), Dead{Consumer: "reader"})
	if err != nil || len(letters) != 1 || letters[0].Attempts != attempts {
		t.Fatalf("the letters are %+v, %v", letters, err)
	}
	var kept []failure
	if err := json.Unmarshal(letters[0].Failures, &kept); err != nil || len(kept) != failuresMax {
		t.Fatalf("%d failures are kept, %v", len(kept), err)
	}
	for i, f := range kept {
		attempt := 1
		if i > 0 {
			attempt = attempts - failuresMax + i + 1
		}
		if f.Attempt != attempt || f.At.Before(began) || f.At.After(time.Now()) || (i > 0 && f.At.Before(kept[i-1].At)) {
			t.Errorf("failure %d is %+v, of attempt %d", i, f, attempt)
		}
	}
}

// TestDeadEventsAreResolved: one, a key's, a group's or all; each key goes on in order, and who did it stays on record.
func TestDeadEventsAreResolved(t *testing.T) {
	t.Parallel()
	l, in, mended := graveyard(t)
	note := Note{By: "tester", Text: "because"}
	resolve := func(which Dead, what Resolution, want int, handled ...string) {
		t.Helper()
		which.Consumer = "reader"
		before := isParked(t, l)
		if n, err := l.Resolve(t.Context(), which, what, note, nil, true); err != nil || n != want ||
			isParked(t, l)["held"] != before["held"] || isParked(t, l)["dead"] != before["dead"] {
			t.Errorf("%v of %+v, dry run: %d, %v", what, which, n, err)
		}
		had := len(in.all())
		if n, err := l.Resolve(t.Context(), which, what, note, nil, false); err != nil || n != want {
			t.Errorf("%v of %+v: %d, %v", what, which, n, err)
		}
		got := in.await(t, had+len(handled))[had:]
		for _, key := range []string{"a", "b", "c", "pass"} {
			if !slices.Equal(of(key, got), of(key, handled)) {
				t.Errorf("%v of %+v: handled were %q", what, which, got)
			}
		}
	}
	resolve(Dead{Key: "a"}, Discard, 1, payloads("a", 2, 2)...)
	resolve(Dead{Key: "b"}, Release, 1, payloads("b", 2, 2)...)
	resolve(Dead{Key: "b"}, Release, 0) // it holds nothing any more
	mended.Store(true)
	resolve(Dead{Key: "c"}, Retry, 1, payloads("c", 1, 2)...)
	groups, err := l.DeadGroups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	passes := groups[slices.IndexFunc(groups, func(g DeadGroup) bool { return strings.HasPrefix(g.Error, "passes") })]
	resolve(Dead{Group: passes.Group}, Retry, 1, payloads("pass", 1, 1)...)
	resolve(Dead{Group: passes.Group}, Retry, 0)
	resolve(Dead{}, Retry, 1, payloads("b", 1, 1)...)
	eventually(t, "only the discarded one to be left", func() bool { return fmt.Sprint(isParked(t, l)) == "map[dead:1]" })
	var notes string
	if err := l.pool.QueryRow(t.Context(), `SELECT notes::text FROM postbus.parked`).Scan(&notes); err != nil ||
		!strings.Contains(notes, `"did": "discard"`) || !strings.Contains(notes, `"by": "tester"`) {
		t.Errorf("the notes are %s, %v", notes, err)
	}
	if left, err := l.DeadLetters(t.Context(), Dead{Consumer: "reader"}); err != nil || len(left) != 0 {
		t.Errorf("there are %+v, %v", left, err)
	}
	publish(t, l, event("a", 3), event("c", 3))
	in.await(t, 9)
	for _, c := range []struct {
		age  time.Duration
		left int
	}{{resolvedAge - time.Hour, 1}, {resolvedAge + time.Hour, 0}} {
		if _, err := l.pool.Exec(t.Context(), `UPDATE postbus.parked SET resolved_at = now() - $1::interval WHERE state = 'dead'`,
			c.age); err != nil {
			t.Fatal(err)
		}
		if err := l.sweepResolved(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := isParked(t, l)["dead"]; got != c.left {
			t.Errorf("%s after it was discarded there are %d", c.age, got)
		}
	}
}

// TestManyRetriedHoldUpNoOther: each key's first is tried, and the second waits for it, which keeps no third key from its turn.
func TestManyRetriedHoldUpNoOther(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const keys = dueKeysMax + 16
	l := newLog(t, Config{Poll: 50 * time.Millisecond}, "reader")
	var again, mended atomic.Bool
	var fresh sync.Map // keys that have failed once
	in := work(t.Context(), t, l, func(m *message.Message) error {
		key := m.Metadata.Get(keyAttribute)
		_, failed := fresh.LoadOrStore(key, true)
		switch {
		case strings.HasPrefix(key, "fresh"):
			if failed {
				return nil
			}
			return reason{text: "once", class: "panic", attempts: 25}
		case !again.Load():
			return reason{text: "dies", class: "permanent", pass: true}
		case !mended.Load() && strings.Contains(string(m.Payload), `"n":1}`):
			return reason{text: "still", class: "panic", wait: time.Hour, attempts: 25, pass: true}
		}
		return nil
	})
	var all []*message.Message
	for i := range keys {
		key := fmt.Sprint("key ", i)
		all = append(all, event(key, 1), event(key, 2))
	}
	publish(t, l, all...)
	eventually(t, "them to be dead", func() bool { return isParked(t, l)["dead"] == 2*keys })
	again.Store(true)
	if n, err := l.Resolve(t.Context(), Dead{Consumer: "reader"}, Retry, Note{}, nil, false); err != nil || n != 2*keys {
		t.Fatalf("%d, %v", n, err)
	}
	eventually(t, "each first to have failed again", func() bool {
		var n int
		err := l.pool.QueryRow(t.Context(), `SELECT count(*) FROM postbus.parked WHERE run_at > now() + interval '10 minutes'`).Scan(&n)
		return err == nil && n == keys
	})
	publish(t, l, event("fresh 1", 1))
	in.await(t, 1)
	// A row that is to be tried and is not its line's first does not stand for the line.
	execute(t, l, `update postbus.parked set state = 'retry', run_at = now() - interval '1 hour' where state = 'behind'`)
	publish(t, l, event("fresh 2", 1))
	in.await(t, 2)
	mended.Store(true)
	execute(t, l, `update postbus.parked set run_at = now()`)
	got := in.await(t, 2+2*keys)
	for i := range keys {
		if key := fmt.Sprint("key ", i); !slices.Equal(of(key, got), payloads(key, 1, 2)) {
			t.Errorf("%s was handled as %q", key, of(key, got))
		}
	}
}

// TestDeadEventIsEdited and tried again; for one event only.
func TestDeadEventIsEdited(t *testing.T) {
	t.Parallel()
	l, in, _ := graveyard(t)
	edited := []byte(`{"key":"a","n":100}`)
	if _, err := l.Resolve(t.Context(), Dead{Consumer: "reader"}, Retry, Note{}, edited, false); !errors.Is(err, ErrNotOne) {
		t.Errorf("several at once: %v", err)
	}
	if n, err := l.Resolve(t.Context(), Dead{Consumer: "reader", Key: "a"}, Retry, Note{}, edited, false); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	if got := in.await(t, 3); !slices.Equal(of("a", got), []string{string(edited), payloads("a", 2, 2)[0]}) {
		t.Errorf("handled were %q", got)
	}
}
