package wire

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"

	"postbus/internal/config"
)

// Psql opens psql on the application's database and returns when it ends. The password travels in the environment, where
// a list of processes does not show it.
func Psql(ctx context.Context, c config.Config) error {
	d, err := openDatabase(ctx, c, func(sentence string) { fmt.Fprintln(os.Stderr, "postbus: "+sentence) })
	if err != nil {
		return err
	}
	// Ctrl-C is psql's from here on. It has to be caught, not ignored: what is ignored stays so in psql.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	psql := exec.CommandContext(context.WithoutCancel(ctx), "psql")
	psql.Stdin, psql.Stdout, psql.Stderr = os.Stdin, os.Stdout, os.Stderr
	psql.Env = append(os.Environ(), d.environ()...)
	err = psql.Run()
	if errors.Is(err, exec.ErrNotFound) {
		err = errors.New("psql is not installed; on Debian it is in the package postgresql-client")
	}
	return errors.Join(err, d.close())
}

// environ is what psql, and every other program of libpq, has to be told to connect where the pool does.
func (d *database) environ() []string {
	target := d.pool.Config().ConnConfig
	env := []string{
		"PGHOST=" + target.Host, "PGPORT=" + strconv.Itoa(int(target.Port)), "PGUSER=" + target.User,
		"PGPASSWORD=" + target.Password, "PGDATABASE=" + target.Database,
	}
	u, err := url.Parse(target.ConnString())
	if err != nil {
		return env
	}
	for _, name := range []string{"sslmode", "sslrootcert", "sslcert", "sslkey"} {
		if value := u.Query().Get(name); value != "" {
			env = append(env, "PG"+strings.ToUpper(name)+"="+value)
		}
	}
	return env
}
