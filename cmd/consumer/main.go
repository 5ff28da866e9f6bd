// Command consumer runs the application's consumers and jobs as a process of their own, all of them or those named by --only.
// --list shows them and where each stands, --move, --rename and --forget change that, --join-broker and --leave-broker what they
// read, --dead deals with what was given up; --help lists the settings.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"postbus/cmd/internal/wire"
	"postbus/internal/account"
	"postbus/internal/config"
)

func main() { os.Exit(wire.Run(config.Consumer, run)) }

func run(ctx context.Context, c config.Config, logger *slog.Logger) error {
	say := func(sentence string) { fmt.Fprintln(os.Stderr, "postbus: "+sentence) }
	if c.List {
		return wire.List(ctx, c, os.Stdout, logger, say)
	}
	if c.LeaveBroker {
		return wire.LeaveBroker(ctx, c, os.Stdout, logger, say)
	}
	if err := wire.CheckNames(c); err != nil {
		return err
	}
	if c.Dead == "list" || c.Dead == "show" {
		return wire.ReadDead(ctx, c, os.Stdout, logger, say)
	}
	b, err := wire.Open(ctx, c, logger, say)
	if err != nil {
		return err
	}
	switch {
	case c.JoinBroker:
		return errors.Join(b.JoinBroker(ctx, os.Stdout, c.Apply), b.Close())
	case c.Move != "":
		return errors.Join(b.Move(ctx, os.Stdout, c.Move, c.To, c.Apply), b.Close())
	case c.Dead != "":
		return errors.Join(b.Dead(ctx, os.Stdout, c), b.Close())
	case c.Forget != "":
		return errors.Join(b.Forget(ctx, os.Stdout, c.Forget, c.Apply), b.Close())
	case c.RenameFrom != "":
		return errors.Join(b.Rename(ctx, os.Stdout, c.RenameFrom, c.RenameTo), b.Close())
	}
	selected, err := b.Select(c.Only)
	if err != nil {
		return errors.Join(err, b.Close())
	}
	announce(os.Stdout, b, selected)
	err = wire.Together(ctx,
		func(ctx context.Context) error { return b.Consume(ctx, selected) },
		func(ctx context.Context) error { b.Supervise(ctx); return nil },
	)
	err = errors.Join(err, b.Close())
	logger.Info("stopped")
	return err
}

// announce says what was started and what it takes for granted: a consumer cannot see what the app was told.
func announce(out io.Writer, b *wire.Backbone, selected wire.Selection) {
	line := func(name, text string) { _, _ = fmt.Fprintf(out, "  %-10s %s\n", name, text) } // nobody may be reading
	_, _ = fmt.Fprintln(out, "postbus consumer is running")
	line("links", b.PublicURL)
	if selected.SendsMail() {
		line("mail", b.Mail)
	} else {
		line("mail", "waits for a process that runs "+config.QueuePrefix+account.MailQueue)
	}
	line("consumers", selected.Consumers())
	line("jobs", selected.Queues())
	line("postgres", b.Postgres())
	if jobs := b.Jobs(); jobs != "" {
		line("jobs in", jobs)
	}
	if broker := b.Broker(); broker != "" {
		line("broker", broker)
	}
	for _, note := range b.Notes {
		line("note", note)
	}
	line("stop", "Ctrl-C")
}
