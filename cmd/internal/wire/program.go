package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

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

// secondAfter is how long after the first signal further ones are taken for the same: a wrapper passes on what the
// terminal has sent to the whole group, and a program that is killed while it stops leaves a private Postgres behind.
const secondAfter = 500 * time.Millisecond

// Run is the main function of a program: it reads the settings, runs until the program ends by itself, or by SIGINT,
// SIGTERM or the end of its terminal (SIGHUP, unless that is ignored, as under nohup), and returns the exit code. A
// second signal, half a second later or more, ends the program at once, as is told on stderr at the first. What goes
// wrong is told there, too, in one line.
func Run(program string, run func(ctx context.Context, c config.Config, logger *slog.Logger) error) int {
	c, err := load(program)
	switch {
	case errors.Is(err, config.ErrHelp):
		return exitOK
	case err != nil:
		tell(program, err.Error()) // composed without values
		return exitRefused
	}
	// What reads the output may end first, by the same Ctrl-C for one. Caught, a broken pipe is an error of writing, no more.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, restore := signal.NotifyContext(context.Background(), signals...)
	defer restore()
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(secondAfter, restore) // from then on a signal has its usual effect
		if !c.Psql {
			tell(program, stopping(c))
		}
	})()
	err = run(ctx, c, telemetry.NewLogger(os.Stderr, c.LogLevel, c.LogFormat))
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return exitOK
	}
	tell(program, telemetry.Sentence(err, dataDirs(c)...))
	return exitFailed
}

// dataDirs are the ways in which an error may name the data directory.
func dataDirs(c config.Config) []string {
	dirs := []string{c.DataDir}
	if abs, err := filepath.Abs(c.DataDir); err == nil {
		dirs = append(dirs, abs)
	}
	return dirs
}

// load reads the settings and checks what they leave to others to check, before anything is made.
func load(program string) (config.Config, error) {
	c, err := config.LoadOS(program, os.Stdout)
	if err != nil {
		return c, err
	}
	if c.SMTPURL != "" {
		if _, err := mail.ParseURL(c.SMTPURL); err != nil {
			return c, &config.Error{Setting: "SMTP_URL", Problem: "is refused: " + err.Error()}
		}
	}
	return c, checkBroker(c)
}

// stopping says what the first signal does, and what a second one would.
func stopping(c config.Config) string {
	if c.DatabaseURL == "" {
		return "stopping; Ctrl-C again, in a moment, stops at once and leaves the private Postgres running"
	}
	return "stopping; Ctrl-C again, in a moment, stops at once"
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
