package postgres

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/pgtest"
)

var (
	mailerOfUsers = []Subscription{{Consumer: "mailer", Topic: "user"}}
	relayOfUsers  = []Subscription{{Consumer: "relay:user", Topic: "user"}}
)

func handOver(t *testing.T, l *Log) error {
	t.Helper()
	return l.HandOver(t.Context(), mailerOfUsers, relayOfUsers, "one")
}

// TestHandOverToAnotherBroker: consumers that read from a broker have events there, so another one is refused until they have
// been taken back. Who was handed over before the broker was noted is with the one that is named next.
func TestHandOverToAnotherBroker(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t, Migrations(DefaultSchema), Migrations("inbound"))
	l := openLog(t, pool, Config{}, "mailer")
	from := openLog(t, pool, Config{Schema: "inbound"}, "mailer")
	refused := func(what string) {
		t.Helper()
		for _, consumers := range [][]Subscription{mailerOfUsers, nil, {{Consumer: "new", Topic: "user"}}} {
			var other *OtherBrokerError
			err := l.HandOver(t.Context(), consumers, relayOfUsers, "another")
			if !errors.As(err, &other) || *other != (OtherBrokerError{Consumer: "mailer", Broker: "one"}) {
				t.Errorf("%s, %v: %v", what, consumers, err)
			}
		}
	}
	if err := handOver(t, l); err != nil {
		t.Fatal(err)
	}
	refused("handed over")
	execute(t, l, `update postbus.consumers set broker = null`)
	if err := handOver(t, l); err != nil {
		t.Fatal(err)
	}
	refused("handed over before it was noted")
	if err := l.TakeBack(t.Context(), from, mailerOfUsers, relayOfUsers); err != nil {
		t.Fatal(err)
	}
	if err := l.HandOver(t.Context(), mailerOfUsers, relayOfUsers, "another"); err != nil {
		t.Errorf("after they were taken back: %v", err)
	}
}

// TestHandOver: the relay begins exactly where the consumers end, also with a transaction that is open meanwhile, and the
// consumers are not provisioned here again.
func TestHandOver(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "mailer")
	publish(t, l, event("k", 1))
	s := subscriber(t, l, "mailer")
	in := listen(t.Context(), t, s, nil)
	in.await(t, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	tx, err := l.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	batch, late := &pgx.Batch{}, event("k", 2)
	if err := l.Append(batch, "user", late); err != nil {
		t.Fatal(err)
	}
	if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
		t.Fatal(err)
	}
	if err := handOver(t, l); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := event("k", 3)
	publish(t, l, next)
	relay := listen(t.Context(), t, subscriber(t, l, "relay:user"), nil)
	got := relay.await(t, 2)
	slices.Sort(got)
	if want := []string{string(late.Payload), string(next.Payload)}; !slices.Equal(got, want) {
		t.Errorf("the relay got %v, want %v", got, want)
	}
	if err := l.Provision(t.Context(), nil, mailerOfUsers); !errors.Is(err, ErrHandedOver) {
		t.Errorf("provisioning it again: %v", err)
	}
	if err := handOver(t, l); err != nil {
		t.Errorf("handing over again: %v", err)
	}
	if got := in.all(); len(got) != 1 {
		t.Errorf("the consumer got %v", got)
	}
}

