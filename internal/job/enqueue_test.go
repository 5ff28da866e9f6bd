package job

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

func TestEnqueueRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args   Args
		option Option
		limit  string // "" for ErrShape
	}{
		"kind":               {kinded("VerificationEmail"), In(0), ""},
		"kind too long":      {kinded(strings.Repeat("x", 61)), In(0), ""},
		"queue":              {note{}, Queue("a_b"), ""},
		"priority":           {note{}, Priority(3), ""},
		"priority below":     {note{}, Priority(-3), ""},
		"time":               {note{}, At(time.Time{}), ""},
		"delay":              {note{}, In(-1), ""},
		"key is not text":    {note{}, LockKey("a\x00"), ""},
		"key is not UTF-8":   {note{}, UniqueKey("\xff"), ""},
		"metadata's own":     {note{}, Metadata("kind", "x"), ""},
		"args not text":      {raw("\"\xff\""), In(0), ""},
		"metadata not text":  {note{}, Metadata("x", "\x00"), ""},
		"lock key too long":  {note{}, LockKey(strings.Repeat("x", 201)), "keyBytesMax"},
		"unique key":         {note{}, UniqueKey(strings.Repeat("x", 201)), "keyBytesMax"},
		"arguments":          {note{strings.Repeat("x", 256<<10)}, In(0), "argsBytesMax"},
		"metadata too large": {note{}, Metadata("x", strings.Repeat("x", 8<<10)), "metadataBytesMax"},
	} {
		_, err := New(c.args, c.option)
		var limit *LimitError
		if c.limit == "" && !errors.Is(err, ErrShape) || c.limit != "" && (!errors.As(err, &limit) || limit.Limit != c.limit) {
			t.Errorf("%s: New returned %v", name, err)
		}
	}
	if _, err := New(number(math.NaN())); err == nil {
		t.Error("arguments that are no JSON were taken")
	}
	var limit *LimitError
	if _, err := (&Table{}).EnqueueAll(t.Context(), make([]Job, 10_001)...); !errors.As(err, &limit) || limit.Limit != "jobsPerEnqueueMax" {
		t.Errorf("10,001 jobs: %v", err)
	}
}

type kinded string

func (k kinded) Kind() string { return string(k) }

// raw is a job whose JSON is what it says.
type raw string

func (raw) Kind() string { return "test-raw" }

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

type number float64

func (number) Kind() string { return "test-number" }

func TestAnIDIsOneJob(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	id := uuid.Must(uuid.NewV7())
	j := newJob(t, "x", WithID(id), LockKey("k"))
	receipts, err := table.EnqueueAll(t.Context(), j, j)
	if err != nil || receipts[0] != (Receipt{ID: id}) || receipts[1] != (Receipt{ID: id, Skipped: true}) {
		t.Errorf("receipts are %v, %v", receipts, err)
	}
	work(t, table, 1, nil)
	awaitState(t, table, id, StateCompleted)
	if receipts, err = table.EnqueueAll(t.Context(), j); err != nil || !receipts[0].Skipped {
		t.Errorf("after it has run: %v, %v", receipts, err)
	}
	if keys := column[string](t, table.pool, `select lock_key from postbus.job_keys`); len(keys) != 0 {
		t.Errorf("the skipped job left the key %q locked", keys)
	}
	if id := enqueue(t, table, "y"); id.Version() != 7 {
		t.Errorf("an id of version %d", id.Version())
	}
}

// TestUniqueKeyInBulk: one of a kind and key in the call, none while it is there, and again when it has ended.
func TestUniqueKeyInBulk(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	bulk := func() (stored []string) {
		t.Helper()
		var jobs []Job
		for i := range 9 {
			jobs = append(jobs, newJob(t, fmt.Sprint(i), UniqueKey(fmt.Sprint(i%3)), LockKey("k")))
		}
		receipts, err := table.EnqueueAll(t.Context(), jobs...)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range receipts {
			if r.ID != jobs[i].ID() {
				t.Error("receipts are in another order than jobs")
			}
			if !r.Skipped {
				stored = append(stored, fmt.Sprint(i))
			}
		}
		return stored
	}
	if stored := bulk(); !slices.Equal(stored, []string{"0", "1", "2"}) {
		t.Errorf("stored %q", stored)
	}
	if stored := bulk(); len(stored) != 0 {
		t.Errorf("stored %q beside those that wait", stored)
	}
	if _, err := table.Enqueue(t.Context(), number(1), UniqueKey("0")); err != nil { // another kind
		t.Error(err)
	}
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs`); n != 4 {
		t.Errorf("%d jobs", n)
	}
	o := work(t, table, 1, nil)
	o.await(t, 3)
	eventually(t, "an end", func() bool {
		return value[int](t, table.pool, `select count(*) from postbus.jobs where state = 'completed'`) == 3
	})
	o.close(t)
	if stored := bulk(); len(stored) != 3 {
		t.Errorf("stored %q when the others had ended", stored)
	}
}

// TestUniqueKeyUnderConcurrency: a second transaction waits for the first one, which has not committed, and then skips.
func TestUniqueKeyUnderConcurrency(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, table, tx, newJob(t, "first", UniqueKey("k")))
	skipped := make(chan bool, 1)
	go func() {
		r, err := table.Enqueue(t.Context(), note{"second"}, UniqueKey("k"))
		if err != nil {
			t.Error(err)
		}
		skipped <- r.Skipped
	}()
	awaitBlocked(t, table)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !<-skipped {
		t.Error("there are two of one key")
	}
	var several sync.WaitGroup
	for range 8 {
		several.Go(func() {
			if _, err := table.Enqueue(t.Context(), note{"x"}, UniqueKey("other")); err != nil {
				t.Error(err)
			}
		})
	}
	several.Wait()
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs`); n != 2 {
		t.Errorf("%d jobs of two keys", n)
	}
}

