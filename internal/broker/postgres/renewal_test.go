package postgres

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// answer is what renewTogether told one consumer.
type answer struct {
	presence
	err error
}

// renewedTogether has all holders ask before the first statement is sent. The answers are there when they close.
func renewedTogether(t *testing.T, l *Log, holders ...holder) []<-chan answer {
	t.Helper()
	l.renewals.mu.Lock()
	l.renewals.sending = true
	l.renewals.mu.Unlock()
	answers := make([]<-chan answer, len(holders))
	for i, h := range holders {
		to := make(chan answer, 1)
		answers[i] = to
		go func() {
			var a answer
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			a.presence, a.err = h.renewTogether(ctx, allShares())
			to <- a
		}()
	}
	eventually(t, "all have asked", func() bool {
		l.renewals.mu.Lock()
		defer l.renewals.mu.Unlock()
		return len(l.renewals.asked) == len(holders)
	})
	go l.renewals.send(l)
	return answers
}

func allShares() (all []int16) {
	for n := range int16(shareCount) {
		all = append(all, n)
	}
	return all
}

// renewing returns holders of all shares of consumers, who have renewed once.
func renewing(t *testing.T, n int) (*Log, []holder) {
	t.Helper()
	consumers := make([]string, n)
	for i := range consumers {
		consumers[i] = fmt.Sprintf("reader-%d", i)
	}
	l := newLog(t, Config{Lease: time.Hour}, consumers...)
	holders := make([]holder, n)
	for i, consumer := range consumers {
		holders[i] = holds(t, l, consumer, "owner of "+consumer)
		if _, err := holders[i].claim(t.Context(), shareCount); err != nil {
			t.Fatal(err)
		}
		if _, err := holders[i].renew(t.Context(), l.pool, allShares()); err != nil {
			t.Fatal(err)
		}
	}
	return l, holders
}

// TestConsumersRenewInOneCommit: so many idle consumers of a process do not cost one each.
func TestConsumersRenewInOneCommit(t *testing.T) {
	t.Parallel()
	l, holders := renewing(t, 5)
	execute(t, l, `update postbus.consumer_shares set lease_until = clock_timestamp() + interval '1 minute'`)
	for i, a := range renewedTogether(t, l, holders...) {
		if got := <-a; got.err != nil || !slices.Equal(got.held, allShares()) || got.others != 0 {
			t.Errorf("consumer %d holds %v beside %d others, %v", i, got.held, got.others, got.err)
		}
	}
	var commits, short int
	err := l.pool.QueryRow(t.Context(), `select (select count(distinct xmin::text) from
			(select xmin from postbus.consumer_shares union all select xmin from postbus.consumer_members) as written),
			(select count(*) from postbus.consumer_shares where lease_until < clock_timestamp() + interval '59 minutes')`).Scan(&commits, &short)
	if err != nil || commits != 1 || short != 0 {
		t.Errorf("%d commits, %d leases were not prolonged, %v", commits, short, err)
	}
}

// TestLockOfOneConsumerKeepsNobodyFromRenewing, and a share that was lost is told of.
func TestLockOfOneConsumerKeepsNobodyFromRenewing(t *testing.T) {
	t.Parallel()
	l, holders := renewing(t, 4)
	locked, lost := holders[0], holders[1]
	execute(t, l, `update postbus.consumer_shares set owner = 'another' where consumer = 'reader-1' and share = 3`)
	execute(t, l, `insert into postbus.consumer_members values ('reader-1', 'another', clock_timestamp() + interval '1 hour')`)
	tx, err := l.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `select from postbus.consumer_shares where consumer = 'reader-0' and share = 5 for update`); err != nil {
		t.Fatal(err)
	}
	answers := renewedTogether(t, l, locked, lost, holders[2], holders[3])
	for i, want := range [][]int16{2: allShares(), 3: allShares(), 1: slices.DeleteFunc(allShares(), func(n int16) bool { return n == 3 })} {
		if i == 0 {
			continue
		}
		if got := <-answers[i]; got.err != nil || !slices.Equal(slices.Sorted(slices.Values(got.held)), want) || (i == 1) != (got.others == 1) {
			t.Errorf("consumer %d holds %v beside %d others, %v", i, got.held, got.others, got.err)
		}
	}
	select {
	case got := <-answers[0]:
		t.Fatalf("the one that is locked had an answer: %+v", got)
	default:
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-answers[0]; got.err != nil || len(got.held) != shareCount {
		t.Errorf("after the lock %v are held, %v", got.held, got.err)
	}
}

