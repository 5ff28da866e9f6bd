package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"postbus/internal/bus"
	"postbus/internal/bustest"
	"postbus/internal/domain"
	"postbus/internal/job"
	"postbus/internal/uow"
)

// Sent is an event, and Reminder a job.
type Sent struct {
	Number string `json:"number"`
}

func (Sent) EventType() string  { return "parcel.sent" }
func (e Sent) EventKey() string { return e.Number }

type Reminder struct {
	Number string `json:"number"`
}

func (Reminder) Kind() string { return "parcel-reminder" }

// parcels is what is tested: a consumer that has people reminded of their parcels a week later, and the job that does.
func parcels(work *uow.Manager, remind func(number string) error) (bustest.App, error) {
	reminders, err1 := bus.NewConsumer("parcel-reminders")
	workers := job.NewWorkers()
	return bustest.App{Consumers: []*bus.Consumer{reminders}, Workers: workers}, errors.Join(err1,
		bus.Handle(reminders, func(ctx context.Context, e Sent) error {
			return work.Do(ctx, func(_ context.Context, w *uow.Work) error {
				w.Enqueue(Reminder(e), job.In(7*24*time.Hour))
				return nil
			})
		}),
		job.Handle(workers, func(_ context.Context, r Reminder) error { return remind(r.Number) }),
	)
}

func TestReminder(t *testing.T) {
	for _, flavour := range []bustest.Flavour{bustest.Memory, bustest.Postgres} {
		t.Run(flavour.String(), func(t *testing.T) {
			types, err := bus.NewCatalogue(bus.Define[Sent](1))
			if err != nil {
				t.Fatal(err)
			}
			h := bustest.New(t, flavour, types)
			var reminded []string
			app, err := parcels(h.Work(), func(number string) error {
				reminded = append(reminded, number)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			h.Serve(app)

			h.Publish(Sent{"NL-1"})
			h.FailNext("parcel-reminders", 1, errors.New("the database is away"))
			h.Run() // the event is parked
			if jobs := bustest.Enqueued[Reminder](h); len(jobs) != 0 {
				t.Errorf("enqueued by a consumer that failed: %v", jobs)
			}
			h.Advance(time.Second)
			h.Run() // and tried again
			if got := bustest.EnqueuedOne[Reminder](h); got.Number != "NL-1" {
				t.Errorf("the reminder is of %s", got.Number)
			}
			if reminded != nil {
				t.Errorf("reminded of %s too early", reminded)
			}
			h.Advance(7 * 24 * time.Hour)
			h.Run()
			if len(reminded) != 1 {
				t.Errorf("reminded of %s", reminded)
			}
		})
	}
}

// example is the test of an example, which has none. In a test it is t.
type example struct{ testing.TB }

func (example) Helper()                           {}
func (example) Context() context.Context          { return context.Background() }
func (example) Output() io.Writer                 { return io.Discard }
func (example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// An event is published by a use case or by the test, and handled by Run.
func ExampleHarness_Run() {
	types, _ := bus.NewCatalogue(bus.Define[Sent](1))
	notice, _ := bus.NewConsumer("parcel-notice")
	_ = bus.Handle(notice, func(_ context.Context, e Sent) error {
		fmt.Println("sent:", e.Number)
		return nil
	})
	h := bustest.New(example{}, bustest.Memory, types)
	h.Serve(bustest.App{Consumers: []*bus.Consumer{notice}})

	h.Publish(Sent{"NL-1"}, Sent{"NL-2"})
	h.Run()
	// Output:
	// sent: NL-1
	// sent: NL-2
}

// A failed event is tried again when its time has come. One that failed for good is dead.
func ExampleHarness_FailNext() {
	types, _ := bus.NewCatalogue(bus.Define[Sent](1))
	notice, _ := bus.NewConsumer("parcel-notice")
	_ = bus.Handle(notice, func(_ context.Context, e Sent) error {
		fmt.Println("sent:", e.Number)
		return nil
	})
	h := bustest.New(example{}, bustest.Memory, types)
	h.Serve(bustest.App{Consumers: []*bus.Consumer{notice}})

	h.FailNext("parcel-notice", 1, errors.New("the line is dead"))
	h.Publish(Sent{"NL-1"})
	h.Run()
	fmt.Println("a second later")
	h.Advance(time.Second)
	h.Run()

	h.FailNext("parcel-notice", 1, bus.Permanent(errors.New("nobody lives there")))
	h.Publish(Sent{"NL-2"})
	h.Run()
	for _, d := range h.Dead("parcel-notice") {
		fmt.Printf("dead: %s, %s: %s\n", d.Key, d.Class, d.Error)
	}
	// Output:
	// a second later
	// sent: NL-1
	// dead: NL-2, permanent: nobody lives there
}

// What a use case has published and enqueued, in order.
func ExamplePublished() {
	types, _ := bus.NewCatalogue(bus.Define[Sent](1))
	h := bustest.New(example{}, bustest.Memory, types)
	h.Do(func(_ context.Context, w *uow.Work) error { // the use case
		parcel := &parcel{}
		w.Track(parcel)
		parcel.events.Record(Sent{"NL-1"})
		w.Enqueue(Reminder{"NL-1"}, job.In(time.Hour))
		return nil
	})
	fmt.Println(bustest.Published[Sent](h), bustest.EnqueuedOne[Reminder](h))
	// Output: [{NL-1}] {NL-1}
}

type parcel struct{ events domain.Recorder }

func (p *parcel) Recorded() *domain.Recorder { return &p.events }

// A schedule's ticks come with the clock.
func ExampleHarness_Advance() {
	types, _ := bus.NewCatalogue(bus.Define[Sent](1))
	workers := job.NewWorkers()
	_ = job.Handle(workers, func(context.Context, Reminder) error {
		fmt.Println("a round of reminders")
		return nil
	})
	nightly, _ := job.Cron("17 3 * * *", "Europe/Amsterdam")
	h := bustest.New(example{}, bustest.Memory, types)
	h.Serve(bustest.App{Workers: workers, Schedules: []job.Schedule{{Name: "reminder-round", When: nightly, Args: Reminder{}}}})

	for range 2 {
		h.Advance(25 * time.Hour) // no day is longer
		h.Run()
	}
	// Output:
	// a round of reminders
	// a round of reminders
}
