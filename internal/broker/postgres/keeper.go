package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// keeper holds the shares of a subscriber: it renews their leases and evens them out among those who are there.
type keeper struct {
	*Subscriber
	topic    string
	delivery *delivery
	term     *term
	reading  context.Context //nolint:containedctx // ends when no more is to be claimed
	handling context.Context //nolint:containedctx // what the shares' handlers live under
}

// run keeps shares until ctx ends. It returns an error when the server is another one, when the consumer has no shares here, or
// when no renewal got through for as long as the lease: from then on this process may not be the only one at work.
func (k *keeper) run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := k.balance(ctx)
		if err == nil && k.delivery.idle(k.log.config.Rest) {
			err = k.rest(ctx)
		}
		if err != nil && ctx.Err() == nil && (!k.term.valid() || hasCode(err, codeOtherServer) || errors.Is(err, errMoved)) {
			return err
		}
		pause := k.log.untilBeat()
		if err != nil { // what was too much for the database at one moment is not asked of it at one moment again
			pause = rand.N(min(k.log.config.Lease/4, retryWithin)) //nolint:gosec // jitter needs no secrecy
		}
		sleep(ctx, pause)
	}
	return nil
}

// retryWithin bounds the wait after a renewal or a claim that failed.
const retryWithin = time.Second

// untilBeat is how long it is until the consumers of this process renew, which they do at the same moments: every quarter of
// a lease.
func (l *Log) untilBeat() time.Duration {
	every := l.config.Lease / 4
	return every - time.Since(l.opened)%every
}

// expire waits for the end of the term, while the handlers that run may finish, and then takes the shares away from them. It
// returns when ctx ends.
func (k *keeper) expire(ctx context.Context) {
	for k.term.valid() && ctx.Err() == nil {
		sleep(ctx, k.log.config.Lease/4)
	}
	if ctx.Err() == nil {
		k.reportLost(k.delivery.lose(k.delivery.numbers()...))
	}
}

// balance renews the leases, and claims or gives up shares until this process has its fair part. It is not cut short by the end of
// the work: a claim or a renewal that was given up on may still be carried out, after its owner has left, and the others would
// wait for a lease that nobody uses.
func (k *keeper) balance(ctx context.Context) error {
	attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.log.config.Lease/4)
	defer cancel()
	asked := time.Now()
	before := k.delivery.numbers()
	here, err := k.delivery.holder.renewTogether(attempt, before)
	if err != nil {
		return err
	}
	// In this order: while the term holds, what is here is taken to be this process's own.
	k.reportLost(k.delivery.lose(slices.DeleteFunc(before, func(n int16) bool { return slices.Contains(here.held, n) })...))
	k.term.extend(asked)
	fair := (shareCount + here.others) / (here.others + 1)
	switch mine := k.delivery.held(); {
	case !here.seated:
		return errMoved
	case k.reading.Err() != nil: // about to stop
	case here.paused:
		k.delivery.giveUp(mine)
	case mine > fair:
		k.delivery.giveUp(mine - fair)
	case mine < fair:
		claimed, err := k.delivery.holder.claim(attempt, fair-mine)
		if err != nil {
			return err
		}
		// From here on nobody else parks anything of these shares.
		numbers := make([]int16, len(claimed))
		for i, c := range claimed {
			numbers[i] = c.number
		}
		parked, err := k.delivery.holder.parkedKeys(attempt, numbers)
		if err != nil {
			return err // the leases run out
		}
		k.delivery.join(k.handling, claimed, parked)
	}
	return nil
}

// rest gives up all shares and waits for an event. An idle process writes nothing, and so takes no transaction ids.
func (k *keeper) rest(ctx context.Context) error {
	woken := k.log.wakeup.next(k.topic) // before the look below
	due := k.log.wakeup.next(dueMark + k.consumer)
	k.delivery.giveUp(shareCount)
	for len(k.delivery.numbers()) > 0 {
		select {
		case <-k.delivery.emptied:
		case <-ctx.Done():
			return nil
		case <-time.After(k.log.config.Lease / 4):
			return nil // something is still out, or the database does not answer
		}
	}
	if err := k.delivery.holder.leave(ctx); err != nil {
		return err
	}
	status, _, err := k.log.status(ctx, k.log.pool, Subscription{Consumer: k.consumer, Topic: k.topic}, 1)
	if errors.Is(err, ErrHandedOver) {
		return errMoved
	}
	if err != nil {
		return err
	}
	if status.Waiting == 0 {
		select {
		case <-woken:
		case <-due:
		case <-ctx.Done():
			return nil
		}
	}
	return k.balance(ctx)
}

// term is how long this process may take its leases to hold. Its clock is behind the database's view of them: the time
// runs from before each renewal was asked for. A process that was paused finds out here.
type term struct {
	lease time.Duration
	begun time.Time
	until atomic.Int64 // nanoseconds after begun
}

func newTerm(lease time.Duration) *term {
	t := &term{lease: lease, begun: time.Now()}
	t.extend(t.begun)
	return t
}

func (t *term) valid() bool { return time.Since(t.begun) < time.Duration(t.until.Load()) }

func (t *term) extend(asked time.Time) { t.until.Store(int64(asked.Sub(t.begun) + t.lease)) }
