package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Reading is what consumers read that may change from one log to another of the same database (handover.go): whichever has their
// shares.
type Reading []*Log

// Subscriber returns a subscriber that goes where the consumer goes, without its subscription's end. Its first log says how it is
// read.
func (r Reading) Subscriber(consumer string, concurrency int) (message.Subscriber, error) {
	if concurrency < 1 || len(r) == 0 {
		return nil, fmt.Errorf("subscriber of %s: concurrency is %d in %d logs, at least 1", consumer, concurrency, len(r))
	}
	return newSubscriber(r, consumer, concurrency), nil
}

// Refuse is Log.Refuse.
func (r Reading) Refuse(m *message.Message, reason error) { r[0].Refuse(m, reason) }

// RelaySubscriber returns the subscriber of a relay to the broker of that identity. It reads while consumers are handed over to
// that broker, and waits while they are not. For "" it is like any other.
func (l *Log) RelaySubscriber(relay, identity string, concurrency int) (message.Subscriber, error) {
	if concurrency < 1 {
		return nil, fmt.Errorf("subscriber of %s: concurrency is %d, at least 1", relay, concurrency)
	}
	s := newSubscriber([]*Log{l}, relay, concurrency)
	s.broker = identity
	return s, nil
}

const (
	// locateEvery is how often somebody whose consumer has no shares in his logs looks for them, and locateTimeout bounds one look.
	locateEvery   = time.Second
	locateTimeout = 5 * time.Second
)

// locate finds the log that has the consumer's shares, and waits while none has.
func (s *Subscriber) locate(ctx context.Context) error {
	for told := false; ; told = true {
		for _, l := range s.logs {
			seated, err := s.seated(ctx, l)
			if err != nil {
				return err
			}
			if seated {
				if s.log != l {
					s.log, s.left = l, nil
				}
				return nil
			}
		}
		if !told && s.broker == "" {
			s.logger.Warn("the consumer's events are not in what this program reads, and it waits until they are; if a broker " +
				"carries them now, start the program with its BROKER_URL")
		}
		sleep(ctx, locateEvery)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (s *Subscriber) seated(ctx context.Context, l *Log) (seated bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	h := holder{log: l}
	if err := l.pool.QueryRow(ctx, `SELECT EXISTS (`+h.seat(2)+`)`, s.consumer, s.broker).Scan(&seated); err != nil {
		return false, fmt.Errorf("look for the shares of %s: %w", s.consumer, err)
	}
	if seated {
		s.logger.Debug("consumer has its shares here", slog.String("schema", l.config.Schema))
	}
	return seated, nil
}
