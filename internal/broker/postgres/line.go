package postgres

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"
)

// parkedKey is a key that has a line in the table (parking.go), as its owner knows it. Its fields belong to delivery.mu.
type parkedKey struct {
	key   string
	share *share
	retry bool // its head is to be tried, some time
	// queue has the rows of the line that are being handled; nil when there are none, and the head is not due.
	queue *queue
	// ended asks for what comes after the rows that were handled.
	ended bool
	// behind are events of the key that were read from the log and are not stored in the line yet.
	behind []*entry
}

// parkedLoadMax bounds what is taken from lines and not handled yet.
const parkedLoadMax = 4 << 20

// parkRowsMax bounds what one transaction parks.
const parkRowsMax = 500

// behindLine puts an entry behind its key's line, if there is one.
func (d *delivery) behindLine(e *entry, key string) bool {
	p := d.parked[key]
	if p == nil {
		return false
	}
	p.behind = append(p.behind, e)
	signal(d.parking)
	return true
}

// park takes the first entry of a queue, which failed, out of the way, and those behind it unless they may go on. The
// entries stay open until the table has them.
func (d *delivery) park(q *queue, v verdict) {
	e := q.entries[0]
	d.change(change{
		share: q.share, key: q.key, position: e.position, kind: changePark, entry: e, state: v.state, wait: v.wait, failure: &v.failure,
	})
	rest := q.entries[1:]
	q.entries = nil
	delete(d.queues, q.key)
	if v.state != stateDead {
		d.parked[q.key] = &parkedKey{key: q.key, share: q.share, retry: v.state == stateRetry, behind: rest}
		return
	}
	d.resume(q.key, q.share, rest)
}

// resume gives entries of a key that has no line a queue again.
func (d *delivery) resume(key string, s *share, entries []*entry) {
	if len(entries) == 0 {
		return
	}
	q := &queue{key: key, share: s, entries: entries}
	d.queues[key] = q
	d.ready <- q
}

// failAgain notes that the head of a line failed once more.
func (d *delivery) failAgain(q *queue, v verdict) {
	e, p := q.entries[0], q.line
	d.change(change{
		share: q.share, key: q.key, position: e.position, kind: changeFail, entry: e, state: v.state, wait: v.wait, failure: &v.failure,
	})
	d.loaded -= q.bytes()
	q.entries, p.queue = nil, nil
	p.retry, p.ended = v.state == stateRetry, v.state == stateDead // past a dead one that lets its key go on comes the next
}

// handled notes that a row of a line was handled, and asks for more when it was the last that was taken.
func (d *delivery) handled(q *queue) {
	e := q.entries[0]
	d.change(change{share: q.share, key: q.key, position: e.position, kind: changeHandle})
	q.entries = q.entries[1:]
	p := q.line
	if p == nil { // dropped
		return
	}
	d.loaded -= e.bytes()
	if len(q.entries) == 0 {
		p.queue, p.ended = nil, true
	}
}

func (q *queue) bytes() (n int) {
	for _, e := range q.entries {
		n += e.bytes()
	}
	return n
}

func (d *delivery) change(c change) {
	d.changes = append(d.changes, c)
	c.share.pending++
	signal(d.parking)
}

// dropLines forgets the lines of a share. What is with a handler stays with it.
func (d *delivery) dropLines(s *share) {
	for key, p := range d.parked {
		if p.share != s {
			continue
		}
		if q := p.queue; q != nil {
			d.loaded -= q.bytes()
			q.line = nil
			if q.out {
				q.entries = q.entries[:1]
			} else {
				q.entries = nil
			}
		}
		delete(d.parked, key)
	}
}

// takeChanges returns what is to be stored next.
func (d *delivery) takeChanges() []change {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.parked {
		n := min(len(p.behind), parkRowsMax-len(d.changes))
		if n <= 0 {
			continue
		}
		for _, e := range p.behind[:n] {
			d.change(change{share: p.share, key: p.key, position: e.position, kind: changePark, entry: e, state: stateBehind})
		}
		p.behind = p.behind[n:]
	}
	return slices.Clone(d.changes[:min(len(d.changes), parkRowsMax)])
}

// changed notes that changes have reached the table, those of the shares that are held. It returns how many shares were lost.
func (d *delivery) changed(done []change, held map[int16]bool) (lost int) {
	gone := make(map[*share]bool)
	d.mu.Lock()
	d.changes = slices.Delete(d.changes, 0, len(done))
	for _, c := range done {
		c.share.pending--
		switch {
		case !held[c.share.number]:
			gone[c.share] = true
		case c.kind == changePark:
			d.closeParked(c.entry)
		}
	}
	more := len(d.changes) > 0
	for _, p := range d.parked {
		more = more || len(p.behind) > 0
	}
	if more {
		signal(d.parking)
	}
	signal(d.dirty) // a share that leaves may have waited for this
	d.mu.Unlock()
	return d.loseShares(gone)
}

