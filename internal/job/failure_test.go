package job

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
)

// foreign is an error of a package that this one does not know.
type foreign struct{ attempts int }

func (foreign) Error() string { return "foreign" }

func (f foreign) Next(attempt int) (time.Duration, bool) { return 0, attempt < f.attempts }

func (foreign) Class() string { return "strange" }

func (foreign) Stack() string { return "main.go:1" }

// TestFailuresDecide: what each kind of failure makes of its job, and what is noted.
func TestFailuresDecide(t *testing.T) {
	t.Parallel()
	plain := errors.New("no answer")
	for name, c := range map[string]struct {
		handle  func(ctx context.Context, attempt int) error
		policy  Policy
		runs    int
		state   string
		class   string // of the last failure; "" for none
		said    string
		stacked bool
	}{
		"error, then success": {func(_ context.Context, n int) error {
			if n < 3 {
				return plain
			}
			return nil
		}, Policy{}, 3, StateCompleted, "error", "no answer", false},
		"attempts used up": {func(context.Context, int) error { return plain }, Policy{Attempts: 2}, 2, StateDead, "error", "no answer", false},
		"permanent":        {func(context.Context, int) error { return Permanent(plain) }, Policy{}, 1, StateDead, "permanent", "no answer", false},
		"wrapped permanent": {func(context.Context, int) error { return fmt.Errorf("send: %w", Permanent(plain)) }, Policy{}, 1, StateDead,
			"permanent", "send: no answer", false},
		"retry after": {func(_ context.Context, n int) error {
			if n < 4 {
				return RetryAfter(time.Millisecond, plain)
			}
			return nil
		}, Policy{Attempts: 2}, 4, StateCompleted, "retry-after", "no answer", false},
		"another package's": {func(context.Context, int) error { return fmt.Errorf("x: %w", foreign{2}) }, Policy{}, 2, StateDead, "strange",
			"x: foreign", true},
		"panic": {func(context.Context, int) error { panic("secret") }, Policy{Attempts: 1}, 1, StateDead, "panic", "panic with a string", true},
		"panic of the runtime": {func(_ context.Context, n int) error { return errors.New("ab"[5*n:]) }, Policy{Attempts: 1}, 1, StateDead,
			"panic", "panic: runtime error: slice bounds out of range [5:2]", true},
		"timeout": {func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() },
			Policy{Attempts: 1, Timeout: time.Millisecond}, 1, StateDead, "timeout", "job took too long: context deadline exceeded", false},
		"text that is no text": {func(context.Context, int) error { return errors.New("a\x00b\xff" + strings.Repeat("ä", 2000)) }, Policy{Attempts: 1},
			1, StateDead, "error", cut("ab\uFFFD"+strings.Repeat("ä", 2000), errorBytesMax), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := newTable(t, Config{Version: "v1.2.3"})
			c.policy.WaitMin, c.policy.WaitMax = time.Millisecond, 2*time.Millisecond
			o := work(t, table, 1, func(ctx context.Context, _ note) error {
				running, _ := Current(ctx)
				return c.handle(ctx, running.Attempt)
			}, c.policy)
			id := enqueue(t, table, "x")
			awaitState(t, table, id, c.state)
			status, err := table.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(o.texts()); n != c.runs || status.Attempt != c.runs {
				t.Errorf("%d runs, %d attempts, want %d", n, status.Attempt, c.runs)
			}
			last := status.Failures[len(status.Failures)-1]
			if last.Class != c.class || last.Error != c.said || (last.Stack != "") != c.stacked || last.Version != "v1.2.3" {
				t.Errorf("noted %+v", last)
			}
			for i, f := range status.Failures {
				if f.Attempt != i+1 || time.Since(f.At) > time.Minute {
					t.Errorf("failure %d is of attempt %d, %s", i, f.Attempt, f.At)
				}
			}
		})
	}
}

func TestSnoozeCostsNoAttempt(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	runs := 0
	work(t, table, 1, func(ctx context.Context, _ note) error {
		if running, _ := Current(ctx); running.Attempt != 1 {
			return fmt.Errorf("attempt %d", running.Attempt)
		}
		if runs++; runs < 5 {
			return fmt.Errorf("not yet: %w", Snooze(time.Millisecond))
		}
		return nil
	}, Policy{Attempts: 1})
	id := enqueue(t, table, "x")
	awaitState(t, table, id, StateCompleted)
	if status, err := table.Get(t.Context(), id); err != nil || status.Attempt != 1 || len(status.Failures) != 0 || runs != 5 {
		t.Errorf("after %d runs: %+v, %v", runs, status, err)
	}
}

