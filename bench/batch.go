package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
)

const batchEvents = 100

func batchFigure() figure {
	const ours, bare, values = "postbus: uow.Do", "bare insert: postbus's statement", "bare insert: VALUES"
	return figure{
		name:  "batch",
		title: "100 events in a commit, 32 writers, against a bare multi-row insert",
		how: "Closed loop. `uow.Do` records 100 events, which are encoded and committed. The first bare insert sends the same INSERT, " +
			"encoded beforehand, without a unit of work; the second has 100 rows of VALUES and goes to a plain table of the same width " +
			"with a primary key and an index on the transaction id.",
		metrics: []metric{{"rate", "events/s"}, {"p99", "ms"}},
		contenders: []contender{
			batches(ours, postbusBatch), batches(bare, bareBatch), batches(values, valuesBatch),
		},
		checks: []check{
			{what: "events/s", limit: 80_000, of: value(ours, "rate")},
			{what: "postbus / its bare insert", limit: 0.8, of: ratio("rate", ours, bare)},
			{what: "postbus / bare VALUES", limit: 0.8, of: ratio("rate", ours, values)},
		},
	}
}

func batches(name string, writer func(ctx context.Context, p *postbus) (write, error)) contender {
	return contender{name, func(ctx context.Context, b *bench) (s sample, err error) {
		store, err := b.prepare(ctx, kindPostbus, nil, 0)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, store.close(ctx)) }()
		p, err := openPeer(ctx, request{Kind: kindPostbus, URL: store.url}, nil)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, p.close()) }()
		ours, ok := p.(*postbus)
		if !ok {
			return nil, errors.New("only postbus is measured here")
		}
		do, err := writer(ctx, ours)
		if err != nil {
			return nil, err
		}
		period := b.seconds(commitPeriod, commitLeast)
		n, p99, err := closedLoop(ctx, period, do)
		return sample{"rate": perSecond(n*batchEvents, period), "p99": milliseconds(p99)}, err
	}}
}

func postbusBatch(_ context.Context, p *postbus) (write, error) {
	return func(ctx context.Context, number int64) error {
		events := make([]domain.Event, batchEvents)
		for i := range events {
			events[i] = newOrder(number*batchEvents + int64(i))
		}
		return p.commit(ctx, nil, events...)
	}, nil
}

// bareBatch takes the statement that the log makes and sends it as it is, each time with the same rows.
func bareBatch(ctx context.Context, p *postbus) (write, error) {
	log, err := postgres.Open(p.pool, postgres.Config{}, quiet)
	if err != nil {
		return nil, err
	}
	messages, err := newMessages(ctx, p.codec, 0, batchEvents)
	if err != nil {
		return nil, err
	}
	batch := &pgx.Batch{}
	if err := log.Append(batch, topicName, messages...); err != nil {
		return nil, err
	}
	if len(batch.QueuedQueries) != 1 {
		return nil, fmt.Errorf("an append is %d statements", len(batch.QueuedQueries))
	}
	statement := batch.QueuedQueries[0]
	return func(ctx context.Context, _ int64) error {
		_, err := p.pool.Exec(ctx, statement.SQL, statement.Arguments...)
		return err
	}, nil
}

func valuesBatch(ctx context.Context, p *postbus) (write, error) {
	insert, err := valuesInsert(ctx, p.pool, p.codec)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ int64) error {
		_, err := p.pool.Exec(ctx, insert.SQL, insert.Arguments...)
		return err
	}, nil
}

func valuesInsert(ctx context.Context, pool *pgxpool.Pool, codec *bus.Codec) (*pgx.QueuedQuery, error) {
	_, err := pool.Exec(ctx, `CREATE TABLE bare (xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
		position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id uuid NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now(),
		metadata text NOT NULL, payload bytea NOT NULL)`)
	if err == nil {
		_, err = pool.Exec(ctx, `CREATE INDEX ON bare (xid)`)
	}
	if err != nil {
		return nil, fmt.Errorf("make table: %w", err)
	}
	messages, err := newMessages(ctx, codec, 0, batchEvents)
	if err != nil {
		return nil, err
	}
	var rows []string
	insert := &pgx.QueuedQuery{}
	for i, m := range messages {
		rows = append(rows, fmt.Sprintf("($%d,$%d,$%d)", 3*i+1, 3*i+2, 3*i+3))
		columns, err := columnsOf(m)
		if err != nil {
			return nil, err
		}
		id, err := uuid.Parse(m.UUID)
		if err != nil {
			return nil, fmt.Errorf("message id: %w", err)
		}
		insert.Arguments = append(insert.Arguments, id, columns[2], []byte(m.Payload))
	}
	insert.SQL = `INSERT INTO bare (id, metadata, payload) VALUES ` + strings.Join(rows, ",")
	return insert, nil
}
