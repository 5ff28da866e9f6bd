package wire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"postbus/internal/broker"
	"postbus/internal/broker/amqp"
	"postbus/internal/broker/kafka"
	"postbus/internal/broker/memory"
	"postbus/internal/broker/nats"
	"postbus/internal/broker/postgres"
	"postbus/internal/broker/redis"
	"postbus/internal/broker/remote"
	"postbus/internal/config"
	"postbus/internal/migrate"
	"postbus/internal/relay"
)

const (
	// inboundSchema has the log of what arrives from a broker, which consumers read. The topics that the application publishes
	// are in the log's own.
	inboundSchema = "postbus_inbound"
	// brokerPatience is how long a program that starts waits for the broker to answer. It runs without as well.
	brokerPatience = 3 * time.Second
	brokerRetry    = 100 * time.Millisecond
)

var errNeedsBroker = errors.New("the consumers of this database read from a broker; set BROKER_URL as it was, or have them " +
	"leave it with: go run ./cmd/consumer --leave-broker --apply")

// kinds are the brokers that a BROKER_URL can name.
func kinds() []broker.Kind {
	return []broker.Kind{nats.Kind(), kafka.Kind(), amqp.Kind(), redis.Kind(), remote.Kind(), memory.Kind()}
}

// checkBroker checks BROKER_URL, before anything is made.
func checkBroker(c config.Config) error {
	if c.BrokerURL == "" {
		return nil
	}
	address, err := broker.Parse(c.BrokerURL)
	if err == nil {
		_, err = broker.Choose(address, kinds()...)
	}
	if err != nil {
		return &config.Error{Setting: "BROKER_URL", Problem: err.Error()}
	}
	return nil
}

// brokerage is all that a BROKER_URL adds. A nil one is there to be asked, and does nothing.
type brokerage struct {
	address  broker.Address
	identity string // broker.Kind's
	over     bool   // the consumers read what it brings, when the program started
	broker   broker.Broker
	inbound  *postgres.Log
	relayOut *relay.Outbound
	relayIn  *relay.Inbound
}

// openBroker opens what BROKER_URL names, and makes the tables for what arrives; nil if it is unset.
func (b *Backbone) openBroker(ctx context.Context, c config.Config, topics []string) (*brokerage, error) {
	if c.BrokerURL == "" {
		return nil, nil //nolint:nilnil // see brokerage
	}
	address, err := broker.Parse(c.BrokerURL)
	if err != nil {
		return nil, fmt.Errorf("BROKER_URL %w", err)
	}
	kind, err := broker.Choose(address, kinds()...)
	if err != nil {
		return nil, fmt.Errorf("BROKER_URL %w", err)
	}
	pool := b.database.pool
	if err := migrate.Up(ctx, pool, postgres.Migrations(inboundSchema)); err != nil {
		return nil, b.database.explainSetUp(inboundSchema, err)
	}
	r := &brokerage{address: address, identity: kind.Identity(address)}
	if r.inbound, err = postgres.Open(pool, inboundLog(retention(c)), b.logger); err != nil {
		return nil, err
	}
	if r.broker, err = kind.Open(address, b.logger); err != nil {
		return nil, err
	}
	r.relayOut = relay.NewOutbound(b.log, r.broker, topics, b.logger)
	r.relayIn = relay.NewInbound(r.inbound, r.broker, topics, b.logger)
	r.relayOut.To(r.identity)
	r.relayIn.From(r.identity)
	return r, nil
}

// inboundLog is how the log of what arrives is opened.
func inboundLog(keep postgres.Retention) postgres.Config {
	return postgres.Config{Schema: inboundSchema, Inbox: postgres.DefaultSchema, Retention: keep}
}

// isOwnRelay tells whether a consumer that is to be moved is a relay that the program has.
func isOwnRelay(c config.Config, name string) bool {
	topic, ok := relay.IsRelay(name)
	if !ok || name != c.Move || c.BrokerURL == "" {
		return false
	}
	types, err := catalogue()
	return err == nil && slices.Contains(types.Topics(), topic)
}

