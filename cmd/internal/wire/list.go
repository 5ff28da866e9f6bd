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
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/config"
	"postbus/internal/relay"
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
	rows, err := rowsOf(c, d.pool, all, logger)
	if err != nil {
		return err
	}
	connected, err := sessions(ctx, d.pool)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "CONSUMER\tTOPIC\tWAITING\tOLDEST\tPARKED\tDEAD\tRUNS IN\tEVENT TYPES") // errors come up at Flush
	for _, r := range rows {
		status, known, err := r.log.Status(ctx, r.Subscription)
		switch {
		case isMissing(err) && r.Consumer == crossing.Consumer: // no program has had jobs apart yet
		case isMissing(err):
			return errNothingSetUp
		case errors.Is(err, postgres.ErrHandedOver):
			return errNeedsBroker
		case err != nil:
			return err
		}
		writeRow(table, r, status, known, resting(connected, r.Consumer))
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

// listed is a line of the list.
type listed struct {
	postgres.Subscription
	log   *postgres.Log
	types string
}

// rowsOf are the lines of the consumers, and with a broker those of what is on its way there.
func rowsOf(c config.Config, pool *pgxpool.Pool, consumers []*bus.Consumer, logger *slog.Logger) ([]listed, error) {
	published, err := postgres.Open(pool, postgres.Config{}, logger)
	if err != nil {
		return nil, err
	}
	read := published
	if c.BrokerURL != "" {
		if read, err = postgres.Open(pool, postgres.Config{Schema: inboundSchema}, logger); err != nil {
			return nil, err
		}
	}
	var rows []listed
	for i, s := range subscriptions(consumers) {
		rows = append(rows, listed{Subscription: s, log: read, types: strings.Join(consumers[i].Types(), ", ")})
	}
	if c.JobsDatabaseURL != "" {
		rows = append(rows, listed{Subscription: crossing, log: published})
	}
	if c.BrokerURL == "" {
		return rows, nil
	}
	types, err := catalogue()
	if err != nil {
		return nil, err
	}
	for _, s := range relay.Subscriptions(types.Topics()) {
		rows = append(rows, listed{Subscription: s, log: published, types: "all, to the broker"})
	}
	return rows, nil
}

func writeRow(table io.Writer, r listed, status postgres.Status, known bool, resting []string) {
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
		r.Consumer, r.Topic, count, oldest, status.Parked, status.Dead, owner, r.types)
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
