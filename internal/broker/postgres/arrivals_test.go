package postgres

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
)

func intake(t *testing.T, l *Log, owner string) *Intake {
	t.Helper()
	i, err := l.Intake(t.Context(), "user", owner, "")
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func arrive(t *testing.T, i *Intake, place string, want int, messages ...*message.Message) {
	t.Helper()
	if fresh, err := i.Store(t.Context(), "p", place, messages); err != nil || fresh != want {
		t.Fatalf("%d were new, %v; want %d", fresh, err, want)
	}
}

// TestArrivalsAreStoredOnce: an event that comes again, in the same batch or in another, from whichever process, is known.
func TestArrivalsAreStoredOnce(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "mailer")
	a, b, c := event("k", 1), event("k", 2), event("k", 3)
	first := intake(t, l, "first")
	arrive(t, first, "2", 2, a, b, a)
	arrive(t, first, "4", 1, b, c)
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := intake(t, l, "second")
	if second.Places["p"] != "4" {
		t.Errorf("reading goes on at %v", second.Places)
	}
	arrive(t, second, "5", 0, a, c)
	in := listen(t.Context(), t, subscriber(t, l, "mailer"), nil)
	want := []string{string(a.Payload), string(b.Payload), string(c.Payload)}
	if got := in.await(t, 3); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestOneProcessStoresWhatArrives: one that has read an older place, or comes while another is at it, stores nothing.
func TestOneProcessStoresWhatArrives(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{})
	first, second := intake(t, l, "first"), intake(t, l, "second")
	arrive(t, first, "1", 1, event("k", 1))
	refused := func(i *Intake) {
		t.Helper()
		if n, err := i.Store(t.Context(), "p", "9", []*message.Message{event("k", 9)}); !errors.Is(err, ErrIntakeTaken) || n != 0 {
			t.Errorf("%d were stored, %v", n, err)
		}
	}
	refused(second)
	second = intake(t, l, "second")
	if !second.Taken {
		t.Error("nobody is said to be at it")
	}
	refused(second) // it does so all the same
	execute(t, l, `update postbus.intakes set lease_until = now() - interval '1 second'`)
	older := *second
	older.version = 0
	refused(&older)
	second = intake(t, l, "second")
	if second.Taken || second.Places["p"] != "1" {
		t.Errorf("after its lease: %+v", second)
	}
	arrive(t, second, "2", 1, event("k", 2))
	refused(first)
	var n int
	if err := l.pool.QueryRow(t.Context(), `select count(*) from postbus.topic_user`).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d events are stored, %v", n, err)
	}
}

// TestArrivalsOfAnotherServer: an intake that was read on another server stores nothing, and neither does one whose version was
// given out again with other places.
func TestArrivalsOfAnotherServer(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{})
	arrive(t, intake(t, l, "first"), "1", 1, event("k", 1))
	again := []*message.Message{event("k", 2)}
	elsewhere := intake(t, l, "first")
	elsewhere.server = elsewhere.server.Add(-time.Microsecond)
	if _, err := elsewhere.Store(t.Context(), "p", "2", again); !hasCode(err, codeOtherServer) {
		t.Errorf("of another server: %v", err)
	}
	before := intake(t, l, "first")
	execute(t, l, `update postbus.intakes set places = '{"p": "7", "q": "1"}'`)
	for _, partition := range []string{"p", "q"} {
		if n, err := before.Store(t.Context(), partition, "8", again); !errors.Is(err, ErrIntakeTaken) || n != 0 {
			t.Errorf("of partition %s from another place: %d were stored, %v", partition, n, err)
		}
	}
	if n := countRows(t, l); n != 1 {
		t.Errorf("%d events are stored", n)
	}
	now := intake(t, l, "first")
	arrive(t, now, "8", 1, again...)
	arrive(t, now, "9", 1, event("k", 3))
}

// TestArrivalsOfOthers: an event whose id is no UUID has one that is the same each time, and another for another source.
func TestArrivalsOfOthers(t *testing.T) {
	t.Parallel()
	foreign := func(source string) *message.Message {
		m := message.NewMessage("42", nil)
		m.Metadata.Set("source", source)
		return m
	}
	l := newLog(t, Config{}, "mailer")
	i := intake(t, l, "first")
	arrive(t, i, "1", 2, foreign("/a"), foreign("/b"), foreign("/a"))
	arrive(t, i, "2", 0, foreign("/b"))
	in := listen(t.Context(), t, subscriber(t, l, "mailer"), func(m *message.Message) bool {
		_, err := uuid.Parse(m.UUID)
		return err == nil
	})
	in.await(t, 2)
}

// TestArrivalsCanBeParked, whatever stands in what others have published.
func TestArrivalsCanBeParked(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{}, "mailer")
	m := message.NewMessage("\x00\xff", []byte("\x00"))
	m.Metadata = message.Metadata{keyAttribute: "a\x00b\xff", typeAttribute: "\x00", "\x00": "\x00"}
	arrive(t, intake(t, l, "first"), "1", 1, m)
	listen(t.Context(), t, subscriber(t, l, "mailer"), func(m *message.Message) bool {
		l.Refuse(m, reason{text: "no", class: "transient", wait: time.Hour, attempts: 100})
		return false
	})
	eventually(t, "it to be parked", func() bool {
		status, _, err := l.Status(t.Context(), mailerOfUsers[0])
		return err == nil && status.Parked == 1
	})
}

// TestArrivalsAreForgotten when they were made, and came, long ago; of those whose ids tell no time, when they came.
func TestArrivalsAreForgotten(t *testing.T) {
	t.Parallel()
	l := newLog(t, Config{})
	old := "01700000-0000-7000-8000-000000000001" // of 2018
	for i, id := range []string{old, uuid.Must(uuid.NewV7()).String(), "42"} {
		arrive(t, intake(t, l, "first"), fmt.Sprint(i), 1, message.NewMessage(id, nil))
	}
	for _, want := range []int64{0, 2} {
		l.arrivalsSweep.began = time.Time{} // as in a day
		if n, err := l.sweepArrivals(t.Context()); err != nil || n != want {
			t.Errorf("%d were forgotten, %v; want %d", n, err, want)
		}
		execute(t, l, `update postbus.arrivals set arrived_at = now() - interval '61 days'`)
	}
}
