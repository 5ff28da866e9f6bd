package relay_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/broker/postgres"
	"postbus/internal/natstest"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// unlucky is which of a door's events fail when they come first, so that some are always parked.
const unlucky = 17

// newChangingWay returns a way on which no broker is yet, and whose application commits until the test ends, or calls quiet.
func newChangingWay(t *testing.T) (w *way, quiet func()) {
	t.Helper()
	w = openWay(t)
	if _, err := w.pool.Exec(t.Context(), `create table unlucky (door text, n int, primary key (door, n))`); err != nil {
		t.Fatal(err)
	}
	if err := w.outbox.Provision(t.Context(), []string{topic}, []postgres.Subscription{ledgerOfDoors}); err != nil {
		t.Fatal(err)
	}
	if err := w.inbound.Provision(t.Context(), []string{topic}, nil); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writing sync.WaitGroup
	quiet = sync.OnceFunc(func() { close(stop); writing.Wait() })
	t.Cleanup(quiet)
	for d := range doors {
		writing.Go(func() {
			for {
				if err := w.open(fmt.Sprint("door-", d)); err != nil {
					t.Error("the application is refused a commit: ", err)
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(rand.N(100 * time.Millisecond)):
				}
			}
		})
	}
	return w, quiet
}

// changes changes brokers, by a process of its own.
func (w *way) changes(url, to string) *carrier {
	w.t.Helper()
	return w.startWith(carrierConfig{Broker: url, Changing: true, Change: to})
}

// changed does so until it is done.
func (w *way) changed(url, to string) {
	w.t.Helper()
	c := w.changes(url, to)
	if err := c.wait(); err != nil {
		w.t.Fatalf("the change %s: %v\n%s", to, err, &c.log)
	}
	w.t.Logf("%s", &c.log)
}

// verifyChanged waits for what was committed, and checks that each event had its effect once and in its key's order.
func (w *way) verifyChanged() {
	w.t.Helper()
	w.awaitEffects(w.total())
	for _, log := range []*postgres.Log{w.outbox, w.inbound} {
		eventually(w.t, "the end of what waits", func() bool {
			status, known, err := log.Status(w.t.Context(), ledgerOfDoors)
			return err != nil || !known || status.Waiting+status.Parked+status.Dead == 0
		})
	}
	w.verifyRows("effects", `select door, n from effects order by id`)
	median, slowest := w.medianAndSlowest()
	w.t.Logf("%d events; the median commit took %s, the slowest %s", w.total(), median, slowest)
}

// delivered returns how often each event was delivered, failures aside.
func (w *way) delivered() map[string]int {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), `select door || ' ' || n, count(*)::int - (select count(*) from unlucky as u
		where u.door = d.door and u.n = d.n)::int from deliveries as d group by door, n`)
	if err != nil {
		w.t.Fatal(err)
	}
	times := make(map[string]int)
	var event string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&event, &n}, func() error { times[event] = n; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return times
}

// TestBrokerIsChangedWhileEverythingRuns: to NATS and back, and to a second Postgres and back, with one process after the other
// restarted in between. Nothing is lost or reordered, and nothing delivered twice.
func TestBrokerIsChangedWhileEverythingRuns(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	urls := []string{natstest.Start(t).URL(), pgtest.Own(t).URL() + "&durability=unchecked"} // the servers of tests have no fsync
	w, quiet := newChangingWay(t)
	processes := make([]*carrier, 2)
	for _, url := range urls {
		for i, old := range processes {
			if old != nil {
				old.stop()
			}
			processes[i] = w.startWith(carrierConfig{Broker: url, Changing: true})
		}
		for _, to := range []string{"to", "back", "to", "back"} {
			before := w.effects()
			w.changed(url, to)
			w.awaitEffects(before + 10*doors)
		}
	}
	quiet()
	w.verifyChanged()
	for event, n := range w.delivered() {
		if n != 1 {
			t.Errorf("%s was delivered %d times", event, n)
		}
	}
}

// TestKilledWhileBrokersChange: the command that changes brokers is killed at any moment of it, and so are the processes. Said again
// it does what is missing. Nothing is lost or reordered, and no effect doubled.
func TestKilledWhileBrokersChange(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := natstest.Start(t)
	w, quiet := newChangingWay(t)
	start := func() *carrier { return w.startWith(carrierConfig{Broker: server.URL(), Changing: true}) }
	processes := []*carrier{start(), start()}
	for round, to := range []string{"to", "back", "to", "back"} {
		before := w.effects()
		command := w.changes(server.URL(), to)
		<-time.After(rand.N(2 * time.Second))
		command.kill()
		if round%2 == 1 {
			server.Kill()
		}
		processes[round%2].kill()
		processes[round%2] = start()
		w.changed(server.URL(), to)
		if round%2 == 1 {
			server.Start()
		}
		w.awaitEffects(before + 10*doors)
	}
	quiet()
	w.verifyChanged()
}

// TestConsumersThatRestChangeToo: with nothing to do in either log they go where they are sent.
func TestConsumersThatRestChangeToo(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := natstest.Start(t)
	w, quiet := newChangingWay(t)
	w.startWith(carrierConfig{Broker: server.URL(), Changing: true})
	quiet()
	w.verifyChanged()
	for _, to := range []string{"to", "back"} {
		rest(t, w)
		w.changed(server.URL(), to)
		w.write(1)
		w.verifyChanged()
	}
}

// rest waits until the consumer has given up its shares.
func rest(t *testing.T, w *way) {
	t.Helper()
	eventually(t, "the consumer to rest", func() bool {
		var owned int
		err := w.pool.QueryRow(t.Context(), `select count(*) from (select owner from postbus.consumer_shares union all
			select owner from postbus_inbound.consumer_shares) as shares where owner is not null`).Scan(&owned)
		return err == nil && owned == 0
	})
}
