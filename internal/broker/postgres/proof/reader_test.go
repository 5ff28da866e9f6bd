package proof_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
)

const (
	// readerVariable makes the test binary a reader process; it holds a readerConfig.
	readerVariable = "PROOF_READER"
	readerName     = "proof reader" // of its sessions
	topic          = "user"

	lease = 2500 * time.Millisecond
	// refusalsEvery is how rarely a reader refuses a message once, where it does so at all.
	refusalsEvery = 40
	// slow is how long a handler takes that takes long: long enough for places to be stored meanwhile, also where that is done every
	// quarter of a second only, since it has become slow. The place lags behind by as much, well within lag.
	slow = 800 * time.Millisecond
)

type readerConfig struct {
	URL, Consumer, Records string
	Refuses                bool
	Lease                  time.Duration
}

// readerMain is the main function of a reader process: it handles messages, and writes down what it handles, until
// SIGTERM or the end of its standard input, which is the end of the test.
func readerMain() error {
	var config readerConfig
	if err := json.Unmarshal([]byte(os.Getenv(readerVariable)), &config); err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	records, err := os.OpenFile(config.Records, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	poolConfig, err := pgxpool.ParseConfig(config.URL)
	if err != nil {
		return err
	}
	poolConfig.MaxConns = 6
	poolConfig.ConnConfig.RuntimeParams["application_name"] = readerName
	pool, err := pgxpool.NewWithConfig(stop, poolConfig)
	if err != nil {
		return err
	}
	defer pool.Close()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	l, err := postgres.Open(pool, postgres.Config{
		Lease: config.Lease, Poll: 50 * time.Millisecond, RetryMin: 20 * time.Millisecond, RetryMax: 20 * time.Millisecond,
		// Partitions end and go all the time. None of them may take an unread event along.
		PartitionRows: 100, MaintainEvery: 100 * time.Millisecond, Retention: postgres.Retention{Age: 2 * time.Second},
	}, logger)
	if err != nil {
		return err
	}
	var maintaining sync.WaitGroup
	defer maintaining.Wait()
	maintaining.Go(func() { l.Maintain(stop) })
	s, err := l.Subscriber(config.Consumer, lanes)
	if err != nil {
		return err
	}
	context.AfterFunc(stop, func() { logger.Info("told to stop") })
	r := &reader{config: config, log: l, records: records, refused: make(map[string]bool)}
	return errors.Join(r.run(stop, s), records.Close())
}

// slowCommit is how long a commit takes on a machine that gives the process too little: leases run out there, without a fault
// of the test.
const slowCommit = 100 * time.Millisecond

// watch commits next to nothing, again and again, and puts on record when that takes too long, also while it is at it: the process
// may be killed before it is done.
func (r *reader) watch(ctx context.Context) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.Background()) // given up either way
		}
	}()
	for ctx.Err() == nil {
		done := make(chan struct{})
		var watching sync.WaitGroup
		watching.Go(func() { r.noteWhile(done) })
		if conn == nil || conn.IsClosed() {
			conn, _ = pgx.Connect(ctx, r.config.URL) // tried again until it answers
		}
		if conn != nil {
			_, _ = conn.Exec(ctx, "SELECT pg_logical_emit_message(true, 'proof', '')") // how long it took is what counts
		}
		close(done)
		watching.Wait()
		select {
		case <-time.After(slowCommit / 2):
		case <-ctx.Done():
		}
	}
}

// noteWhile puts on record that a commit is slow, bit by bit, until it is done.
func (r *reader) noteWhile(done <-chan struct{}) {
	from := time.Now()
	select {
	case <-done:
	case <-time.After(slowCommit):
	}
	for ended := time.Since(from) < slowCommit; !ended; {
		select {
		case <-done:
			ended = true
		case <-time.After(slowCommit):
		}
		now := time.Now()
		if _, err := fmt.Fprintf(r.records, "%s %d %d\n", kindSlow, from.UnixNano(), now.UnixNano()); err != nil {
			panic(err) // as in handle
		}
		from = now
	}
}

// lanes is how many keys a reader handles at the same time.
const lanes = 16

type reader struct {
	config  readerConfig
	log     *postgres.Log
	records *os.File

	deliveries atomic.Int64

	mu      sync.Mutex
	refused map[string]bool
}

func (r *reader) run(stop context.Context, s message.Subscriber) error {
	messages, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		return err
	}
	closed := make(chan error, 1)
	go func() {
		<-stop.Done()
		closed <- s.Close()
	}()
	if err := r.record(kindReady, 0, &message.Message{}); err != nil {
		return err
	}
	watching, endWatch := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() { r.watch(watching) })
	defer watch.Wait()
	defer endWatch()
	var handlers sync.WaitGroup
	for m := range messages {
		handlers.Go(func() { r.handle(m) })
	}
	handlers.Wait()
	return <-closed
}

// handle takes some time, as handlers do. What it has done is on record before it acknowledges.
func (r *reader) handle(m *message.Message) {
	number := r.deliveries.Add(1)
	record := func(kind string) {
		if err := r.record(kind, number, m); err != nil {
			panic(err) // without its records a reader proves nothing
		}
	}
	record(kindBegin)
	busy := rand.N(4 * time.Millisecond)
	if rand.IntN(100) == 0 {
		busy = 50 * time.Millisecond
	}
	if strings.HasPrefix(string(m.Payload), slowNoKey) {
		busy = slow
	}
	<-time.After(busy)
	if r.refuses(m.UUID) {
		record(kindRefuse)
		if rand.IntN(2) == 0 { // the others come again in place
			r.log.Refuse(m, parkable{})
		}
		m.Nack()
		return
	}
	record(kindEnd)
	m.Ack()
}

// parkable is a refusal that has a message parked with its key, for a short time.
type parkable struct{}

func (parkable) Error() string                  { return "not now" }
func (parkable) Next(int) (time.Duration, bool) { return rand.N(100 * time.Millisecond), true }

func (r *reader) refuses(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.config.Refuses || r.refused[id] || rand.IntN(refusalsEvery) > 0 {
		return false
	}
	r.refused[id] = true
	return true
}

// record appends a line in one write, which a kill cannot cut in two.
func (r *reader) record(kind string, number int64, m *message.Message) error {
	_, err := fmt.Fprintf(r.records, "%s %d %d %s %s\n", kind, number, time.Now().UnixNano(), m.UUID, m.Payload)
	return err
}
