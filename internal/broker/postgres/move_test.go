package postgres

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
)

// TestStartOfANewConsumer: now, from the beginning, from a time, after a position.
func TestStartOfANewConsumer(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{})
	publish(t, l, event("k", 1), event("k", 2))
	var between time.Time
	if err := l.pool.QueryRow(t.Context(), `select clock_timestamp()`).Scan(&between); err != nil {
		t.Fatal(err)
	}
	publish(t, l, event("k", 3))
	cases := map[string]struct {
		start Spot
		want  []int
	}{
		"now":        {Spot{}, []int{4}},
		"beginning":  {Beginning(), []int{1, 2, 3, 4}},
		"time":       {At(between), []int{3, 4}},
		"early-time": {At(between.Add(-time.Hour)), []int{1, 2, 3, 4}},
		"late-time":  {At(between.Add(time.Hour)), []int{4}},
		"position":   {After(1), []int{2, 3, 4}},
		"far-ahead":  {After(1000), []int{4}},
	}
	for name, c := range cases {
		s := Subscription{Consumer: name, Topic: "user", Start: c.start}
		if err := l.Provision(t.Context(), []string{"user"}, []Subscription{s}); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, l, event("k", 4))
	for name, c := range cases {
		expect(t, l, name, c.want)
	}
}

// expect reads a consumer to its end.
func expect(t *testing.T, l *Log, consumer string, numbers []int) {
	t.Helper()
	var want []string
	for _, n := range numbers {
		want = append(want, fmt.Sprintf(`{"key":"k","n":%d}`, n))
	}
	s := subscriber(t, l, consumer)
	in := listen(t.Context(), t, s, nil)
	if got := in.await(t, len(want)); !slices.Equal(got, want) {
		t.Errorf("%s got %q, want %q", consumer, got, want)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestMove takes a consumer that is at work back and forth; the dry run tells what would be and changes nothing.
func TestMove(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: time.Second}, "reader")
	reader := Subscription{Consumer: "reader", Topic: "user"}
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	publish(t, l, event("k", 1), event("k", 2), event("k", 3))
	in.await(t, 3)
	passed := func() bool {
		status, _, err := l.Status(t.Context(), reader)
		return err == nil && status.Waiting == 0
	}
	eventually(t, "the place is stored", passed)
	m, err := l.Move(t.Context(), reader, Beginning(), true)
	if err != nil || m.After.Waiting != 3 {
		t.Fatalf("dry run: %+v, %v", m, err)
	}
	if !passed() {
		t.Error("the dry run moved it")
	}
	if _, err := l.Move(t.Context(), reader, After(1), false); err != nil {
		t.Fatal(err)
	}
	got := in.await(t, 5)
	if want := []string{`{"key":"k","n":2}`, `{"key":"k","n":3}`}; !slices.Equal(got[3:], want) {
		t.Errorf("after the move came %q", got[3:])
	}
	if _, err := l.Move(t.Context(), Subscription{Consumer: "stranger", Topic: "user"}, Beginning(), false); !errors.Is(err, ErrUnknownConsumer) {
		t.Errorf("a stranger: %v", err)
	}
}

// TestMoveToNowSkipsABacklog, also one that a message holds up.
func TestMoveToNowSkipsABacklog(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: time.Second, RetryMin: time.Hour, RetryMax: time.Hour}, "reader")
	in := listen(t.Context(), t, subscriber(t, l, "reader"), func(m *message.Message) bool {
		return m.Metadata.Get(keyAttribute) != "bad"
	})
	publish(t, l, event("bad", 1), event("bad", 2), event("k", 1))
	in.await(t, 1)
	m, err := l.Move(t.Context(), Subscription{Consumer: "reader", Topic: "user"}, Spot{}, false)
	if err != nil || m.Before.Waiting < 2 || m.After.Waiting != 0 {
		t.Fatalf("moved %+v, %v", m, err)
	}
	publish(t, l, event("k", 2))
	if got := in.await(t, 2); len(got) != 2 || got[1] != `{"key":"k","n":2}` {
		t.Errorf("got %q", got)
	}
}

// TestRenamedConsumerIsSeenAndSaid, and with Rename it goes on where it was.
func TestRenamedConsumerIsSeenAndSaid(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "greeting")
	publish(t, l, event("k", 1))
	logs := &lines{}
	l.logger = slog.New(slog.NewTextHandler(logs, nil))
	welcome := Subscription{Consumer: "welcome", Topic: "user"}
	for range 2 {
		if err := l.Provision(t.Context(), []string{"user"}, []Subscription{welcome}); err != nil {
			t.Fatal(err)
		}
	}
	if text := logs.text(); strings.Count(text, "--rename") != 1 || !strings.Contains(text, "greeting") {
		t.Errorf("it said %q", text)
	}
	if err := l.Rename(t.Context(), "greeting", "welcome"); err != nil {
		t.Fatal(err)
	}
	expect(t, l, "welcome", []int{1})
	if err := l.Rename(t.Context(), "greeting", "welcome"); !errors.Is(err, ErrUnknownConsumer) {
		t.Errorf("renamed twice: %v", err)
	}
}

