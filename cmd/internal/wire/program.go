package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"postbus/internal/config"
	"postbus/internal/mail"
	"postbus/internal/telemetry"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitRefused = 2 // a setting is unknown or malformed
)

// Run is the main function of a program: it reads the settings, runs until the program ends by itself, or by SIGINT or
// SIGTERM, and returns the exit code. A second signal ends the program at once, as is told on stderr at the first. What
// goes wrong is told there, too, in one line.
func Run(program string, run func(ctx context.Context, c config.Config, logger *slog.Logger) error) int {
	c, err := load(program)
	switch {
	case errors.Is(err, config.ErrHelp):
		return exitOK
	case err != nil:
		tell(program, err.Error()) // composed without values
		return exitRefused
	}
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer restore()
	defer context.AfterFunc(ctx, func() {
		restore() // from then on a signal has its usual effect
		if !c.Psql {
			tell(program, "stopping; Ctrl-C again stops at once")
		}
	})()
	err = run(ctx, c, telemetry.NewLogger(os.Stderr, c.LogLevel, c.LogFormat))
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return exitOK
	}
	tell(program, telemetry.ErrorText(err))
	return exitFailed
}

// load reads the settings and checks what they leave to others to check, before anything is made.
func load(program string) (config.Config, error) {
	c, err := config.LoadOS(program, os.Stdout)
	if err != nil || c.SMTPURL == "" {
		return c, err
	}
	if _, err := mail.ParseURL(c.SMTPURL); err != nil {
		return c, &config.Error{Setting: "SMTP_URL", Problem: "is refused: " + err.Error()}
	}
	return c, nil
}

func tell(program, sentence string) { fmt.Fprintf(os.Stderr, "postbus %s: %s\n", program, sentence) }

// Together runs parts of a program at the same time until ctx ends or one of them returns; then it ends the others, waits
// for them, and returns the errors of all.
func Together(ctx context.Context, parts ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(parts))
	var running sync.WaitGroup
	for i, part := range parts {
		running.Go(func() {
			defer cancel()
			errs[i] = part(ctx)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}
