package proof_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// aggregates are the tables that an application would have: its aggregates, each with a counter that gives its events
// numbers without gaps, and a ledger that tells whether a transaction whose COMMIT was cut off has committed.
const aggregates = `
	CREATE TABLE aggregate (key text PRIMARY KEY, n int NOT NULL DEFAULT 0);
	CREATE TABLE ledger (transaction uuid PRIMARY KEY)`

const (
	writerCount = 8
	keyCount    = 24
	noKey       = "-"    // events of no aggregate
	slowNoKey   = "slow" // those that take a handler long
)

// isKey tells whether events are an aggregate's, and come in order.
func isKey(key string) bool { return key != noKey && key != slowNoKey }

// event is what the checker knows an event by. The events of a key have the numbers 1, 2, 3…
type event struct {
	id  string
	key string
	n   int
}

// writers commit and roll back transactions, and know of each which it was.
type writers struct {
	log   log
	pool  *pgxpool.Pool
	rate  time.Duration // the mean pause of one writer between two transactions
	pause sync.RWMutex  // held by whoever wants silence

	mu        sync.Mutex
	committed map[string]event // by id
	unknown   map[uuid.UUID][]event
	count     struct{ committed, rolledBack, cutOff int } // transactions
}

func newWriters(t *testing.T, l log, pool *pgxpool.Pool, rate time.Duration) *writers {
	t.Helper()
	if _, err := pool.Exec(t.Context(), aggregates); err != nil {
		t.Fatal(err)
	}
	for k := range keyCount {
		if _, err := pool.Exec(t.Context(), `INSERT INTO aggregate VALUES ($1)`, fmt.Sprint("k", k)); err != nil {
			t.Fatal(err)
		}
	}
	return &writers{log: l, pool: pool, rate: rate, committed: make(map[string]event), unknown: make(map[uuid.UUID][]event)}
}

// start lets the writers write until stop is called, which waits for them.
func (w *writers) start(seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var writing sync.WaitGroup
	for i := range writerCount {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		writing.Go(func() {
			for ctx.Err() == nil {
				w.pause.RLock()
				w.write(newPlan(random))
				w.pause.RUnlock()
				wait(time.Duration(random.ExpFloat64() * float64(w.rate)))
			}
		})
	}
	return func() {
		cancel()
		writing.Wait()
	}
}

func wait(d time.Duration) { <-time.After(d) }

// plan is a transaction to be.
type plan struct {
	early     bool // it draws its id first, and waits
	keys      []string
	each      int // events for each key
	long      time.Duration
	rollsBack bool
}

func newPlan(random *rand.Rand) plan {
	chance := func(percent float64) bool { return random.Float64()*100 < percent }
	p := plan{early: chance(30), each: 1, rollsBack: chance(15)}
	p.keys = []string{fmt.Sprint("k", random.IntN(keyCount))}
	switch random.IntN(10) {
	case 0:
		p.keys = append(p.keys, fmt.Sprint("k", random.IntN(keyCount)))
		slices.Sort(p.keys) // no deadlocks
		p.keys = slices.Compact(p.keys)
	case 1:
		p.keys = []string{noKey}
	}
	switch {
	case chance(0.4):
		p.keys, p.each = everyShare.keys, everyShare.each // more than a page
	case chance(5):
		p.each = 1 + random.IntN(20)
	}
	switch {
	case chance(1):
		p.long = time.Duration(random.IntN(2000)) * time.Millisecond
	case chance(30):
		p.long = time.Duration(random.IntN(10)) * time.Millisecond
	}
	return p
}

// everyShare is a transaction with events of all shares.
var everyShare = plan{keys: []string{noKey}, each: 700}

// oneSlow is a transaction with an event that takes long, and others before it that do not, some of them of every process.
var oneSlow = plan{keys: append(slices.Repeat([]string{noKey}, 50), slowNoKey), each: 1}

// write runs one transaction to whichever end, and tells whether that was a commit, as far as is known.
func (w *writers) write(p plan) (committed bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	id := uuid.New()
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		wait(50 * time.Millisecond) // Postgres is away
		return false
	}
	events, err := w.fill(ctx, tx, id, p)
	if err != nil || p.rollsBack {
		_ = tx.Rollback(ctx)
		w.note(func() { w.count.rolledBack++ })
		return false
	}
	err = tx.Commit(ctx)
	w.log.Wake(topic) // reaches no reader, all are other processes; it must do no harm
	w.note(func() {
		switch {
		case err == nil:
			w.count.committed++
			w.accept(events)
		case errors.Is(err, pgx.ErrTxCommitRollback):
			w.count.rolledBack++
		default:
			w.count.cutOff++
			w.unknown[id] = events
		}
	})
	return err == nil
}

// commit runs a transaction until it commits: sessions may have been cut.
func (w *writers) commit(t *testing.T, p plan) {
	t.Helper()
	await(t, "a transaction to commit", func() bool { return w.write(p) })
}

func (w *writers) note(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *writers) accept(events []event) {
	for _, e := range events {
		w.committed[e.id] = e
	}
}

// fill does everything but the end of a transaction.
func (w *writers) fill(ctx context.Context, tx pgx.Tx, id uuid.UUID, p plan) ([]event, error) {
	if p.early {
		if _, err := tx.Exec(ctx, `SELECT pg_current_xact_id()`); err != nil {
			return nil, err
		}
		wait(p.long / 2)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO ledger VALUES ($1)`, id); err != nil {
		return nil, err
	}
	var events []event
	batch := &pgx.Batch{}
	for _, key := range p.keys {
		last := p.each
		if isKey(key) {
			err := tx.QueryRow(ctx, `UPDATE aggregate SET n = n + $2 WHERE key = $1 RETURNING n`, key, p.each).Scan(&last)
			if err != nil {
				return nil, err
			}
		}
		var messages []*message.Message
		for n := last - p.each + 1; n <= last; n++ {
			e := event{id: uuid.NewString(), key: key, n: n}
			m := message.NewMessage(e.id, fmt.Appendf(nil, "%s %d", key, n))
			if isKey(key) {
				m.Metadata.Set("partitionkey", key)
			}
			events, messages = append(events, e), append(messages, m)
		}
		if err := w.log.Append(batch, topic, messages...); err != nil {
			return nil, err
		}
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return nil, err
	}
	wait(p.long / 2)
	return events, nil
}

// settle finds out what became of the transactions whose COMMIT was cut off. The writers have stopped.
func (w *writers) settle(t *testing.T) map[string]event {
	t.Helper()
	for id, events := range w.unknown {
		var committed bool
		err := w.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM ledger WHERE transaction = $1)`, id).Scan(&committed)
		if err != nil {
			t.Fatal(err)
		}
		if committed {
			w.accept(events)
		}
	}
	clear(w.unknown)
	return w.committed
}
