package postgres

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestSharesAreLockedInOrder: whatever changes several shares of a consumer locks them by their numbers, wherever their rows
// lie and in whatever order they were named. Otherwise a checkpoint and a renewal of one process deadlock.
func TestSharesAreLockedInOrder(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	held, err := holds(t, l, "reader", "p").claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(held, func(a, b claimed) int { return int(b.number) - int(a.number) })
	var checkpoints []checkpoint
	var numbers []int16
	for _, c := range held { // backwards, and so the rows are laid
		checkpoints = append(checkpoints, checkpoint{number: c.number, epoch: c.epoch, place: c.place})
		numbers = append(numbers, c.number)
		execute(t, l, `update postbus.consumer_shares set moved_at = moved_at where share = $1`, c.number)
	}
	reader := Subscription{Consumer: "reader", Topic: "user"}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"a checkpoint", func() error { _, err := holds(t, l, "reader", "p").store(t.Context(), checkpoints); return err }},
		{"a renewal", func() error { _, err := holds(t, l, "reader", "p").renew(t.Context(), l.pool, numbers); return err }},
		{"a move", func() error { _, err := l.Move(t.Context(), reader, Beginning(), false); return err }},
		{"a change of name", func() error { return l.Rename(t.Context(), "reader", "renamed") }},
	} {
		lockedBefore(t, l, c.what, 8, c.do)
	}
}

// lockedBefore lets do come as far as to that share, and fails unless it has the ones before and none behind.
func lockedBefore(t *testing.T, l *Log, what string, share int16, do func() error) {
	t.Helper()
	ctx := t.Context()
	blocking, err := l.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocking.Exec(ctx, `select from postbus.consumer_shares where share = $1 for update`, share); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- do() }()
	eventually(t, what+" waits", func() bool { return waiting(t, l) == 1 })
	rows, err := l.pool.Query(ctx, `select share from postbus.consumer_shares order by share for update skip locked`)
	if err != nil {
		t.Fatal(err)
	}
	free, err := pgx.CollectRows(rows, pgx.RowTo[int16])
	if err != nil {
		t.Fatal(err)
	}
	var want []int16
	for n := share + 1; n < shareCount; n++ {
		want = append(want, n)
	}
	if !slices.Equal(free, want) {
		t.Errorf("%s that waits for share %d leaves %v free, want %v", what, share, free, want)
	}
	if err := blocking.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// waiting counts the sessions that wait for a lock in the test's database.
func waiting(t *testing.T, l *Log) (n int) {
	t.Helper()
	err := l.pool.QueryRow(t.Context(), `select count(*) from pg_stat_activity
		where datname = current_database() and wait_event_type = 'Lock'`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
