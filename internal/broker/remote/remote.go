// Package remote carries topics over a second Postgres: a log there, in a schema of its own, that one database's relay appends
// to and another's reads.
package remote

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker"
	"postbus/internal/broker/postgres"
	"postbus/internal/migrate"
)

const (
	scheme = "postgres"
	// schema has the log. It is not that of an application's own log, which may be in the same database.
	schema         = "postbus_broker"
	requestTimeout = 10 * time.Second
	// rereadAge is how far back a server that was restored is read again.
	rereadAge = broker.Remembered - 24*time.Hour
)

var errURL = &broker.URLError{Problem: "must look like postgres://USER:PASSWORD@HOST:5432/DATABASE, with parameters as in DATABASE_URL"}

// Kind is postgres://.
func Kind() broker.Kind {
	return broker.Kind{
		Scheme: scheme, Name: "a second Postgres",
		Capabilities: broker.Capabilities{
			Crash: true, Loss: "it loses commits, as in a failover to an asynchronous standby", Replay: true,
		},
		Check: func(a broker.Address) error { _, err := settings(a); return err },
		Identity: func(a broker.Address) string {
			c, err := settings(a)
			if err != nil { // Check has refused it
				return scheme
			}
			return fmt.Sprintf("%s, database %s at %s", scheme, c.ConnConfig.Database,
				net.JoinHostPort(c.ConnConfig.Host, strconv.Itoa(int(c.ConnConfig.Port))))
		},
		Open: func(a broker.Address, logger *slog.Logger) (broker.Broker, error) { return Open(a, logger) },
	}
}

// durabilityParameter says, with the value unchecked, that the server may lose commits when its machine fails.
const durabilityParameter, unchecked = "durability", "unchecked"

func settings(a broker.Address) (*pgxpool.Config, error) {
	c, err := pgxpool.ParseConfig(a.URL())
	if err != nil || c.ConnConfig.Database == "" {
		return nil, errURL // its own text may quote the password
	}
	if a.Parameter(durabilityParameter, unchecked) != unchecked {
		return nil, &broker.URLError{Problem: "has a parameter " + durabilityParameter + " that is not " + unchecked}
	}
	delete(c.ConnConfig.RuntimeParams, durabilityParameter) // which is for us
	c.ConnConfig.RuntimeParams["synchronous_commit"] = "on" // whatever the server's default is
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = requestTimeout / 2
	}
	return c, nil
}

// Broker is a log in a second Postgres.
type Broker struct {
	pool    *pgxpool.Pool
	log     *postgres.Log
	logger  *slog.Logger
	checked bool // the server is to keep what it has committed
	offered chan offer
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Open returns the broker. It does not wait for a server.
func Open(a broker.Address, logger *slog.Logger) (*Broker, error) {
	c, err := settings(a)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		return nil, fmt.Errorf("open connection pool: %w", err)
	}
	log, err := postgres.Open(pool, postgres.Config{Schema: schema}, logger)
	if err != nil {
		pool.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	b := &Broker{
		pool: pool, log: log, logger: logger.With(slog.String("broker", scheme)), offered: make(chan offer), stop: stop,
		checked: a.Parameter(durabilityParameter, "") != unchecked,
	}
	b.running.Go(func() { b.append(ctx) })
	return b, nil
}

// Provision makes the log's tables where they are missing. It refuses a server that would lose what it has committed when its machine
// fails, unless the URL says that this is meant.
func (b *Broker) Provision(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if b.checked {
		if err := b.inspect(ctx); err != nil {
			return explain(err)
		}
	}
	if err := migrate.Up(ctx, b.pool, postgres.Migrations(schema)); err != nil {
		return explain(err)
	}
	return explain(b.log.Provision(ctx, topics, nil))
}

// inspect looks at the settings that no session can change.
func (b *Broker) inspect(ctx context.Context) error {
	var name string
	err := b.pool.QueryRow(ctx, `SELECT coalesce(min(name), '') FROM pg_settings
		WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'`).Scan(&name)
	if err == nil && name != "" {
		return &broker.RefusedError{Reason: "the second Postgres has " + name + "=off, and may lose what it has committed when its " +
			"machine fails; switch it on, or say durability=unchecked in the URL if that is meant"}
	}
	return err
}

// Publisher implements broker.Broker.
func (b *Broker) Publisher() message.Publisher { return publisher{b} }

// Close gives up the connections.
func (b *Broker) Close() error {
	b.stop()
	b.running.Wait()
	b.pool.Close()
	return nil
}

// Reader implements broker.Broker.
func (b *Broker) Reader(ctx context.Context, topic string, places map[string]string) (broker.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r := &reader{partition: scheme + ":" + topic}
	var fits bool
	var err error
	r.feed, fits, err = b.log.Feed(ctx, topic, places[r.partition], postgres.At(time.Now().Add(-rereadAge)))
	if err != nil {
		return nil, err
	}
	if !fits {
		b.logger.Error("the second Postgres was restored, or lost commits, and is read again; what it had lost before that was read "+
			"is to be sent again: move the relay back", slog.String("partition", r.partition))
	}
	maintaining, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.running.Go(func() { b.log.Maintain(maintaining) })
	return r, nil
}

type reader struct {
	feed      *postgres.Feed
	partition string
	stop      context.CancelFunc
	running   sync.WaitGroup // of the log's maintenance, which is whoever reads it
}

// Next implements broker.Reader.
func (r *reader) Next(ctx context.Context) (broker.Batch, error) {
	messages, place, err := r.feed.Next(ctx)
	if err != nil {
		return broker.Batch{}, fmt.Errorf("read %s: %w", r.partition, err)
	}
	return broker.Batch{Messages: messages, Partition: r.partition, Place: place}, nil
}

// Stored does nothing: the place is kept with what was stored.
func (*reader) Stored(context.Context, broker.Batch) error { return nil }

// Close ends the reading.
func (r *reader) Close() error {
	r.stop()
	r.running.Wait()
	r.feed.Close()
	return nil
}
