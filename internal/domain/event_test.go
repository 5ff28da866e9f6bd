package domain_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"postbus/internal/domain"
)

type told string

func (told) EventType() string { return "test.told" }

type aggregate struct{ events domain.Recorder }

func (a *aggregate) Recorded() *domain.Recorder { return &a.events }

func TestRecorderKeepsOrderAndEmpties(t *testing.T) {
	t.Parallel()
	var a aggregate
	a.events.Record(told("1"), told("2"))
	a.events.Record(told("3"))
	if got := a.events.Take(); !slices.Equal(got, []domain.Event{told("1"), told("2"), told("3")}) {
		t.Errorf("took %v", got)
	}
	if got := a.events.Take(); len(got) != 0 {
		t.Errorf("took %v again", got)
	}
}

func TestRecordedOrdersAcrossAggregatesAndLeavesThem(t *testing.T) {
	t.Parallel()
	var a, b aggregate
	a.events.Record(told("1"))
	b.events.Record(told("2"))
	a.events.Record(told("3"))
	b.events.Record(told("4"))
	want := []domain.Event{told("1"), told("2"), told("3"), told("4")}
	for range 2 {
		if got := domain.Recorded(&b, &a, &b); !slices.Equal(got, want) {
			t.Errorf("recorded %v", got)
		}
	}
}

// TestAggregatesOfManyGoroutines is for the race detector: each has its own, only the order is shared.
func TestAggregatesOfManyGoroutines(t *testing.T) {
	t.Parallel()
	var recording sync.WaitGroup
	for range 8 {
		recording.Go(func() {
			var a aggregate
			for range 100 {
				a.events.Record(told("x"))
			}
			if got := len(a.events.Take()); got != 100 {
				t.Errorf("took %d", got)
			}
		})
	}
	recording.Wait()
}

func TestCauseTravelsInTheContext(t *testing.T) {
	t.Parallel()
	if got := domain.CauseOf(context.Background()); got != (domain.Cause{}) {
		t.Errorf("the empty context has %v", got)
	}
	want := domain.Cause{EventID: uuid.New(), Correlation: "request-1"}
	if got := domain.CauseOf(domain.WithCause(t.Context(), want)); got != want {
		t.Errorf("got %v", got)
	}
}