// TestFailuresAreBounded: the first is kept, and the latest ones.
func TestFailuresAreBounded(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	work(t, table, 1, func(ctx context.Context, _ note) error {
		running, _ := Current(ctx)
		return RetryAfter(0, fmt.Errorf("failure %d", running.Attempt))
	})
	id := enqueue(t, table, "x")
	eventually(t, "many failures", func() bool { return value[int](t, table.pool, `select attempt from postbus.jobs`) > 40 })
	if _, err := table.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	awaitState(t, table, id, StateCancelled)
	status, err := table.Get(t.Context(), id)
	if err != nil || len(status.Failures) != failuresMax || status.Failures[0].Error != "failure 1" || status.Failures[1].Attempt < 10 {
		t.Errorf("kept %d: %+v, %v", len(status.Failures), status.Failures[:2], err)
	}
}

// TestRefuseFromOutside: middleware that knows nothing of handlers' policies tells the table the reason before the Nack.
func TestRefuseFromOutside(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	subscriber, err := table.Subscriber(DefaultQueue, 2)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := subscriber.Subscribe(context.WithoutCancel(t.Context()), DefaultQueue)
	if err != nil {
		t.Fatal(err)
	}
	defer subscriber.Close()
	for _, refuse := range []func(m *message.Message){
		func(m *message.Message) { table.Refuse(m, foreign{1}) },
		func(*message.Message) {},
	} {
		id := enqueue(t, table, "x")
		m := <-messages
		if m.UUID != id.String() {
			t.Fatalf("message %s for job %s", m.UUID, id)
		}
		m.SetContext(context.WithValue(m.Context(), childVariable, "middleware may do so")) //nolint:revive,staticcheck // any key does
		refuse(m)
		m.Nack()
		eventually(t, "a failure", func() bool {
			return value[int](t, table.pool, `select jsonb_array_length(failures) from postbus.jobs where id = $1`, id) == 1
		})
	}
	if got := column[string](t, table.pool, `select state || ' ' || (failures->0->>'class') || ' ' || (failures->0->>'error') from postbus.jobs order by sequence`); !slices.Equal(got,
		[]string{"dead strange foreign", "waiting error refused without a reason"}) {
		t.Errorf("jobs are %q", got)
	}
	table.Refuse(message.NewMessage("x", nil), foreign{}) // not a job's: nothing to note
}

// TestUnknownAndUndecodable: a job that this program has no handler for is tried again, one whose arguments do not fit is dead.
func TestUnknownAndUndecodable(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	if _, err := table.Enqueue(t.Context(), number(1)); err != nil {
		t.Fatal(err)
	}
	enqueue(t, table, "secret")
	execute(t, table.pool, `update postbus.jobs set args = '{"text":["secret"]}' where kind = 'test-note'`)
	work(t, table, 1, nil)
	eventually(t, "two failures", func() bool {
		return value[int](t, table.pool, `select count(*) from postbus.jobs where jsonb_array_length(failures) = 1`) == 2
	})
	got := column[string](t, table.pool, `select state || ' ' || (failures->0->>'class') || ' ' || (failures->0->>'error') from postbus.jobs order by sequence`)
	want := []string{"waiting unknown-kind no handler for jobs of kind test-number",
		`dead undecodable arguments of test-note, 19 bytes, have a wrong type in field "text"`}
	if !slices.Equal(got, want) {
		t.Errorf("jobs are %q, want %q", got, want)
	}
}

func TestPolicyDefaults(t *testing.T) {
	t.Parallel()
	var total time.Duration
	p := Policy{}
	for attempt := 1; ; attempt++ {
		wait, again := p.Next(attempt)
		if full := min(time.Second<<(attempt-1), 6*time.Hour); wait > full || wait < full/2 {
			t.Errorf("after attempt %d it waits %s", attempt, wait)
		}
		if !again {
			if attempt != 25 || total < 24*time.Hour || total > 96*time.Hour {
				t.Errorf("given up after %d attempts and %s", attempt, total)
			}
			break
		}
		total += wait
	}
	for attempt := range 100 { // 1 h doubled 22 times is more than a Duration holds
		if wait, _ := (Policy{WaitMin: time.Hour, Attempts: 1000}).Next(attempt); wait < 30*time.Minute || wait > 6*time.Hour {
			t.Fatalf("after attempt %d it waits %s", attempt, wait)
		}
	}
	workers := NewWorkers()
	handle := func(context.Context, note) error { return nil }
	for _, p := range []Policy{{Attempts: -1}, {WaitMin: 2, WaitMax: 1}, {Timeout: -1}} {
		if err := Handle(workers, handle, p); !errors.Is(err, ErrShape) {
			t.Errorf("policy %+v: %v", p, err)
		}
	}
	if err := errors.Join(Handle(workers, handle), Handle(workers, func(context.Context, number) error { return nil })); err != nil {
		t.Error(err)
	}
	if err := Handle(workers, handle); !errors.Is(err, ErrDuplicate) {
		t.Errorf("a second handler: %v", err)
	}
	if err := Handle(workers, func(context.Context, *note) error { return nil }); !errors.Is(err, ErrShape) {
		t.Errorf("a pointer: %v", err)
	}
	if kinds := workers.Kinds(); !slices.Equal(kinds, []string{"test-note", "test-number"}) {
		t.Errorf("kinds are %q", kinds)
	}
	if Permanent(nil) != nil || RetryAfter(time.Second, nil) != nil {
		t.Error("no error became one")
	}
}

