package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"postbus/internal/broker/postgres"
	"postbus/internal/config"
)

// payloadFileMax is how much of a file is read for a payload; the log's own limit is below.
const payloadFileMax = 1 << 20

// Dead lists, shows or resolves the events that consumers have given up, as the settings say.
func (b *Backbone) Dead(ctx context.Context, out io.Writer, c config.Config) error {
	if c.Dead == "list" {
		return b.listDead(ctx, out)
	}
	which := postgres.Dead{Consumer: c.WhichConsumer, Group: c.WhichGroup, Event: c.WhichEvent}
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
	text := fmt.Sprintf("%s: %d of %s\n", what, n, c.WhichConsumer)
	if !c.Apply {
		text = fmt.Sprintf("%s would be done to %d of %s\nnothing was changed; add --apply to do it\n", what, n, c.WhichConsumer)
	}
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("print resolution: %w", err)
	}
	return nil
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
	groups, err := b.read().DeadGroups(ctx)
	if err != nil {
		return err
	}
	if len(groups) == 0 {
		_, err := fmt.Fprintln(out, "nothing is dead")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "CONSUMER\tGROUP\tCOUNT\tSINCE\tEVENT TYPE\tWHY") // errors come up at Flush
	for _, g := range groups {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s: %s\n", g.Consumer, g.Group, g.Count, g.First.UTC().Format(time.RFC3339),
			harmless(g.Type), harmless(g.Class), harmless(g.Error))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print dead events: %w", err)
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
		line("dead", fmt.Sprintf("since %s, after %d attempts", d.DeadAt.UTC().Format(time.RFC3339), d.Attempts))
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

// harmless is a text without what a terminal would take for a command.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}
