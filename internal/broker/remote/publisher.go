package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postbus/internal/broker"
)

// togetherMax is how many messages one commit has.
const togetherMax = 500

// offer is a message that somebody waits for to be stored.
type offer struct {
	topic  string
	m      *message.Message
	stored chan error // has room for the answer
}

type publisher struct{ *Broker }

// Publish implements message.Publisher. What many goroutines publish at the same time is committed together.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		ctx := m.Context()
		if err := ctx.Err(); err != nil {
			return err
		}
		o := offer{topic: topic, m: m, stored: make(chan error, 1)}
		select {
		case p.offered <- o:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case err := <-o.stored:
			if err != nil {
				return fmt.Errorf("publish to topic %s: %w", topic, err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// append commits what is offered, as much as there is each time, until ctx ends.
func (b *Broker) append(ctx context.Context) {
	for {
		var offers []offer
		select {
		case o := <-b.offered:
			offers = append(offers, o)
		case <-ctx.Done():
			return
		}
	gather:
		for len(offers) < togetherMax {
			select {
			case o := <-b.offered:
				offers = append(offers, o)
			default:
				break gather
			}
		}
		err := b.commit(ctx, offers)
		for _, o := range offers {
			o.stored <- err
		}
	}
}

// commit stores all offers in one transaction, which a batch is.
func (b *Broker) commit(ctx context.Context, offers []offer) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	byTopic := make(map[string][]*message.Message)
	for _, o := range offers {
		m := o.m
		if m.Payload == nil {
			m = m.Copy()
			m.Payload = message.Payload{}
		}
		byTopic[o.topic] = append(byTopic[o.topic], m)
	}
	batch := &pgx.Batch{}
	for topic, messages := range byTopic {
		if err := b.log.Append(batch, topic, messages...); err != nil {
			return err
		}
	}
	if err := b.pool.SendBatch(ctx, batch).Close(); err != nil {
		return explain(err)
	}
	for topic := range byTopic {
		b.log.Wake(topic)
	}
	return nil
}

// explain tells what no waiting will mend from what it will. The text of a failed connection names no password.
func explain(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	var connecting *pgconn.ConnectError
	if errors.As(err, &connecting) && slices.Contains([]string{"42704", "22023", "55P02"}, pg.Code) {
		return &broker.RefusedError{Reason: "the second Postgres does not take a parameter behind the URL's question mark; there are " +
			"durability, those of DATABASE_URL, and the server's own settings"}
	}
	switch pg.Code {
	case "28P01", "28000":
		return &broker.RefusedError{Reason: "the second Postgres refuses user and password"}
	case "3D000":
		return &broker.RefusedError{Reason: "the second Postgres has no such database"}
	case "42501":
		return &broker.RefusedError{Reason: "the user may not make tables in the second Postgres, or not use them"}
	}
	return err
}
