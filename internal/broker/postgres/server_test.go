package postgres

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbus/internal/servertest"
)

// TestOlderServerComesBack replaces the server by a copy of it from before the last commits, for less than a lease and
// while the consumer waits for events: what commits afterwards has the positions and transaction ids of what was lost, and
// is delivered all the same.
func TestOlderServerComesBack(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, server := ownLog(t, Config{Lease: 10 * time.Minute, Poll: time.Hour, Rest: time.Hour, NotifyOff: true}, "reader")
	withoutAutovacuum(t, l)
	s := subscriber(t, l, "reader")
	in := listen(t.Context(), t, s, nil)
	publish(t, l, event("k", 0))
	in.await(t, 1)
	data, backup := filepath.Join(server.Dir(), "data"), filepath.Join(server.Dir(), "backup")
	server.Stop()
	command(t, "cp", "-a", data, backup)
	server.Start()
	eventuallyConnected(t, l)
	for n := range 40 {
		publish(t, l, event("k", 100+n))
	}
	in.await(t, 41)
	eventually(t, "the place is stored", func() bool { return waitingFor(t, l, "reader") == 0 })
	server.Stop()
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	command(t, "mv", backup, data)
	server.Start()
	eventuallyConnected(t, l)
	var want []string
	for n := range 40 {
		m := event("k", 200+n)
		want = append(want, string(m.Payload))
		publish(t, l, m)
	}
	in.await(t, 81)
	got := slices.DeleteFunc(in.all(), func(payload string) bool { return !slices.Contains(want, payload) })
	if !slices.Equal(got, want) {
		t.Errorf("after the older server came back %d of %d events were delivered: %q", len(got), len(want), got)
	}
}

// TestCrashThatTheServerSurvives: a process of the server is killed, so that the server recovers by itself and loses what was
// not written yet with synchronous_commit off. What commits then has the positions and transaction ids of what was lost, and nobody
// looks before as many ids were given out again. It is delivered all the same.
func TestCrashThatTheServerSurvives(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, _ := ownLog(t, Config{Lease: 10 * time.Minute, Poll: time.Hour, Rest: time.Hour, NotifyOff: true}, "reader")
	withoutAutovacuum(t, l)
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	publish(t, l, event("k", 0))
	in.await(t, 1)
	for _, setting := range []string{"synchronous_commit = off", "bgwriter_lru_maxpages = 0"} {
		execute(t, l, `alter system set `+setting)
	}
	execute(t, l, `select pg_reload_conf()`)
	eventually(t, "commits not to be waited for", func() bool {
		var setting string
		err := l.pool.QueryRow(t.Context(), `show synchronous_commit`).Scan(&setting)
		return err == nil && setting == "off"
	})
	writer := walWriter(t, l)
	const lost, later = 100, 300
	for n := range lost {
		publish(t, l, event("k", 1000+n))
	}
	in.await(t, 1+lost)
	eventually(t, "the place is stored", func() bool { return waitingFor(t, l, "reader") == 0 })
	crash(t, l, writer)
	if n := countRows(t, l); n >= lost {
		t.Fatalf("%d events are there after the crash, so nothing was lost", n)
	}
	var want []string
	for n := range later {
		silently(t, l, "k", 2000+n)
		want = append(want, payloads("k", 2000+n, 2000+n)...)
	}
	l.Wake("user")
	eventually(t, "all that was committed after the crash", func() bool {
		got := slices.DeleteFunc(in.all(), func(payload string) bool { return !slices.Contains(want, payload) })
		return slices.Equal(got, want)
	})
}

// walWriter returns the process of the server that writes what synchronous_commit off leaves to it, stopped.
func walWriter(t *testing.T, l *Log) (pid int) {
	t.Helper()
	if err := l.pool.QueryRow(t.Context(), `select pid from pg_stat_activity where backend_type = 'walwriter'`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return pid
}

// crash kills a process of the server, and returns when the server has recovered.
func crash(t *testing.T, l *Log, pid int) {
	t.Helper()
	witness, err := l.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer witness.Release()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server to cut its sessions", func() bool { return witness.Ping(t.Context()) != nil })
	eventuallyConnected(t, l)
}

// TestRestartedServerHandsOverAtOnce: work that was interrupted by a restart of the server does not wait for its own leases.
func TestRestartedServerHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l, server := ownLog(t, Config{Lease: time.Hour, RetryMin: 10 * time.Millisecond}, "reader")
	in := listen(t.Context(), t, subscriber(t, l, "reader"), nil)
	for n := range 3 {
		publish(t, l, event("k", n))
		in.await(t, n+1)
		server.Stop()
		server.Start()
		eventuallyConnected(t, l)
	}
	publish(t, l, event("k", 3))
	in.await(t, 4)
}

