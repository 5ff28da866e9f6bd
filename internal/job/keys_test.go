package job

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbus/internal/servertest"
)

// TestLockKeyRunsOneAfterAnother: in order, with many lanes, two processes, failing and snoozed jobs; other keys go on.
func TestLockKeyRunsOneAfterAnother(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	first := newTable(t, Config{})
	second := openTable(t, first.pool, Config{})
	var mu sync.Mutex
	running := map[string]bool{}
	done := map[string][]string{}
	tries := map[string]int{}
	handle := func(ctx context.Context, n note) error {
		key := n.Text[:1]
		mu.Lock()
		defer mu.Unlock()
		if running[key] {
			t.Errorf("two of key %s at once", key)
		}
		running[key] = true
		mu.Unlock()
		sleep(ctx, time.Duration(rand.N(3))*time.Millisecond)
		mu.Lock()
		running[key] = false
		switch tries[n.Text]++; {
		case tries[n.Text] == 1 && n.Text[1:] == "03":
			return RetryAfter(20*time.Millisecond, errors.New("not yet"))
		case tries[n.Text] == 1 && n.Text[1:] == "05":
			return Snooze(20 * time.Millisecond)
		}
		done[key] = append(done[key], n.Text)
		return nil
	}
	work(t, first, 8, handle)
	work(t, second, 8, handle)
	var want []string
	var jobs []Job
	for i := range 20 {
		for _, key := range []string{"a", "b", "c"} {
			jobs = append(jobs, newJob(t, fmt.Sprintf("%s%02d", key, i), LockKey(key), Priority(int8(i%5-2))))
		}
		want = append(want, fmt.Sprintf("%02d", i))
	}
	for part := range slices.Chunk(jobs, 7) {
		if _, err := first.EnqueueAll(t.Context(), part...); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, texts := range done {
			n += len(texts)
		}
		return n
	}
	eventually(t, "all jobs", func() bool { return count() == len(jobs) })
	for key, texts := range done {
		for i, text := range texts {
			if text != key+want[i] {
				t.Fatalf("key %s ran %q", key, texts)
			}
		}
	}
	eventually(t, "keys that are forgotten", func() bool { return value[int](t, first.pool, `select count(*) from postbus.job_keys`) == 0 })
}

// TestEnqueueBesideAHeadThatEnds has the head of a key end while another transaction has put a job behind it and has not
// committed. Neither may decide without the other: that job would be behind nobody, or there would be two heads.
func TestEnqueueBesideAHeadThatEnds(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	head := enqueue(t, table, "head", LockKey("k"))
	taken := takeOne(t, table, "w")
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	behind := newJob(t, "behind", LockKey("k"))
	appendTo(t, table, tx, behind)
	ended := make(chan error, 1)
	go func() {
		_, _, err := table.end(t.Context(), table.pool, []outcome{completed(taken)})
		ended <- err
	}()
	awaitBlocked(t, table)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if a, b := state(t, table, head), state(t, table, behind.ID()); a != StateCompleted || b != StateWaiting {
		t.Errorf("the head is %s, the one behind %s", a, b)
	}
}

// TestHeadThatEndsBesideAnEnqueue is the other order: the end has the key, and the enqueueing transaction waits for it.
func TestHeadThatEndsBesideAnEnqueue(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	enqueue(t, table, "head", LockKey("k"))
	taken := takeOne(t, table, "w")
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := table.end(t.Context(), tx, []outcome{completed(taken)}); err != nil {
		t.Fatal(err)
	}
	receipt := make(chan Receipt, 1)
	go func() {
		r, err := table.Enqueue(t.Context(), note{"next"}, LockKey("k"))
		if err != nil {
			t.Error(err)
		}
		receipt <- r
	}()
	awaitBlocked(t, table)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, table, (<-receipt).ID); s != StateWaiting {
		t.Errorf("the next is %s, with nobody before it", s)
	}
	if n := value[int](t, table.pool, `select count(*) from postbus.job_keys`); n != 1 {
		t.Errorf("%d keys", n)
	}
}

// TestTwoEnqueueOneNewKey: one of the two is the head, and they run in the order in which they locked the key.
func TestTwoEnqueueOneNewKey(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := newJob(t, "first", LockKey("k"))
	appendTo(t, table, tx, first)
	receipt := make(chan Receipt, 1)
	go func() {
		r, err := table.Enqueue(t.Context(), note{"second"}, LockKey("k"))
		if err != nil {
			t.Error(err)
		}
		receipt <- r
	}()
	awaitBlocked(t, table)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := (<-receipt).ID
	if a, b := state(t, table, first.ID()), state(t, table, second); a != StateWaiting || b != StateBehind {
		t.Errorf("first %s, second %s", a, b)
	}
	o := work(t, table, 2, nil)
	if got := o.await(t, 2); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("ran %q", got)
	}
}

// TestKeyGoesOnWhenItsHeadIsGivenUp: cancelled before it runs, or dead.
func TestKeyGoesOnWhenItsHeadIsGivenUp(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	var ids []uuid.UUID
	for i := range 4 {
		ids = append(ids, enqueue(t, table, fmt.Sprint(i), LockKey("k"), In(time.Duration(max(0, 1-i))*time.Hour)))
	}
	if got := column[string](t, table.pool, `select state from postbus.jobs order by sequence`); !slices.Equal(got,
		[]string{StateWaiting, StateBehind, StateBehind, StateBehind}) {
		t.Errorf("behind one that waits for its time: %q", got)
	}
	for _, id := range []uuid.UUID{ids[2], ids[0]} { // one behind, then the head
		if s, err := table.Cancel(t.Context(), id, "anna"); s != StateCancelled || err != nil {
			t.Errorf("Cancel returned %s, %v", s, err)
		}
	}
	o := work(t, table, 1, func(context.Context, note) error { return Permanent(errors.New("no")) })
	if got := o.await(t, 2); !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("ran %q", got)
	}
	awaitState(t, table, ids[3], StateDead)
	// Retried, they go behind one another again.
	if n, err := table.Retry(t.Context(), Selection{Kind: "test-note"}, "anna"); n != 2 || err != nil {
		t.Errorf("Retry returned %d, %v", n, err)
	}
	if got := o.await(t, 4)[2:]; !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("ran %q again", got)
	}
}

// takeOne takes a job as the worker of that name.
func takeOne(t *testing.T, table *Table, owner string) row {
	t.Helper()
	rows, err := table.take(t.Context(), owner, DefaultQueue, 1, make([]time.Time, len(priorities())))
	if err != nil || len(rows) != 1 {
		t.Fatalf("took %d jobs, %v", len(rows), err)
	}
	return rows[0]
}

func completed(r row) outcome {
	return outcome{id: r.id, epoch: r.epoch, sequence: r.sequence, lock: r.lock, verdict: verdictCompleted}
}