// TestStoppedConsumerIsNotSeatedAgain: a renewal that is under way when its consumer stops is not carried out once that has left. The
// others would take it for one of them, and leave its part of the shares to it.
func TestStoppedConsumerIsNotSeatedAgain(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: 2 * time.Second}, "reader")
	ctx, stop := context.WithCancel(t.Context())
	reading := listen(ctx, t, subscriber(t, l, "reader"), nil)
	publish(t, l, event("k", 1))
	reading.await(t, 1)
	asked := func() int {
		l.renewals.mu.Lock()
		defer l.renewals.mu.Unlock()
		return len(l.renewals.asked)
	}
	eventually(t, "a moment without a renewal", func() bool {
		l.renewals.mu.Lock()
		defer l.renewals.mu.Unlock()
		idle := !l.renewals.sending
		l.renewals.sending = true // as if others were being renewed
		return idle
	})
	eventually(t, "a renewal that waits", func() bool { return asked() == 1 })
	stop()
	select {
	case <-reading.ended:
	case <-time.After(200 * time.Millisecond): // long enough to see it end too early
	}
	l.renewals.send(l)
	<-reading.ended
	var seated int
	if err := l.pool.QueryRow(t.Context(), `select count(*) from postbus.consumer_members`).Scan(&seated); err != nil || seated != 0 {
		t.Errorf("%d are there after the only one has stopped, %v", seated, err)
	}
}

// TestRenewingTogetherOnAnotherServer fails, as it does alone, for those who were on the other one.
func TestRenewingTogetherOnAnotherServer(t *testing.T) {
	t.Parallel()
	l, holders := renewing(t, 4)
	for i := range 2 {
		holders[i].server = holders[i].server.Add(-time.Microsecond)
	}
	for i, a := range renewedTogether(t, l, holders...) {
		if got := <-a; hasCode(got.err, codeOtherServer) != (i < 2) || (i >= 2 && got.err != nil) {
			t.Errorf("consumer %d: %v", i, got.err)
		}
	}
}

// TestManyConsumersKeepTheirShares for several leases, while they store what they have handled.
func TestManyConsumersKeepTheirShares(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	const consumers = 20
	names := make([]string, consumers)
	for i := range names {
		names[i] = fmt.Sprintf("reader-%d", i)
	}
	l := newLog(t, Config{Lease: 4 * time.Second}, names...)
	var all []*inbox
	for _, name := range names {
		all = append(all, listen(t.Context(), t, subscriber(t, l, name), nil))
	}
	claims := func() (n int) {
		if err := l.pool.QueryRow(t.Context(), `select sum(epoch) from postbus.consumer_shares`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	publish(t, l, event("k", 0))
	for _, in := range all {
		in.await(t, 1)
	}
	before, n := claims(), 1
	for begun := time.Now(); time.Since(begun) < 3*time.Second; n++ {
		publish(t, l, event("k", n))
		<-time.After(20 * time.Millisecond)
	}
	for _, in := range all {
		in.await(t, n)
	}
	if anew := claims() - before; anew != 0 {
		t.Errorf("%d shares were lost and claimed anew", anew)
	}
}

// TestBusyPoolLosesNoLease: an application that uses all of its pool, for longer than a lease, keeps its consumers' shares.
func TestBusyPoolLosesNoLease(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: 2 * time.Second}, "mailer")
	in := listen(t.Context(), t, subscriber(t, l, "mailer"), nil)
	publish(t, l, event("k", 0))
	in.await(t, 1)
	watcher := pgtest.Open(t, l.pool.Config().ConnString())
	claims := func() (n int) {
		if err := watcher.QueryRow(t.Context(), `select sum(epoch) from postbus.consumer_shares`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := claims()
	release := pgtest.TakeAll(t, l.pool)
	lost := 0
	for begun := time.Now(); lost == 0 && time.Since(begun) < 2*l.config.Lease; <-time.After(50 * time.Millisecond) {
		err := watcher.QueryRow(t.Context(), `select count(*) from postbus.consumer_shares where lease_until < clock_timestamp()`).Scan(&lost)
		if err != nil {
			t.Fatal(err)
		}
	}
	release()
	publish(t, l, event("k", 1))
	in.await(t, 2)
	if anew := claims() - before; lost > 0 || anew > 0 {
		t.Errorf("%d leases ran out, %d shares were claimed anew", lost, anew)
	}
}
