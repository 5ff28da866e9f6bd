package wire

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/config"
	"postbus/internal/relay"
)

const (
	sessionNameBytesMax = 63 // Postgres cuts an application_name there
	hostBytesMin        = 8  // of a host's name, in a session's that is cut short

	runsAll  = "all"
	runsNone = "none"
)

// sessionName is what a program's sessions are called in Postgres: the program, the consumers that it runs, host and
// process id. A consumer that has nothing to do leaves no other trace: it holds nothing and writes nothing.
func sessionName(c config.Config) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	process := "/" + strconv.Itoa(os.Getpid())
	start := "postbus " + c.Program + " " + runs(c) + " "
	if len(start)+hostBytesMin+len(process) > sessionNameBytesMax {
		start = "postbus " + c.Program + " some "
	}
	return start + host[:min(len(host), sessionNameBytesMax-len(start)-len(process))] + process
}

// runs names the consumers that the program runs, with commas between them.
func runs(c config.Config) string {
	switch {
	case c.Psql, c.List, c.JoinBroker, c.LeaveBroker, c.Dead != "", c.Move != "", c.RenameFrom != "", c.Forget != "":
		return runsNone
	case c.Program == config.App && !c.EmbeddedConsumers:
		return runsNone
	case len(c.Only) > 0:
		return strings.Join(c.Only, ",")
	default:
		return runsAll
	}
}

// sessions are the names of the sessions that programs have in the database.
func sessions(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	rows, err := pool.Query(ctx, `SELECT DISTINCT application_name FROM pg_stat_activity
		WHERE datname = current_database() AND application_name LIKE 'postbus %' ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	return names, nil
}

// resting picks the processes among sessions that run the consumer.
func resting(sessions []string, consumer string) (processes []string) {
	for _, name := range sessions {
		words := strings.SplitN(name, " ", 4) // postbus, program, consumers, process
		if len(words) == 4 && runsIt(words[2], consumer) {
			processes = append(processes, words[3])
		}
	}
	return processes
}

// runsIt tells whether a process that runs these runs the consumer: every one that runs consumers has the relays to a broker, and
// every one that runs jobs has theirs.
func runsIt(these, consumer string) bool {
	names := strings.Split(these, ",")
	_, isRelay := relay.IsRelay(consumer)
	return these == runsAll || isRelay && these != runsNone || slices.Contains(names, consumer) ||
		consumer == crossing.Consumer && slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, config.QueuePrefix) })
}
