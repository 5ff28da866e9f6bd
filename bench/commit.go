package main

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postbus/internal/domain"
	"postbus/internal/uow"
)

const (
	writers      = 32
	commitPeriod = 5 * time.Second
	commitLeast  = 3 * time.Second
)

// The change that every commit makes: one row with a primary key and an index.
const (
	changeTable = `CREATE TABLE change (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner uuid NOT NULL, note text NOT NULL);
		CREATE INDEX ON change (owner)`
	changeRow  = `INSERT INTO change (owner, note) VALUES ($1, $2)`
	changeNote = "a row that a use case writes"
)

// write makes one commit. It is called by many writers at once.
type write func(ctx context.Context, number int64) error

func commitFigure() figure {
	const without, with = "postbus: no event", "postbus: one event"
	const sqlWithout, pgxWithout, stockWith, riverWith = "database/sql: no event", "pgx: no event", "stock publisher", "River InsertTx"
	return figure{
		name:  "commit",
		title: "a commit with one event against the same commit without, 32 writers",
		how: "Closed loop: each of 32 writers makes its next commit when the one before is durable. Every commit inserts one row with " +
			"two indexes; postbus does it in uow.Do, the stock publisher in a transaction of database/sql over pgx, River in one of pgx. " +
			"The times are a commit's mean, 32 divided by the rate. Nobody reads meanwhile.",
		short: "What keeps it from 1.25: with pgbench, a C client that encodes nothing (on the same machine, 32 clients, means of two " +
			"rounds of 6 s, 15,900 commits/s without an event), one costs 1.19 times in a plain table with the index of the position " +
			"alone, 1.24 with the second index, by transaction, which the reading cannot do without, and 1.23 in the partitioned " +
			"table that the log is. The rest is the client's: of 23 µs of its CPU that a commit takes more, 11 are the encoding of " +
			"the event and of the INSERT, and 6 are one more statement in the batch. What was tried: ids sent as bytes (no " +
			"difference that shows), and a table without partitions or without the second index (above). Neither gets there.",
		metrics: []metric{{"rate", "commits/s"}, {"time", "ms"}, {"p99", "ms"}},
		contenders: []contender{
			commits(without, kindPostbus, postbusWrite(false)), commits(with, kindPostbus, postbusWrite(true)),
			commits(pgxWithout, kindRiver, riverWrite(false)), commits(riverWith, kindRiver, riverWrite(true)),
			commits(sqlWithout, kindStock, stockWrite(false)), commits(stockWith, kindStock, stockWrite(true)),
		},
		checks: []check{
			{what: "time with one event / without", limit: 1.25, atMost: true, of: ratio("time", with, without)},
			{what: "for comparison, River: with / without", limit: 1.25, atMost: true, of: ratio("time", riverWith, pgxWithout)},
			{what: "for comparison, stock: with / without", limit: 1.25, atMost: true, of: ratio("time", stockWith, sqlWithout)},
			{what: "postbus / stock publisher, time", limit: 1, atMost: true, of: ratio("time", with, stockWith)},
			{what: "postbus / River InsertTx, time", limit: 1, atMost: true, of: ratio("time", with, riverWith)},
		},
	}
}

// commits measures a writer for a period.
func commits(name, kind string, writer func(p peer) write) contender {
	return contender{name, func(ctx context.Context, b *bench) (s sample, err error) {
		store, err := b.prepare(ctx, kind, nil, 0)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, store.close(ctx)) }()
		if _, err := store.db.pool.Exec(ctx, changeTable); err != nil {
			return nil, fmt.Errorf("make table: %w", err)
		}
		p, err := openPeer(ctx, request{Kind: kind, URL: store.url}, nil)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, p.close()) }()
		n, p99, err := closedLoop(ctx, b.seconds(commitPeriod, commitLeast), writer(p))
		if err != nil {
			return nil, err
		}
		rate := perSecond(n, b.seconds(commitPeriod, commitLeast))
		return sample{"rate": rate, "time": writers / rate * 1e3, "p99": milliseconds(p99)}, nil
	}}
}

// closedLoop lets the writers write for a period, after a tenth of it that does not count.
func closedLoop(ctx context.Context, period time.Duration, do write) (n int64, p99 time.Duration, err error) {
	var number atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	var running sync.WaitGroup
	begin := time.Now().Add(period / 10)
	end := begin.Add(period)
	for range writers {
		running.Go(func() {
			var own []time.Duration
			for {
				began := time.Now()
				if began.After(end) {
					break
				}
				failure := do(ctx, number.Add(1))
				ended := time.Now()
				if failure != nil {
					mu.Lock()
					err = errors.Join(err, failure)
					mu.Unlock()
					return
				}
				if ended.After(begin) && !ended.After(end) {
					own = append(own, ended.Sub(began))
				}
			}
			mu.Lock()
			took = append(took, own...)
			mu.Unlock()
		})
	}
	running.Wait()
	if err == nil && len(took) == 0 {
		err = errors.New("not one commit was made")
	}
	return int64(len(took)), quantile(took, 0.99), err
}

func postbusWrite(event bool) func(p peer) write {
	return func(p peer) write {
		ours, ok := p.(*postbus)
		if !ok {
			return refuse
		}
		change := func(ctx context.Context, q uow.Querier) error {
			_, err := q.Exec(ctx, changeRow, uuid.New(), changeNote)
			return err
		}
		return func(ctx context.Context, number int64) error {
			var events []domain.Event
			if event {
				events = append(events, newOrder(number))
			}
			return ours.commit(ctx, change, events...)
		}
	}
}

func stockWrite(event bool) func(p peer) write {
	return func(p peer) write {
		stock, ok := p.(*stock)
		if !ok {
			return refuse
		}
		return func(ctx context.Context, number int64) error {
			change := func(tx *stdsql.Tx) error {
				_, err := tx.ExecContext(ctx, changeRow, uuid.New(), changeNote)
				return err
			}
			if event {
				return stock.commit(ctx, change, number)
			}
			return inTx(ctx, stock.db, change)
		}
	}
}

func riverWrite(event bool) func(p peer) write {
	return func(p peer) write {
		river, ok := p.(*riverPeer)
		if !ok {
			return refuse
		}
		return func(ctx context.Context, number int64) error {
			change := func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, changeRow, uuid.New(), changeNote)
				return err
			}
			if event {
				return river.commit(ctx, change, number)
			}
			return pgx.BeginFunc(ctx, river.pool, change)
		}
	}
}

func refuse(context.Context, int64) error { return errors.New("this contender does not write so") }
