package uow_test

import (
	"context"
	"errors"
	"fmt"

	"postbus/internal/domain"
	"postbus/internal/uow"
)

// Shipped is an event: a fact about the order with that number.
type Shipped struct {
	Order string `json:"order"`
}

func (Shipped) EventType() string  { return "order.shipped" }
func (e Shipped) EventKey() string { return e.Order }

// Order is an aggregate. It records what happens to it.
type Order struct {
	Number string
	events domain.Recorder
}

func (o *Order) Recorded() *domain.Recorder { return &o.events }

func (o *Order) Ship() { o.events.Record(Shipped{Order: o.Number}) }

var (
	manager *uow.Manager
	ctx     = context.Background()
)

// A use case: the row and the event become durable together, or neither does.
func ExampleManager_Do() {
	err := manager.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		order := &Order{Number: "8"} // loaded inside: fn may run again
		w.Track(order)
		order.Ship()
		_, err := w.DB().Exec(ctx, `UPDATE orders SET shipped = true WHERE number = $1`, order.Number)
		return err
	})

	var dispatch *uow.DispatchError
	switch {
	case err == nil:
		fmt.Println("stored, and every handler in this process has run")
	case errors.As(err, &dispatch):
		fmt.Println("stored; a handler in this process failed, which the consumers don't notice")
	case errors.Is(err, uow.ErrOutcomeUnknown):
		fmt.Println("the connection was lost during COMMIT: ask the database, or do it again if that does no harm")
	default:
		fmt.Println("nothing was stored")
	}
}
