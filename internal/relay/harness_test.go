package relay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/pgtest"
	"postbus/internal/relay"
	"postbus/internal/uow"
)

// patience is how long a test waits for what must come; only a broken build uses it up.
const patience = 90 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// way is an application's database, in which the outbox and what arrives are, and the use case that writes.
type way struct {
	t       *testing.T
	pool    *pgxpool.Pool
	url     string
	outbox  *postgres.Log
	inbound *postgres.Log
	work    *uow.Manager

	mu      sync.Mutex
	written map[string]int // events by door
	commits []time.Duration
}

// newWay returns one on which a broker carries the events.
func newWay(t *testing.T) *way {
	t.Helper()
	w := openWay(t)
	err := errors.Join(
		w.outbox.Provision(t.Context(), []string{topic}, relay.Subscriptions([]string{topic})),
		w.inbound.Provision(t.Context(), []string{topic}, []postgres.Subscription{ledgerOfDoors}))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func openWay(t *testing.T) *way {
	t.Helper()
	url := pgtest.URL(t, postgres.Migrations(postgres.DefaultSchema), postgres.Migrations(inboundSchema))
	w := &way{t: t, url: url, pool: pgtest.Open(t, url), written: make(map[string]int)}
	var err1, err2 error
	w.outbox, err1 = postgres.Open(w.pool, postgres.Config{}, quiet)
	w.inbound, err2 = postgres.Open(w.pool, postgres.Config{Schema: inboundSchema, Inbox: postgres.DefaultSchema}, quiet)
	codec, err3 := newCodec()
	_, err4 := w.pool.Exec(t.Context(), `create table effects (id bigint generated always as identity, door text, n int);
		create table doors (door text primary key, n int not null);
		create table deliveries (id bigint generated always as identity, door text, n int)`)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	w.work = uow.NewManager(w.pool, w.outbox, codec, bus.New(quiet))
	return w
}

const doors = 8

// write commits so many events more for each door, those of different doors at once.
func (w *way) write(each int) {
	w.t.Helper()
	var writing sync.WaitGroup
	for d := range doors {
		name := fmt.Sprint("door-", d)
		writing.Go(func() {
			for range each {
				if err := w.open(name); err != nil {
					w.t.Error(err)
				}
			}
		})
	}
	writing.Wait()
}

// writeFor commits for as long, with pauses.
func (w *way) writeFor(d time.Duration) {
	w.t.Helper()
	for stop := time.After(d); ; {
		w.write(2)
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// medianAndSlowest are how long commits took, of those since it was asked last.
func (w *way) medianAndSlowest() (median, slowest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.commits)
	if n := len(w.commits); n > 0 {
		median, slowest = w.commits[n/2], w.commits[n-1]
	}
	w.commits = nil
	return median.Round(time.Microsecond), slowest.Round(time.Microsecond)
}

// open is the use case: the door's row puts its commits in order.
func (w *way) open(name string) error {
	began := time.Now()
	err := w.work.Do(w.t.Context(), func(ctx context.Context, u *uow.Work) error {
		var n int
		err := u.DB().QueryRow(ctx, `insert into doors values ($1, 0) on conflict (door) do update set n = doors.n + 1
			returning n`, name).Scan(&n)
		if err != nil {
			return err
		}
		d := &door{}
		u.Track(d)
		d.recorder.Record(opened{Door: name, N: n})
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written[name]++
	w.commits = append(w.commits, time.Since(began))
	return err
}

// effects is how many there have been.
func (w *way) effects() (n int) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.t.Context(), `select count(*) from effects`).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *way) total() (n int) {
	for _, each := range w.written {
		n += each
	}
	return n
}

// awaitEffects waits until at least n events have had their effect.
func (w *way) awaitEffects(n int) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d effects", n), func() bool { return w.effects() >= n })
}

// expire has the leases of a process that is gone run out now. What it had sent may still be under way in the server, and
// takes its locks in this order.
func (w *way) expire() {
	w.t.Helper()
	for _, schema := range []string{postgres.DefaultSchema, inboundSchema} {
		if _, err := w.pool.Exec(w.t.Context(), `with gone as (delete from `+schema+`.consumer_members),
				locked as materialized (select from `+schema+`.consumer_shares order by share for update)
			update `+schema+`.consumer_shares set lease_until = null, owner = null where (select count(*) from locked) > 0`); err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.pool.Exec(w.t.Context(), `update `+schema+`.intakes set lease_until = null, owner = null`); err != nil {
			w.t.Fatal(err)
		}
	}
}

// verify waits until all has arrived, and checks that nothing is missing, doubled or out of order in its key.
func (w *way) verify() {
	w.t.Helper()
	w.awaitEffects(w.total())
	for _, s := range []struct {
		log *postgres.Log
		postgres.Subscription
	}{{w.outbox, relay.Subscriptions([]string{topic})[0]}, {w.inbound, ledgerOfDoors}} {
		eventually(w.t, "the end of what waits for "+s.Consumer, func() bool {
			status, known, err := s.log.Status(w.t.Context(), s.Subscription)
			return err == nil && known && status.Waiting+status.Parked+status.Dead == 0
		})
	}
	w.verifyRows("effects", `select door, n from effects order by id`)
	w.verifyRows("arrivals", `select e->>'door', (e->>'n')::int from postbus_inbound.topic_door,
		lateral (select convert_from(payload, 'UTF8')::jsonb) as p (e) order by position`)
}

// verifyRows checks that each event is there once, and those of a door in their order.
func (w *way) verifyRows(what, query string) {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), query)
	if err != nil {
		w.t.Fatal(err)
	}
	got := make(map[string]int)
	var name string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error {
		if n != got[name] {
			w.t.Errorf("%s of %s: event %d comes after %d others", what, name, n, got[name])
		}
		got[name]++
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	for name, want := range w.written {
		if got[name] != want {
			w.t.Errorf("%s of %s: %d of %d events", what, name, got[name], want)
		}
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for ; !condition(); <-time.After(20 * time.Millisecond) { // polls what has no signal
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// carrier is a process that runs relay and consumer.
type carrier struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   bytes.Buffer
	ended chan error
}

func (w *way) start(brokerURL string, dieAfter int64) *carrier {
	w.t.Helper()
	return w.startWith(carrierConfig{Broker: brokerURL, DieAfter: dieAfter})
}

func (w *way) startWith(config carrierConfig) *carrier {
	w.t.Helper()
	config.Postgres = w.url
	told, err := json.Marshal(config)
	if err != nil {
		w.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	c := &carrier{t: w.t, cmd: exec.Command(self), ended: make(chan error, 1)}
	c.cmd.Env = append(os.Environ(), childVariable+"="+string(told), "GORACE=atexit_sleep_ms=0")
	c.cmd.Stdout, c.cmd.Stderr = &c.log, &c.log
	if err := c.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { c.ended <- c.cmd.Wait() }()
	w.t.Cleanup(func() {
		c.kill()
		if w.t.Failed() {
			w.t.Logf("carrier %d wrote:\n%s", c.cmd.Process.Pid, &c.log)
		}
	})
	return c
}

func (c *carrier) wait() error {
	c.t.Helper()
	select {
	case err := <-c.ended:
		c.ended <- err
		return err
	case <-time.After(patience):
		c.t.Error("a carrier does not end")
		_ = c.cmd.Process.Signal(syscall.SIGABRT) // prints what it is at
		return <-c.ended
	}
}

func (c *carrier) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.wait() // says that it was killed
}

// stop ends it in good order; one that is told before it could listen has done nothing yet, and dies of it.
func (c *carrier) stop() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Error(err)
	}
	var exit *exec.ExitError
	err := c.wait()
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM { //nolint:forcetypeassert // of Unix
		return
	}
	if err != nil {
		c.t.Errorf("a carrier ended with %v", err)
	}
}

// dies waits until it has killed itself.
func (c *carrier) dies() {
	c.t.Helper()
	var exit *exec.ExitError
	if err := c.wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL { //nolint:forcetypeassert // of Unix
		c.t.Fatalf("a carrier ended with %v\n%s", err, &c.log)
	}
}
