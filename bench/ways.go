package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/broker"
	"postbus/internal/broker/amqp"
	"postbus/internal/broker/nats"
	"postbus/internal/broker/redis"
	"postbus/internal/broker/remote"
)

// way is a broker that events take from an application's log to their consumers, in two ways: postbus's relay carries them, or
// Watermill's forwarder.
type way struct {
	name string
	kind broker.Kind // postbus's
	// start runs a broker for one measurement, until p is closed, and returns its URL.
	start func(ctx context.Context, b *bench, p *prepared, kind string) (url string, err error)
	// provision makes what Watermill's publisher and subscribers find there.
	provision func(ctx context.Context, url string) error
	// connect opens them.
	connect func(url string) (endpoints, error)
}

// endpoints are Watermill's publisher to a broker, and its subscribers to it.
type endpoints struct {
	publisher message.Publisher
	subscribers
	close func() error
}

// ways lists the brokers. One more is one line.
func ways() []way {
	return []way{
		{"Postgres", remote.Kind(), startSecondPostgres, provisionSecondPostgres, connectSecondPostgres},
		{"NATS", nats.Kind(), startNATS, provisionNATS, connectNATS},
		{"Redis", redis.Kind(), startDurableRedis, provisionRedis, connectRedis},
		{"RabbitMQ", amqp.Kind(), startRabbit, provisionRabbit, connectRabbit},
	}
}

const overInfix = " over "

// over names the kind of contender that goes over a broker.
func over(kind string, w way) string { return kind + overInfix + w.name }

// wayOf tells which broker a contender goes over, and who carries the events; false for one that goes over none.
func wayOf(kind string) (w way, who string, ok bool) {
	who, name, ok := strings.Cut(kind, overInfix)
	if ok {
		for _, w := range ways() {
			if w.name == name {
				return w, who, true
			}
		}
	}
	return way{}, "", false
}

// prepareWay starts the broker, and makes both ends with events that wait to be carried.
func (b *bench) prepareWay(ctx context.Context, p *prepared, kind string, consumers []string, count int) (err error) {
	w, who, _ := wayOf(kind)
	if p.broker, err = w.start(ctx, b, p, kind); err != nil {
		return err
	}
	if p.db, err = b.database(ctx); err != nil {
		return err
	}
	p.url = p.db.url
	if who == kindPostbus {
		err = loadCarried(ctx, p.db.pool, consumers, count)
	} else if err = w.provision(ctx, p.broker); err == nil {
		err = loadForwarder(ctx, p.db, count)
	}
	if err != nil {
		return err
	}
	return p.db.settle(ctx)
}

// openOver opens what goes over a broker.
func openOver(ctx context.Context, r request) (peer, error) {
	w, who, ok := wayOf(r.Kind)
	switch {
	case !ok:
		return nil, fmt.Errorf("there is no kind %q", r.Kind)
	case who == kindPostbus:
		return openCarried(ctx, r, w)
	default:
		return openForwarder(r, w)
	}
}

// tally counts what a broker has acknowledged. It may be used from many goroutines.
type tally struct {
	began        time.Time
	over         func() bool // what fails at the end of the measurement does so because of it
	acknowledged atomic.Int64
	last         atomic.Int64 // how long after began
	failed       atomic.Int64
}

func newTally() *tally { return &tally{over: func() bool { return false }} }

// counted is a publisher that counts.
type counted struct {
	message.Publisher
	tally *tally
}

// Publish implements message.Publisher.
func (c counted) Publish(topic string, messages ...*message.Message) error {
	if err := c.Publisher.Publish(topic, messages...); err != nil {
		if !c.tally.over() {
			c.tally.failed.Add(1)
		}
		return err
	}
	c.tally.acknowledged.Add(int64(len(messages)))
	c.tally.last.Store(int64(time.Since(c.tally.began)))
	return nil
}

// relayed is the tally of a peer that has one.
func (t *tally) relayed() *tally { return t }

// startSecondPostgres starts a server like the first one.
func startSecondPostgres(ctx context.Context, b *bench, p *prepared, _ string) (string, error) {
	second, err := startServer(ctx, b.dir)
	if err != nil {
		return "", err
	}
	p.ends = append(p.ends, second.close)
	return second.local.URL(), nil
}

func provisionSecondPostgres(ctx context.Context, url string) error {
	pool, err := openPool(ctx, url, nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	return provisionStock(ctx, pool, topicName)
}

// connectSecondPostgres publishes by watermill-sql, and reads with it.
func connectSecondPostgres(url string) (endpoints, error) {
	db, err := openSQL(url, nil)
	if err != nil {
		return endpoints{}, err
	}
	publisher, err := sql.NewPublisher(db, sql.PublisherConfig{SchemaAdapter: sql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	return endpoints{publisher, stockSubscribers(db), db.Close}, err
}

// startNATS runs a NATS server in a process of its own.
func startNATS(ctx context.Context, b *bench, p *prepared, kind string) (string, error) {
	return b.serve(ctx, p, "nats", kind)
}

// serve has a process of its own run a server in a directory of its own, until p is closed, and returns its URL.
func (b *bench) serve(ctx context.Context, p *prepared, role, kind string) (string, error) {
	dir, err := b.scratch(p)
	if err != nil {
		return "", err
	}
	server, err := b.start(ctx, request{Role: role, Kind: kind, URL: dir})
	if err != nil {
		return "", err
	}
	p.ends = append(p.ends, server.stop)
	started, err := server.next()
	return started.URL, err
}

func provisionNATS(ctx context.Context, url string) error { return loadNATS(ctx, url, 0) }

// connectNATS publishes with message ids, by which the server leaves out repeats, and waits for the server to have each.
func connectNATS(url string) (endpoints, error) {
	publisher, err := wmnats.NewPublisher(wmnats.PublisherConfig{
		URL: url, JetStream: wmnats.JetStreamConfig{TrackMsgId: true},
	}, watermill.NopLogger{})
	if err != nil {
		return endpoints{}, err
	}
	return endpoints{publisher, natsSubscribers(url), publisher.Close}, nil
}

var errUnacknowledged = errors.New("the broker did not take everything at once")
