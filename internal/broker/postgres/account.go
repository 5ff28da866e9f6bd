package postgres

import (
	"context"
	"maps"
	"slices"
	"time"
)

// share is a part of the consumer's work that this process holds. Its fields belong to delivery.mu.
type share struct {
	number int16
	epoch  int64
	ctx    context.Context // of its messages' handlers; ends when another process has the share
	cancel context.CancelCauseFunc
	track  *track
	stored place
	noted  int            // how much of ahead is stored with it
	ahead  map[int64]bool // handled beyond its place: before this process held it, or on the common track
	beyond int            // how many of them on the common track
	out    int            // messages that are with a handler
	// pending are changes of its lines that are not stored yet.
	pending int

	leaving bool    // to be handed over once nothing is out
	frozen  place   // where it stood when it began to leave
	handled []int64 // what is handled beyond frozen
}

// track accounts for rows that were read one after another: its place is where everything before is done. Shares that
// were claimed together at one place have a track of their own until they have caught up with the common one.
type track struct {
	shares []*share
	place  place
	open   []*entry // in log order, from the oldest that is not done
	last   uint64   // the window of the newest entry that left open
	joins  uint64   // the window at whose end these shares stand where the common ones do; 0 while it is being read
}

// entry is a row under way.
type entry struct {
	row
	share  *share
	track  *track
	window uint64
	begin  place // of its window, on the common track
	done   bool

	parked   bool  // and stored in its line
	attempts int   // that failed, of one that was taken from a line; its track is nil
	reason   error // of the refusal, which Refuse was told
}

// join takes claimed shares up. The reader fetches them with takeUp.
func (d *delivery) join(handling context.Context, shares []claimed, parked map[string]parkedHead) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() {
		for key, head := range parked {
			d.parked[key] = &parkedKey{key: key, share: d.shares[head.share], retry: head.retry}
		}
		signal(d.parking)
	}()
	for _, c := range shares {
		s := &share{number: c.number, epoch: c.epoch, stored: c.place, noted: len(c.ahead), ahead: make(map[int64]bool, len(c.ahead))}
		s.ctx, s.cancel = context.WithCancelCause(handling) //nolint:fatcontext // one for each share
		for _, position := range c.ahead {
			s.ahead[position] = true
		}
		i := slices.IndexFunc(d.joining, func(t *track) bool { return t.place == c.place })
		if i < 0 {
			i = len(d.joining)
			d.joining = append(d.joining, &track{place: c.place})
		}
		s.track = d.joining[i]
		s.track.shares = append(s.track.shares, s)
		d.shares[s.number] = s
	}
	if len(shares) > 0 {
		d.active = time.Now()
	}
	signal(d.joined)
}

// heard notes that the topic has something new, whoever it is for. While events come, resting would mean to give shares up
// and claim them again at once.
func (d *delivery) heard() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active = time.Now()
}

// takeUp returns the shares that stand at the common boundary, that boundary, and the tracks that have yet to get there.
func (d *delivery) takeUp() (common []*share, boundary place, joining []*track) {
	d.mu.Lock()
	defer d.mu.Unlock()
	joining, d.joining = d.joining, nil
	fresh := make(map[*track]bool, len(joining))
	for _, t := range joining {
		fresh[t] = true
	}
	for _, s := range d.shares {
		if !s.leaving && !fresh[s.track] {
			common = append(common, s)
		}
	}
	if len(common) == 0 && len(joining) > 0 && len(d.common.open) == 0 {
		common, joining = d.begin(joining)
	}
	d.tracks = append(d.tracks, joining...)
	return common, d.boundary, joining
}

// begin makes the place of most of the joining shares the common one, when nobody stands there. A track of their own would
// be of no use, and one message could keep them on it for as long as it fails.
func (d *delivery) begin(joining []*track) (common []*share, others []*track) {
	first := slices.MaxFunc(joining, func(a, b *track) int { return len(a.shares) - len(b.shares) })
	d.common.place, d.boundary = first.place, first.place
	for _, s := range first.shares {
		s.track = &d.common
		if !s.leaving {
			common = append(common, s)
		}
	}
	return common, slices.DeleteFunc(joining, func(t *track) bool { return t == first })
}

