package postgres

import (
	"context"
	"sync"
	"time"
)

// The consumers of a process read in turns. More reads at once make nothing faster, and what a session of Postgres knows of a topic
// it has to find out for itself: with few at once it is mostly the same few sessions that read, since a pool hands out first what
// came back last.
const (
	readsMax = 4
	// turnLimit is how long a read keeps others from their turn. One that takes longer, as behind somebody's lock, is no reason
	// for them to wait.
	turnLimit = 100 * time.Millisecond
)

// turns are given out to so many at a time, in the order in which they are asked for.
type turns chan struct{}

func newTurns(n int) turns { return make(turns, n) }

// begin waits for a turn. It ends with the first call of done, or after turnLimit.
func (t turns) begin(ctx context.Context) (done func(), err error) {
	select {
	case t <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	end := sync.OnceFunc(func() { <-t })
	late := time.AfterFunc(turnLimit, end)
	return func() {
		late.Stop()
		end()
	}, nil
}