// appendTo queues jobs as a Unit of Work does, and sends them in its transaction.
func appendTo(t *testing.T, table *Table, tx pgx.Tx, jobs ...Job) {
	t.Helper()
	batch := &pgx.Batch{}
	if err := table.Append(batch, jobs...); err != nil {
		t.Fatal(err)
	}
	if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
		t.Fatal(err)
	}
}

// awaitBlocked returns when a session of the test's database waits for a lock.
func awaitBlocked(t *testing.T, table *Table) {
	t.Helper()
	eventually(t, "a session that waits", func() bool {
		return value[int](t, table.pool, `select count(*) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock'`) >= 1
	})
}

func TestRollbackLeavesNoJob(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	tx, err := table.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, table, tx, newJob(t, "x", LockKey("k"), UniqueKey("u")), newJob(t, "y"))
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := enqueue(t, table, "z", LockKey("k"), UniqueKey("u"))
	o := work(t, table, 2, nil)
	awaitState(t, table, id, StateCompleted)
	if texts := o.texts(); !slices.Equal(texts, []string{"z"}) {
		t.Errorf("ran %q", texts)
	}
}

// TestPriorityThenTime: the higher first; of the same, the one that was due first.
func TestPriorityThenTime(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	now := value[time.Time](t, table.pool, `select now()`)
	for _, j := range []struct {
		priority int8
		age      time.Duration
	}{
		{0, 3 * time.Minute}, {-2, 9 * time.Minute}, {2, time.Minute}, {0, 4 * time.Minute}, {1, time.Minute}, {-1, time.Minute},
		{2, 2 * time.Minute},
	} {
		enqueue(t, table, fmt.Sprintf("%d/%.0f", j.priority, j.age.Minutes()), Priority(j.priority), At(now.Add(-j.age)))
	}
	o := work(t, table, 1, nil)
	want := []string{"2/2", "2/1", "1/1", "0/4", "0/3", "-1/1", "-2/9"}
	if got := o.await(t, len(want)); !slices.Equal(got, want) {
		t.Errorf("ran %q, want %q", got, want)
	}
}

// TestScheduledJobRunsWhenItIsDue: not before its time, by the database's clock, and not a poll later either.
func TestScheduledJobRunsWhenItIsDue(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Poll: 100 * time.Millisecond, NotifyOff: true})
	began := make(chan string, 4)
	work(t, table, 2, func(_ context.Context, n note) error { began <- n.Text; return nil })
	in := enqueue(t, table, "in", In(700*time.Millisecond))
	at := enqueue(t, table, "at", At(value[time.Time](t, table.pool, `select now() + interval '500 milliseconds'`)))
	enqueue(t, table, "now")
	for range 3 {
		<-began
	}
	for _, id := range []uuid.UUID{in, at} {
		awaitState(t, table, id, StateCompleted)
		late := value[time.Duration](t, table.pool, `select started_at - run_at from postbus.jobs where id = $1`, id)
		if late < 0 || late > 5*time.Second { // as a rule it is a few milliseconds
			t.Errorf("the job began %s after it was due", late)
		}
	}
}

// TestQueuesHaveTheirOwnConcurrency: a queue whose workers are all busy holds up no other, and runs no more than it may.
func TestQueuesHaveTheirOwnConcurrency(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	release := make(chan struct{})
	var mu sync.Mutex
	running, most := 0, 0
	slow := workOn(t, table, "slow", 2, func(context.Context, note) error {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		<-release
		mu.Lock()
		running--
		mu.Unlock()
		return nil
	})
	quick := workOn(t, table, "quick", 1, nil)
	for i := range 6 {
		enqueue(t, table, fmt.Sprint(i), Queue("slow"))
	}
	slow.await(t, 2)
	enqueue(t, table, "q", Queue("quick"))
	quick.await(t, 1)
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs where state = 'waiting'`); n != 4 {
		t.Errorf("%d jobs wait; the others should be free for other processes", n)
	}
	close(release)
	slow.await(t, 6)
	mu.Lock()
	defer mu.Unlock()
	if most != 2 {
		t.Errorf("%d at once in a queue of 2", most)
	}
}
