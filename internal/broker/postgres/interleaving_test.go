package postgres

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postbus/internal/servertest"
)

// A schedule is one order in which the steps of two writers, each with one transaction, and the reads of a reader fall.
//
// All of them are run, but for those that nobody could tell from another: BEGIN goes with a transaction's first step,
// since it takes neither an id nor a snapshot; on an aggregate that no one else wants, the lock goes with the id, since
// all it does is draw one; two reads with nothing in between are one; writer 0 does the first step; and no writer asks
// for a lock that the other holds, since its step would only come when that one ends.
type schedule struct {
	oneKey    bool
	early     [2]bool // the writer draws its transaction id before it locks the aggregate
	rollsBack [2]bool
	order     []int // whose step is next
	reads     uint  // bit i: there is a read after step i
}

const (
	stepID     = "id"
	stepLock   = "lock"
	stepInsert = "insert"
	stepEnd    = "end"
)

func (s schedule) String() string {
	var words []string
	var done [2]int
	for i, w := range s.order {
		step := s.program(w)[done[w]]
		if step == stepEnd && s.rollsBack[w] {
			step = "rollback"
		}
		words = append(words, fmt.Sprint(w, ".", step))
		if done[w]++; s.reads>>i&1 == 1 {
			words = append(words, "read")
		}
	}
	return fmt.Sprintf("one key: %t, early ids: %t; %s", s.oneKey, s.early, strings.Join(words, " "))
}

// program is what a writer does, step by step.
func (s schedule) program(writer int) []string {
	switch {
	case !s.oneKey:
		return []string{stepID, stepInsert, stepEnd}
	case s.early[writer]:
		return []string{stepID, stepLock, stepInsert, stepEnd}
	default:
		return []string{stepLock, stepInsert, stepEnd}
	}
}

// schedules returns all of them.
func schedules() []schedule {
	var all []schedule
	for variant := range 1 << 5 {
		bit := func(i int) bool { return variant>>i&1 == 1 }
		s := schedule{oneKey: bit(0), early: [2]bool{bit(1), bit(2)}, rollsBack: [2]bool{bit(3), bit(4)}}
		if !s.oneKey && (s.early[0] || s.early[1]) {
			continue // early or not is one there
		}
		s.orders(nil, func(order []int) {
			s.order = slices.Clone(order)
			for s.reads = range uint(1) << (len(order) - 1) { // after the last step there is always a read
				all = append(all, s)
			}
		})
	}
	return all
}

// played are the schedules that a test plays: every 211th, a sample, since all of them take minutes; in CI every seventh, of every
// kind some; and with INTERLEAVINGS=all all of them.
func played() []schedule {
	all := schedules()
	if os.Getenv("INTERLEAVINGS") == "all" {
		return all
	}
	step := 211
	if servertest.InCI() {
		step = 7
	}
	var some []schedule
	for i := 0; i < len(all); i += step {
		some = append(some, all[i])
	}
	return some
}

// orders yields every order of the two writers' steps that begins with order.
func (s schedule) orders(order []int, yield func([]int)) {
	var done [2]int
	for _, w := range order {
		done[w]++
	}
	finished := true
	for w := range 2 {
		program := s.program(w)
		if done[w] == len(program) {
			continue
		}
		finished = false
		if (len(order) == 0 && w == 1) || (program[done[w]] == stepLock && s.holdsLock(1-w, done[1-w])) {
			continue
		}
		s.orders(append(order, w), yield)
	}
	if finished {
		yield(order)
	}
}

func (s schedule) holdsLock(writer, done int) bool {
	program := s.program(writer)
	return s.oneKey && done > slices.Index(program, stepLock) && done < len(program)
}

// stepReader is a reader that reads when it is told to.
type stepReader interface {
	// read takes what there is for it now; last tells that all of it is wanted.
	read(ctx context.Context, last bool) ([]string, error)
}

// stage is where schedules are played: a server that nobody else uses, since others' transactions would raise xmax and
// hide the hardest cases.
type stage struct {
	log    *Log
	conns  [2]*pgx.Conn
	insert func(ctx context.Context, conn *pgx.Conn, messages []*message.Message) error
	reader stepReader
	table  string // of the topic
}