// await makes the topics at the broker. One that does not answer in time is left to the relay; what no waiting will mend is an
// error.
func (r *brokerage) await(ctx context.Context, topics []string) (note string, err error) {
	deadline := time.Now().Add(brokerPatience)
	for {
		err := r.broker.Provision(ctx, topics...)
		var refused *broker.RefusedError
		switch {
		case err == nil:
			return "", nil
		case errors.As(err, &refused):
			return "", fmt.Errorf("broker at %s: %w", r.address, refused)
		case ctx.Err() != nil:
			return "", fmt.Errorf("wait for the broker: %w", context.Cause(ctx))
		case time.Now().After(deadline):
			return fmt.Sprintf("the broker at %s does not answer yet; events wait for it in Postgres", r.address), nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(brokerRetry):
		}
	}
}

// parts are what runs beside consumers.
func (r *brokerage) parts() []func(context.Context) error {
	if r == nil {
		return nil
	}
	return []func(context.Context) error{r.relayOut.Run, r.relayIn.Run}
}

// maintain keeps the log of what arrives in shape until ctx ends.
func (r *brokerage) maintain(ctx context.Context) {
	if r == nil {
		<-ctx.Done() // a part of a program that returns ends the program
		return
	}
	r.inbound.Maintain(ctx)
}

func (r *brokerage) close() error {
	if r == nil || r.broker == nil { // or it was opened to be read
		return nil
	}
	return r.broker.Close()
}

// Broker says in a few words which broker carries the events, if one does.
func (b *Backbone) Broker() string {
	if b.broker == nil {
		return ""
	}
	return b.broker.address.String()
}

// read is the log that consumers read when the program starts: the one that the application publishes to, or that of what arrives
// from a broker.
func (b *Backbone) read() *postgres.Log {
	if b.broker == nil || !b.broker.over {
		return b.log
	}
	return b.broker.inbound
}

// reading is what consumers read: whichever of the two logs has their places.
func (b *Backbone) reading() postgres.Reading {
	if b.broker == nil {
		return postgres.Reading{b.log}
	}
	return postgres.Reading{b.log, b.broker.inbound}
}

// provision makes topics and consumers, here and at the broker. Consumers that are new begin behind the broker; with others it is
// noted that they can.
func (b *Backbone) provision(ctx context.Context, topics []string) error {
	all := subscriptions(b.consumers)
	if b.broker == nil {
		published, readers := b.withCrossing(topics, all)
		err := b.log.Provision(ctx, published, readers)
		if errors.Is(err, postgres.ErrHandedOver) {
			return errNeedsBroker
		}
		return b.database.explainSetUp(postgres.DefaultSchema, err)
	}
	published, readers := b.withCrossing(slices.Clone(topics), nil)
	if err := b.log.Provision(ctx, published, readers); err != nil {
		return b.database.explainSetUp(postgres.DefaultSchema, err)
	}
	note, err := b.broker.await(ctx, topics)
	if err != nil {
		return err
	}
	if note != "" {
		b.Notes = append(b.Notes, note)
	}
	if err := b.broker.inbound.Provision(ctx, topics, nil); err != nil {
		return b.database.explainSetUp(inboundSchema, err)
	}
	return b.database.explainSetUp(postgres.DefaultSchema, b.settle(ctx, topics, all))
}

// settle gives consumers that are new their places, in the log that the others read.
func (b *Backbone) settle(ctx context.Context, topics []string, all []postgres.Subscription) error {
	relays := relay.Subscriptions(topics)
	for ctx.Err() == nil {
		over, err := b.log.ProvisionOver(ctx, b.broker.inbound, all, relays, b.broker.identity)
		if b.broker.over = over; over || err != nil {
			return b.explainChange(err)
		}
		fresh, err := b.fresh(ctx, all)
		if err == nil {
			err = b.log.Provision(ctx, nil, all)
		}
		switch {
		case errors.Is(err, postgres.ErrHandedOver): // at this moment
			continue
		case err != nil:
			return err
		case !fresh:
			b.Notes = append(b.Notes, "the consumers read the application's Postgres; when all programs have this BROKER_URL, "+
				"have it carry the events with: go run ./cmd/consumer --join-broker --apply")
			return nil
		}
		if _, err := b.log.HandOver(ctx, b.broker.inbound, relays, b.broker.identity); err != nil {
			return b.explainChange(err)
		}
	}
	return fmt.Errorf("make consumers: %w", context.Cause(ctx))
}

// fresh tells whether none of the consumers is known yet.
func (b *Backbone) fresh(ctx context.Context, all []postgres.Subscription) (bool, error) {
	for _, s := range all {
		if _, known, err := b.log.Status(ctx, s); known || err != nil {
			return false, err
		}
	}
	return true, nil
}
