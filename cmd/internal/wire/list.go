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
	"postbus/internal/job"
	"postbus/internal/relay"
)

var errNothingSetUp = errors.New("nothing was set up yet; start the app first")

// List prints the consumers and the queues of jobs: topic, where each stands, which process is at it, or would be if there was
// anything to do, and the types of events, or kinds of jobs, that it takes. It only reads: neither a table nor a consumer's
// place is made, and no private Postgres where there was none.
func List(ctx context.Context, c config.Config, out io.Writer, logger *slog.Logger, say func(string)) (err error) {
	b, err := openToRead(ctx, c, logger, say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	rows, err := b.rows()
	if err != nil {
		return err
	}
	connected, err := sessions(ctx, b.database.pool)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "CONSUMER\tTOPIC\tWAITING\tOLDEST\tPARKED\tDEAD\tRUNS IN\tTYPES") // errors come up at Flush
	for _, r := range rows {
		status, known, err := r.log.Status(ctx, r.Subscription)
		switch {
		case isMissing(err) && r.Consumer == crossing.Consumer: // no program has had jobs apart yet
		case err != nil:
			return explainRead(err)
		}
		writeRow(table, r, status, known, resting(connected, r.Consumer))
	}
	err = b.listQueues(ctx, table, connected)
	if failure := table.Flush(); failure != nil { // also what there is without the jobs' database
		return errors.Join(err, fmt.Errorf("print consumers: %w", failure))
	}
	return err
}

// listQueues writes the rows of the queues, which may be in a database of their own.
func (b *Backbone) listQueues(ctx context.Context, table io.Writer, connected []string) error {
	if err := b.reachJobs(ctx); err != nil {
		return err
	}
	for _, q := range queues() {
		status, err := b.jobs.QueueStatus(ctx, q.name)
		if err != nil {
			return b.explainJobs(err)
		}
		writeQueue(table, config.QueuePrefix+q.name, status, resting(connected, config.QueuePrefix+q.name))
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

// openToRead opens what is there, to be read: neither table nor place is made, and nothing is handed over. The error is for a
// person to read.
func openToRead(ctx context.Context, c config.Config, logger *slog.Logger, say func(string)) (*Backbone, error) {
	if c.DatabaseURL == "" {
		if err := checkUse(c.DataDir); err != nil {
			return nil, err
		}
	}
	b := &Backbone{logger: logger}
	var err error
	if b.consumers, err = consumers(new(account.Service)); err != nil { // which handles nothing here
		return nil, err
	}
	if b.database, err = openDatabase(ctx, c, say); err != nil {
		return nil, err
	}
	if err := b.openTables(ctx, c); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// openTables opens the logs and the work table, where programs with these settings have them.
func (b *Backbone) openTables(ctx context.Context, c config.Config) (err error) {
	if b.log, err = postgres.Open(b.database.pool, postgres.Config{}, b.logger); err != nil {
		return err
	}
	if c.BrokerURL != "" {
		b.broker = &brokerage{}
		if _, b.broker.over, err = b.log.ReadsOver(ctx); err != nil && !isMissing(err) {
			return err
		}
		if b.broker.inbound, err = postgres.Open(b.database.pool, inboundLog(postgres.Retention{}), b.logger); err != nil {
			return err
		}
	}
	pool := b.database.pool
	if c.JobsDatabaseURL != "" {
		b.jobsApart = &jobsApart{database: &database{setting: settingJobsDatabase}, application: pool}
		if err := b.jobsApart.open(ctx, c.JobsDatabaseURL, sessionName(c)); err != nil {
			return err
		}
		pool = b.jobsApart.pool
	}
	b.jobs, err = job.Open(pool, job.Config{}, b.logger)
	return err
}

// explainRead puts into a sentence that programs have not made what was to be read, or have it elsewhere. It returns other errors
// as they are.
func explainRead(err error) error {
	switch {
	case isMissing(err):
		return errNothingSetUp
	case errors.Is(err, postgres.ErrHandedOver):
		return errNeedsBroker
	}
	return err
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

// rows are the lines of the consumers, and with a broker those of what is on its way there.
func (b *Backbone) rows() (rows []listed, err error) {
	for i, s := range subscriptions(b.consumers) {
		rows = append(rows, listed{Subscription: s, log: b.read(), types: strings.Join(b.consumers[i].Types(), ", ")})
	}
	if b.jobsApart != nil {
		rows = append(rows, listed{Subscription: crossing, log: b.log})
	}
	if b.broker == nil || !b.broker.over {
		return rows, nil
	}
	types, err := catalogue()
	if err != nil {
		return nil, err
	}
	for _, s := range relay.Subscriptions(types.Topics()) {
		rows = append(rows, listed{Subscription: s, log: b.log, types: "all, to the broker"})
	}
	return rows, nil
}

func writeRow(table io.Writer, r listed, status postgres.Status, known bool, resting []string) {
	count, oldest := "new", "-"
	if known {
		count = waiting(status)
	}
	if status.Waiting > 0 {
		oldest = status.Oldest.Round(time.Second).String()
	}
	_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n",
		r.Consumer, r.Topic, count, oldest, status.Parked, status.Dead, whereRuns(status.Owners, resting), r.types)
}

// writeQueue prints a queue's row. Which kinds of jobs are in it is up to who enqueues them.
func writeQueue(table io.Writer, name string, status job.QueueStatus, resting []string) {
	oldest := "-"
	if status.Waiting > 0 {
		oldest = status.Oldest.Round(time.Second).String()
	}
	_, _ = fmt.Fprintf(table, "%s\t-\t%d\t%s\t%d\t%d\t%s\t-\n",
		name, status.Waiting, oldest, status.Parked, status.Dead, whereRuns(status.Running, resting))
}

// whereRuns names the processes that are at it, those that would be, or neither.
func whereRuns(at map[string]int, resting []string) string {
	switch {
	case len(at) > 0:
		return owners(at)
	case len(resting) > 0:
		return strings.Join(resting, ", ") + ", resting"
	}
	return "-"
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
