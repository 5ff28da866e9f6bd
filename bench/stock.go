package main

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// stock is watermill-sql as it comes, with its default schema and offsets, over database/sql with pgx.
type stock struct {
	routed
	db *stdsql.DB
}

func openStock(r request, queries *atomic.Int64) (peer, error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	db, err := openSQL(r.URL, queries)
	if err != nil {
		return nil, err
	}
	return &stock{db: db, routed: routed{codec: codec, subscribers: stockSubscribers(db)}}, nil
}

func stockSubscribers(db *stdsql.DB) subscribers {
	return func(consumer string) (message.Subscriber, error) {
		return sql.NewSubscriber(db, sql.SubscriberConfig{
			ConsumerGroup: consumer, SchemaAdapter: sql.DefaultPostgreSQLSchema{},
			OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{},
		}, watermill.NopLogger{})
	}
}

func openSQL(address string, queries *atomic.Int64) (*stdsql.DB, error) {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, errors.New("the database's URL is no URL") // the error may quote its password
	}
	if queries != nil {
		config.Tracer = counter{queries}
	}
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(2 * poolSize) // a subscriber keeps one while its handler runs
	db.SetMaxIdleConns(2 * poolSize)
	return db, nil
}

func (p *stock) publish(ctx context.Context, number int64) error {
	return p.commit(ctx, func(*stdsql.Tx) error { return nil }, number)
}

// commit is one transaction: what change does, and an event, by a publisher on the transaction.
func (p *stock) commit(ctx context.Context, change func(*stdsql.Tx) error, number int64) error {
	_, m, err := p.codec.Encode(ctx, newOrder(number))
	if err != nil {
		return err
	}
	return inTx(ctx, p.db, func(tx *stdsql.Tx) error {
		if err := change(tx); err != nil {
			return err
		}
		publisher, err := sql.NewPublisher(tx, sql.PublisherConfig{SchemaAdapter: sql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		return publisher.Publish(topicName, m)
	})
}

func inTx(ctx context.Context, db *stdsql.DB, fn func(*stdsql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func (p *stock) close() error { return p.db.Close() }

// provisionStock makes the stock subscriber's tables of a topic.
func provisionStock(ctx context.Context, pool *pgxpool.Pool, topic string) error {
	queries := sql.DefaultPostgreSQLSchema{}.SchemaInitializingQueries(topic)
	queries = append(queries, sql.DefaultPostgreSQLOffsetsAdapter{}.SchemaInitializingQueries(topic)...)
	for _, q := range queries {
		if _, err := pool.Exec(ctx, q.Query, q.Args...); err != nil {
			return fmt.Errorf("make the stock tables: %w", err)
		}
	}
	return nil
}

// loadStock writes the rows that its publisher would write, with the same payload and metadata as everybody's.
func loadStock(ctx context.Context, pool *pgxpool.Pool, count int) error {
	codec, err := newCodec()
	if err != nil {
		return err
	}
	for from := 0; from < count; from += copyRows {
		messages, err := newMessages(ctx, codec, from, min(from+copyRows, count))
		if err != nil {
			return err
		}
		// COPY has no xid for a column without a default, so the rows go by way of a temporary table.
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE incoming (uuid text, payload text, metadata text) ON COMMIT DROP`)
			if err != nil {
				return err
			}
			_, err = tx.CopyFrom(ctx, pgx.Identifier{"incoming"}, []string{"uuid", "payload", "metadata"},
				pgx.CopyFromSlice(len(messages), func(i int) ([]any, error) { return columnsOf(messages[i]) }))
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `INSERT INTO `+sql.DefaultPostgreSQLSchema{}.MessagesTable(topicName)+`
				(uuid, payload, metadata, transaction_id) SELECT uuid, payload::json, metadata::json, pg_current_xact_id() FROM incoming`)
			return err
		})
		if err != nil {
			return fmt.Errorf("load stock messages: %w", err)
		}
	}
	return nil
}
