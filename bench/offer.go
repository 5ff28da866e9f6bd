package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// warmUp is the number of the event that shows that everything runs. It is not measured.
const warmUp = -1

const (
	pauseLeast  = 50 * time.Millisecond
	pauseSpread = 3 // the longest pause is so many times the shortest
)

// pause is the shortest pause between events that come one at a time.
func (r request) pause() time.Duration {
	if r.Pause == 0 {
		return pauseLeast
	}
	return r.Pause
}

// arrivals keeps when each event came to the first consumer.
type arrivals struct {
	want  int
	warm  chan struct{} // closed at the first event of all
	all   chan struct{} // closed when all that are wanted have come
	once  sync.Once
	mu    sync.Mutex
	times map[int64]int64
}

func newArrivals(want int) *arrivals {
	return &arrivals{want: want, warm: make(chan struct{}), all: make(chan struct{}), times: make(map[int64]int64)}
}

func (a *arrivals) come(number int64) {
	now := time.Now().UnixNano()
	a.once.Do(func() { close(a.warm) })
	if number < 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, again := a.times[number]; again {
		return
	}
	a.times[number] = now
	if len(a.times) == a.want {
		close(a.all)
	}
}

func (a *arrivals) taken() map[int64]int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.times
}

// farewell is how long a process that publishes stays after its last event: an application does. One that ends in the same moment
// sends no notification of it any more, and others find it with their next poll.
const farewell = time.Second

// latencyRole publishes, or consumes, or both. It is ready when the first event has come.
func latencyRole(ctx context.Context, r request, ready func(reply) error) (answer reply, err error) {
	p, err := openPeer(ctx, r, nil)
	if err != nil {
		return reply{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if !r.Consume {
		answer.Sent, err = offer(ctx, p, r)
		sleep(ctx, farewell)
		return answer, err
	}
	a := newArrivals(r.Count)
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- p.consume(consuming, r.Consumers, func(consumer string) handler {
			return recordingHandler(consuming, a, consumer, r.Sleeper)
		})
	}()
	if r.Publish {
		err = p.publish(ctx, warmUp)
	}
	if err == nil {
		err = wait(ctx, a.warm, r.Limit)
	}
	if err == nil {
		err = ready(reply{})
	}
	if err == nil && r.Publish {
		answer.Sent, err = offer(ctx, p, r)
	}
	if err == nil {
		// What has not come by then is the caller's to judge.
		_ = wait(ctx, a.all, r.Limit+time.Duration(r.Count)*max(r.Interval, r.pause()*(1+pauseSpread)/2))
	}
	answer.Ended = time.Now().UnixNano()
	stop()
	err = errors.Join(err, <-ended)
	answer.Got = a.taken()
	return answer, err
}

// recordingHandler is the handler of the first consumer. Those of the others sleep over each event.
func recordingHandler(stopping context.Context, a *arrivals, consumer string, sleeper time.Duration) handler {
	return func(_ context.Context, number int64) error {
		if consumer == firstConsumer {
			a.come(number)
		} else if number >= 0 {
			sleep(stopping, sleeper)
		}
		return nil
	}
}

var errLate = errors.New("nothing came in time")

func wait(ctx context.Context, c <-chan struct{}, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-c:
		return nil
	case <-timer.C:
		return errLate
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// offer publishes the events and tells from when each one's time runs.
func offer(ctx context.Context, p peer, r request) (map[int64]int64, error) {
	if r.Idle {
		return offerIdly(ctx, p, r.Count, r.pause())
	}
	return offerOpenLoop(ctx, p, r.Count, r.Interval)
}

// offerIdly publishes one event after another; a time runs from the end of the commit.
func offerIdly(ctx context.Context, p peer, count int, pause time.Duration) (map[int64]int64, error) {
	sent := make(map[int64]int64, count)
	for number := range int64(count) {
		sleep(ctx, pause+rand.N((pauseSpread-1)*pause)) //nolint:gosec // no secret
		if err := p.publish(ctx, number); err != nil {
			return nil, err
		}
		sent[number] = time.Now().UnixNano()
	}
	return sent, nil
}

// offerOpenLoop publishes events when they are due; a time runs from then, also when all writers were busy.
func offerOpenLoop(ctx context.Context, p peer, count int, interval time.Duration) (map[int64]int64, error) {
	begin := time.Now().Add(interval)
	var next atomic.Int64
	var mu sync.Mutex
	var err error
	var running sync.WaitGroup
	for range writers {
		running.Go(func() {
			for number := next.Add(1) - 1; number < int64(count); number = next.Add(1) - 1 {
				sleep(ctx, time.Until(begin.Add(time.Duration(number)*interval)))
				if failure := p.publish(ctx, number); failure != nil {
					mu.Lock()
					err = errors.Join(err, failure)
					mu.Unlock()
					return
				}
			}
		})
	}
	running.Wait()
	sent := make(map[int64]int64, count)
	for number := range int64(count) {
		sent[number] = begin.Add(time.Duration(number) * interval).UnixNano()
	}
	return sent, err
}