func eventuallyConnected(t *testing.T, l *Log) {
	t.Helper()
	eventually(t, "the server answers", func() bool { return l.pool.Ping(t.Context()) == nil })
	l.pool.Reset() // connections to the server as it was are of no use
}

func waitingFor(t *testing.T, l *Log, consumer string) int {
	t.Helper()
	status, _, err := l.Status(t.Context(), Subscription{Consumer: consumer, Topic: "user"})
	if err != nil {
		t.Fatal(err)
	}
	return status.Waiting
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// TestPlaceOfAnotherServer: each statement that rests on what was seen on a server fails on another one, and changes nothing.
func TestPlaceOfAnotherServer(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	here := holds(t, l, "reader", "owner")
	held, err := here.claim(t.Context(), shareCount-1)
	if err != nil || len(held) != shareCount-1 {
		t.Fatalf("claimed %d shares: %v", len(held), err)
	}
	there := here
	there.server = there.server.Add(-time.Microsecond)
	before := tableOf(t, l)
	v, _ := judge(soon(), 1)
	parked := change{
		share: &share{number: 3, epoch: held[3].epoch}, key: "a", position: 1, kind: changePark, state: v.state, failure: &v.failure,
		entry: &entry{row: row{position: 1, id: uuid.New(), raw: "{}", payload: []byte("x")}},
	}
	for what, do := range map[string]func(context.Context) error{
		"claim":  func(ctx context.Context) error { _, err := there.claim(ctx, shareCount); return err },
		"renew":  func(ctx context.Context) error { _, err := there.renew(ctx, l.pool, []int16{1, 2}); return err },
		"read":   func(ctx context.Context) error { _, err := there.read(ctx, "user", held[0].place, nil); return err },
		"park":   func(ctx context.Context) error { _, err := there.park(ctx, []change{parked}); return err },
		"due":    func(ctx context.Context) error { _, err := there.dueKeys(ctx, []int16{3}); return err },
		"parked": func(ctx context.Context) error { _, err := there.parkedKeys(ctx, []int16{3}); return err },
		"line":   func(ctx context.Context) error { _, _, err := there.line(ctx, "a"); return err },
		"checkpoint": func(ctx context.Context) error {
			_, err := there.store(ctx, []checkpoint{{number: 3, epoch: held[3].epoch, place: held[3].place, release: true}})
			return err
		},
	} {
		if err := do(t.Context()); !hasCode(err, codeOtherServer) {
			t.Errorf("%s on another server: %v", what, err)
		}
	}
	if after := tableOf(t, l); after != before {
		t.Errorf("it left\n%s\nafter\n%s", after, before)
	}
}

// tableOf is what the shares look like.
func tableOf(t *testing.T, l *Log) (all string) {
	t.Helper()
	err := l.pool.QueryRow(t.Context(), `select string_agg(s::text, E'\n' order by share) from postbus.consumer_shares as s`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestPlaceFromTheFuture: a server that was put back without being started anew, as a virtual machine is, has not seen the
// transactions that a place knows of.
func TestPlaceFromTheFuture(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	h := holds(t, l, "reader", "owner")
	held, err := h.claim(t.Context(), shareCount)
	if err != nil {
		t.Fatal(err)
	}
	for name, future := range map[string]func(*place){
		"snapshot": func(p *place) { p.snapshot = "1000000000:1000000000:" },
		"window":   func(p *place) { p.windowEnd = "3:1000000000:" },
	} {
		p := held[0].place
		future(&p)
		if _, err := h.read(t.Context(), "user", p, nil); !hasCode(err, codeOtherServer) {
			t.Errorf("%s: read from there: %v", name, err)
		}
		all := []checkpoint{{number: 0, epoch: held[0].epoch, place: p}, {number: 1, epoch: held[1].epoch, place: held[1].place}}
		if _, err := h.store(t.Context(), all); !hasCode(err, codeOtherServer) {
			t.Errorf("%s: stored it: %v", name, err)
		}
	}
}

// TestPartitionsOfAnotherServer: what a survey found says nothing about another server, whose partitions are others under
// the same names.
func TestPartitionsOfAnotherServer(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	publish(t, l, event("k", 1))
	closePartition(t, l)
	topics, err := l.survey(t.Context())
	if err != nil || len(topics) != 1 {
		t.Fatalf("surveyed %d topics: %v", len(topics), err)
	}
	elsewhere := topics[0]
	elsewhere.server = elsewhere.server.Add(-time.Microsecond)
	elsewhere.current, elsewhere.parts = 1, []partition{{number: 0}}
	if err := l.recordClosed(t.Context(), elsewhere); !hasCode(err, codeOtherServer) {
		t.Errorf("a partition was recorded as closed: %v", err)
	}
	if err := l.note(t.Context(), elsewhere, 7); !hasCode(err, codeOtherServer) {
		t.Errorf("a partition was noted: %v", err)
	}
	maintain(t, l)
	var snapshot string
	eventually(t, "the end of transactions that were open when the partition was closed", func() bool {
		err := l.pool.QueryRow(t.Context(), `select pg_current_snapshot()::text`).Scan(&snapshot)
		return err == nil && l.seals.before(topics[0].server, "user", snapshot) == firstPosition(1)
	})
	if at := l.seals.before(elsewhere.server, "user", snapshot); at != 0 {
		t.Errorf("on another server the topic is sealed up to %d", at)
	}
}

// TestDroppingLooksAgain: a partition that was detached on another server, and is not on this one, stays.
func TestDroppingLooksAgain(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	publish(t, l, event("k", 1))
	if err := l.drop(t.Context(), "user", 0); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, l); n != 1 {
		t.Errorf("the topic has %d events, one was published", n)
	}
}

func countRows(t *testing.T, l *Log) (n int) {
	t.Helper()
	if err := l.pool.QueryRow(t.Context(), `select count(*) from postbus.topic_user`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestPollOfAnotherServer: where topics were seen on another server tells nothing, and everybody is woken.
func TestPollOfAnotherServer(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	publish(t, l, event("k", 1))
	var s sights
	eventually(t, "nothing new", func() bool { return !woken(t, l, &s) })
	s.topics["gone"] = &sight{drawn: 7}
	s.server = s.server.Add(-time.Microsecond)
	if !woken(t, l, &s) {
		t.Error("another server: not woken")
	}
	if len(s.topics) != 1 {
		t.Errorf("what was seen on another server is kept: %v", s.topics)
	}
}

// TestKeeperOfAnotherServer ends the work, and leaves the shares to be given free by the next one: whatever noticed first, nobody
// waits for the leases.
func TestKeeperOfAnotherServer(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{Lease: time.Hour}, "reader")
	ctx := t.Context()
	s := newSubscriber([]*Log{l}, "reader", testLanes)
	h := holds(t, l, "reader", s.owner)
	held, err := h.claim(ctx, shareCount)
	if err != nil {
		t.Fatal(err)
	}
	h.server = h.server.Add(-time.Microsecond)
	term := newTerm(l.config.Lease)
	d := newDelivery(h, term.valid, nil)
	d.join(ctx, held, nil)
	k := keeper{Subscriber: s, topic: "user", delivery: d, term: term, reading: ctx, handling: ctx}
	if err := k.run(ctx); !hasCode(err, codeOtherServer) {
		t.Fatalf("the keeper ended by %v", err)
	}
	left := d.atRest()
	if len(left) != shareCount {
		t.Fatalf("%d shares are left to be given free", len(left))
	}
	if _, err := l.hold(ctx, "reader", s.owner, left); err != nil {
		t.Fatal(err)
	}
	if next, err := holds(t, l, "reader", "another").claim(ctx, shareCount); err != nil || len(next) != shareCount {
		t.Errorf("another process claimed %d shares, %v", len(next), err)
	}
}

// TestLateBeginningFreesNothing that was claimed since: it may be carried out after it was given up on.
func TestLateBeginningFreesNothing(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "reader")
	left := make(map[int16]int64)
	for range 2 {
		held, err := holds(t, l, "reader", "owner").claim(t.Context(), shareCount)
		if err != nil || len(held) != shareCount {
			t.Fatal(len(held), err)
		}
		if len(left) > 0 {
			break
		}
		for _, c := range held {
			left[c.number] = c.epoch
		}
		if _, err := l.hold(t.Context(), "reader", "owner", left); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.hold(t.Context(), "reader", "owner", left); err != nil {
		t.Fatal(err)
	}
	if free, err := holds(t, l, "reader", "another").claim(t.Context(), shareCount); err != nil || len(free) > 0 {
		t.Errorf("%d shares that were claimed again were given free, %v", len(free), err)
	}
}
