package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"postbus/internal/bus"
	"postbus/internal/domain"
)

// orderPlaced is the event that everybody carries, as JSON of some 170 bytes. It is also the job, River's and ours.
type orderPlaced struct {
	OrderID  string    `json:"order_id"`
	Number   int64     `json:"number"` // tells the events of a measurement apart
	Customer string    `json:"customer"`
	Currency string    `json:"currency"`
	Cents    int64     `json:"cents"`
	PlacedAt time.Time `json:"placed_at"`
}

// topicName is the topic of orderPlaced.
const topicName = "order"

// EventType implements domain.Event.
func (orderPlaced) EventType() string { return topicName + ".placed" }

// EventKey implements domain.Keyed.
func (e orderPlaced) EventKey() string { return e.OrderID }

// Kind implements river.JobArgs and job.Args.
func (orderPlaced) Kind() string { return "order-placed" }

// keys is how many orders the events of a backlog are spread over.
const keys = 10_000

func newOrder(n int64) orderPlaced {
	return orderPlaced{
		OrderID: "order-" + strconv.FormatInt(n%keys, 10), Number: n, Customer: "7f6c1b0e-6d0a-4c53-9f53-0c3f6a3d9a11",
		Currency: "EUR", Cents: 1000 + n%9000, PlacedAt: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC),
	}
}

// order is the aggregate that records it.
type order struct{ recorder domain.Recorder }

// Recorded implements domain.Source.
func (o *order) Recorded() *domain.Recorder { return &o.recorder }

// handler is called with every event. Its number is all that anybody needs.
type handler func(ctx context.Context, number int64) error

func newCodec() (*bus.Codec, error) {
	catalogue, err := bus.NewCatalogue(bus.Define[orderPlaced](1))
	if err != nil {
		return nil, err
	}
	return bus.NewCodec(catalogue, "/postbus/bench"), nil
}

// newConsumers makes a consumer with a typed handler for each name.
func newConsumers(names []string, handle func(consumer string) handler) ([]*bus.Consumer, error) {
	var all []*bus.Consumer
	for _, name := range names {
		c, err := bus.NewConsumer(name)
		if err != nil {
			return nil, err
		}
		h := handle(name)
		if err := bus.Handle(c, func(ctx context.Context, e orderPlaced) error { return h(ctx, e.Number) }); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// consumerNames are n names.
func consumerNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("reader-%d", i)
	}
	return names
}

var quiet = slog.New(slog.DiscardHandler)

// warnings is a logger for what a person who measures should know.
func warnings(to io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelError}))
}
