package postgres

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/dedicated"
	"postbus/internal/migrate"
)

//go:embed migrations/*.sql
var migrations embed.FS

// DefaultSchema is the schema of the log's tables.
const DefaultSchema = "postbus"

// Migrations returns the log's schema for migrate.Up.
func Migrations(schema string) migrate.Set {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return migrate.Set{Name: "log", Schema: schema, FS: files}
}

// Config sets how a log is read. Its zero value is complete.
type Config struct {
	// Schema holds the log's tables. Default: DefaultSchema.
	Schema string
	// Inbox is the schema of the log in whose inbox it is noted what this one's consumers have handled. Default: Schema.
	Inbox string
	// Lease is how long a consumer stays with a process that shows no sign of life. Default: 5 s.
	Lease time.Duration
	// Poll is how often this process looks for new events that nothing told it of; one query for all its consumers.
	// Default: 500 ms.
	Poll time.Duration
	// NotifyOff keeps the log from sending and awaiting notifications. Default: false.
	NotifyOff bool
	// Rest is after how long without an event a consumer gives up its leases and costs nothing until the next one.
	// Default: 10 s.
	Rest time.Duration
	// Drain is how long a subscriber that is closed waits for the handlers that run, and a change to another log. Default: 20 s.
	Drain time.Duration
	// RetryMin and RetryMax bound the wait before a message that was refused is delivered again; it doubles each time.
	// Default: 250 ms and 1 min.
	RetryMin, RetryMax time.Duration
	// Retention says when events go. Default: never.
	Retention Retention
	// PartitionRows is how many events a topic's partition has when the next one is begun, about. Default: 1,000,000; more
	// for a topic that has many partitions.
	PartitionRows int64
	// MaintainEvery is how often Maintain looks after the topics. Default: 1 min.
	MaintainEvery time.Duration
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	if c.Schema == "" {
		c.Schema = DefaultSchema
	}
	if c.Inbox == "" {
		c.Inbox = c.Schema
	}
	set(&c.Lease, 5*time.Second)
	set(&c.Poll, 500*time.Millisecond)
	set(&c.Rest, 10*time.Second)
	set(&c.Drain, 20*time.Second)
	set(&c.RetryMin, 250*time.Millisecond)
	set(&c.RetryMax, time.Minute)
	set(&c.MaintainEvery, time.Minute)
	if c.PartitionRows == 0 {
		c.PartitionRows = 1_000_000
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Lease < time.Second:
		return fmt.Errorf("lease is %s, at least 1s", c.Lease)
	case c.Poll <= 0, c.Rest <= 0, c.Drain <= 0, c.RetryMin <= 0, c.RetryMax < c.RetryMin:
		return fmt.Errorf("poll %s, rest %s, drain %s, retry %s to %s: all are above zero", c.Poll, c.Rest, c.Drain, c.RetryMin, c.RetryMax)
	case c.Retention.Age < 0, c.PartitionRows < 1, c.MaintainEvery <= 0:
		return fmt.Errorf("retention age %s, partition rows %d, maintain every %s: all are above zero",
			c.Retention.Age, c.PartitionRows, c.MaintainEvery)
	}
	return nil
}

// Log is the event log in one database. It may be used from many goroutines.
type Log struct {
	pool     *pgxpool.Pool
	config   Config
	logger   *slog.Logger
	wakeup   wakeup
	notifier notifier
	lookout  lookout
	seals    seals
	keeps    keeps
	opened   time.Time
	renewals renewals
	storing  atomic.Int32 // consumers whose places move
	reads    turns
	// How far this process has forgotten what may go.
	inboxSweep, arrivalsSweep sweep
	perValue                  pgx.QueryExecMode
}

// Open returns the log in pool's database. It does not touch the database; migrate.Up with Migrations and then Provision
// come before publishing and reading. The pool stays the caller's.
func Open(pool *pgxpool.Pool, config Config, logger *slog.Logger) (*Log, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &Log{pool: pool, config: config, logger: logger, opened: time.Now(), perValue: perValue(pool), reads: newTurns(readsMax),
		renewals: renewals{conn: dedicated.New(pool)}}, nil
}

// Subscription says that a consumer reads a topic.
type Subscription struct {
	Consumer, Topic string
	// Start is where the consumer begins when its name was not known before. Default: with the events that commit from
	// now on.
	Start Spot
}

// provisionLock is the advisory lock under which topics and consumers are made.
const provisionLock = 0x706f737462757310 // "postbus", 16

// Provision makes what is missing: a table for each topic, a place for each consumer. A consumer that was not known
// starts where its subscription says, so every process names all of the application's consumers, also those it does not
// run. A log that was restored from another cluster is made readable here. Provision may be called by many
// processes at once. It returns ErrTopicName, ErrTopicChanged and ErrHandedOver.
func (l *Log) Provision(ctx context.Context, topics []string, subscriptions []Subscription) error {
	for _, topic := range topics {
		if !topicPattern.MatchString(topic) {
			return fmt.Errorf("%w: %q", ErrTopicName, topic)
		}
	}
	err := l.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(provisionLock)); err != nil {
			return err
		}
		for _, topic := range topics {
			if err := l.provisionTopic(ctx, tx, topic); err != nil {
				return err
			}
			if err := l.anchor(ctx, tx, topic); err != nil {
				return err
			}
		}
		var fresh []Subscription
		for _, s := range subscriptions {
			isNew, err := l.provisionConsumer(ctx, tx, s)
			if err != nil {
				return err
			}
			if isNew {
				fresh = append(fresh, s)
			}
		}
		return l.tellRenamed(ctx, tx, fresh, subscriptions)
	})
	if err == nil {
		err = l.provisionAhead(ctx)
	}
	if err != nil {
		return fmt.Errorf("provision log: %w", err)
	}
	return nil
}

