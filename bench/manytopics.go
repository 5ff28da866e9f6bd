package main

import (
	"context"
	"errors"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
)

// An event type is a Go type, so 200 topics take 200 types. They are one generic type with three digits.
type digit interface{ digit() string }

type (
	d0 struct{}
	d1 struct{}
	d2 struct{}
	d3 struct{}
	d4 struct{}
	d5 struct{}
	d6 struct{}
	d7 struct{}
	d8 struct{}
	d9 struct{}
)

func (d0) digit() string { return "0" }
func (d1) digit() string { return "1" }
func (d2) digit() string { return "2" }
func (d3) digit() string { return "3" }
func (d4) digit() string { return "4" }
func (d5) digit() string { return "5" }
func (d6) digit() string { return "6" }
func (d7) digit() string { return "7" }
func (d8) digit() string { return "8" }
func (d9) digit() string { return "9" }

// numbered is an orderPlaced in a topic of its own.
type numbered[A, B, C digit] struct{ orderPlaced }

// EventType implements domain.Event.
func (numbered[A, B, C]) EventType() string {
	var a A
	var b B
	var c C
	return "topic" + a.digit() + b.digit() + c.digit() + ".placed"
}

// topicKind is one topic with all that is to be known of it.
type topicKind struct {
	definition bus.Definition
	consumer   *bus.Consumer
	event      func(orderPlaced) domain.Event
}

// kindMaker collects topics; handled is called by their handlers.
type kindMaker struct {
	kinds   []topicKind
	err     error
	handled func()
}

func makeKind[A, B, C digit](m *kindMaker) {
	k := topicKind{definition: bus.Define[numbered[A, B, C]](1), event: func(o orderPlaced) domain.Event { return numbered[A, B, C]{o} }}
	var err error
	if k.consumer, err = bus.NewConsumer("reader-" + strconv.Itoa(len(m.kinds))); err == nil {
		err = bus.Handle(k.consumer, func(context.Context, numbered[A, B, C]) error { m.handled(); return nil })
	}
	m.kinds, m.err = append(m.kinds, k), errors.Join(m.err, err)
}

func makeTen[A, B digit](m *kindMaker) {
	makeKind[A, B, d0](m)
	makeKind[A, B, d1](m)
	makeKind[A, B, d2](m)
	makeKind[A, B, d3](m)
	makeKind[A, B, d4](m)
	makeKind[A, B, d5](m)
	makeKind[A, B, d6](m)
	makeKind[A, B, d7](m)
	makeKind[A, B, d8](m)
	makeKind[A, B, d9](m)
}

func makeHundred[A digit](m *kindMaker) {
	makeTen[A, d0](m)
	makeTen[A, d1](m)
	makeTen[A, d2](m)
	makeTen[A, d3](m)
	makeTen[A, d4](m)
	makeTen[A, d5](m)
	makeTen[A, d6](m)
	makeTen[A, d7](m)
	makeTen[A, d8](m)
	makeTen[A, d9](m)
}

// topicKinds are the first n of 200 topics.
func topicKinds(n int, handled func()) ([]topicKind, error) {
	m := &kindMaker{handled: handled}
	makeHundred[d0](m)
	makeHundred[d1](m)
	return m.kinds[:n], m.err
}

// appendEvents appends count events of one kind, in large statements, each a commit.
func appendEvents(
	ctx context.Context, pool *pgxpool.Pool, log *postgres.Log, codec *bus.Codec, event func(orderPlaced) domain.Event, count int,
) error {
	for begin := 0; begin < count; begin += loadBatch {
		var events []domain.Event
		for n := begin; n < min(begin+loadBatch, count); n++ {
			events = append(events, event(newOrder(int64(n))))
		}
		encoded, err := codec.EncodeAll(ctx, events)
		if err != nil {
			return err
		}
		batch := &pgx.Batch{}
		for _, e := range encoded {
			if err := log.Append(batch, e.Topic, e.Messages...); err != nil {
				return err
			}
		}
		if err := pool.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
	}
	return nil
}
