package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"postbus/internal/broker"
	"postbus/internal/broker/postgres"
)

const (
	// lookEvery is how often a process looks whether the one that stores what arrives still does.
	lookEvery = time.Second
	// storeTimeout bounds one batch; it is not cut short by the end of the work.
	storeTimeout = 30 * time.Second
)

// Inbound stores what arrives from a broker in a log.
type Inbound struct {
	log    *postgres.Log
	broker broker.Broker
	// identity is that of a broker.Kind; "" is for a log whose consumers were not handed over.
	identity string
	topics   []string
	owner    string
	logger   *slog.Logger
}

// NewInbound returns the way of the topics from the broker into the log, which has them.
func NewInbound(log *postgres.Log, from broker.Broker, topics []string, logger *slog.Logger) *Inbound {
	return &Inbound{log: log, broker: from, topics: topics, owner: postgres.NewIntakeOwner(), logger: logger}
}

// From has it store only while the consumers are handed over to the broker of that identity; before Run.
func (n *Inbound) From(identity string) { n.identity = identity }

// Run stores what arrives until ctx ends. Broker and database may come and go.
func (n *Inbound) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, topic := range n.topics {
		running.Go(func() { n.follow(ctx, topic) })
	}
	running.Wait()
	return nil
}

// follow stores what arrives of one topic, and begins anew after a failure.
func (n *Inbound) follow(ctx context.Context, topic string) {
	var told time.Time
	wait := retryFirst
	for ctx.Err() == nil {
		stored, err := n.read(ctx, topic)
		if stored {
			wait = retryFirst
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, postgres.ErrIntakeTaken):
			sleep(ctx, lookEvery)
			continue
		case time.Since(told) >= tellEvery:
			told = time.Now()
			n.tell(topic, err)
		}
		sleep(ctx, wait)
		wait = min(2*wait, retryLast)
	}
}

// tell says why the reading has stopped, and whether it will go on without anybody.
func (n *Inbound) tell(topic string, err error) {
	attributes := []any{slog.String("topic", topic), slog.Any("error", err)}
	var gap *broker.GapError
	var refused *broker.RefusedError
	if errors.As(err, &gap) || errors.As(err, &refused) {
		n.logger.Error("nothing is read from the broker until somebody does something about it", attributes...)
		return
	}
	n.logger.Warn("reading from the broker was interrupted, will go on by itself", attributes...)
}

// read stores what arrives until something fails. It returns postgres.ErrIntakeTaken while another process does so.
func (n *Inbound) read(ctx context.Context, topic string) (stored bool, err error) {
	intake, err := n.log.Intake(ctx, topic, n.owner, n.identity)
	if err != nil {
		return false, err
	}
	if intake.Taken {
		return false, postgres.ErrIntakeTaken
	}
	if err := n.broker.Provision(ctx, topic); err != nil { // somebody may have removed it
		return false, err
	}
	reader, err := n.broker.Reader(ctx, topic, intake.Places)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	for {
		batch, err := reader.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return stored, n.release(ctx, intake)
			}
			return stored, err
		}
		if err := n.store(ctx, intake, reader, batch); err != nil {
			return stored, err
		}
		stored = true
	}
}

func (n *Inbound) store(ctx context.Context, intake *postgres.Intake, reader broker.Reader, batch broker.Batch) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if _, err := intake.Store(ctx, batch.Partition, batch.Place, batch.Messages); err != nil {
		return err
	}
	if err := reader.Stored(ctx, batch); err != nil {
		return fmt.Errorf("tell the broker what was stored: %w", err)
	}
	return nil
}

// release lets others go on at once when this process stops.
func (n *Inbound) release(ctx context.Context, intake *postgres.Intake) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	return intake.Release(ctx)
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
