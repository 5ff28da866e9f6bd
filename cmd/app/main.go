// Command app serves the sign-up pages and, unless CONSUMERS=none, runs the consumers in the same process. Without
// settings it brings its own Postgres; --help lists them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"

	"postbus/cmd/internal/wire"
	"postbus/internal/config"
	"postbus/internal/web"
)

func main() { os.Exit(wire.Run(config.App, run)) }

func run(ctx context.Context, c config.Config, logger *slog.Logger) error {
	if c.Psql {
		return wire.Psql(ctx, c)
	}
	listener, err := listen(ctx, c.HTTPAddr) // first: a port in use is known before a database is made
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // closed by the server, and otherwise of no consequence
	if c.PublicURL == "" {
		c.PublicURL = config.DefaultPublicURL(listener.Addr().String())
	}
	b, err := wire.Open(ctx, c, logger, func(sentence string) { fmt.Println("postbus: " + sentence) })
	if err != nil {
		return err
	}
	app, err := web.New(b.Accounts, settings(b, c, logger))
	if err != nil {
		return errors.Join(err, b.Close())
	}
	all, err := b.Select(nil)
	if err != nil {
		return errors.Join(err, b.Close())
	}
	announce(os.Stdout, b, c, all, app.ShowsMailbox())
	err = errors.Join(wire.Together(ctx, parts(b, c, all, app, listener)...), b.Close())
	logger.Info("stopped")
	return err
}

func settings(b *wire.Backbone, c config.Config, logger *slog.Logger) web.Config {
	s := web.Config{PublicURL: c.PublicURL, TrustedProxies: c.TrustedProxies, Ready: b.Ready, Logger: logger}
	if b.Mailbox != nil {
		s.Mailbox = b.Mailbox
	}
	return s
}

func parts(b *wire.Backbone, c config.Config, all wire.Selection, app *web.App, listener net.Listener) []func(context.Context) error {
	running := []func(context.Context) error{
		func(ctx context.Context) error { return app.Serve(ctx, listener) },
		func(ctx context.Context) error { b.Supervise(ctx); return nil },
	}
	if c.EmbeddedConsumers {
		running = append(running, func(ctx context.Context) error { return b.Consume(ctx, all) })
	}
	return running
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf(
			"address %s is in use by another program; stop it, or set HTTP_ADDR to another, such as 127.0.0.1:8081", addr)
	case err != nil:
		return nil, fmt.Errorf("listen on HTTP_ADDR: %w", err)
	}
	return listener, nil
}

// announce says what was started and where to click, in at most ten lines.
func announce(out io.Writer, b *wire.Backbone, c config.Config, all wire.Selection, mailbox bool) {
	line := func(name, text string) { _, _ = fmt.Fprintf(out, "  %-10s %s\n", name, text) } // nobody may be reading
	_, _ = fmt.Fprintln(out, "postbus is running")
	line("sign up", c.PublicURL+"/")
	switch {
	case b.Mailbox != nil && !mailbox:
		line("mailbox", b.MailboxDir+" (not shown: PUBLIC_URL is not local)")
	case b.Mailbox != nil:
		line("mailbox", c.PublicURL+"/mailbox   (SMTP_URL is unset: mail stays here)")
	}
	line("postgres", b.Postgres())
	if jobs := b.Jobs(); jobs != "" {
		line("jobs in", jobs)
	}
	if broker := b.Broker(); broker != "" {
		line("broker", broker)
	}
	if c.EmbeddedConsumers {
		line("consumers", all.Consumers()+", in this process")
		line("jobs", all.Queues()+", in this process")
	} else {
		line("consumers", "none here; start them with: go run ./cmd/consumer")
	}
	for _, note := range b.Notes {
		line("note", note)
	}
	line("stop", "Ctrl-C")
}
