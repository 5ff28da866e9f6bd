package web

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiter gives every client a bucket of burst requests that regains one each interval. It remembers at most clients of
// them and forgets the one unseen for longest, so its memory is bounded; a forgotten client begins with a full bucket.
// Safe for concurrent use.
type limiter struct {
	burst    int
	interval time.Duration
	clients  int

	mu      sync.Mutex
	buckets map[netip.Addr]*list.Element
	recent  *list.List // of *bucket, the last seen in front
}

type bucket struct {
	client netip.Addr
	tokens *rate.Limiter
}

func newLimiter(burst int, interval time.Duration, clients int) *limiter {
	return &limiter{
		burst: burst, interval: interval, clients: clients,
		buckets: make(map[netip.Addr]*list.Element), recent: list.New(),
	}
}

// allow takes one request from the client's bucket at the time now. It returns zero if there was one, else how long
// the client has to wait for the next; a refused request costs nothing.
func (l *limiter) allow(client netip.Addr, now time.Time) time.Duration {
	tokens := l.bucket(client)
	reserved := tokens.ReserveN(now, 1)
	wait := reserved.DelayFrom(now)
	if wait > 0 {
		reserved.CancelAt(now)
	}
	return wait
}

func (l *limiter) bucket(client netip.Addr) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.buckets[client]; ok {
		l.recent.MoveToFront(known)
		return known.Value.(*bucket).tokens
	}
	if l.recent.Len() >= l.clients {
		oldest := l.recent.Back()
		delete(l.buckets, l.recent.Remove(oldest).(*bucket).client)
	}
	b := &bucket{client: client, tokens: rate.NewLimiter(rate.Every(l.interval), l.burst)}
	l.buckets[client] = l.recent.PushFront(b)
	return b.tokens
}
