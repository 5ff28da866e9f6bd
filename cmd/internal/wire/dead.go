package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/google/uuid"

	"postbus/internal/broker/postgres"
	"postbus/internal/config"
	"postbus/internal/job"
)

// payloadFileMax is how much of a file is read for a payload; the log's own limit is below.
const payloadFileMax = 1 << 20

// ReadDead is Dead for what only reads, list and show: nothing is made and nothing is handed over.
func ReadDead(ctx context.Context, c config.Config, out io.Writer, logger *slog.Logger, say func(string)) (err error) {
	b, err := openToRead(ctx, c, logger, say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	for _, s := range subscriptions(b.consumers) { // without BROKER_URL where it was set, nothing would be found dead
		if _, _, err := b.read().Status(ctx, s); err != nil {
			return explainRead(err)
		}
	}
	return b.Dead(ctx, out, c)
}

// Dead lists, shows or resolves the events that consumers have given up, and the jobs, as the settings say.
func (b *Backbone) Dead(ctx context.Context, out io.Writer, c config.Config) error {
	switch {
	case c.Dead == "list":
		return b.listDead(ctx, out)
	case c.WhichQueue != "":
		if err := b.reachJobs(ctx); err != nil {
			return err
		}
		return b.explainJobs(b.deadJobs(ctx, out, c))
	}
	which := postgres.Dead{Consumer: c.WhichConsumer, Group: c.WhichGroup, Key: c.WhichKey, Event: c.WhichID}
	if c.Dead == "show" {
		return b.showDead(ctx, out, which)
	}
	var payload []byte
	if c.Payload != "" {
		var err error
		if payload, err = readPayload(c.Payload); err != nil {
			return err
		}
	}
	what := map[string]postgres.Resolution{"retry": postgres.Retry, "discard": postgres.Discard, "release": postgres.Release}[c.Dead]
	n, err := b.read().Resolve(ctx, which, what, postgres.Note{By: operator(), Text: c.Note}, payload, !c.Apply)
	if err != nil {
		return err
	}
	return sayResolved(out, c, n, c.WhichConsumer)
}

// sayResolved tells how many were dealt with, or would be.
func sayResolved(out io.Writer, c config.Config, n int, of string) error {
	text := fmt.Sprintf("%s: %d of %s\n", c.Dead, n, of)
	if !c.Apply {
		text = fmt.Sprintf("%s would be done to %d of %s\nnothing was changed; add --apply to do it\n", c.Dead, n, of)
	}
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("print resolution: %w", err)
	}
	return nil
}

// deadJobs is Dead for a queue of jobs.
func (b *Backbone) deadJobs(ctx context.Context, out io.Writer, c config.Config) error {
	which := job.Selection{Queue: c.WhichQueue, Fingerprint: c.WhichGroup, LockKey: c.WhichKey}
	if c.WhichID != uuid.Nil {
		which.IDs = []uuid.UUID{c.WhichID}
	}
	by := operator()
	if c.Note != "" {
		by += ": " + c.Note
	}
	var n int
	var err error
	switch {
	case c.Dead == "show":
		return b.showDeadJobs(ctx, out, which)
	case !c.Apply:
		n, err = b.jobs.CountDead(ctx, which)
	case c.Dead == "retry":
		n, err = b.jobs.Retry(ctx, which, by)
	case c.Dead == "discard":
		n, err = b.jobs.Discard(ctx, which, by)
	}
	if err != nil {
		return err
	}
	return sayResolved(out, c, n, config.QueuePrefix+c.WhichQueue)
}

// operator is who is at the terminal, as far as the machine knows.
func operator() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

