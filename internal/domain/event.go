// Package domain holds what every aggregate of an application shares: events and the recorder that keeps them until the
// Unit of Work takes them.
//
// It knows nothing of buses, databases or brokers.
package domain

import (
	"cmp"
	"slices"
	"sync/atomic"
)

// Event is a fact in the past tense: an immutable value, told after it has happened.
//
// EventType is its durable name, dotted, the aggregate's noun first: "user.registered". It is never the Go type's name
// and never changes: it stands in stored messages. The noun before the first dot is the topic.
type Event interface{ EventType() string }

// Keyed is an Event that belongs to one aggregate. EventKey is the aggregate's id: events with one key are handled in
// the order of their commits. Events without a key are handled in any order.
type Keyed interface{ EventKey() string }

// Source is an aggregate that records events.
type Source interface{ Recorded() *Recorder }

// Recorder keeps the events of one aggregate until a Unit of Work has made them durable. Its zero value is ready. It is
// a named field of the aggregate, and like the aggregate it is used by one goroutine at a time.
type Recorder struct{ entries []entry }

type entry struct {
	order uint64
	event Event
}

// recordings orders the events of several aggregates among each other. It only ever grows and is compared, never
// stored; a counter in each Recorder could not tell which of two aggregates recorded first.
var recordings atomic.Uint64

// Record appends events in the order given.
func (r *Recorder) Record(events ...Event) {
	for _, e := range events {
		r.entries = append(r.entries, entry{order: recordings.Add(1), event: e})
	}
}

// Take returns the recorded events in recording order and empties the recorder.
func (r *Recorder) Take() []Event {
	events := inOrder(r.entries)
	r.entries = nil
	return events
}

// Recorded returns the events of all sources in the order in which they were recorded, across the sources. It leaves
// them in their recorders: what was not made durable is still there. A source given twice counts once.
func Recorded(sources ...Source) []Event {
	var entries []entry
	seen := make(map[*Recorder]bool, len(sources))
	for _, s := range sources {
		r := s.Recorded()
		if seen[r] {
			continue
		}
		seen[r] = true
		entries = append(entries, r.entries...)
	}
	return inOrder(entries)
}

func inOrder(entries []entry) []Event {
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b entry) int { return cmp.Compare(a.order, b.order) })
	events := make([]Event, len(sorted))
	for i, e := range sorted {
		events[i] = e.event
	}
	return events
}
