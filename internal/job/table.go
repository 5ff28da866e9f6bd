package job

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
)

//go:embed migrations/*.sql
var migrations embed.FS

// DefaultSchema is the schema of the work table.
const DefaultSchema = "postbus"

// Migrations returns the work table's schema for migrate.Up.
func Migrations(schema string) migrate.Set {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return migrate.Set{Name: "job", Schema: schema, FS: files}
}

// Config sets how a work table is used. Its zero value is complete.
type Config struct {
	// Schema holds the work table. Default: DefaultSchema.
	Schema string
	// Version is the program's, noted with failures. Default: "".
	Version string
	// Lease is how long a job stays with a process that shows no sign of life. Default: 5 s.
	Lease time.Duration
	// Poll is how often this process looks for due jobs that nothing told it of; one query for all its queues.
	// Default: 500 ms.
	Poll time.Duration
	// NotifyOff keeps the table from sending and awaiting notifications. Default: false.
	NotifyOff bool
	// Drain is how long a subscriber that is closed waits for the handlers that run. Default: 20 s.
	Drain time.Duration
	// LostMax is how often a job's worker may die over it before the job is dead. Default: 5.
	LostMax int
	// Keep says how long jobs that have ended are kept. Default: as its fields say.
	Keep Keep
	// CleanEvery is how often Maintain deletes what has been kept for long enough. Default: 1 min.
	CleanEvery time.Duration
}

// Keep is how long jobs are kept that have ended, with their results. Below zero is for ever. A completed job that is kept
// for less than a millisecond is deleted when it completes.
type Keep struct {
	// Completed is for jobs whose handler succeeded. Default: 24 h.
	Completed time.Duration
	// Cancelled is for jobs that were cancelled or discarded. Default: 24 h.
	Cancelled time.Duration
	// Dead is for jobs that are not tried again. Default: 30 days.
	Dead time.Duration
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	if c.Schema == "" {
		c.Schema = DefaultSchema
	}
	if c.LostMax == 0 {
		c.LostMax = 5
	}
	set(&c.Lease, 5*time.Second)
	set(&c.Poll, 500*time.Millisecond)
	set(&c.Drain, 20*time.Second)
	set(&c.CleanEvery, time.Minute)
	set(&c.Keep.Completed, 24*time.Hour)
	set(&c.Keep.Cancelled, 24*time.Hour)
	set(&c.Keep.Dead, 30*24*time.Hour)
	return c
}

func (c Config) validate() error {
	switch {
	case c.Lease < time.Second:
		return fmt.Errorf("lease is %s, at least 1s", c.Lease)
	case c.Poll <= 0, c.Drain <= 0, c.CleanEvery <= 0, c.LostMax < 1:
		return fmt.Errorf("poll %s, drain %s, clean every %s, lost %d: all are above zero", c.Poll, c.Drain, c.CleanEvery, c.LostMax)
	}
	return nil
}

// Table is the work table in one database. It may be used from many goroutines.
type Table struct {
	pool     *pgxpool.Pool
	config   Config
	logger   *slog.Logger
	sql      statements
	perValue pgx.QueryExecMode
	wakeup   wakeup
	notifier notifier

	mu     sync.Mutex
	worker *worker // while there is a subscription
}

// Open returns the work table in pool's database. It does not touch the database; migrate.Up with Migrations comes before.
// The pool stays the caller's.
func Open(pool *pgxpool.Pool, config Config, logger *slog.Logger) (*Table, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("open work table: %w", err)
	}
	config.Version = cut(config.Version, keyBytesMax) // it is stored with failures
	t := &Table{pool: pool, config: config, logger: logger, perValue: perValue(pool)}
	t.sql = newStatements(t)
	return t, nil
}

func (t *Table) table(name string) string { return pgx.Identifier{t.config.Schema, name}.Sanitize() }

// perValue is the mode for statements that look for jobs: they are planned each time, for their very values and the size that
// the table has by then. A plan that Postgres keeps for a prepared statement may be from when the table was empty, and reads
// all of it: TestStatementsUseTheIndexesFromTheStart. A mode that was chosen for the pool, as behind a pooler, prepares nothing
// or is there for a reason, and stays.
func perValue(pool *pgxpool.Pool) pgx.QueryExecMode {
	mode := pool.Config().ConnConfig.DefaultQueryExecMode
	if mode == pgx.QueryExecModeCacheStatement {
		return pgx.QueryExecModeCacheDescribe
	}
	return mode
}

// perValueSQL does the same for the statements that follow it in a batch, which has no mode of its own. It holds until the
// transaction ends.
const perValueSQL = `SELECT set_config('plan_cache_mode', 'force_custom_plan', true)`

// changeAttemptsMax is how often change is tried when Postgres asks to try again.
const changeAttemptsMax = 5

// change runs fn in a transaction whose statements each see what others have committed before, whatever the database's
// default is: after waiting for a lock that is what matters. Where transactions wait for each other in a circle Postgres
// breaks one off, and fn runs again.
func (t *Table) change(ctx context.Context, fn func(pgx.Tx) error) error {
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}
	for attempt := 1; ; attempt++ {
		err := pgx.BeginTxFunc(ctx, t.pool, options, fn)
		if attempt == changeAttemptsMax || !wantsRetry(err) {
			return err
		}
	}
}

// statements are the table's statements that are sent often, put together once.
type statements struct {
	insert, cross, lockKeys, settleKeys string
	take, end, progress, renew, due     string
}

func newStatements(t *Table) statements {
	return statements{
		insert: insertSQL(t), cross: crossSQL(t), lockKeys: lockKeysSQL(t), settleKeys: settleKeysSQL(t),
		take: takeSQL(t), end: endSQL(t), progress: progressSQL(t), renew: renewSQL(t), due: dueSQL(t),
	}
}
