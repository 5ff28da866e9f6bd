package main

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/migrate"
	"postbus/internal/uow"
)

// postbus is the project itself, by nothing but what its programs use of it.
type postbus struct {
	routed
	pool    *pgxpool.Pool
	manager *uow.Manager
}

func openPostbus(ctx context.Context, r request, queries *atomic.Int64) (peer, error) {
	pool, err := openPool(ctx, r.URL, queries)
	if err != nil {
		return nil, err
	}
	log, err := postgres.Open(pool, postgres.Config{Rest: r.Rest}, quiet)
	if err != nil {
		return nil, err
	}
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	return &postbus{
		routed: routed{codec: codec, subscribers: func(consumer string) (message.Subscriber, error) {
			return log.Subscriber(consumer, cmp.Or(r.Lanes, lanesDefault))
		}},
		pool: pool, manager: uow.NewManager(pool, log, codec, bus.New(quiet)),
	}, nil
}

func (p *postbus) publish(ctx context.Context, number int64) error {
	return p.commit(ctx, nil, newOrder(number))
}

// commit is one unit of work: what change does, and the events.
func (p *postbus) commit(ctx context.Context, change func(context.Context, uow.Querier) error, events ...domain.Event) error {
	var o order
	o.recorder.Record(events...)
	return p.manager.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		w.Track(&o)
		if change == nil {
			return nil
		}
		return change(ctx, w.DB())
	})
}

func (p *postbus) close() error {
	p.pool.Close()
	return nil
}

// loadBatch is how many events are appended by one statement, and loadCommit how many statements make a commit.
const (
	loadBatch  = 1000
	loadCommit = 20
	loaders    = 2
)

// provisionPostbus makes the tables, and the consumers, which start with what comes after.
func provisionPostbus(ctx context.Context, pool *pgxpool.Pool, topics, consumers []string) (*postgres.Log, error) {
	if err := migrate.Up(ctx, pool, postgres.Migrations(postgres.DefaultSchema)); err != nil {
		return nil, err
	}
	log, err := postgres.Open(pool, postgres.Config{}, quiet)
	if err != nil {
		return nil, err
	}
	var subscriptions []postgres.Subscription
	for i, name := range consumers {
		subscriptions = append(subscriptions, postgres.Subscription{Consumer: name, Topic: topics[i%len(topics)]})
	}
	if err := log.Provision(ctx, topics, subscriptions); err != nil {
		return nil, err
	}
	return log, nil
}

// loadPostbus appends count events to the topic, through the log and with messages that the codec has made, in large
// commits.
func loadPostbus(ctx context.Context, pool *pgxpool.Pool, log *postgres.Log, topic string, count int) error {
	codec, err := newCodec()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(loaders)
	const most = loadBatch * loadCommit
	for from := 0; from < count; from += most {
		group.Go(func() error {
			err := appendOrders(ctx, pool, log, codec, topic, from, min(from+most, count))
			if err != nil {
				return fmt.Errorf("load events: %w", err)
			}
			return nil
		})
	}
	return group.Wait()
}

func appendOrders(
	ctx context.Context, pool *pgxpool.Pool, log *postgres.Log, codec *bus.Codec, topic string, from, to int,
) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		for begin := from; begin < to; begin += loadBatch {
			messages, err := newMessages(ctx, codec, begin, min(begin+loadBatch, to))
			if err != nil {
				return err
			}
			batch := &pgx.Batch{}
			if err := log.Append(batch, topic, messages...); err != nil {
				return err
			}
			if err := tx.SendBatch(ctx, batch).Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

// newMessages are the messages of the events from number `from` up to, not including, `to`.
func newMessages(ctx context.Context, codec *bus.Codec, from, to int) ([]*message.Message, error) {
	messages := make([]*message.Message, 0, to-from)
	for n := from; n < to; n++ {
		_, m, err := codec.Encode(ctx, newOrder(int64(n)))
		if err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	return messages, nil
}