// endWindow notes that a window was read to its end: every share, those that were joining included, has been given all
// its rows up to boundary.
func (d *delivery) endWindow(window uint64, boundary place, joined []*track) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.window, d.boundary = window, boundary
	for _, t := range joined {
		t.joins = window
	}
	d.advance(&d.common)
	for _, t := range slices.Clone(d.tracks) {
		d.advance(t)
	}
}

// advance moves the place of a track over what is done. A track of its own that has caught up ends.
func (d *delivery) advance(t *track) {
	if t == nil { // of a message that was taken from a line
		return
	}
	moved := false
	for len(t.open) > 0 && t.open[0].done {
		e := t.open[0]
		t.open[0] = nil
		t.open = t.open[1:]
		t.place, t.last = e.after, e.window
		if t == &d.common && e.share.track != t {
			d.goAhead(e) // its share's place is still behind
		} else {
			delete(e.share.ahead, e.position)
		}
		d.entries--
		d.bytes -= e.bytes()
		moved = true
	}
	if t == &d.common {
		switch {
		case len(t.open) == 0 && t.last <= d.window:
			t.place = d.boundary
		case len(t.open) > 0 && t.open[0].window > t.last:
			t.place = t.open[0].begin
		}
		for _, own := range slices.Clone(d.tracks) {
			d.settle(own)
		}
	} else {
		d.settle(t)
	}
	if moved {
		d.closed.Broadcast()
		signal(d.dirty)
	}
}

// goAhead notes an entry that is done while its share's place stays behind.
func (d *delivery) goAhead(e *entry) {
	s := e.share
	if (s.ahead[e.position] && !e.parked) || s.leaving || d.shares[s.number] != s {
		return
	}
	s.ahead[e.position] = true
	s.beyond++
	d.beyond++
}

// settle moves the shares of a track of their own to the common one, when both stand at or beyond the boundary at which
// they join: before that, either place would be wrong for the other's shares.
func (d *delivery) settle(t *track) {
	if t.joins == 0 || len(t.open) > 0 {
		return
	}
	if c := &d.common; len(c.open) > 0 && c.open[0].window <= t.joins {
		return
	}
	for _, s := range t.shares {
		s.track = &d.common
		clear(s.ahead) // the common place has passed them
		d.fallBack(s)
	}
	d.closed.Broadcast()
	d.tracks = slices.DeleteFunc(d.tracks, func(other *track) bool { return other == t })
	signal(d.dirty)
}

// fallBack is for a share whose place is not behind any more, or not this process's to know.
func (d *delivery) fallBack(s *share) {
	d.beyond -= s.beyond
	s.beyond = 0
}

// held returns how many shares are held and not about to be handed over.
func (d *delivery) held() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, s := range d.shares {
		if !s.leaving {
			n++
		}
	}
	return n
}

// idle reports whether shares are held and nothing has come or gone for that long.
func (d *delivery) idle(since time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.shares) > 0 && d.entries == 0 && time.Since(d.active) > since
}

// giveUp begins to hand over n shares. What is out of them is awaited; the rest of them is for their next owner.
func (d *delivery) giveUp(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, number := range slices.Backward(slices.Sorted(maps.Keys(d.shares))) {
		if s := d.shares[number]; n > 0 && !s.leaving {
			d.leave(s)
			n--
		}
	}
}

// leave freezes where a share stands and takes its entries out of the way.
func (d *delivery) leave(s *share) {
	s.leaving = true
	s.frozen = s.track.place
	for position := range s.ahead {
		s.handled = append(s.handled, position)
	}
	d.fallBack(s)
	out := d.dropQueues(s)
	d.closeEntries(s, func(e *entry) bool {
		if e.done && !s.ahead[e.position] {
			s.handled = append(s.handled, e.position)
		}
		return !out[e]
	})
	signal(d.dirty)
}