func TestFingerprintLeavesOutNumbers(t *testing.T) {
	t.Parallel()
	same := fingerprintOf("error", "user 018f3c1e-7a3b-7000-8000-0123456789ab: status 502 after 13 ms")
	if fingerprintOf("error", "user 018f3c1e-0000-7000-8000-ba9876543210: status 503 after 7 ms") != same {
		t.Error("two of a kind differ")
	}
	if fingerprintOf("panic", "user 018f3c1e-7a3b-7000-8000-0123456789ab: status 502 after 13 ms") == same || fingerprintOf("error", "other") == same {
		t.Error("two different ones are the same")
	}
}

func FuzzCut(f *testing.F) {
	f.Add("ä\x00\xff", 3)
	f.Fuzz(func(t *testing.T, s string, n int) {
		if n &= 0xff; len(cut(s, n)) > n || !isText(cut(s, n)) || !utf8.ValidString(cut(s, n)) {
			t.Errorf("cut(%q, %d) is %q", s, n, cut(s, n))
		}
	})
}

// TestDeadJobsAreRetriedAndDiscarded: one, a kind, a group; with a note of who did it.
func TestDeadJobsAreRetriedAndDiscarded(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	failing := errors.New("status 500")
	o := work(t, table, 1, func(_ context.Context, n note) error {
		if n.Text == "well" {
			return nil
		}
		if n.Text == "other" {
			return Permanent(errors.New("other"))
		}
		return Permanent(failing)
	})
	var ids []uuid.UUID
	for range 3 {
		ids = append(ids, enqueue(t, table, "a"))
	}
	other := enqueue(t, table, "other", UniqueKey("u"), LockKey("k"))
	enqueue(t, table, "well")
	o.await(t, 5)
	o.close(t)
	groups, err := table.Dead(t.Context())
	if err != nil || len(groups) != 2 || groups[0].Count != 3 || groups[0].Kind != "test-note" || groups[0].Example != ids[2] ||
		groups[0].First.After(groups[0].Last) {
		t.Fatalf("groups are %+v, %v", groups, err)
	}
	check := func(what string, want int, f func(context.Context, Selection, string) (int, error), which Selection) {
		t.Helper()
		if n, err := f(t.Context(), which, "anna"); n != want || err != nil {
			t.Errorf("%s: %d, %v, want %d", what, n, err, want)
		}
	}
	if g := groups[0]; g.Queue != DefaultQueue || g.Class != "permanent" || g.Error != failing.Error() {
		t.Errorf("the group is %+v", g)
	}
	meansDead(t, table, Selection{}, 0)
	meansDead(t, table, Selection{Queue: DefaultQueue}, 4)
	meansDead(t, table, Selection{Queue: "other"}, 0)
	meansDead(t, table, Selection{IDs: ids[1:]}, 2)
	meansDead(t, table, Selection{LockKey: "k"}, 1)
	meansDead(t, table, Selection{Queue: DefaultQueue, LockKey: "l"}, 0)
	meansDead(t, table, Selection{Queue: DefaultQueue, Fingerprint: groups[0].Fingerprint}, 3)
	meansDead(t, table, Selection{Queue: "other", IDs: ids}, 0)
	check("nothing selected", 0, table.Discard, Selection{IDs: []uuid.UUID{}})
	check("another queue's", 0, table.Discard, Selection{Queue: "other"})
	check("discard one", 1, table.Discard, Selection{IDs: ids[:1]})
	check("discard it again", 0, table.Discard, Selection{IDs: ids[:1]})
	check("retry another kind", 0, table.Retry, Selection{Kind: "test-other"})
	check("retry a group", 2, table.Retry, Selection{Kind: "test-note", Fingerprint: groups[0].Fingerprint})
	check("retry what was discarded", 1, table.Retry, Selection{IDs: ids[:1]})
	// Another has the unique key by now.
	enqueue(t, table, "well", UniqueKey("u"))
	check("retry beside its like", 0, table.Retry, Selection{IDs: []uuid.UUID{other}})
	if s := state(t, table, other); s != StateDead {
		t.Errorf("it is %s", s)
	}
	status, err := table.Get(t.Context(), ids[0])
	if err != nil || status.State != StateWaiting || status.Attempt != 0 || len(status.Failures) != 1 || len(status.Notes) != 2 ||
		status.Notes[0].What != "discarded" || status.Notes[1].What != "retried" || status.Notes[1].By != "anna" {
		t.Errorf("it is known as %+v, %v", status, err)
	}
	o = work(t, table, 1, func(context.Context, note) error { return nil })
	o.await(t, 4)
	if _, err := table.Get(t.Context(), uuid.New()); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown job: %v", err)
	}
}

