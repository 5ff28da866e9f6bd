package relay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"postbus/internal/broker"
	"postbus/internal/broker/amqp"
	"postbus/internal/broker/kafka"
	"postbus/internal/broker/nats"
	"postbus/internal/broker/postgres"
	"postbus/internal/broker/redis"
	"postbus/internal/broker/remote"
	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/kafkatest"
	"postbus/internal/relay"
	"postbus/internal/uow"
)

// childVariable makes this program a carrier: relay, and a consumer of what arrives.
const childVariable = "POSTBUS_TEST_CARRIER"

const (
	topic         = "door"
	inboundSchema = "postbus_inbound"
)

var ledgerOfDoors = postgres.Subscription{Consumer: "ledger", Topic: topic}

// carrierConfig is what a carrier is told.
type carrierConfig struct {
	Postgres, Broker string
	// DieAfter is after how many acknowledgements of the broker the process kills itself, with the last not noted. 0: never.
	DieAfter int64
	// Changing makes a carrier whose consumer reads wherever it is, and whose relay goes by what the database says. Change makes
	// it the command that changes that, which ends when it has: "to" the broker, or "back".
	Changing bool
	Change   string
}

// opened is the event of a domain that exists in these tests only.
type opened struct {
	Door string `json:"door"`
	N    int    `json:"n"`
}

func (opened) EventType() string  { return "door.opened" }
func (e opened) EventKey() string { return e.Door }

type door struct{ recorder domain.Recorder }

func (d *door) Recorded() *domain.Recorder { return &d.recorder }

func newCodec() (*bus.Codec, error) {
	catalogue, err := bus.NewCatalogue(bus.Define[opened](1))
	if err != nil {
		return nil, err
	}
	return bus.NewCodec(catalogue, "/test"), nil
}

func TestMain(m *testing.M) {
	if kafkatest.Main() {
		return
	}
	if told := os.Getenv(childVariable); told != "" {
		if err := carry(told); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is its main function
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// kinds are the brokers that events are carried by here.
func kinds() []broker.Kind {
	return []broker.Kind{nats.Kind(), kafka.Kind(), amqp.Kind(), redis.Kind(), remote.Kind()}
}

// carry is the main function of a carrier.
func carry(told string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var c carrierConfig
	if err := json.Unmarshal([]byte(told), &c); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, c.Postgres)
	if err != nil {
		return err
	}
	defer pool.Close()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	out, err1 := postgres.Open(pool, postgres.Config{}, logger)
	in, err2 := postgres.Open(pool, postgres.Config{Schema: inboundSchema, Inbox: postgres.DefaultSchema}, logger)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%w %w", err1, err2)
	}
	address, err := broker.Parse(c.Broker)
	if err != nil {
		return err
	}
	kind, err := broker.Choose(address, kinds()...)
	if err != nil {
		return err
	}
	b, err := kind.Open(address, logger)
	if err != nil {
		return err
	}
	defer b.Close()
	reads := postgres.Reading{in}
	outbound := relay.NewOutbound(out, &dying{Broker: b, after: c.DieAfter}, []string{topic}, logger)
	inbound := relay.NewInbound(in, b, []string{topic}, logger)
	identity := kind.Identity(address)
	if c.Changing {
		reads = postgres.Reading{out, in}
		outbound.To(identity)
		inbound.From(identity)
	}
	if c.Change != "" {
		return change(ctx, c.Change, out, in, identity)
	}
	router, err := ledger(pool, out, reads, logger)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	for _, part := range []func(context.Context) error{outbound.Run, inbound.Run, router.Run} {
		running.Go(func() {
			if err := part(ctx); err != nil {
				logger.Error("part ended", slog.Any("error", err))
			}
		})
	}
	running.Wait()
	return nil
}

// change changes what the consumer reads, and says what was done.
func change(ctx context.Context, to string, out, in *postgres.Log, identity string) error {
	var c postgres.Change
	var err error
	if to == "to" {
		c, err = out.HandOver(ctx, in, relay.Subscriptions([]string{topic}), identity)
	} else {
		c, err = out.TakeBack(ctx, in)
	}
	_, _ = fmt.Fprintf(os.Stderr, "%s: %+v, %v\n", to, c, err)
	return err
}

var errUnlucky = errors.New("fails the first time")

// ledger is a consumer that notes what it handles. Some events fail when they come first, in a test that has a table for it.
func ledger(pool *pgxpool.Pool, out *postgres.Log, reads postgres.Reading, logger *slog.Logger) (*bus.Router, error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	work := uow.NewManager(pool, out, codec, bus.New(logger))
	soon := bus.Policy{BackoffMin: 50 * time.Millisecond, BackoffMax: time.Second}
	ledger, err := bus.NewConsumer(ledgerOfDoors.Consumer, bus.WithPolicy(soon))
	if err != nil {
		return nil, err
	}
	err = bus.Handle(ledger, func(ctx context.Context, e opened) error {
		tag, err := pool.Exec(ctx, `insert into deliveries (door, n) select $1, $2 where to_regclass('unlucky') is not null`, e.Door, e.N)
		if err != nil {
			return err
		}
		if tag.RowsAffected() > 0 && e.N%unlucky == unlucky-1 {
			tag, err := pool.Exec(ctx, `insert into unlucky values ($1, $2) on conflict do nothing`, e.Door, e.N)
			if err != nil || tag.RowsAffected() > 0 {
				return errors.Join(err, errUnlucky)
			}
		}
		return work.Do(ctx, func(ctx context.Context, w *uow.Work) error {
			_, err := w.DB().Exec(ctx, `insert into effects (door, n) values ($1, $2)`, e.Door, e.N)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	router, err := bus.NewRouter(codec, reads, logger, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	err = router.Add(ledger)
	return router, err
}

// dying kills the process between an acknowledgement of the broker and its note.
type dying struct {
	broker.Broker
	after int64
	acked atomic.Int64
}

func (d *dying) Publisher() message.Publisher { return dyingPublisher{d.Broker.Publisher(), d} }

type dyingPublisher struct {
	message.Publisher
	dying *dying
}

func (p dyingPublisher) Publish(topic string, messages ...*message.Message) error {
	err := p.Publisher.Publish(topic, messages...)
	if err == nil && p.dying.acked.Add(1) == p.dying.after {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return err
}
