package main

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"postbus/internal/broker"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/migrate"
	"postbus/internal/relay"
	"postbus/internal/uow"
)

// inboundSchema has what arrives, as in the project's programs: in the application's database, too.
const inboundSchema = "postbus_inbound"

// carried is postbus with a BROKER_URL: one process commits, relays, stores what arrives, and has the consumers.
type carried struct {
	*postbus
	*tally
	broker broker.Broker
	out    *relay.Outbound
	in     *relay.Inbound
}

func openCarried(ctx context.Context, r request, w way) (peer, error) {
	pool, err := openPool(ctx, r.URL, nil)
	if err != nil {
		return nil, err
	}
	log, err1 := postgres.Open(pool, postgres.Config{}, quiet)
	inbound, err2 := postgres.Open(pool, postgres.Config{Schema: inboundSchema, Inbox: postgres.DefaultSchema}, quiet)
	codec, err3 := newCodec()
	address, err4 := broker.Parse(r.Broker)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	to, err := w.kind.Open(address, quiet)
	if err != nil {
		return nil, err
	}
	if err := to.Provision(ctx, topicName); err != nil {
		return nil, errors.Join(err, to.Close())
	}
	t, topics := newTally(), []string{topicName}
	return &carried{
		postbus: &postbus{
			routed: routed{codec: codec, subscribers: func(consumer string) (message.Subscriber, error) {
				return inbound.Subscriber(consumer, lanesDefault)
			}},
			pool: pool, manager: uow.NewManager(pool, log, codec, bus.New(quiet)),
		},
		tally: t, broker: to,
		out: relay.NewOutbound(log, countedBroker{to, t}, topics, quiet), in: relay.NewInbound(inbound, to, topics, quiet),
	}, nil
}

// countedBroker is a broker whose publisher counts.
type countedBroker struct {
	broker.Broker
	tally *tally
}

// Publisher implements broker.Broker.
func (b countedBroker) Publisher() message.Publisher { return counted{b.Broker.Publisher(), b.tally} }

func (p *carried) consume(ctx context.Context, names []string, handle func(consumer string) handler) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.out.Run(ctx) })
	group.Go(func() error { return p.in.Run(ctx) })
	group.Go(func() error { return p.routed.consume(ctx, names, handle) })
	return group.Wait()
}

func (p *carried) close() error { return errors.Join(p.broker.Close(), p.postbus.close()) }

// loadCarried makes both logs, with count events that the relay has not read.
func loadCarried(ctx context.Context, pool *pgxpool.Pool, consumers []string, count int) error {
	log, err := provisionPostbus(ctx, pool, []string{topicName}, nil)
	if err != nil {
		return err
	}
	if err := migrate.Up(ctx, pool, postgres.Migrations(inboundSchema)); err != nil {
		return err
	}
	inbound, err := postgres.Open(pool, postgres.Config{Schema: inboundSchema, Inbox: postgres.DefaultSchema}, quiet)
	if err != nil {
		return err
	}
	var all []postgres.Subscription
	for _, name := range consumers {
		all = append(all, postgres.Subscription{Consumer: name, Topic: topicName})
	}
	err = errors.Join(
		log.Provision(ctx, nil, relay.Subscriptions([]string{topicName})),
		inbound.Provision(ctx, []string{topicName}, all))
	if err != nil {
		return err
	}
	return loadPostbus(ctx, pool, log, topicName, count)
}
