package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// entryID orders the entries of a stream.
type entryID struct {
	milliseconds, sequence uint64
}

func (id entryID) String() string { return fmt.Sprintf("%d-%d", id.milliseconds, id.sequence) }

func (id entryID) compare(other entryID) int {
	return cmp.Or(cmp.Compare(id.milliseconds, other.milliseconds), cmp.Compare(id.sequence, other.sequence))
}

// before is the id before; the first one has none, and is its own.
func (id entryID) before() entryID {
	switch {
	case id.sequence > 0:
		return entryID{id.milliseconds, id.sequence - 1}
	case id.milliseconds > 0:
		return entryID{id.milliseconds - 1, math.MaxUint64}
	}
	return id
}

func parseID(s string) (id entryID, ok bool) {
	milliseconds, sequence, ok := strings.Cut(s, "-")
	var err1, err2 error
	id.milliseconds, err1 = strconv.ParseUint(milliseconds, 10, 64)
	id.sequence, err2 = strconv.ParseUint(sequence, 10, 64)
	return id, ok && err1 == nil && err2 == nil
}

// place is where a stream was read up to.
type place struct {
	mark   string // of the stream
	entry  entryID
	number int64  // of the entry among all that were ever added, or 0 if that is not known
	event  string // the entry's field id
}

func (p place) String() string { return fmt.Sprintf("%s/%s/%d/%s", p.mark, p.entry, p.number, p.event) }

// parsePlace reads what String wrote; false for anything else.
func parsePlace(s string) (p place, ok bool) {
	parts := strings.SplitN(s, "/", 4)
	if len(parts) < 4 {
		return place{}, false
	}
	entry, ok := parseID(parts[1])
	number, err := strconv.ParseInt(parts[2], 10, 64)
	return place{mark: parts[0], entry: entry, number: number, event: parts[3]}, ok && err == nil
}

// state is what a stream tells of itself.
type state struct {
	mark    string
	length  int64
	added   int64   // how many entries there have ever been
	first   entryID // of those that are there, if there are any
	last    entryID // that was ever given
	deleted entryID // the largest that somebody deleted, other than by trimming
}

// gone is how many entries there were once.
func (s state) gone() int64 { return s.added - s.length }

// beginning is the id before the first entry.
func (s state) beginning() entryID {
	if s.length == 0 {
		return s.last
	}
	return s.first.before()
}

// look asks for a stream's state, and for the entries from one id to another, at most so many, in one transaction.
func look(ctx context.Context, client *redis.Client, stream, from, to string, count int64) (s state, entries []redis.XMessage, err error) {
	transaction := client.TxPipeline()
	info := transaction.XInfoStream(ctx, stream)
	groups := transaction.XInfoGroups(ctx, stream)
	found := transaction.XRangeN(ctx, stream, from, to, count)
	if _, err := transaction.Exec(ctx); err != nil {
		return state{}, nil, err
	}
	s = state{length: info.Val().Length, added: info.Val().EntriesAdded}
	var ok1, ok2, ok3 bool
	s.first, ok1 = parseID(info.Val().RecordedFirstEntryID)
	s.last, ok2 = parseID(info.Val().LastGeneratedID)
	s.deleted, ok3 = parseID(info.Val().MaxDeletedEntryID)
	if !ok1 || !ok2 || !ok3 {
		return state{}, nil, errors.New("the server tells too little of a stream")
	}
	s.mark, err = markOf(groups)
	return s, found.Val(), err
}
