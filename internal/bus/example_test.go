package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"postbus/internal/bus"
	"postbus/internal/domain"
)

// Shipped is an event: a fact about the order with that number.
type Shipped struct {
	Order string `json:"order"`
}

func (Shipped) EventType() string  { return "order.shipped" }
func (e Shipped) EventKey() string { return e.Order }

// Cancelled is another event of the same topic.
type Cancelled struct {
	Order string `json:"order"`
}

func (Cancelled) EventType() string  { return "order.cancelled" }
func (e Cancelled) EventKey() string { return e.Order }

// Handlers in the process run in the order of their registration, and the first that fails is the last.
func ExampleRegister() {
	b := bus.New(slog.New(slog.DiscardHandler))
	err := errors.Join(
		bus.Register(b, "count", func(_ context.Context, e Shipped) error {
			fmt.Println("counted", e.Order)
			return nil
		}),
		bus.Register(b, "label", func(context.Context, Shipped) error { return errors.New("no paper") }),
		bus.Register(b, "never", func(context.Context, Shipped) error { return nil }),
	)
	fmt.Println(err)

	err = b.PublishAll(context.Background(), []domain.Event{Cancelled{"7"}, Shipped{"8"}})
	fmt.Println(err)
	var failed *bus.HandlerError
	if errors.As(err, &failed) {
		fmt.Println(failed.Handler, "did not handle", failed.Type)
	}

	b.ClearHandlers()
	fmt.Println(b.Publish(context.Background(), Shipped{"9"}))
	// Output:
	// <nil>
	// counted 8
	// handler label of order.shipped: no paper
	// label did not handle order.shipped
	// <nil>
}

// A consumer takes event types of one topic. Its place in the topic is kept under its name.
func ExampleHandle() {
	parcels, err := bus.NewConsumer("parcel-email")
	if err != nil {
		fmt.Println(err)
		return
	}
	err = errors.Join(
		bus.Handle(parcels, func(ctx context.Context, e Shipped) error {
			// It may come again: the id is the same each time, for whoever has to tell.
			fmt.Println("mail for order", e.Order, "as", domain.CauseOf(ctx).EventID)
			return nil
		}),
		bus.Handle(parcels, func(context.Context, Cancelled) error { return nil }),
	)
	fmt.Println(parcels.Name(), parcels.Topic(), parcels.Types(), err)
	// Output: parcel-email order [order.shipped order.cancelled] <nil>
}