// meansDead checks how many dead jobs are counted and listed.
func meansDead(t *testing.T, table *Table, which Selection, want int) {
	t.Helper()
	n, err := table.CountDead(t.Context(), which)
	listed, listErr := table.DeadJobs(t.Context(), which)
	if n != want || len(listed) != want || err != nil || listErr != nil {
		t.Errorf("%+v means %d and lists %d, want %d: %v, %v", which, n, len(listed), want, err, listErr)
	}
}

// TestManyDeadAreRetriedInTheirOrder: more than one transaction's worth, each of them once.
func TestManyDeadAreRetriedInTheirOrder(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	var jobs []Job
	for i := range 2*sweepMax + 5 {
		jobs = append(jobs, newJob(t, fmt.Sprintf("%05d", i), LockKey("k")))
	}
	if _, err := table.EnqueueAll(t.Context(), jobs...); err != nil {
		t.Fatal(err)
	}
	execute(t, table.pool, `update postbus.jobs set state = 'dead', finalized_at = now()`)
	execute(t, table.pool, `delete from postbus.job_keys`)
	if n, err := table.Retry(t.Context(), Selection{Kind: "test-note"}, "anna"); n != len(jobs) || err != nil {
		t.Fatalf("retried %d, %v", n, err)
	}
	if got := column[string](t, table.pool, `select args from postbus.jobs order by sequence`); !slices.IsSorted(got) {
		t.Error("they are in another order")
	}
	states := map[string]int{}
	for _, s := range column[string](t, table.pool, `select state from postbus.jobs`) {
		states[s]++
	}
	if !maps.Equal(states, map[string]int{StateWaiting: 1, StateBehind: len(jobs) - 1}) {
		t.Errorf("states are %v", states)
	}
}

func TestCancelBeforeItRuns(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	id := enqueue(t, table, "x", In(10*time.Millisecond))
	if s, err := table.Cancel(t.Context(), id, "anna"); s != StateCancelled || err != nil {
		t.Errorf("Cancel returned %s, %v", s, err)
	}
	o := work(t, table, 1, nil)
	last := enqueue(t, table, "last", In(20*time.Millisecond))
	awaitState(t, table, last, StateCompleted)
	if got := o.texts(); !slices.Equal(got, []string{"last"}) {
		t.Errorf("ran %q", got)
	}
	for id, want := range map[uuid.UUID]string{id: StateCancelled, last: StateCompleted} {
		if s, err := table.Cancel(t.Context(), id, "anna"); s != want || err != nil {
			t.Errorf("Cancel of what has ended returned %s, %v", s, err)
		}
	}
	if _, err := table.Cancel(t.Context(), uuid.New(), "anna"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Cancel of an unknown job: %v", err)
	}
}

// TestCancelWhileItRuns: the handler's context ends, from another process too and also without notifications; the job is
// not tried again, unless it succeeded all the same.
func TestCancelWhileItRuns(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config Config
		result error
		want   string
	}{
		"notified":              {Config{}, context.Canceled, StateCancelled},
		"by the heartbeat":      {Config{NotifyOff: true}, errors.New("interrupted"), StateCancelled},
		"succeeds all the same": {Config{}, nil, StateCompleted},
		"snoozes":               {Config{}, Snooze(time.Hour), StateCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := newTable(t, c.config)
			other := openTable(t, table.pool, c.config)
			cause := make(chan error, 1)
			o := work(t, table, 1, func(ctx context.Context, _ note) error {
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return c.result
			})
			id := enqueue(t, table, "x")
			o.await(t, 1)
			began := time.Now()
			if s, err := other.Cancel(t.Context(), id, "anna"); s != StateRunning || err != nil {
				t.Fatalf("Cancel returned %s, %v", s, err)
			}
			if err := <-cause; !errors.Is(err, ErrCancelled) {
				t.Errorf("the context ended with %v", err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("the context ended after %s", took)
			}
			awaitState(t, table, id, c.want)
			if status, err := table.Get(t.Context(), id); err != nil || status.CancelAt == nil || len(status.Notes) != 1 || status.Notes[0].By != "anna" {
				t.Errorf("it is known as %+v, %v", status, err)
			}
		})
	}
}