// dropQueues takes the share's queues away and returns the entries that are out; back closes those.
func (d *delivery) dropQueues(s *share) (out map[*entry]bool) {
	d.dropLines(s)
	out = make(map[*entry]bool)
	for key, q := range d.queues {
		if q.share != s {
			continue
		}
		if q.out {
			out[q.entries[0]] = true
		}
		q.entries = nil
		delete(d.queues, key)
	}
	for range len(d.ready) { // what was dropped takes up no room
		select {
		case q := <-d.ready:
			if len(q.entries) > 0 {
				d.ready <- q
			}
		default: // a lane was faster
		}
	}
	return out
}

// closeEntries closes those of the share's entries that which names, so that they hold up no other share.
func (d *delivery) closeEntries(s *share, which func(*entry) bool) {
	affected := append(slices.Clone(d.tracks), &d.common)
	for _, t := range affected {
		for _, e := range t.open {
			if e.share == s && which(e) {
				e.done = true
			}
		}
	}
	for _, t := range affected {
		d.advance(t)
	}
}

// lose takes shares away that another process has by now: their handlers' contexts end, nothing of them is stored.
// It returns how many it had.
func (d *delivery) lose(numbers ...int16) (lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, number := range numbers {
		if s := d.shares[number]; s != nil {
			d.takeAway(s)
			lost++
		}
	}
	return lost
}

func (d *delivery) takeAway(s *share) {
	s.leaving = true
	s.cancel(errLeaseLost)
	d.fallBack(s)
	d.dropQueues(s)
	d.closeEntries(s, func(*entry) bool { return true })
	delete(d.shares, s.number)
}

// numbers returns the shares that are held, those about to be handed over included.
func (d *delivery) numbers() []int16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.shares))
}

// due collects what is to be stored: of shares whose place has moved, and of those that leave and have nothing out. What is
// handled beyond a place that stays is stored now and then, since it is written as a whole each time.
func (d *delivery) due() []checkpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []checkpoint
	slow := time.Since(d.noted) >= noteEvery
	for _, s := range d.shares {
		switch {
		case s.leaving && s.out == 0 && s.pending == 0:
			all = append(all, checkpoint{number: s.number, epoch: s.epoch, place: s.frozen, ahead: s.handled, release: true})
		case !s.leaving && (s.track.place != s.stored || slow && len(s.ahead) != s.noted):
			if s.track.place == s.stored {
				d.noted = time.Now()
			}
			all = append(all, checkpoint{number: s.number, epoch: s.epoch, place: s.track.place,
				ahead: slices.Collect(maps.Keys(s.ahead))})
		}
	}
	return all
}

// remaining collects the last checkpoints, of everything that is held. A share of which a handler may still be running
// is stored and not released: it runs out by itself.
func (d *delivery) remaining() []checkpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []checkpoint
	for _, s := range d.shares {
		if !s.leaving {
			d.leave(s)
		}
		all = append(all, checkpoint{
			number: s.number, epoch: s.epoch, place: s.frozen, ahead: s.handled, release: s.out == 0 && s.pending == 0,
		})
	}
	return all
}

// atRest returns the shares of which no handler is running, with their epochs.
func (d *delivery) atRest() map[int16]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	epochs := make(map[int16]int64)
	for _, s := range d.shares {
		if s.out == 0 {
			epochs[s.number] = s.epoch
		}
	}
	return epochs
}

// stored notes what has reached the database. What has not belongs to another process; it returns how much that was.
func (d *delivery) stored(asked []checkpoint, reached map[int16]bool) (lost int) {
	gone := make(map[*share]bool)
	d.mu.Lock()
	for _, c := range asked {
		s := d.shares[c.number]
		switch {
		case s == nil || s.epoch != c.epoch:
		case !reached[c.number]:
			gone[s] = true
		case c.release:
			s.cancel(nil) // nothing of it is out; its parent would keep it
			delete(d.shares, c.number)
			if len(d.shares) == 0 {
				signal(d.emptied)
			}
		default:
			s.stored, s.noted = c.place, len(c.ahead)
		}
	}
	d.mu.Unlock()
	return d.loseShares(gone)
}

// signal tells whoever waits on c, now or next.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