// TestHandOverIsRefused while a consumer has something left, or runs; then nothing has changed.
func TestHandOverIsRefused(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "mailer")
	refused := func(what string, is func(Status) bool) {
		t.Helper()
		var unfinished *UnfinishedError
		if err := handOver(t, l); !errors.As(err, &unfinished) || !is(unfinished.Status) {
			t.Errorf("%s: %v", what, err)
		}
		var relays int
		err := l.pool.QueryRow(t.Context(), `select count(*) from postbus.consumers where consumer = 'relay:user'`).Scan(&relays)
		if err != nil || relays != 0 {
			t.Errorf("%s: there are %d relays, %v", what, relays, err)
		}
	}
	publish(t, l, event("k", 1))
	refused("waiting", func(s Status) bool { return s.Waiting == 1 })
	s := subscriber(t, l, "mailer")
	in := listen(t.Context(), t, s, nil)
	in.await(t, 1)
	refused("running", func(s Status) bool { return len(s.Owners) == 1 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	execute(t, l, `insert into postbus.parked (consumer, key_hash, position, share, state, attempts, event_id, type, key, metadata,
		payload, failures, dead_at) values ('mailer', gen_random_uuid(), 1, 0, 'dead', 1, gen_random_uuid(), 'x', 'k', '{}', '', '[]', now())`)
	refused("dead", func(s Status) bool { return s.Dead == 1 })
	execute(t, l, `update postbus.parked set resolved_at = now()`)
	if err := handOver(t, l); err != nil {
		t.Error(err)
	}
}

// TestTakeBack: the way back is open when all that was handed over has arrived and was handled, and begins where that ends.
func TestTakeBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t, Migrations(DefaultSchema), Migrations("inbound"))
	l := openLog(t, pool, Config{}, "mailer")
	from := openLog(t, pool, Config{Schema: "inbound"}, "mailer")
	if err := handOver(t, l); err != nil {
		t.Fatal(err)
	}
	refused := func(what, consumer string) {
		t.Helper()
		var unfinished *UnfinishedError
		err := l.TakeBack(t.Context(), from, mailerOfUsers, relayOfUsers)
		if !errors.As(err, &unfinished) || unfinished.Consumer != consumer || unfinished.Status.Waiting != 1 {
			t.Errorf("%s: %v", what, err)
		}
	}
	m := event("k", 1)
	publish(t, l, m)
	refused("not relayed", "relay:user")
	relay := subscriber(t, l, "relay:user")
	listen(t.Context(), t, relay, nil).await(t, 1)
	if err := relay.Close(); err != nil {
		t.Fatal(err)
	}
	refused("not arrived", "mailer")
	arrive(t, intake(t, from, "first"), "1", 1, m)
	refused("not handled", "mailer")
	reads := subscriber(t, from, "mailer")
	listen(t.Context(), t, reads, nil).await(t, 1)
	if err := reads.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.TakeBack(t.Context(), from, mailerOfUsers, relayOfUsers); err != nil {
		t.Fatal(err)
	}
	if err := l.Provision(t.Context(), nil, mailerOfUsers); err != nil {
		t.Errorf("provisioning it again: %v", err)
	}
	next := event("k", 2)
	publish(t, l, next)
	in := listen(t.Context(), t, subscriber(t, l, "mailer"), nil)
	if got := in.await(t, 1); got[0] != string(next.Payload) {
		t.Errorf("the consumer got %v", got)
	}
	if err := l.TakeBack(t.Context(), from, mailerOfUsers, relayOfUsers); err != nil {
		t.Errorf("taking back again: %v", err)
	}
	var relays int
	if err := pool.QueryRow(t.Context(), `select count(*) from postbus.consumers where consumer = 'relay:user'`).Scan(&relays); err != nil || relays > 0 {
		t.Errorf("there are %d relays, %v", relays, err)
	}
}

// TestRelayIsNotMovedBeforeItsBeginning: what the consumers have handled themselves is not sent, wherever it is moved.
func TestRelayIsNotMovedBeforeItsBeginning(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "mailer")
	publish(t, l, event("k", 1), event("k", 2))
	s := subscriber(t, l, "mailer")
	listen(t.Context(), t, s, nil).await(t, 2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := handOver(t, l); err != nil {
		t.Fatal(err)
	}
	next := event("k", 3)
	publish(t, l, next)
	for _, to := range []Spot{Beginning(), At(time.Unix(0, 0)), After(1), After(0)} {
		if m, err := l.Move(t.Context(), relayOfUsers[0], to, false); err != nil || m.After.Waiting != 1 {
			t.Errorf("%v: %d wait, %v", to, m.After.Waiting, err)
		}
		s := subscriber(t, l, "relay:user")
		in := listen(t.Context(), t, s, nil)
		if got := in.await(t, 1); got[0] != string(next.Payload) {
			t.Errorf("%v: it got %v", to, got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := l.Move(t.Context(), relayOfUsers[0], Spot{}, true); err != nil || m.After.Waiting != 0 {
		t.Errorf("now: %d wait, %v", m.After.Waiting, err)
	}
}
