package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/config"
	"postbus/internal/localpg"
)

// The settings that name a database.
const (
	settingDatabase     = "DATABASE_URL"
	settingJobsDatabase = "JOB_QUEUE_DATABASE_URL"
)

const (
	startPatience  = 30 * time.Second // for a Postgres that is down, or starting, when the program starts
	startRetry     = 500 * time.Millisecond
	connectTimeout = 5 * time.Second
	connectionsMax = 20 // of the pool, unless the URL says pool_max_conns
	versionMin     = 130000
	superviseEvery = time.Second // how soon a private Postgres that has died is noticed
)

// database is the application's Postgres: one that a URL names, or a private one.
type database struct {
	setting string // that names it
	pool    *pgxpool.Pool
	private *localpg.Server // nil with a DATABASE_URL
	version string
}

// openDatabase connects, and starts the private Postgres first where there is no DATABASE_URL. say is told what takes
// long. The error is a sentence for a person, without a password.
func openDatabase(ctx context.Context, c config.Config, say func(string)) (*database, error) {
	d := &database{setting: settingDatabase}
	address := c.DatabaseURL
	if address == "" {
		private, err := startPrivate(ctx, c, say)
		if err != nil {
			return nil, err
		}
		d.private = private
		address = private.URL()
	}
	err := d.open(ctx, address, sessionName(c))
	if err == nil {
		err = d.await(ctx, say)
	}
	if err == nil {
		err = d.checkVersion(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func startPrivate(ctx context.Context, c config.Config, say func(string)) (*localpg.Server, error) {
	search := localpg.DefaultSearch(os.Getenv)
	if !c.PostgresDownload {
		search.Repository = ""
	}
	return localpg.Start(ctx, localpg.Options{Dir: filepath.Join(c.DataDir, "postgres"), Search: &search, Progress: say})
}

// open makes the pool, which connects when it is used.
func (d *database) open(ctx context.Context, address, name string) error {
	settings, err := pgxpool.ParseConfig(address)
	if err != nil {
		return errors.New(d.setting + " is not a Postgres URL") // its own text may quote the password
	}
	if u, err := url.Parse(address); err != nil || !u.Query().Has("pool_max_conns") {
		settings.MaxConns = connectionsMax
	}
	if settings.ConnConfig.ConnectTimeout == 0 {
		settings.ConnConfig.ConnectTimeout = connectTimeout
	}
	if settings.ConnConfig.RuntimeParams["application_name"] == "" {
		settings.ConnConfig.RuntimeParams["application_name"] = name
	}
	if d.private != nil {
		d.follow(settings)
	}
	if d.pool, err = pgxpool.NewWithConfig(ctx, settings); err != nil {
		return fmt.Errorf("open connection pool: %w", err)
	}
	return nil
}

func (d *database) checkVersion(ctx context.Context) error {
	var version int
	if err := d.pool.QueryRow(ctx, `SELECT current_setting('server_version_num')::int,
		split_part(current_setting('server_version'), ' ', 1)`).Scan(&version, &d.version); err != nil {
		return fmt.Errorf("read Postgres version: %w", err)
	}
	if version < versionMin {
		return fmt.Errorf("PostgreSQL %s is too old; postbus needs 13 or newer", d.version)
	}
	return nil
}

// follow has new connections go where the private Postgres is: started again it may be on another port, because
// a stranger has taken its own. To a stranger the password is not told.
func (d *database) follow(settings *pgxpool.Config) {
	settings.ConnConfig.RequireAuth = "scram-sha-256"
	settings.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		c.Port = uint16(d.private.Port()) //nolint:gosec // a port
		return nil
	}
}

// await waits for a Postgres that is down or starting, and gives up at once where waiting does not help.
func (d *database) await(ctx context.Context, say func(string)) error {
	place := d.place()
	deadline := time.Now().Add(startPatience)
	for try := 1; ; try++ {
		err := d.pool.Ping(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for Postgres: %w", context.Cause(ctx))
		}
		if reason := d.refusal(err); reason != "" {
			return fmt.Errorf("postgres at %s %s", place, reason)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("postgres at %s did not answer within %s (%s); start it, or set %s to another",
				place, startPatience, cause(err), d.setting)
		}
		if try == 1 {
			say("waiting for Postgres at " + place)
		}
		select {
		case <-ctx.Done():
		case <-time.After(startRetry):
		}
	}
}

// refusal is what no waiting will mend about connecting here; "" for anything else.
func (d *database) refusal(err error) string {
	return refusal(err, &d.pool.Config().ConnConfig.Config, d.setting)
}

// place is host and port, for people.
func (d *database) place() string {
	target := d.pool.Config().ConnConfig
	return net.JoinHostPort(target.Host, strconv.Itoa(int(target.Port)))
}

// supervise starts the private Postgres again when it has died, until ctx ends.
func (d *database) supervise(ctx context.Context, logger *slog.Logger) {
	if d.private == nil {
		<-ctx.Done() // a part of a program that returns ends the program
		return
	}
	ticker := time.NewTicker(superviseEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if d.private.Runs() {
			continue
		}
		logger.Warn("private Postgres is gone, starting it again")
		if err := d.private.Ensure(ctx); err != nil && ctx.Err() == nil {
			logger.Error("private Postgres did not start", slog.Any("error", err))
		}
	}
}

// describe says in a few words which Postgres this is, for the start-up lines.
func (d *database) describe() string {
	if d.private == nil {
		return fmt.Sprintf("%s at %s, database %s", d.version, d.place(), d.pool.Config().ConnConfig.Database)
	}
	took := ""
	if d.private.State() != localpg.Adopted {
		took = fmt.Sprintf(" in %.1f s", d.private.Took().Seconds())
	}
	return fmt.Sprintf("%s, private, %s%s, in %s", d.version, d.private.State(), took, shorten(d.private.Dir()))
}

// shorten makes a path relative to here where that is shorter.
func shorten(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if relative, err := filepath.Rel(here, path); err == nil && len(relative) < len(path) {
		return relative
	}
	return path
}

// close gives up the connections, and with the last program that used it the private Postgres stops.
func (d *database) close() error {
	if d.pool != nil {
		d.pool.Close()
	}
	if d.private == nil {
		return nil
	}
	return d.private.Close()
}