func newStage(t *testing.T) *stage {
	t.Helper()
	l, server := ownLog(t, Config{}, "reader")
	ctx := t.Context()
	for _, sql := range []string{
		"alter system set autovacuum = off",
		"alter system set synchronous_commit = off", // nothing here rests on the disk
		"select pg_reload_conf()",
		"create table aggregate (key text)",
		"insert into aggregate values ('k0'), ('k1')",
	} {
		if _, err := l.pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	s := &stage{log: l}
	for i := range s.conns {
		conn, err := pgx.Connect(ctx, server.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		s.conns[i] = conn
	}
	return s
}

// outcome is what came of a schedule.
type outcome struct {
	seen      []string
	committed []string // in the order of the commits
}

// lost are the events that were committed and not read.
func (o outcome) lost() bool {
	return slices.ContainsFunc(o.committed, func(e string) bool { return !slices.Contains(o.seen, e) })
}

// extra tells that an event was read that was not committed, or read twice.
func (o outcome) extra() bool {
	for i, e := range o.seen {
		if !slices.Contains(o.committed, e) || slices.Contains(o.seen[:i], e) {
			return true
		}
	}
	return false
}

// disordered tells that the events of a key were read in another order than committed.
func (o outcome) disordered() bool {
	of := func(events []string, key string) []string {
		return slices.DeleteFunc(slices.Clone(events), func(e string) bool { return !strings.HasPrefix(e, key) })
	}
	return !slices.Equal(of(o.seen, "k0"), of(o.committed, "k0")) || !slices.Equal(of(o.seen, "k1"), of(o.committed, "k1"))
}

// play runs one schedule. Each writer has two events, in one statement.
func (s *stage) play(ctx context.Context, plan schedule) (o outcome, err error) {
	var done [2]int
	for i, w := range plan.order {
		step := plan.program(w)[done[w]]
		if err := s.step(ctx, plan, w, step, done[w] == 0); err != nil {
			return o, fmt.Errorf("writer %d, %s: %w", w, step, err)
		}
		if done[w]++; step == stepEnd && !plan.rollsBack[w] {
			for _, m := range events(plan, w) {
				o.committed = append(o.committed, string(m.Payload))
			}
		}
		last := i == len(plan.order)-1
		if plan.reads>>i&1 == 0 && !last {
			continue
		}
		found, err := s.reader.read(ctx, last)
		if err != nil {
			return o, fmt.Errorf("read: %w", err)
		}
		o.seen = append(o.seen, found...)
	}
	return o, nil
}

func (s *stage) step(ctx context.Context, plan schedule, w int, step string, first bool) error {
	begin := ""
	if first {
		begin = "begin; "
	}
	lock := "select 1 from aggregate where key = '" + key(plan, w) + "' for no key update nowait"
	exec := func(sql string) error { return s.conns[w].PgConn().Exec(ctx, sql).Close() }
	switch step {
	case stepID:
		if !plan.oneKey {
			return exec(begin + "select pg_current_xact_id(); " + lock)
		}
		return exec(begin + "select pg_current_xact_id()")
	case stepLock:
		return exec(begin + lock)
	case stepInsert:
		return s.insert(ctx, s.conns[w], events(plan, w))
	default:
		if plan.rollsBack[w] {
			return exec("rollback")
		}
		return exec("commit")
	}
}

func key(plan schedule, writer int) string {
	if plan.oneKey {
		writer = 0
	}
	return fmt.Sprint("k", writer)
}

func events(plan schedule, writer int) []*message.Message {
	messages := make([]*message.Message, 2)
	for i := range messages {
		messages[i] = message.NewMessage(uuid.NewString(), fmt.Appendf(nil, `%s of writer %d: %d`, key(plan, writer), writer, i))
		messages[i].Metadata.Set(keyAttribute, key(plan, writer))
	}
	return messages
}

// playAll runs plans on as many stages as there are cores to gain from, and hands each outcome to judge.
func playAll(t *testing.T, setUp func(*testing.T, *stage), plans []schedule, judge func(schedule, outcome)) {
	t.Helper()
	const stages = 2
	var playing sync.WaitGroup
	var judging sync.Mutex
	for i := range stages {
		s := newStage(t)
		setUp(t, s)
		playing.Go(func() {
			for j := i; j < len(plans); j += stages {
				if j/stages%100 == 0 { // a small topic is a fast one, and between schedules all of it has been read
					if _, err := s.log.pool.Exec(t.Context(), "truncate "+s.table); err != nil {
						t.Error(err)
						return
					}
				}
				o, err := s.play(t.Context(), plans[j])
				if err != nil {
					t.Errorf("%v: %v", plans[j], err)
					return
				}
				judging.Lock()
				judge(plans[j], o)
				judging.Unlock()
			}
		})
	}
	playing.Wait()
}

// pageReader reads as a subscriber does, without one. How it keeps its place differs.
type pageReader struct {
	holder holder
	held   []claimed
	at     place
	mode   string
}

const (
	inMemory = "in memory"  // the place is the one that the last read gave
	stored   = "stored"     // it is stored after every read, and loaded before the next
	oneByOne = "one by one" // a read takes one row of the window, and the place after that row is stored
)

// read takes the rest of a window; the last read goes on until a window is empty, as a subscriber does before it waits.
func (r *pageReader) read(ctx context.Context, last bool) (seen []string, err error) {
	for {
		p, err := r.holder.read(ctx, "user", r.at, nil)
		if err != nil {
			return nil, err
		}
		r.at = p.next
		if r.mode == oneByOne && len(p.rows) > 0 {
			p.rows = p.rows[:1]
			r.at = p.rows[0].after
		}
		for _, row := range p.rows {
			seen = append(seen, string(row.payload))
		}
		if r.mode == stored || r.mode == oneByOne {
			if err := r.storeAndLoad(ctx); err != nil {
				return nil, err
			}
		}
		if !last || len(p.rows) == 0 {
			return seen, nil
		}
	}
}

func (r *pageReader) storeAndLoad(ctx context.Context) error {
	var all []checkpoint
	for _, c := range r.held {
		all = append(all, checkpoint{number: c.number, epoch: c.epoch, place: r.at, release: true})
	}
	if stored, err := r.holder.store(ctx, all); err != nil || len(stored) != shareCount {
		return fmt.Errorf("stored %d shares: %w", len(stored), err)
	}
	return r.load(ctx)
}

func (r *pageReader) load(ctx context.Context) error {
	held, err := r.holder.claim(ctx, shareCount)
	if err != nil || len(held) != shareCount {
		return fmt.Errorf("claimed %d shares: %w", len(held), err)
	}
	r.held, r.at = held, held[0].place
	return nil
}

// readPages has the stage's writers and its reader use the log.
func (s *stage) readPages(t *testing.T, mode string) {
	t.Helper()
	reader := &pageReader{holder: holds(t, s.log, "reader", "test"), mode: mode}
	if err := reader.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.reader, s.table = reader, s.log.topicTable("user")
	s.insert = func(ctx context.Context, conn *pgx.Conn, messages []*message.Message) error {
		batch := &pgx.Batch{}
		if err := s.log.Append(batch, "user", messages...); err != nil {
			return err
		}
		return conn.SendBatch(ctx, batch).Close()
	}
}

// TestEveryInterleavingOfTwoWritersAndAReader plays all schedules, in each way of keeping the place: every committed
// event is read once and no other is; those of one aggregate in commit order.
func TestEveryInterleavingOfTwoWritersAndAReader(t *testing.T) {
	t.Parallel()
	plans := played()
	for _, mode := range []string{inMemory, stored, oneByOne} {
		wrong := 0
		playAll(t, func(t *testing.T, s *stage) { t.Helper(); s.readPages(t, mode) }, plans, func(plan schedule, o outcome) {
			if !o.lost() && !o.extra() && !o.disordered() {
				return
			}
			if wrong++; wrong <= 5 {
				t.Errorf("%s; %v: read %q, committed %q", mode, plan, o.seen, o.committed)
			}
		})
		t.Logf("%s: %d schedules, %d wrong", mode, len(plans), wrong)
	}
}
