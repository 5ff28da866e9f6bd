package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/config"
)

var errNothingSetUp = errors.New("nothing was set up yet; start the app first")

// List prints the consumers: topic, where each stands, which process is at it, or would be if there was anything to do,
// and the event types it takes. It only reads: neither a table nor a consumer's place is made, and no private Postgres
// where there was none.
func List(ctx context.Context, c config.Config, out io.Writer, logger *slog.Logger, say func(string)) (err error) {
	if c.DatabaseURL == "" {
		if err := checkUse(c.DataDir); err != nil {
			return err
		}
	}
	all, err := consumers(new(account.Notifier)) // which handles nothing here
	if err != nil {
		return err
	}
	d, err := openDatabase(ctx, c, say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	log, err := postgres.Open(d.pool, postgres.Config{}, logger)
	if err != nil {
		return err
	}
	connected, err := sessions(ctx, d.pool)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "CONSUMER\tTOPIC\tWAITING\tOLDEST\tPARKED\tDEAD\tRUNS IN\tEVENT TYPES") // errors come up at Flush
	for _, consumer := range all {
		status, known, err := log.Status(ctx, postgres.Subscription{Consumer: consumer.Name(), Topic: consumer.Topic()})
		if isMissing(err) {
			return errNothingSetUp
		}
		if err != nil {
			return err
		}
		writeRow(table, consumer.Name(), consumer.Topic(), consumer.Types(), status, known, resting(connected, consumer.Name()))
	}
	if c.JobsDatabaseURL != "" {
		status, known, err := log.Status(ctx, crossing)
		if err != nil && !isMissing(err) {
			return err
		}
		writeRow(table, crossing.Consumer, crossing.Topic, nil, status, known, resting(connected, crossing.Consumer))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print consumers: %w", err)
	}
	return nil
}

// checkUse returns errNothingSetUp where no program has kept anything in the data directory.
func checkUse(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(entries) == 0:
		return errNothingSetUp
	case err != nil:
		return config.ExplainDataDir(dir, fmt.Errorf("read data directory: %w", err))
	}
	return nil
}

func isMissing(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == stateUndefinedTable
}

func writeRow(table io.Writer, name, topic string, types []string, status postgres.Status, known bool, resting []string) {
	count, oldest, owner := "new", "-", "-"
	if known {
		count = waiting(status)
	}
	if status.Waiting > 0 {
		oldest = status.Oldest.Round(time.Second).String()
	}
	switch {
	case len(status.Owners) > 0:
		owner = owners(status.Owners)
	case len(resting) > 0:
		owner = strings.Join(resting, ", ") + ", resting"
	}
	_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n",
		name, topic, count, oldest, status.Parked, status.Dead, owner, strings.Join(types, ", "))
}

// owners names the processes that share a consumer, each with how many of its shares it has when there are several.
func owners(shares map[string]int) string {
	names := slices.Sorted(maps.Keys(shares))
	if len(names) == 1 {
		return names[0]
	}
	for i, name := range names {
		names[i] = fmt.Sprintf("%s (%d)", name, shares[name])
	}
	return strings.Join(names, ", ")
}
