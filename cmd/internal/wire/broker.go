package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"postbus/internal/account"
	"postbus/internal/broker"
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
	return []broker.Kind{nats.Kind(), kafka.Kind(), redis.Kind(), remote.Kind(), memory.Kind()}
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
	if r.inbound, err = postgres.Open(pool, postgres.Config{Schema: inboundSchema, Retention: retention(c)}, b.logger); err != nil {
		return nil, err
	}
	if r.broker, err = kind.Open(address, b.logger); err != nil {
		return nil, err
	}
	r.relayOut = relay.NewOutbound(b.log, r.broker, topics, b.logger)
	r.relayIn = relay.NewInbound(r.inbound, r.broker, topics, b.logger)
	return r, nil
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

// read is the log that consumers read: the one that the application publishes to, or that of what arrives from a broker.
func (b *Backbone) read() *postgres.Log {
	if b.broker == nil {
		return b.log
	}
	return b.broker.inbound
}

// provision makes topics and consumers, here and at the broker. With a broker for the first time it hands the consumers over.
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
	if err := b.broker.inbound.Provision(ctx, topics, all); err != nil {
		return b.database.explainSetUp(inboundSchema, err)
	}
	relays := relay.Subscriptions(topics)
	err = b.log.HandOver(ctx, all, relays, b.broker.identity)
	var unfinished *postgres.UnfinishedError
	var other *postgres.OtherBrokerError
	switch {
	case errors.As(err, &other):
		return fmt.Errorf("%w, and BROKER_URL names %s; set it as it was, let the consumers finish, and have them leave "+
			"the broker first with: go run ./cmd/consumer --leave-broker --apply", other, b.broker.identity)
	case errors.As(err, &unfinished):
		return fmt.Errorf("%w without a broker; let it finish with BROKER_URL unset, stop all programs that run it, and then set it",
			unfinished)
	}
	if err == nil {
		err = b.log.Provision(ctx, nil, relays) // of topics that came later
	}
	return b.database.explainSetUp(postgres.DefaultSchema, err)
}

// LeaveBroker has the consumers read the application's log again, if all that went through the broker has arrived and was
// handled.
func LeaveBroker(ctx context.Context, c config.Config, out io.Writer, logger *slog.Logger, say func(string)) (err error) {
	all, err1 := consumers(new(account.Service)) // which handles nothing here
	types, err2 := catalogue()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	d, err := openDatabase(ctx, c, say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	log, err1 := postgres.Open(d.pool, postgres.Config{}, logger)
	inbound, err2 := postgres.Open(d.pool, postgres.Config{Schema: inboundSchema}, logger)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	err = log.TakeBack(ctx, inbound, subscriptions(all), relay.Subscriptions(types.Topics()))
	var unfinished *postgres.UnfinishedError
	switch {
	case errors.As(err, &unfinished):
		return fmt.Errorf("%w with the broker; let it finish with BROKER_URL set, and stop all programs that run it", unfinished)
	case isMissing(err):
		return errors.New("no program has used a broker with this database")
	case err != nil:
		return err
	}
	if _, err := io.WriteString(out, "the consumers read the application's Postgres; start the programs without BROKER_URL\n"); err != nil {
		return fmt.Errorf("print outcome: %w", err)
	}
	return nil
}