// TestCheckpointOfADroppedPlace: who worked for the new name's own place has a checkpoint under way while the old name's place
// gets the name. It must not land there, whatever the epochs of the two are: the backlog would be passed over.
func TestCheckpointOfADroppedPlace(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "greeting")
	ctx := t.Context()
	publish(t, l, event("k", 1), event("k", 2))
	welcome := Subscription{Consumer: "welcome", Topic: "user"}
	if err := l.Provision(ctx, []string{"user"}, []Subscription{welcome}); err != nil {
		t.Fatal(err)
	}
	held, err := holds(t, l, "welcome", "newer program").claim(ctx, shareCount)
	if err != nil || len(held) != shareCount {
		t.Fatal(len(held), err)
	}
	if err := l.Rename(ctx, "greeting", "welcome"); err != nil {
		t.Fatal(err)
	}
	next, err := holds(t, l, "welcome", "another process").claim(ctx, shareCount/2)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range next {
		if c.epoch <= held[c.number].epoch {
			t.Errorf("share %d has epoch %d again", c.number, c.epoch)
		}
	}
	var late []checkpoint
	for _, c := range held {
		for epoch := c.epoch - 3; epoch < c.epoch+3; epoch++ { // whatever it was, near a transaction's id
			late = append(late, checkpoint{number: c.number, epoch: epoch, place: c.place})
		}
	}
	if stored, err := holds(t, l, "welcome", "newer program").store(ctx, late); len(stored) > 0 || err != nil {
		t.Errorf("%d shares were stored, %v", len(stored), err)
	}
	if status, _, err := l.Status(ctx, welcome); err != nil || status.Waiting != 2 {
		t.Errorf("%d wait, want 2, %v", status.Waiting, err)
	}
}

// TestRenameGathersWhatIsParked for either name, in lines that each have their first row as head, and no other.
func TestRenameGathersWhatIsParked(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "old", "new")
	park := func(consumer, key string, position int, state string) {
		t.Helper()
		execute(t, l, `insert into postbus.parked (consumer, key_hash, position, share, state, run_at, dead_at, attempts, event_id,
				type, key, metadata, payload, failures)
			select $1, $2, $3, 0, $4, case when $4 = 'retry' then now() + interval '1 hour' end,
				case when $4 in ('held', 'dead') then now() end, 0, gen_random_uuid(), 'x', $5, '{}', '{}', '[]'`,
			consumer, keyHash(key), position, state, key)
	}
	for _, p := range []struct {
		consumer, key string
		position      int
		state         string
	}{
		{"old", "mixed", 2, "retry"}, {"old", "mixed", 4, "behind"}, {"new", "mixed", 1, "dead"}, {"new", "mixed", 3, "held"},
		{"old", "earlier", 5, "held"}, {"new", "earlier", 3, "held"}, {"new", "earlier", 4, "behind"},
		{"old", "both", 7, "behind"}, {"old", "both", 6, "retry"}, {"new", "both", 7, "retry"},
		{"old", "alone", 8, "retry"}, {"new", "other", 9, "retry"},
		{"old", "dead", 10, "dead"}, {"new", "dead", 11, "behind"},
	} {
		park(p.consumer, p.key, p.position, p.state)
	}
	if err := l.Rename(t.Context(), "old", "new"); err != nil {
		t.Fatal(err)
	}
	rows, err := l.pool.Query(t.Context(), `select format('%s %s %s %s', key, position, state,
		case when run_at <= clock_timestamp() then 'due' when run_at is not null then 'later' else '-' end)
		from postbus.parked where consumer = 'new' order by position`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"mixed 1 dead -", "mixed 2 retry later", "earlier 3 held -", "mixed 3 behind -", "mixed 4 behind -", "earlier 4 behind -",
		"earlier 5 behind -", "both 6 retry later", "both 7 behind -", "alone 8 retry later", "other 9 retry later",
		"dead 10 dead -", "dead 11 retry due",
	}
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("parked are %q, want %q", got, want)
	}
}

// TestForgottenConsumer holds nothing back any more; one at work is not forgotten, and a dry run forgets nothing.
func TestForgottenConsumer(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLog(t, aged(false), "reader", "gone")
	publish(t, l, event("k", 1))
	closePartition(t, l)
	publish(t, l, event("k", 2))
	r := newReading(t, l, "reader")
	r.drain(t, false)
	storePlace(t, l, "reader", r.at)
	execute(t, l, `insert into postbus.parked (consumer, key_hash, position, share, state, run_at, attempts, event_id, type, key, metadata,
		payload, failures) values ('gone', gen_random_uuid(), 1, 0, 'retry', now(), 1, gen_random_uuid(), 'x', 'k', '{}', '{}', '[]')`)
	makeOld(t, l)
	maintain(t, l)
	if first := numbers(t, l)[0]; first != 0 {
		t.Fatalf("partition 0 is gone, and there is a consumer that has not read it; the first is %d", first)
	}
	held, err := holds(t, l, "gone", "a process").claim(ctx, 1)
	if err != nil || len(held) != 1 {
		t.Fatal(held, err)
	}
	if _, err := l.Forget(ctx, "gone", false); !errors.Is(err, ErrConsumerAtWork) {
		t.Errorf("forgotten while a process is at work: %v", err)
	}
	execute(t, l, `update postbus.consumer_shares set owner = null, lease_until = null where consumer = 'gone'`)
	if left, err := l.Forget(ctx, "gone", true); err != nil || left.Waiting != 2 || left.Parked != 1 {
		t.Errorf("the dry run tells %+v, %v", left, err)
	}
	if left, err := l.Forget(ctx, "gone", false); err != nil || left.Waiting != 2 || left.Parked != 1 {
		t.Errorf("the dry run has changed something: %+v, %v", left, err)
	}
	if _, err := l.Forget(ctx, "gone", false); !errors.Is(err, ErrUnknownConsumer) {
		t.Errorf("forgotten once more: %v", err)
	}
	eventually(t, "the old partition goes", func() bool { maintain(t, l); return numbers(t, l)[0] > 0 })
}