// closeParked closes an entry that the table has.
func (d *delivery) closeParked(e *entry) {
	if s := e.share; s.leaving {
		s.handled = append(s.handled, e.position)
	} else if len(e.track.open) > 0 && e.track.open[0] != e {
		s.ahead[e.position] = true // until the place has passed it; the table says the same
	}
	e.done, e.parked = true, true
	d.advance(e.track)
}

// loseShares is lose for those that are still held by the same epoch.
func (d *delivery) loseShares(gone map[*share]bool) (lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := range gone {
		if d.shares[s.number] == s {
			d.takeAway(s)
			lost++
		}
	}
	return lost
}

// wanted returns the keys whose lines are to be read on, and whether lines may have become due meanwhile, of which shares.
func (d *delivery) wanted() (ended []string, due []int16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.loaded >= parkedLoadMax {
		return nil, nil
	}
	shares := make(map[int16]bool)
	for key, p := range d.parked {
		switch {
		case p.ended && len(ended) < dueKeysMax:
			ended = append(ended, key)
		case p.retry && p.queue == nil:
			shares[p.share.number] = true
		}
	}
	return ended, slices.Sorted(maps.Keys(shares))
}

// load takes rows of a key's line up. When the line has no row left the key goes on as any other.
func (d *delivery) load(key string, rows []waitingRow, exists bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.parked[key]
	if p == nil {
		p = d.newLine(key, rows)
	}
	if p == nil || p.queue != nil || slices.ContainsFunc(d.changes, func(c change) bool { return c.key == key }) {
		return // lost meanwhile, or what was read is not what there will be
	}
	d.parked[key] = p
	p.ended = false
	switch {
	case !exists:
		delete(d.parked, key)
		d.resume(key, p.share, p.behind)
	case len(rows) > 0:
		q := &queue{key: key, share: p.share, line: p}
		for _, r := range rows {
			q.entries = append(q.entries, &entry{row: r.row, share: p.share, attempts: r.attempts})
		}
		d.loaded += q.bytes()
		p.queue = q
		d.ready <- q
	}
}

// newLine is for a line that somebody else has begun, by having a dead event tried again whose key had gone on. While the
// key has events under way it has to wait; whoever asks, asks again.
func (d *delivery) newLine(key string, rows []waitingRow) *parkedKey {
	if len(rows) == 0 || d.queues[key] != nil {
		return nil
	}
	s := d.shares[rows[0].share]
	if s == nil || s.leaving {
		return nil
	}
	return &parkedKey{key: key, share: s, retry: true}
}

// parkEvery is how often lines are looked at while one of them is to be tried; without one nothing is asked.
const parkEvery = 250 * time.Millisecond

// keepParking stores what is parked, and takes from the lines what is due.
func (s *Subscriber) keepParking(ctx context.Context, d *delivery) {
	tick := time.NewTicker(parkEvery)
	defer tick.Stop()
	told := false
	for ctx.Err() == nil {
		due := s.log.wakeup.next(dueMark + s.consumer)
		if err := s.parkOnce(ctx, d, told); err != nil && ctx.Err() == nil {
			s.logger.Warn("parking interrupted, will be tried again", slog.Any("error", err))
			sleep(ctx, s.log.config.RetryMin)
			signal(d.parking)
		}
		told = false
		select {
		case <-ctx.Done():
		case <-d.parking:
		case <-tick.C:
		case <-due:
			told = true
		}
	}
}

// parkOnce is one turn. What changed is stored before lines are read. When the process was told that something is due it
// looks at all its shares, since an operator may have had it tried again.
func (s *Subscriber) parkOnce(ctx context.Context, d *delivery, told bool) error {
	if err := s.storeChanges(ctx, d); err != nil {
		return err
	}
	keys, shares := d.wanted()
	if told {
		shares = d.numbers()
	}
	if len(shares) > 0 {
		due, err := d.holder.dueKeys(ctx, shares)
		if err != nil {
			return err
		}
		keys = append(keys, due...)
	}
	for _, key := range keys {
		rows, exists, err := d.holder.line(ctx, key)
		if err != nil {
			return err
		}
		d.load(key, rows, exists)
	}
	return nil
}

// storeChanges stores all that is to be parked by now. Like a checkpoint, it is not cut short by the end of the work.
func (s *Subscriber) storeChanges(ctx context.Context, d *delivery) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	for {
		n, err := s.storeSome(ctx, d)
		if err != nil || n == 0 {
			return err
		}
	}
}

// storeSome stores the changes that are next, and returns how many there were.
func (s *Subscriber) storeSome(ctx context.Context, d *delivery) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	changes := d.takeChanges()
	if len(changes) == 0 {
		return 0, nil
	}
	held, err := d.holder.park(ctx, changes)
	if err != nil {
		return 0, err
	}
	s.tellDead(changes)
	s.reportLost(d.changed(changes, held))
	return len(changes), nil
}

func (s *Subscriber) tellDead(changes []change) {
	for _, c := range changes {
		if c.state == stateHeld || c.state == stateDead {
			s.logger.Error("event is dead", slog.String("message_uuid", c.entry.id.String()),
				slog.String("event_type", c.entry.eventType()), slog.String("reason", c.failure.Class),
				slog.String("state", c.state))
		}
	}
}
