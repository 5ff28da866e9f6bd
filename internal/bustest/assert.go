package bustest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"postbus/internal/bus"
	"postbus/internal/domain"
	"postbus/internal/job"
)

// Published returns the events of a type that were published since New, in the order of their commits. It ends the test for a
// type that is not in the catalogue.
func Published[E domain.Event](h *Harness) []E {
	h.t.Helper()
	var zero E
	definition, ok := h.catalogue.Lookup(zero.EventType())
	if !ok {
		h.t.Fatalf("bustest: the catalogue has no %s", zero.EventType())
	}
	var events []E
	for _, m := range h.messages(definition.Topic) {
		if bus.Type(m) != definition.Type {
			continue
		}
		var e E
		h.must("read event", h.codec.Unmarshal(m, &e))
		events = append(events, e)
	}
	return events
}

// PublishedOne returns the one event of a type that was published since New. When there is none, or more, it ends the test and
// says what was published instead.
func PublishedOne[E domain.Event](h *Harness) E {
	h.t.Helper()
	events := Published[E](h)
	if len(events) != 1 {
		var zero E
		h.t.Fatalf("bustest: %d %s were published, want one; published were %s", len(events), zero.EventType(), h.published())
	}
	return events[0]
}

// Enqueued returns the arguments of all jobs of a kind that were enqueued since New, whatever has become of them, in the order
// in which they were enqueued; those of schedules too.
func Enqueued[A job.Args](h *Harness) []A {
	h.t.Helper()
	var zero A
	var all []A
	for _, s := range h.jobs() {
		if s.Kind != zero.Kind() {
			continue
		}
		var args A
		h.must("read arguments of "+s.Kind, json.Unmarshal(s.Args, &args))
		all = append(all, args)
	}
	return all
}

// EnqueuedOne returns the arguments of the one job of a kind that was enqueued since New. When there is none, or more, it ends
// the test and says what was enqueued instead.
func EnqueuedOne[A job.Args](h *Harness) A {
	h.t.Helper()
	all := Enqueued[A](h)
	if len(all) != 1 {
		var zero A
		h.t.Fatalf("bustest: %d jobs %s were enqueued, want one; enqueued were %s", len(all), zero.Kind(), h.enqueued())
	}
	return all[0]
}

// Jobs returns the jobs of a kind as the work table has them: state, attempts, failures, result.
func (h *Harness) Jobs(kind string) []job.Status {
	h.t.Helper()
	return slices.DeleteFunc(h.jobs(), func(s job.Status) bool { return s.Kind != kind })
}

// published says in a few words what was published.
func (h *Harness) published() string {
	h.t.Helper()
	counts := make(map[string]int)
	for _, topic := range h.catalogue.Topics() {
		for _, m := range h.messages(topic) {
			counts[bus.Type(m)]++
		}
	}
	return listed(counts)
}

// enqueued says in a few words what was enqueued.
func (h *Harness) enqueued() string {
	h.t.Helper()
	counts := make(map[string]int)
	for _, s := range h.jobs() {
		counts[s.Kind]++
	}
	return listed(counts)
}

// listed tells how many there are of each, by name.
func listed(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[name], name))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}