// readPayload reads a file that holds JSON, as every event's payload does.
func readPayload(path string) ([]byte, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("read payload: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	payload, err := io.ReadAll(io.LimitReader(file, payloadFileMax))
	if err != nil {
		return nil, fmt.Errorf("read payload: %w", err)
	}
	if !json.Valid(payload) {
		return nil, errors.New("the file that --payload names is not JSON")
	}
	return payload, nil
}

func (b *Backbone) listDead(ctx context.Context, out io.Writer) error {
	events, err := b.read().DeadGroups(ctx)
	if err != nil {
		return err
	}
	jobs, unread := b.deadJobGroups(ctx) // events are listed without the jobs' database
	if len(events)+len(jobs) == 0 {
		if unread == nil {
			_, err = fmt.Fprintln(out, "nothing is dead")
		}
		return errors.Join(err, unread)
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "OF\tGROUP\tCOUNT\tSINCE\tTYPE\tWHY") // errors come up at Flush
	row := func(of, group string, count int, first time.Time, what, class, why string) {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s: %s\n", of, group, count, first.UTC().Format(time.RFC3339),
			harmless(what), harmless(class), harmless(why))
	}
	for _, g := range events {
		row(g.Consumer, g.Group, g.Count, g.First, g.Type, g.Class, g.Error)
	}
	for _, g := range jobs {
		row(config.QueuePrefix+g.Queue, g.Fingerprint, g.Count, g.First, g.Kind, g.Class, g.Error)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print what is dead: %w", err)
	}
	return unread
}

func (b *Backbone) deadJobGroups(ctx context.Context) ([]job.Group, error) {
	if err := b.reachJobs(ctx); err != nil {
		return nil, err
	}
	groups, err := b.jobs.Dead(ctx)
	return groups, b.explainJobs(err)
}

func (b *Backbone) showDeadJobs(ctx context.Context, out io.Writer, which job.Selection) error {
	jobs, err := b.jobs.DeadJobs(ctx, which)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, j := range jobs {
		metadata, err1 := json.Marshal(j.Metadata)
		failures, err2 := json.Marshal(j.Failures)
		notes, err3 := json.Marshal(j.Notes)
		if err := errors.Join(err1, err2, err3); err != nil {
			return fmt.Errorf("print dead jobs: %w", err)
		}
		fmt.Fprintf(&text, "%s%s:%s\n", config.QueuePrefix, j.Queue, j.ID)
		line := func(name, value string) { fmt.Fprintf(&text, "  %-9s %s\n", name, harmless(value)) }
		line("group", j.Fingerprint)
		line("type", j.Kind)
		if j.LockKey != "" {
			line("key", j.LockKey)
		}
		line(j.State, since(*j.FinalizedAt, j.Attempt))
		line("metadata", string(metadata))
		line("payload", string(j.Args))
		line("failures", string(failures))
		line("notes", string(notes))
	}
	if _, err := io.WriteString(out, text.String()); err != nil {
		return fmt.Errorf("print dead jobs: %w", err)
	}
	return nil
}

func (b *Backbone) showDead(ctx context.Context, out io.Writer, which postgres.Dead) error {
	letters, err := b.read().DeadLetters(ctx, which)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, d := range letters {
		fmt.Fprintf(&text, "%s:%s\n", d.Consumer, d.Event)
		line := func(name, value string) { fmt.Fprintf(&text, "  %-9s %s\n", name, harmless(value)) }
		line("group", d.Group)
		line("type", d.Type)
		line("key", d.Key)
		if d.Holds {
			line("holds", fmt.Sprintf("its key, with %d behind it", d.Behind))
		}
		line("dead", since(d.DeadAt, d.Attempts))
		line("metadata", string(d.Metadata))
		line("payload", string(d.Payload))
		line("failures", string(d.Failures))
		line("notes", string(d.Notes))
	}
	if _, err := io.WriteString(out, text.String()); err != nil {
		return fmt.Errorf("print dead events: %w", err)
	}
	return nil
}

// since tells for how long something is dead, and how often it was tried.
func since(at time.Time, attempts int) string {
	noun := "attempts"
	if attempts == 1 {
		noun = "attempt"
	}
	return fmt.Sprintf("since %s, after %d %s", at.UTC().Format(time.RFC3339), attempts, noun)
}

// harmless is a text without what a terminal would take for a command.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}
