package main

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"
)

const (
	kindForwarder = "forwarder"
	// forwarderTopic is the outbox: the topic in Postgres that the forwarder reads.
	forwarderTopic = "outbox"
)

// forwarding is Watermill's forwarder component: messages are published in a transaction, in an envelope, to a topic in
// Postgres; the forwarder reads them there with watermill-sql's subscriber and publishes them to the broker; consumers read from
// there. One process does it all, as with carried.
type forwarding struct {
	routed
	*tally
	db *stdsql.DB
	to endpoints
}

func openForwarder(r request, w way) (peer, error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	db, err := openSQL(r.URL, nil)
	if err != nil {
		return nil, err
	}
	to, err := w.connect(r.Broker)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &forwarding{routed: routed{codec: codec, subscribers: to.subscribers}, tally: newTally(), db: db, to: to}, nil
}

func (p *forwarding) consume(ctx context.Context, names []string, handle func(consumer string) handler) error {
	outbox, err := stockSubscribers(p.db)("forwarder")
	if err != nil {
		return err
	}
	f, err := forwarder.NewForwarder(outbox, counted{p.to.publisher, p.tally}, watermill.NopLogger{}, forwarder.Config{
		ForwarderTopic: forwarderTopic,
	})
	if err != nil {
		return fmt.Errorf("make forwarder: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.Run(ctx) })
	group.Go(func() error { return p.routed.consume(ctx, names, handle) })
	return group.Wait()
}

func (p *forwarding) publish(ctx context.Context, number int64) error {
	_, m, err := p.codec.Encode(ctx, newOrder(number))
	if err != nil {
		return err
	}
	return enclose(ctx, p.db, m)
}

func (p *forwarding) close() error { return errors.Join(p.to.close(), p.db.Close()) }

// enclose commits messages in envelopes that tell the forwarder where they go.
func enclose(ctx context.Context, db *stdsql.DB, messages ...*message.Message) error {
	return inTx(ctx, db, func(tx *stdsql.Tx) error {
		publisher, err := sql.NewPublisher(tx, sql.PublisherConfig{SchemaAdapter: sql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		return forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: forwarderTopic}).Publish(topicName, messages...)
	})
}

// loadForwarder makes the outbox with count events in it.
func loadForwarder(ctx context.Context, to *database, count int) error {
	if err := provisionStock(ctx, to.pool, forwarderTopic); err != nil {
		return err
	}
	codec, err := newCodec()
	if err != nil {
		return err
	}
	db, err := openSQL(to.url, nil)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	for from := 0; from < count; from += loadBatch {
		messages, err := newMessages(ctx, codec, from, min(from+loadBatch, count))
		if err != nil {
			return err
		}
		if err := enclose(ctx, db, messages...); err != nil {
			return fmt.Errorf("load outbox: %w", err)
		}
	}
	return nil
}
