package wire

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/relay"
)

// Move puts a consumer at a place in its topic, which is "now", "beginning", a time of RFC 3339 or a position, or says what
// that would do.
func (b *Backbone) Move(ctx context.Context, out io.Writer, name, to string, apply bool) error {
	log, subscription := b.log, postgres.Subscription{Consumer: name}
	if topic, ok := relay.IsRelay(name); ok && b.broker != nil {
		subscription.Topic = topic
	} else {
		consumer, err := consumerOf(b.consumers, name)
		if err != nil {
			return err
		}
		log, subscription = b.read(), subscriptions([]*bus.Consumer{consumer})[0]
	}
	m, err := log.Move(ctx, subscription, spot(to), !apply)
	if err != nil {
		return err
	}
	verb := "would move"
	if apply {
		verb = "moved"
	}
	_, err = fmt.Fprintf(out, "%s %s to %s: %s waiting before, %s after\n",
		verb, name, to, waiting(m.Before), waiting(m.After))
	if err == nil && !apply {
		_, err = fmt.Fprintln(out, "nothing was changed; add --apply to do it")
	}
	if err != nil {
		return fmt.Errorf("print movement: %w", err)
	}
	return nil
}

// Rename gives the place of a consumer to its new name, which is one of this program's.
func (b *Backbone) Rename(ctx context.Context, out io.Writer, from, to string) error {
	if _, err := consumerOf(b.consumers, to); err != nil {
		return err
	}
	if err := b.read().Rename(ctx, from, to); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s stands where %s stood\n", to, from); err != nil {
		return fmt.Errorf("print renaming: %w", err)
	}
	return nil
}

// Forget forgets a consumer that no program has any more, or says what that would do.
func (b *Backbone) Forget(ctx context.Context, out io.Writer, name string, apply bool) error {
	if _, err := consumerOf(b.consumers, name); err == nil {
		return fmt.Errorf("%s is one of this program's consumers, which would make it anew", name)
	}
	left, err := b.read().Forget(ctx, name, !apply)
	if err != nil {
		return err
	}
	verb, end := "forgot", ""
	if !apply {
		verb, end = "would forget", "nothing was changed; add --apply to do it\n"
	}
	_, err = fmt.Fprintf(out, "%s %s: %s waiting, %d parked, %d dead\n%s", verb, name, waiting(left), left.Parked, left.Dead, end)
	if err != nil {
		return fmt.Errorf("print what is forgotten: %w", err)
	}
	return nil
}

// spot reads what the settings have checked.
func spot(to string) postgres.Spot {
	if to == "beginning" {
		return postgres.Beginning()
	}
	if at, err := time.Parse(time.RFC3339, to); err == nil {
		return postgres.At(at)
	}
	if position, err := strconv.ParseInt(to, 10, 64); err == nil {
		return postgres.After(position)
	}
	return postgres.Spot{}
}

// waiting is how many events wait, for a person.
func waiting(s postgres.Status) string {
	if s.More {
		return "more than " + strconv.Itoa(s.Waiting)
	}
	return strconv.Itoa(s.Waiting)
}