// TestProgressAndResult: progress is there at once, the result when it has succeeded.
func TestProgressAndResult(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	told, release := make(chan struct{}), make(chan struct{})
	var stale context.Context
	work(t, table, 1, func(ctx context.Context, _ note) error {
		stale = ctx //nolint:fatcontext // to be used when it has ended
		err := errors.Join(Progress(ctx, map[string]int{"done": 3}), SetResult(ctx, "all"))
		var limit *LimitError
		if bad := SetResult(ctx, raw("\"\xff\"")); !errors.Is(bad, ErrShape) { // it could never be stored, nor what ends beside it
			err = errors.Join(err, fmt.Errorf("a result that is no text: %w", bad))
		}
		if tooLarge := SetResult(ctx, strings.Repeat("x", 64<<10)); !errors.As(tooLarge, &limit) || limit.Limit != "resultBytesMax" {
			err = errors.Join(err, fmt.Errorf("a large result: %w", tooLarge))
		}
		close(told)
		<-release
		return err
	})
	id := enqueue(t, table, "x")
	<-told
	if status, err := table.Get(t.Context(), id); err != nil || string(status.Progress) != `{"done":3}` || status.Result != nil {
		t.Errorf("while it runs: %s, %s, %v", status.Progress, status.Result, err)
	}
	close(release)
	awaitState(t, table, id, StateCompleted)
	if status, err := table.Get(t.Context(), id); err != nil || string(status.Result) != `"all"` || status.FinalizedAt == nil {
		t.Errorf("when it has ended: %s, %v", status.Result, err)
	}
	if err := Progress(context.WithoutCancel(stale), 1); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Progress after the end: %v", err)
	}
	if err := errors.Join(Progress(t.Context(), 1), SetResult(t.Context(), 1)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("outside of a handler: %v", err)
	}
}

// TestDeadJobsAreKeptForAMonth unless somebody says otherwise.
func TestDeadJobsAreKeptForAMonth(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	execute(t, table.pool, `insert into postbus.jobs (id, kind, queue, priority, state, run_at, metadata, args, finalized_at)
		select gen_random_uuid(), 'test-note', 'default', 0, 'dead', now(), '{}', '{}', now() - age * interval '1 day'
		from unnest(array[0, 29, 31, 400]) as age`)
	n, err := table.Clean(t.Context())
	if left := value[int](t, table.pool, `select count(*) from postbus.jobs`); n != 2 || left != 2 || err != nil {
		t.Errorf("deleted %d and left %d, %v", n, left, err)
	}
}

// TestRetention: each state is kept for its own time; below zero is for ever; what has not ended stays.
func TestRetention(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Keep: Keep{Completed: time.Hour, Cancelled: 2 * time.Hour, Dead: -1}})
	execute(t, table.pool, `insert into postbus.jobs (id, kind, queue, priority, state, run_at, metadata, args, finalized_at, lock_key)
		select gen_random_uuid(), 'test-note', 'default', 0, state, now(), '{}', '{}',
			case when state in ('completed', 'cancelled', 'discarded', 'dead') then now() - age * interval '1 minute' end, gen_random_uuid()
		from unnest(array['waiting', 'behind', 'running', 'completed', 'cancelled', 'discarded', 'dead']) as state,
			unnest(array[30, 90, 150]) as age, generate_series(1, 400)`)
	n, err := table.Clean(t.Context())
	if n != 4*400 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	got := column[string](t, table.pool, `select state || ' ' || count(*) / 400 from postbus.jobs group by state order by 1`)
	if want := []string{"behind 3", "cancelled 2", "completed 1", "dead 3", "discarded 2", "running 3", "waiting 3"}; !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	maintained := make(chan error, 1)
	execute(t, table.pool, `update postbus.jobs set finalized_at = now() - interval '1 day' where state = 'completed'`)
	go func() { maintained <- table.Maintain(ctx) }()
	eventually(t, "no completed jobs", func() bool {
		return value[int](t, table.pool, `select count(*) from postbus.jobs where state = 'completed'`) == 0
	})
	cancel()
	if err := <-maintained; err != nil {
		t.Error(err)
	}
}
