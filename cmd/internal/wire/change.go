package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/config"
	"postbus/internal/migrate"
	"postbus/internal/relay"
)

const (
	// arrivalSample is for how long what is committed after the change to a broker is watched arrive, and arrivalPatience how long it
	// may take.
	arrivalSample   = 2 * time.Second
	arrivalPatience = 30 * time.Second
	arrivalLook     = 200 * time.Millisecond

	nothingChanged = "nothing was changed; add --apply to do it\n"
)

// JoinBroker has the consumers read what the broker brings from one moment on, or says what they would take along. Programs go on
// meanwhile. Then it watches until what was committed in the first moments has arrived.
func (b *Backbone) JoinBroker(ctx context.Context, out io.Writer, apply bool) error {
	if b.broker.over {
		return say(out, "the consumers read over %s\n", b.broker.identity)
	}
	types, err := catalogue()
	if err != nil {
		return err
	}
	if !apply {
		return b.tellLeft(ctx, out, b.log)
	}
	note, err := b.broker.await(ctx, types.Topics())
	switch {
	case err != nil:
		return err
	case note != "":
		return fmt.Errorf("the broker at %s does not answer; nothing was changed", b.broker.address)
	}
	relays := relay.Subscriptions(types.Topics())
	c, err := b.log.HandOver(ctx, b.broker.inbound, relays, b.broker.identity)
	if err != nil {
		return b.explainChange(err)
	}
	if err := sayTaken(out, c); err != nil {
		return err
	}
	if err := say(out, "the consumers read over %s\n", b.broker.identity); err != nil {
		return err
	}
	return b.watchArrivals(ctx, out, relays)
}

// watchArrivals says when everything that was committed in a while after the change has arrived.
func (b *Backbone) watchArrivals(ctx context.Context, out io.Writer, relays []postgres.Subscription) error {
	if !pause(ctx, arrivalSample) {
		return fmt.Errorf("watch arrivals: %w", context.Cause(ctx))
	}
	until, err := b.log.Snapshot(ctx)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(arrivalPatience); ; {
		committed, missing, err := b.log.Since(ctx, b.broker.inbound, relays, until)
		switch {
		case err != nil:
			return err
		case missing == 0:
			return say(out, "%d events were committed in the %s since, and all of them have arrived\n", committed, arrivalSample)
		case time.Now().After(deadline):
			return say(out, "%d events were committed in the %s since, and %d of them are on their way; they wait for a program that runs "+
				"consumers with this BROKER_URL\n", committed, arrivalSample, missing)
		}
		if !pause(ctx, arrivalLook) {
			return fmt.Errorf("watch arrivals: %w", context.Cause(ctx))
		}
	}
}

// LeaveBroker has the consumers read the application's log again from one moment on, or says what they would take along. Programs
// go on meanwhile, and the broker is not needed.
func LeaveBroker(ctx context.Context, c config.Config, out io.Writer, logger *slog.Logger, tell func(string)) (err error) {
	all, err1 := consumers(new(account.Service)) // which handles nothing here
	types, err2 := catalogue()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	b := &Backbone{logger: logger, consumers: all}
	if b.database, err = openDatabase(ctx, c, tell); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.openLeft(ctx); err != nil {
		return err
	}
	if _, over, err := b.log.ReadsOver(ctx); err != nil || !over {
		return errors.Join(err, say(out, "the consumers read the application's Postgres\n"))
	}
	if !c.Apply {
		return b.tellLeft(ctx, out, b.broker.inbound)
	}
	done, err := b.log.TakeBack(ctx, b.broker.inbound, relay.Subscriptions(types.Topics()))
	if err != nil {
		return b.explainChange(err)
	}
	if err := sayTaken(out, done); err != nil {
		return err
	}
	return say(out, "of %d events that were committed since the change to the broker %d had arrived, %d had not and were taken along, and "+
		"%d are read from the application's Postgres, since they were not sent yet\nthe consumers read the application's Postgres\n",
		done.Arrived+done.Missing+done.Unsent, done.Arrived, done.Missing, done.Unsent)
}

// openLeft opens the two logs, as this version has them.
func (b *Backbone) openLeft(ctx context.Context) (err error) {
	pool := b.database.pool
	var used bool
	if err := pool.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, inboundSchema+".intakes").Scan(&used); err != nil {
		return fmt.Errorf("look for what a broker has brought: %w", err)
	}
	if !used {
		return errors.New("no program has used a broker with this database")
	}
	for _, schema := range []string{postgres.DefaultSchema, inboundSchema} {
		if err := migrate.Up(ctx, pool, postgres.Migrations(schema)); err != nil {
			return b.database.explainSetUp(schema, err)
		}
	}
	b.broker = &brokerage{over: true}
	if b.log, err = postgres.Open(pool, postgres.Config{}, b.logger); err != nil {
		return err
	}
	b.broker.inbound, err = postgres.Open(pool, inboundLog(postgres.Retention{}), b.logger)
	return err
}

// tellLeft says what the consumers would take along from a log.
func (b *Backbone) tellLeft(ctx context.Context, out io.Writer, from *postgres.Log) error {
	for _, s := range subscriptions(b.consumers) {
		status, _, err := from.Status(ctx, s)
		if err != nil {
			return err
		}
		if err := say(out, "%s would take along what it has left by then; now %s wait, %d are parked and %d dead\n", s.Consumer,
			waiting(status), status.Parked, status.Dead); err != nil {
			return err
		}
	}
	return say(out, nothingChanged)
}

func sayTaken(out io.Writer, c postgres.Change) error {
	for _, t := range c.Taken {
		if err := say(out, "%s took %d events along that it had not handled\n", t.Consumer, t.Events); err != nil {
			return err
		}
	}
	return nil
}

// say prints what an operation has done.
func say(out io.Writer, format string, values ...any) error {
	if _, err := fmt.Fprintf(out, format, values...); err != nil {
		return fmt.Errorf("print outcome: %w", err)
	}
	return nil
}

// explainChange puts into a sentence why consumers stay where they are. It returns other errors, and nil, as they are.
func (b *Backbone) explainChange(err error) error {
	var unfinished *postgres.UnfinishedError
	var other *postgres.OtherBrokerError
	switch {
	case errors.As(err, &other):
		return fmt.Errorf("%w, and BROKER_URL names %s; have them leave the broker first with: "+
			"go run ./cmd/consumer --leave-broker --apply", other, b.broker.identity)
	case errors.As(err, &unfinished) && unfinished.Owner != "":
		return fmt.Errorf("%w; nothing was changed: try again when it has ended, or stop that process", unfinished)
	case errors.As(err, &unfinished):
		return fmt.Errorf("%w; nothing was changed: let it catch up first", unfinished)
	}
	return err
}
