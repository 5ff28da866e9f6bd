package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

var (
	mailerOfUsers = []Subscription{{Consumer: "mailer", Topic: "user"}}
	relayOfUsers  = []Subscription{{Consumer: "relay:user", Topic: "user"}}
)

// twoLogs are that of an application and that of what arrives from a broker.
type twoLogs struct {
	*testing.T
	app, inbound *Log
}

func newTwoLogs(t *testing.T) twoLogs {
	t.Helper()
	return newTwoLogsWith(t, Config{Lease: 3 * time.Second})
}

func newTwoLogsWith(t *testing.T, config Config) twoLogs {
	t.Helper()
	pool := pgtest.New(t, Migrations(DefaultSchema), Migrations("inbound"))
	app := openLog(t, pool, config, "mailer")
	config.Schema, config.Inbox = "inbound", DefaultSchema
	return twoLogs{t, app, openLog(t, pool, config)}
}

func (l twoLogs) handOver() Change {
	l.Helper()
	c, err := l.app.HandOver(l.Context(), l.inbound, relayOfUsers, "one")
	if err != nil {
		l.Fatal(err)
	}
	return c
}

func (l twoLogs) takeBack() Change {
	l.Helper()
	c, err := l.app.TakeBack(l.Context(), l.inbound)
	if err != nil {
		l.Fatal(err)
	}
	return c
}

// reads collects what the consumer is given, in whichever log it is.
func (l twoLogs) reads(handle func(*message.Message) bool) *inbox {
	l.Helper()
	s, err := Reading{l.app, l.inbound}.Subscriber("mailer", testLanes)
	if err != nil {
		l.Fatal(err)
	}
	return listen(l.Context(), l.T, s, handle)
}

// relays collects what the relay is to publish.
func (l twoLogs) relays(identity string) (*inbox, message.Subscriber) {
	l.Helper()
	s, err := l.app.RelaySubscriber("relay:user", identity, testLanes)
	if err != nil {
		l.Fatal(err)
	}
	return listen(l.Context(), l.T, s, nil), s
}

func (l twoLogs) arrive(messages ...*message.Message) {
	l.Helper()
	i, err := l.inbound.Intake(l.Context(), "user", "test", "one")
	if err != nil {
		l.Fatal(err)
	}
	if _, err := i.Store(l.Context(), "p", "1", messages); err != nil {
		l.Fatal(err)
	}
}

// want checks that the payloads are those, those of a key in that order.
func (l twoLogs) want(in *inbox, messages ...*message.Message) {
	l.Helper()
	got, want := in.await(l.T, len(messages)), make([]string, len(messages))
	for i, m := range messages {
		want[i] = string(m.Payload)
	}
	byKey := func(a, b string) int { return strings.Compare(strings.Split(a, ",")[0], strings.Split(b, ",")[0]) }
	slices.SortStableFunc(got, byKey)
	slices.SortStableFunc(want, byKey)
	if !slices.Equal(got, want) {
		l.Errorf("got %v, want %v", got, want)
	}
}

// open commits an event later than its snapshot is taken: it returns the function that does.
func (l twoLogs) open(m *message.Message) (commit func()) {
	l.Helper()
	tx, err := l.app.pool.Begin(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = tx.Rollback(l.Context()) })
	batch := &pgx.Batch{}
	if err := l.app.Append(batch, "user", m); err != nil {
		l.Fatal(err)
	}
	if err := tx.SendBatch(l.Context(), batch).Close(); err != nil {
		l.Fatal(err)
	}
	return func() {
		if err := tx.Commit(l.Context()); err != nil {
			l.Fatal(err)
		}
		l.app.Wake("user")
	}
}

func eventsOf(key string, from, to int) (all []*message.Message) {
	for n := from; n <= to; n++ {
		all = append(all, event(key, n))
	}
	return all
}

