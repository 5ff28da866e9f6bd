package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// post is a log of these tests: it delivers what it is given.
type post struct {
	messages chan *message.Message
	oldest   time.Duration
	unknown  bool
	close    sync.Once
	refused  sync.Map // the reasons, by the messages' ids
}

func newPost(messages ...*message.Message) *post {
	p := &post{messages: make(chan *message.Message, len(messages))}
	for _, m := range messages {
		p.messages <- m
	}
	return p
}

func (*post) Append(*pgx.Batch, string, ...*message.Message) error { return nil }
func (*post) Wake(...string)                                       {}
func (p *post) Refuse(m *message.Message, reason error)            { p.refused.Store(m.UUID, reason) }
func (p *post) Subscriber(string, int) (message.Subscriber, error) { return p, nil }
func (p *post) Unread(context.Context, string, string) (time.Duration, bool, error) {
	return p.oldest, !p.unknown, nil
}

func (p *post) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	context.AfterFunc(ctx, func() { _ = p.Close() })
	return p.messages, nil
}

func (p *post) Close() error {
	p.close.Do(func() { close(p.messages) })
	return nil
}

func crossingMessage(t *testing.T, j Job) *message.Message {
	t.Helper()
	m, err := encodeCrossing(j, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// carryAll runs the relay until it has answered the messages.
func carryAll(t *testing.T, table *Table, messages ...*message.Message) (acknowledged []bool) {
	t.Helper()
	p := newPost(messages...)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- NewCrossing(p, table).Run(ctx) }()
	for _, m := range messages {
		select {
		case <-m.Acked():
			acknowledged = append(acknowledged, true)
		case <-m.Nacked():
			acknowledged = append(acknowledged, false)
			reason, _ := p.refused.Load(m.UUID)
			if next, ok := reason.(*strandedError); !ok {
				t.Errorf("a message is refused for %v: it stays open, and the log cannot pass it", reason)
			} else if wait, again := next.Next(1000); !again || wait > time.Minute {
				t.Errorf("it is tried again after %s: %t", wait, again)
			}
		case <-time.After(patience):
			t.Fatal("a message is not answered")
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return acknowledged
}

// TestJobStaysWhatItIsWhenItCrosses: all that a job can be given is there on the other side, and runs there.
func TestJobStaysWhatItIsWhenItCrosses(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	at := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
	all := newJob(t, "<all> \u2028 ü", At(at), Queue("slow"), Priority(-2), LockKey("k"), UniqueKey("u"),
		Metadata(MetadataCorrelation, "visit"))
	later := newJob(t, "later", In(time.Hour))
	plain := newJob(t, "plain")
	carryAll(t, table, crossingMessage(t, all), crossingMessage(t, later), crossingMessage(t, plain))
	s, err := table.Get(t.Context(), all.ID())
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(s.Kind, s.Queue, s.Priority, s.State, s.RunAt.UTC(), s.LockKey, s.UniqueKey, string(s.Args), s.Metadata)
	want := fmt.Sprint("test-note", "slow", -2, StateWaiting, at, "k", "u", all.args, map[string]string{MetadataCorrelation: "visit"})
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if s, err = table.Get(t.Context(), later.ID()); err != nil || time.Until(s.RunAt) < 50*time.Minute || time.Until(s.RunAt) > time.Hour {
		t.Errorf("a job that is to wait for an hour runs at %s, %v", s.RunAt, err)
	}
	if texts := work(t, table, 1, nil).await(t, 1); !slices.Equal(texts, []string{"plain"}) {
		t.Errorf("ran %q", texts)
	}
}

// TestCrossingTwiceIsOneJob, at the same time, one after the other, and also when the job has run and is gone.
func TestCrossingTwiceIsOneJob(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Keep: Keep{Completed: time.Nanosecond}})
	execute(t, table.pool, `create table arrivals (id uuid)`)
	execute(t, table.pool, `create function arrive() returns trigger language plpgsql as $$
		begin insert into arrivals values (new.id); return new; end $$`)
	execute(t, table.pool, `create trigger arrive after insert on postbus.jobs for each row execute function arrive()`)
	var jobs []Job
	for i := range 50 {
		jobs = append(jobs, newJob(t, fmt.Sprint(i), LockKey(fmt.Sprint(i%5))))
	}
	var crossing sync.WaitGroup
	for range 4 {
		crossing.Go(func() {
			if err := table.cross(t.Context(), jobs); err != nil {
				t.Error(err)
			}
		})
	}
	crossing.Wait()
	o := work(t, table, 4, nil)
	o.await(t, len(jobs))
	eventually(t, "an empty table", func() bool { return value[int](t, table.pool, `select count(*) from postbus.jobs`) == 0 })
	if err := table.cross(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	if n := value[int](t, table.pool, `select count(*) from arrivals`); n != len(jobs) || len(o.texts()) != n {
		t.Errorf("%d jobs arrived %d times and ran %d times", len(jobs), n, len(o.texts()))
	}
}

// TestUniqueKeyIsDecidedOnArrival: of two on the way with one key the first to come is stored, and the other does not come
// later either.
func TestUniqueKeyIsDecidedOnArrival(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	first, second, third := newJob(t, "first", UniqueKey("u")), newJob(t, "second", UniqueKey("u")), newJob(t, "third", UniqueKey("u"))
	carryAll(t, table, crossingMessage(t, first), crossingMessage(t, second))
	work(t, table, 1, nil)
	awaitState(t, table, first.ID(), StateCompleted)
	carryAll(t, table, crossingMessage(t, second), crossingMessage(t, third))
	if _, err := table.Get(t.Context(), second.ID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("the second: %v", err)
	}
	awaitState(t, table, third.ID(), StateCompleted)
}

// TestOneThatCannotCrossHoldsUpNoOther: neither one that the database refuses nor one that cannot be read. Both stay in the log.
func TestOneThatCannotCrossHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	execute(t, table.pool, `create function refuse() returns trigger language plpgsql as $$
		begin raise exception using errcode = '22P05'; end $$`)
	execute(t, table.pool, `create trigger refuse before insert on postbus.jobs for each row when (new.args like '%€%')
		execute function refuse()`)
	good, other := newJob(t, "good"), newJob(t, "other")
	odd := crossingMessage(t, newJob(t, "odd"))
	odd.Payload = []byte(`{"kind": 1}`)
	newer := crossingMessage(t, newJob(t, "newer"))
	newer.Metadata["dataschema"] += "1"
	answers := carryAll(t, table, crossingMessage(t, good), odd, crossingMessage(t, newJob(t, "5 €")), newer, crossingMessage(t, other))
	if want := []bool{true, false, false, false, true}; !slices.Equal(answers, want) {
		t.Errorf("acknowledged %v, want %v", answers, want)
	}
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs`); n != 2 {
		t.Errorf("%d jobs have crossed", n)
	}
	if _, err := decodeCrossing(odd); err == nil || strings.Contains(err.Error(), "1}") {
		t.Errorf("the error is %v", err)
	}
}

// TestRelayWaitsForItsDatabase: while the table is not there nothing is given up, and a stop does not wait for it.
func TestRelayWaitsForItsDatabase(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	execute(t, table.pool, `alter table postbus.job_crossed rename to away`)
	m := crossingMessage(t, newJob(t, "x"))
	p := newPost(m)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- NewCrossing(p, table).Run(ctx) }()
	eventually(t, "an attempt", func() bool { return len(p.messages) == 0 })
	execute(t, table.pool, `alter table postbus.away rename to job_crossed`)
	<-m.Acked()
	execute(t, table.pool, `alter table postbus.job_crossed rename to away`)
	m = crossingMessage(t, newJob(t, "y"))
	p.messages <- m
	stop()
	<-m.Nacked()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestForgettingWhatHasCrossed: only what is old enough, and not while the relay may have to carry it once more.
func TestForgettingWhatHasCrossed(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	jobs := []Job{newJob(t, "old"), newJob(t, "young")}
	if err := table.cross(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	execute(t, table.pool, `update postbus.job_crossed set crossed_at = now() - interval '8 days' where id = $1`, jobs[0].ID())
	for _, c := range []struct {
		oldest  time.Duration
		unknown bool
		want    int
	}{{7 * 24 * time.Hour, false, 2}, {0, true, 2}, {time.Hour, false, 1}, {0, false, 1}} {
		crossing := NewCrossing(&post{oldest: c.oldest, unknown: c.unknown}, table)
		if err := crossing.forget(t.Context()); err != nil {
			t.Fatal(err)
		}
		ids := column[uuid.UUID](t, table.pool, `select id from postbus.job_crossed`)
		if len(ids) != c.want || !slices.Contains(ids, jobs[1].ID()) {
			t.Errorf("with a message that waits for %s, %d are left, want %d", c.oldest, len(ids), c.want)
		}
	}
}