func (l *Log) provisionTopic(ctx context.Context, tx pgx.Tx, topic string) error {
	tag, err := tx.Exec(ctx, `INSERT INTO `+l.table("topics")+` (topic) VALUES ($1) ON CONFLICT DO NOTHING`, topic)
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	// xid first: see doc.go. The payload is bytes, not jsonb: it is never searched, and jsonb costs every commit.
	_, err = tx.Exec(ctx, `CREATE TABLE `+l.topicTable(topic)+` (
		xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),
		position    bigint GENERATED ALWAYS AS IDENTITY,
		slot        smallint NOT NULL,
		id          uuid NOT NULL,
		recorded_at timestamptz NOT NULL DEFAULT now(),
		metadata    text NOT NULL,
		payload     bytea NOT NULL,
		CONSTRAINT `+pgx.Identifier{topicPrefix + topic + keySuffix}.Sanitize()+` PRIMARY KEY (position)
	) PARTITION BY RANGE (position)`)
	if err != nil {
		return err
	}
	index := pgx.Identifier{topicPrefix + topic + xidSuffix}.Sanitize()
	if _, err := tx.Exec(ctx, `CREATE INDEX `+index+` ON `+l.topicTable(topic)+` (xid)`); err != nil {
		return err
	}
	return l.provisionPartitions(ctx, tx, topic)
}

func (l *Log) provisionConsumer(ctx context.Context, tx pgx.Tx, s Subscription) (isNew bool, err error) {
	tag, err := tx.Exec(ctx, `INSERT INTO `+l.table("consumers")+` (consumer, topic) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
		s.Consumer, s.Topic)
	if err != nil {
		return false, err
	}
	if tag.RowsAffected() > 0 {
		if err := l.notRelayed(ctx, tx, s); err != nil {
			return false, err
		}
		p, err := l.place(ctx, tx, s.Topic, s.Start)
		if err != nil {
			return false, err
		}
		return true, l.makeShares(ctx, tx, s.Consumer, p)
	}
	var topic string
	var handedOver bool
	err = tx.QueryRow(ctx, `SELECT topic, handed_over IS NOT NULL FROM `+l.table("consumers")+` WHERE consumer = $1`,
		s.Consumer).Scan(&topic, &handedOver)
	switch {
	case err != nil:
		return false, err
	case topic != s.Topic:
		return false, fmt.Errorf("%w: %s reads %s, not %s", ErrTopicChanged, s.Consumer, topic, s.Topic)
	case handedOver:
		return false, fmt.Errorf("%w: %s", ErrHandedOver, s.Consumer)
	}
	return false, nil
}

// notRelayed returns ErrHandedOver for a new consumer of a topic whose consumers read from a broker.
func (l *Log) notRelayed(ctx context.Context, tx pgx.Tx, s Subscription) error {
	var relayed bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+l.table("consumers")+` WHERE topic = $1 AND broker IS NOT NULL)`, s.Topic).
		Scan(&relayed)
	if err == nil && relayed {
		err = fmt.Errorf("%w: %s", ErrHandedOver, s.Topic)
	}
	return err
}

// firstEpoch is what the epochs of new shares begin with: the transaction's id is above all that a consumer's shares had before,
// each of which took a transaction to give out. So what somebody has under way for shares that were deleted reaches no new ones.
const firstEpoch = `pg_current_xact_id()::text::bigint`

// makeShares puts all shares of a consumer at one place.
func (l *Log) makeShares(ctx context.Context, tx pgx.Tx, consumer string, p place) error {
	_, err := tx.Exec(ctx, `INSERT INTO `+l.table("consumer_shares")+`
		(consumer, share, snapshot, floor, fence, window_end, position, epoch)
		SELECT $1, share, $3::text::pg_snapshot, $4, $7::text::xid8, $5::text::pg_snapshot, $6, `+firstEpoch+`
		FROM generate_series(0, $2::int - 1) AS share`,
		consumer, shareCount, p.snapshot, p.floor, nullable(p.windowEnd), p.position, p.fence)
	return err
}

// changeAttempts is how often a change is begun that a paused process has lost.
const changeAttempts = 3

// change runs fn in a transaction whose statements each see what others have committed before, whatever the database's
// default is: after waiting for a lock that is what matters. A process that is paused in it loses it, and its locks, after
// a lease, and begins anew: fn may run several times.
func (l *Log) change(ctx context.Context, fn func(pgx.Tx) error) (err error) {
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}
	for range changeAttempts {
		err = pgx.BeginTxFunc(ctx, l.pool, options, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, setLocal("idle_in_transaction_session_timeout", l.config.Lease)); err != nil {
				return err
			}
			return fn(tx)
		})
		if !hasCode(err, codeIdleInTransaction) {
			return err
		}
	}
	return err
}

// Subscriber returns the subscriber of one consumer, which handles so many keys at the same time. Each call makes a new one;
// the caller closes it.
func (l *Log) Subscriber(consumer string, concurrency int) (message.Subscriber, error) {
	if concurrency < 1 {
		return nil, fmt.Errorf("subscriber of %s: concurrency is %d, at least 1", consumer, concurrency)
	}
	return newSubscriber([]*Log{l}, consumer, concurrency), nil
}

var topicPattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// topicPrefix keeps the topics' tables apart from the log's own. With the longest topic and an index's suffix a name
// stays below the 63 bytes at which Postgres would cut it, silently.
const topicPrefix = "topic_"

func (l *Log) table(name string) string { return pgx.Identifier{l.config.Schema, name}.Sanitize() }

func (l *Log) inboxTable() string { return pgx.Identifier{l.config.Inbox, "inbox"}.Sanitize() }

func (l *Log) topicTable(topic string) string { return l.table(topicPrefix + topic) }