// TestHandOver: what is visible at the moment of the change, parked or unread, the consumer takes along, and what commits later is
// the relay's, also when it has drawn its position before. What the broker brings of a key waits behind what was taken along.
func TestHandOver(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	handled := event("b", 1)
	failing := eventsOf("a", 1, 2)
	s := subscriber(t, l.app, "mailer")
	early := listen(t.Context(), t, s, func(m *message.Message) bool {
		if m.Metadata.Get(keyAttribute) == "a" {
			l.app.Refuse(m, reason{text: "no", class: "transient", wait: time.Hour, attempts: 100})
			return false
		}
		return true
	})
	publish(t, l.app, append(slices.Clone(failing), handled)...)
	l.want(early, handled)
	eventually(t, "both to be parked", func() bool {
		status, _, err := l.app.Status(t.Context(), mailerOfUsers[0])
		return err == nil && status.Parked == 2 && status.Waiting == 0
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	unread, late := append(eventsOf("a", 3, 4), eventsOf("b", 2, 3)...), event("a", 5)
	commit := l.open(late)
	publish(t, l.app, unread...)
	if c := l.handOver(); !slices.Equal(c.Taken, []Taken{{"mailer", 6}}) {
		t.Errorf("it did %+v", c)
	}
	commit()
	next := event("c", 1)
	publish(t, l.app, next)
	relay, _ := l.relays("one")
	l.want(relay, late, next)
	l.arrive(late, next)
	execute(t, l.app, `update inbound.parked set run_at = now() where state = 'retry'`)
	in := l.reads(nil)
	l.want(in, slices.Concat(failing, unread, []*message.Message{late, next})...)
	if c := l.handOver(); len(c.Taken) != 0 {
		t.Errorf("handing over again took %v along", c.Taken)
	}
	if err := l.app.Provision(t.Context(), nil, mailerOfUsers); !errors.Is(err, ErrHandedOver) {
		t.Errorf("provisioning it again: %v", err)
	}
	fresh := []Subscription{{Consumer: "new", Topic: "user"}}
	if err := l.app.Provision(t.Context(), nil, fresh); !errors.Is(err, ErrHandedOver) {
		t.Errorf("provisioning a new consumer: %v", err)
	}
}

// TestTakeBack: each event that was committed since is somewhere, and the consumer gets it once and in its key's order: those that
// arrived and it has not handled, those that were sent and did not arrive, and those that were not sent. What the broker brings
// later is known.
func TestTakeBack(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newTwoLogs(t)
	// Positions of the two logs say nothing of each other.
	execute(t, l.app, `select setval(pg_get_serial_sequence('inbound.topic_user', 'position'), 1000)`)
	l.handOver()
	sent := eventsOf("a", 1, 6)
	publish(t, l.app, sent...)
	relay, s := l.relays("one")
	l.want(relay, sent...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.arrive(sent[:3]...)
	first := subscriber(t, l.inbound, "mailer")
	part := listen(t.Context(), t, first, func(m *message.Message) bool { return strings.Contains(string(m.Payload), `"n":1}`) })
	l.want(part, sent[0])
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	unsent := append(eventsOf("a", 7, 8), event("b", 1), event("b", 2))
	commit := l.open(unsent[3])
	publish(t, l.app, unsent[:3]...)
	l.arrive(unsent[2]) // and the relay has not noted that it was sent
	overtaken, err := l.inbound.Intake(t.Context(), "user", "test", "one")
	if err != nil {
		t.Fatal(err)
	}
	c := l.takeBack()
	if c.Arrived != 4 || c.Missing != 3 || c.Unsent != 2 || !slices.Equal(c.Taken, []Taken{{"mailer", 6}}) {
		t.Errorf("it did %+v", c)
	}
	commit()
	if n, err := overtaken.Store(t.Context(), "p", "2", sent[3:]); !errors.Is(err, ErrIntakeTaken) {
		t.Errorf("a process that had read before stores %d, %v", n, err)
	}
	if i, err := l.inbound.Intake(t.Context(), "user", "test", "one"); err != nil || !i.Taken {
		t.Errorf("what the broker brings is stored: %v", err)
	} else if n, err := i.Store(t.Context(), "p", "2", sent[3:]); !errors.Is(err, ErrIntakeTaken) {
		t.Errorf("%d arrivals are stored, %v", n, err)
	}
	last := event("a", 9)
	publish(t, l.app, last)
	var failed atomic.Bool // so that what was drawn before waits behind what was taken along
	in := l.reads(func(m *message.Message) bool {
		if string(m.Payload) != string(unsent[2].Payload) || failed.Swap(true) {
			return true
		}
		l.app.Refuse(m, reason{text: "no", class: "transient", wait: time.Second, attempts: 100})
		return false
	})
	all := slices.Concat(sent[1:], unsent, []*message.Message{last})
	l.want(in, all...)
	if err := l.app.Provision(t.Context(), nil, mailerOfUsers); err != nil {
		t.Errorf("provisioning it again: %v", err)
	}
	if c := l.takeBack(); len(c.Taken) != 0 {
		t.Errorf("taking back again took %v along", c.Taken)
	}

	l.handOver()
	l.arrive(slices.Concat(sent, unsent[:3])...) // from the stream that was left
	next := event("a", 10)
	publish(t, l.app, next)
	relay, _ = l.relays("one")
	l.want(relay, next)
	l.arrive(next)
	l.want(in, append(all, next)...)
}

// TestChangeOfRunningConsumers: consumers go along with their shares, to and fro, and nothing is delivered twice. A relay of another
// broker publishes nothing.
func TestChangeOfRunningConsumers(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newTwoLogs(t)
	in, other := l.reads(nil), l.reads(nil)
	wrong, _ := l.relays("two")
	right, _ := l.relays("one")
	var all, relayed []*message.Message
	for round := range 4 {
		next := append(eventsOf("a", 10*round, 10*round+3), eventsOf("b", 10*round, 10*round+3)...)
		all = append(all, next...)
		publish(t, l.app, next...)
		if round%2 == 1 {
			relayed = append(relayed, next...)
			l.want(right, relayed...)
			l.arrive(next...)
		}
		eventually(t, "all to be handled", func() bool { return len(in.all())+len(other.all()) == len(all) })
		if round%2 == 0 {
			l.handOver()
		} else {
			l.takeBack()
		}
	}
	if got := len(in.all()) + len(other.all()); got != len(all) || len(wrong.all()) > 0 {
		t.Errorf("%d were delivered, want %d; the wrong relay got %v", got, len(all), wrong.all())
	}
}

// TestCommitsDoNotWaitForAChange that has begun and cannot end.
func TestCommitsDoNotWaitForAChange(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	publish(t, l.app, event("a", 1))
	tx, err := l.app.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `insert into inbound.intakes (topic) values ('user')`); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		c, err := l.app.HandOver(context.Background(), l.inbound, relayOfUsers, "one")
		if err == nil && !slices.Equal(c.Taken, []Taken{{"mailer", 1}}) {
			err = fmt.Errorf("it did %+v", c)
		}
		ended <- err
	}()
	eventually(t, "the change to wait for a lock", func() bool {
		var waits bool
		err := l.app.pool.QueryRow(t.Context(), `select exists (select from pg_locks where not granted and locktype = 'transactionid'
			and pid in (select pid from pg_stat_activity where datname = current_database()))`).Scan(&waits)
		return err == nil && waits
	})
	later := eventsOf("a", 2, 3)
	publish(t, l.app, later...)
	select {
	case err := <-ended:
		t.Fatalf("the change has ended: %v", err)
	default:
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	relay, _ := l.relays("one")
	l.want(relay, later...)
}

// TestBrokerThatIsAwayIsLeft: a relay that cannot finish what it publishes does not hold the consumers where nothing comes.
func TestBrokerThatIsAwayIsLeft(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newTwoLogs(t)
	l.handOver()
	s, err := l.app.RelaySubscriber("relay:user", "one", testLanes)
	if err != nil {
		t.Fatal(err)
	}
	hanging := make(chan struct{}, 1)
	listen(t.Context(), t, s, func(m *message.Message) bool {
		hanging <- struct{}{}
		<-m.Context().Done()
		return false
	})
	all := eventsOf("a", 1, 3)
	publish(t, l.app, all...)
	<-hanging
	if c := l.takeBack(); c.Unsent != 3 || c.Taken[0].Events != 0 {
		t.Errorf("it did %+v", c)
	}
	l.want(l.reads(nil), all...)
	l.handOver()
	l.arrive(all[0]) // it had got there
	var n int
	if err := l.app.pool.QueryRow(t.Context(), `select count(*) from inbound.topic_user`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d are new, %v", n, err)
	}
}

// TestWhatABrokerRefusesIsTakenBack: what a relay has parked the consumers get, behind what had arrived of its key and before what was
// not sent.
func TestWhatABrokerRefusesIsTakenBack(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	l.handOver()
	all := slices.Concat(eventsOf("a", 1, 3), eventsOf("b", 1, 2))
	publish(t, l.app, all...)
	s, err := l.app.RelaySubscriber("relay:user", "one", testLanes)
	if err != nil {
		t.Fatal(err)
	}
	listen(t.Context(), t, s, func(m *message.Message) bool {
		if string(m.Payload) == string(all[1].Payload) {
			l.app.Refuse(m, reason{text: "no", class: "transient", wait: time.Hour, attempts: 100})
			return false
		}
		return true
	})
	eventually(t, "two to be parked", func() bool {
		status, _, err := l.app.Status(t.Context(), relayOfUsers[0])
		return err == nil && status.Parked == 2 && status.Waiting == 0
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.arrive(all[0], all[3], all[4])
	last := event("a", 4)
	publish(t, l.app, last)
	if c := l.takeBack(); c.Arrived != 3 || c.Missing != 2 || c.Unsent != 1 {
		t.Errorf("it did %+v", c)
	}
	l.want(l.reads(nil), append(all, last)...)
}

// TestChangeWaitsForAHandler, and when it does not end in time nothing has changed, and the consumer goes on.
func TestChangeWaitsForAHandler(t *testing.T) {
	t.Parallel()
	l := newTwoLogsWith(t, Config{Lease: time.Second, Drain: 2 * time.Second})
	begun, end := make(chan struct{}, 1), make(chan struct{})
	in := l.reads(func(*message.Message) bool { begun <- struct{}{}; <-end; return true })
	first := event("a", 1)
	publish(t, l.app, first)
	<-begun
	var unfinished *UnfinishedError
	if _, err := l.app.HandOver(t.Context(), l.inbound, relayOfUsers, "one"); !errors.As(err, &unfinished) || unfinished.Owner == "" {
		t.Errorf("beside a handler: %v", err)
	}
	time.AfterFunc(500*time.Millisecond, func() { close(end) })
	if c := l.handOver(); !slices.Equal(c.Taken, []Taken{{"mailer", 0}}) {
		t.Errorf("it did %+v", c)
	}
	l.want(in, first)
}

// TestChangeIsRefused where consumers read over another broker, and with too much left; then nothing has changed, and the
// consumers are at work again.
func TestChangeIsRefused(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	l := newTwoLogs(t)
	l.handOver()
	var other *OtherBrokerError
	if _, err := l.app.HandOver(t.Context(), l.inbound, relayOfUsers, "two"); !errors.As(err, &other) || other.Broker != "one" {
		t.Errorf("to another broker: %v", err)
	}
	if over, err := l.app.ProvisionOver(t.Context(), l.inbound, mailerOfUsers, relayOfUsers, "two"); !errors.As(err, &other) || !over {
		t.Errorf("provisioning over another broker: %v", err)
	}
	execute(t, l.app, `insert into postbus.topic_user (slot, id, metadata, payload) select 0, gen_random_uuid(), '{}', '' from generate_series(1, `+
		fmt.Sprint(takenMax+1)+`)`)
	l.takeBack()
	var unfinished *UnfinishedError
	if _, err := l.app.HandOver(t.Context(), l.inbound, relayOfUsers, "one"); !errors.As(err, &unfinished) || unfinished.Left != takenMax {
		t.Errorf("with too much left: %v", err)
	}
	if identity, over, err := l.app.ReadsOver(t.Context()); err != nil || over {
		t.Errorf("the consumers read over %q, %v", identity, err)
	}
	l.reads(nil).await(t, 1)
}

// TestOneInboxForBothLogs: an event that a process has handled in one log, and could not note it, has no effect in the other one.
// Neither log forgets it while the consumer may come upon it.
func TestOneInboxForBothLogs(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	m := event("a", 1)
	publish(t, l.app, m)
	enter := func(log *Log) (n int64) {
		t.Helper()
		batch := &pgx.Batch{}
		log.Enter(batch, "mailer", [16]byte{6: 0x70, 15: 1})
		results := l.app.pool.SendBatch(t.Context(), batch)
		tag, err := results.Exec()
		if err := errors.Join(err, results.Close()); err != nil {
			t.Fatal(err)
		}
		return tag.RowsAffected()
	}
	if n := enter(l.app); n != 1 {
		t.Errorf("%d entries", n)
	}
	l.handOver()
	execute(t, l.app, `update postbus.inbox set handled_at = now() - interval '100 days'`)
	for _, log := range []*Log{l.app, l.inbound} {
		execute(t, l.app, `update inbound.consumer_shares set snapshot = '3:3:'`)
		if n, err := log.sweepInbox(t.Context()); err != nil || n != 0 {
			t.Errorf("%s forgets %d, %v", log.config.Schema, n, err)
		}
	}
	if n := enter(l.inbound); n != 0 {
		t.Errorf("%d entries", n)
	}
	execute(t, l.app, `update inbound.consumer_shares set snapshot = format('%1$s:%1$s:', pg_current_xact_id())::pg_snapshot`)
	execute(t, l.app, `delete from inbound.parked`)
	for want, log := range []*Log{l.app, l.inbound} {
		log.inboxSweep.began = time.Time{} // as in a day
		if n, err := log.sweepInbox(t.Context()); err != nil || n != int64(want) {
			t.Errorf("%s forgets %d, %v", log.config.Schema, n, err)
		}
	}
}

// TestRelayIsNotMovedBeforeItsBeginning: what is the consumers' own is not sent, wherever it is moved.
func TestRelayIsNotMovedBeforeItsBeginning(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	publish(t, l.app, event("k", 1), event("k", 2))
	l.handOver()
	next := event("k", 3)
	publish(t, l.app, next)
	for _, to := range []Spot{Beginning(), At(time.Unix(0, 0)), After(1), After(0)} {
		if m, err := l.app.Move(t.Context(), relayOfUsers[0], to, false); err != nil || m.After.Waiting != 1 {
			t.Errorf("%v: %d wait, %v", to, m.After.Waiting, err)
		}
		in, s := l.relays("one")
		if got := in.await(t, 1); got[0] != string(next.Payload) {
			t.Errorf("%v: it got %v", to, got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := l.app.Move(t.Context(), relayOfUsers[0], Spot{}, true); err != nil || m.After.Waiting != 0 {
		t.Errorf("now: %d wait, %v", m.After.Waiting, err)
	}
}

// TestTopicsThatOnlySomeProgramsHave: what another version hands over leaves its own topics' consumers where they are, whole; said
// again it takes them along. Taken back are all, also those of a topic that the program does not have.
func TestTopicsThatOnlySomeProgramsHave(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	counter := Subscription{Consumer: "counter", Topic: "order"}
	relays := append(slices.Clone(relayOfUsers), Subscription{Consumer: "relay:order", Topic: "order"})
	if err := l.app.Provision(t.Context(), []string{"order"}, []Subscription{counter}); err != nil {
		t.Fatal(err)
	}
	if err := l.inbound.Provision(t.Context(), []string{"order"}, nil); err != nil {
		t.Fatal(err)
	}
	l.handOver() // by a program that has no orders
	execute(t, l.app, `insert into postbus.topic_order (slot, id, metadata, payload) select 0, gen_random_uuid(), '{}', ''`)
	over, err := l.app.ProvisionOver(t.Context(), l.inbound, append(slices.Clone(mailerOfUsers), counter), relays, "one")
	if err != nil || !over {
		t.Fatal(over, err)
	}
	if status, known, err := l.inbound.Status(t.Context(), counter); known || err != nil {
		t.Errorf("the other log has it as well: %+v, %v", status, err)
	}
	if status, known, err := l.app.Status(t.Context(), counter); !known || status.Waiting != 1 || err != nil {
		t.Errorf("its event is gone: %+v, %v", status, err)
	}
	c, err := l.app.HandOver(t.Context(), l.inbound, relays, "one")
	if err != nil || !slices.Equal(c.Taken, []Taken{{"counter", 1}}) {
		t.Errorf("handing over by a program that has orders did %+v, %v", c, err)
	}
	if status, known, err := l.inbound.Status(t.Context(), counter); !known || status.Parked != 1 || err != nil {
		t.Errorf("its event was not taken along: %+v, %v", status, err)
	}

	l.takeBack() // by a program that has no orders
	if identity, over, err := l.app.ReadsOver(t.Context()); err != nil || over {
		t.Errorf("consumers read over %q, %v", identity, err)
	}
	if status, known, err := l.app.Status(t.Context(), counter); !known || status.Parked != 1 || err != nil {
		t.Errorf("not all are back: %+v, %v", status, err)
	}
}

// TestPauseWaitsForNobody: two commands at once, or several programs at their first start, do not wait for each other's consumers.
func TestPauseWaitsForNobody(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "first", "second")
	tx, err := l.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `update postbus.consumers set paused_until = null where consumer = 'second'`); err != nil {
		t.Fatal(err)
	}
	paused := make(chan error, 1)
	go func() { paused <- l.pause(t.Context(), []string{"user"}, pauseFor) }()
	select {
	case err := <-paused:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Second): // it has the first, and wants the second
		_, err := tx.Exec(t.Context(), `update postbus.consumers set paused_until = null where consumer = 'first'`)
		t.Errorf("it waits; who has changed one consumer, and goes on to the next: %v; it: %v", err, <-paused)
	}
}
