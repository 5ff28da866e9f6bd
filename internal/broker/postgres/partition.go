package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A topic's table is partitioned by position. Partition n has the positions from n<<32 up to, not including, (n+1)<<32.
// Nobody fills one: when it has rows enough, or is old enough, it is closed by setting the topic's sequence to where the
// next one begins. That needs no lock and moves no row, and positions are not dense anyway. It also means that an INSERT
// does not run out of partitions, whether or not anybody maintains them: what is left of the current one lasts for 12
// hours at 100,000 events/s, and there are two more. So there is no DEFAULT partition, which would have to be locked
// against everybody and searched whenever one is added.
//
// A transaction that has written to a topic does not look for its new partitions, since it has its lock already. So the
// current partition is closed only when all transactions from before the next one was attached have ended; until then it
// grows. Which those are is noted when the attaching has committed: before that, also younger ones do not see it. The first
// partitions are there with the topic.
//
// A row of partition n had its transaction's id before its position (doc.go), and that before n was closed. So its xid is
// below the fence, the id of a transaction that began after the closing, and its recorded_at is before closed_at.
const (
	partitionBits   = 32
	partitionsAhead = 2
	// closeMarginPositions are those that must be left in a partition for it to be closed: so many would have to be drawn
	// between looking at the sequence and setting it, for setting it to take it back.
	closeMarginPositions = 1 << (partitionBits - 1)
	// partitionsPerAge is how many partitions, about, the events that retention keeps are spread over.
	partitionsPerAge = 8
	// partitionsPerDoubling bounds a topic's partitions: for each so many that it has, they grow to twice the size.
	partitionsPerDoubling = 64
)

// partition is a part of a topic's table.
type partition struct {
	number int64
	noted  bool // that it was attached
	ready  bool // every transaction under way knows it
	closed bool
	fence  uint64        // the first transaction id that no row in it has; of a closed one
	age    time.Duration // since it was closed
}

func firstPosition(partition int64) int64 { return partition << partitionBits }

// partitions is what a topic's table consists of.
type partitions struct {
	topic   string
	server  time.Time     // that was surveyed, by its start (server.go)
	last    int64         // the position drawn last; firstPosition itself is never drawn
	open    time.Duration // since the current one became that
	parts   []partition   // oldest first
	current int64
}

func (p partitions) newest() int64 { return p.parts[len(p.parts)-1].number }

// ready reports whether the partition after the current one can be.
func (p partitions) ready() bool {
	return slices.ContainsFunc(p.parts, func(next partition) bool { return next.number == p.current+1 && next.ready })
}

// rows is about how many rows the current partition has; rolled back ones count.
func (p partitions) rows() int64 { return p.last - firstPosition(p.current) }

// due reports whether the current partition is to be closed. An empty one never is, so nothing is made for a topic at rest.
func (p partitions) due(c Config) bool {
	rowsMax := c.PartitionRows << min(len(p.parts)/partitionsPerDoubling, 16)
	aged := c.Retention.Age > 0 && p.open >= c.Retention.Age/partitionsPerAge
	return p.ready() && p.rows() > 0 && (aged || p.rows() >= rowsMax) && p.rows() < closeMarginPositions
}

// provisionPartitions gives a new topic its first partitions.
func (l *Log) provisionPartitions(ctx context.Context, tx pgx.Tx, topic string) error {
	for n := range int64(1 + partitionsAhead) {
		for _, sql := range l.addSQL(topic, n) {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, l.noteSQL("true"), topic, []int64{n}); err != nil {
			return err
		}
	}
	var sequence string
	err := tx.QueryRow(ctx, `SELECT pg_get_serial_sequence($1, 'position')`, l.topicTable(topic)).Scan(&sequence)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `ALTER SEQUENCE `+sequence+` RENAME TO `+pgx.Identifier{topicPrefix + topic + positionSuffix}.Sanitize())
	return err
}

// provisionAhead makes partitions that are missing ahead, if nobody maintained the topics for long.
func (l *Log) provisionAhead(ctx context.Context) error {
	topics, err := l.survey(ctx)
	if err != nil {
		return err
	}
	for _, t := range topics {
		if err := l.extend(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// addSQL adds a partition. CREATE TABLE … PARTITION OF would lock the topic against everybody. ATTACH locks it against
// nothing that publishers or readers do, and has no row to check in an empty table.
func (l *Log) addSQL(topic string, n int64) []string {
	table, part := l.topicTable(topic), l.partitionTable(topic, n)
	return []string{
		fmt.Sprintf(`CREATE TABLE %s (LIKE %s)`, part, table),
		fmt.Sprintf(`ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d)`,
			table, part, firstPosition(n), firstPosition(n+1)),
	}
}

// noteSQL notes that every transaction after this one knows the partitions, under a condition.
func (l *Log) noteSQL(condition string) string {
	return `INSERT INTO ` + l.table("partitions") + ` (topic, number) SELECT $1, number FROM unnest($2::bigint[]) AS number
		WHERE ` + condition + ` ON CONFLICT DO NOTHING`
}

// survey looks at all topics. It is one query, takes no transaction id, and the ages in it are by the database's clock.
func (l *Log) survey(ctx context.Context) ([]partitions, error) {
	if err := l.beginLife(ctx); err != nil {
		return nil, err
	}
	rows, err := l.pool.Query(ctx, `SELECT t.topic, coalesce(s.last_value, 0),
			extract(epoch FROM clock_timestamp() - coalesce(
				(SELECT max(closed_at) FROM `+l.table("partitions")+` AS c WHERE c.topic = t.topic), t.created_at))::float8,
			n.number, p.number IS NOT NULL, coalesce(p.attached < pg_snapshot_xmin(pg_current_snapshot()), false), p.fence::text,
			coalesce(extract(epoch FROM clock_timestamp() - p.closed_at), 0)::float8, `+l.lifeSQL()+`
		FROM `+l.table("topics")+` AS t
		LEFT JOIN pg_sequences AS s ON s.schemaname = $1 AND s.sequencename = $2 || t.topic || $3
		JOIN pg_inherits AS i ON i.inhparent = to_regclass(format('%I.%I', $1, $2 || t.topic))
		JOIN pg_class AS c ON c.oid = i.inhrelid
		CROSS JOIN LATERAL (SELECT substring(c.relname FROM '[$]([0-9]+)$')::bigint AS number) AS n
		LEFT JOIN `+l.table("partitions")+` AS p ON p.topic = t.topic AND p.number = n.number
		WHERE n.number IS NOT NULL ORDER BY t.topic, n.number`, l.config.Schema, topicPrefix, positionSuffix)
	if err != nil {
		return nil, fmt.Errorf("survey partitions: %w", err)
	}
	var all []partitions
	var t partitions
	var part partition
	var open, age float64
	var fence *string
	into := []any{&t.topic, &t.last, &open, &part.number, &part.noted, &part.ready, &fence, &age, &t.server}
	_, err = pgx.ForEachRow(rows, into, func() error {
		if len(all) == 0 || all[len(all)-1].topic != t.topic {
			t.open, t.current = seconds(open), t.last>>partitionBits
			all = append(all, t)
		}
		part.closed, part.fence, part.age = fence != nil, 0, seconds(age)
		if part.closed {
			var err error
			if part.fence, err = strconv.ParseUint(*fence, 10, 64); err != nil {
				return err
			}
		}
		latest := &all[len(all)-1]
		latest.parts = append(latest.parts, part)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("survey partitions: %w", err)
	}
	l.seals.set(all)
	return all, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// closeIfDue makes the topic's next position the first of the next partition. Two processes that do it one after the
// other would set the sequence back, so they look again under a lock. A position drawn before stays good.
func (l *Log) closeIfDue(ctx context.Context, t partitions) error {
	if !t.due(l.config) {
		return nil
	}
	return l.closeCurrent(ctx, t)
}

func (l *Log) closeCurrent(ctx context.Context, t partitions) error {
	sequence := l.table(topicPrefix + t.topic + positionSuffix)
	err := l.execAlone(ctx, l.sameServerSQL(t), fmt.Sprintf(`DO $postbus$ BEGIN
		IF pg_try_advisory_xact_lock(%d) THEN
			IF (SELECT last_value BETWEEN %d AND %d FROM %s) THEN
				PERFORM setval(%s, %d);
			END IF;
		END IF;
	END $postbus$`, int64(provisionLock), firstPosition(t.current)+1, firstPosition(t.current)+closeMarginPositions,
		sequence, quoted(sequence), firstPosition(t.current+1)))
	if err != nil {
		return fmt.Errorf("close partition %d of topic %s: %w", t.current, t.topic, err)
	}
	return nil
}

// recordClosed notes when the partitions before the current one were closed. Its transaction begins after t was surveyed,
// which is what fence and closed_at rest on, on the same server.
func (l *Log) recordClosed(ctx context.Context, t partitions) error {
	var numbers []int64
	for _, p := range t.parts {
		if !p.closed && p.number < t.current {
			numbers = append(numbers, p.number)
		}
	}
	if len(numbers) == 0 {
		return nil
	}
	_, err := l.pool.Exec(ctx, `UPDATE `+l.table("partitions")+` SET closed_at = clock_timestamp(), fence = pg_current_xact_id()
		WHERE topic = $1 AND number = ANY ($2) AND closed_at IS NULL AND `+l.sameServer("$3", "NULL"), t.topic, numbers, t.server)
	if err != nil {
		return fmt.Errorf("record closed partitions of topic %s: %w", t.topic, err)
	}
	return nil
}

// extend makes the partitions that are to be ready, and notes those that were attached and not noted.
func (l *Log) extend(ctx context.Context, t partitions) error {
	var numbers []int64
	for _, p := range t.parts {
		if !p.noted {
			numbers = append(numbers, p.number)
		}
	}
	if err := l.note(ctx, t, numbers...); err != nil {
		return err
	}
	for n := t.newest() + 1; n <= t.current+partitionsAhead; n++ {
		lock := fmt.Sprintf(`SELECT pg_advisory_xact_lock(%d)`, int64(provisionLock))
		err := l.execAlone(ctx, append([]string{lockTimeoutSQL, lock, l.sameServerSQL(t)}, l.addSQL(t.topic, n)...)...)
		if isBusy(err) || hasCode(err, codeDuplicateTable) { // somebody else is at it
			return nil
		}
		if err != nil {
			return fmt.Errorf("make partition %d of topic %s: %w", n, t.topic, err)
		}
		if err := l.note(ctx, t, n); err != nil {
			return err
		}
	}
	return nil
}

// sameServerSQL is a statement that fails on another server than the one that was surveyed.
func (l *Log) sameServerSQL(t partitions) string {
	return `SELECT ` + l.sameServer(quoted(t.server.Format(time.RFC3339Nano))+`::timestamptz`, "NULL")
}

// note is for partitions that were attached on the server that was surveyed.
func (l *Log) note(ctx context.Context, t partitions, numbers ...int64) error {
	if len(numbers) == 0 {
		return nil
	}
	_, err := l.pool.Exec(ctx, l.noteSQL(l.sameServer("$3", "NULL")), t.topic, numbers, t.server)
	if err != nil {
		return fmt.Errorf("note partitions of topic %s: %w", t.topic, err)
	}
	return nil
}

// execAlone runs statements in one transaction that the server begins and ends by itself: they travel together, so that no
// lock waits for this process to be scheduled, or to be continued after a SIGSTOP. Each sees what others have committed before,
// whatever the database's default is: a check under a lock is about what is there when the lock is had.
func (l *Log) execAlone(ctx context.Context, statements ...string) error {
	return l.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		sql := `SET TRANSACTION ISOLATION LEVEL READ COMMITTED; ` + strings.Join(statements, "; ")
		_, err := c.Conn().PgConn().Exec(ctx, sql).ReadAll()
		return err
	})
}

const (
	codeDuplicateTable   = "42P07"
	codeUndefinedTable   = "42P01"
	codeLockNotAvailable = "55P03"
	codeQueryCanceled    = "57014" // by statement_timeout
	codeDeadlock         = "40P01"
	// codeIdleInTransaction is by idle_in_transaction_session_timeout, for a client that sent nothing: it has not committed.
	codeIdleInTransaction = "25P03"
)

func hasCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && slices.Contains(codes, pg.Code)
}

// isBusy reports whether a lock was not to be had in time.
func isBusy(err error) bool {
	return hasCode(err, codeLockNotAvailable, codeQueryCanceled, codeDeadlock)
}

// seals remembers up to where topics can get no more rows, and by which transactions they could. Its zero value is ready.
type seals struct {
	mu     sync.Mutex
	server time.Time // that it is true of
	closed map[string][]partition
}

func (s *seals) set(all []partitions) {
	var server time.Time
	closed := make(map[string][]partition, len(all))
	for _, t := range all {
		server = t.server
		for _, p := range t.parts {
			if p.closed {
				closed[t.topic] = append(closed[t.topic], p)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server, s.closed = server, closed
}

// before returns a position up to which all rows that there will ever be are visible in the snapshot, so that none of
// them is late. All transactions below its xmin have ended; a partition whose fence is not above xmin has only their
// rows. What is remembered may be old: then the position is a lower one than it could be, and as true; but of another server
// it says nothing.
func (s *seals) before(server time.Time, topic, snapshot string) int64 {
	first, _, _ := strings.Cut(snapshot, ":")
	xmin, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.server.Equal(server) {
		return 0
	}
	var position int64
	for _, p := range s.closed[topic] {
		if p.fence > xmin {
			break
		}
		position = firstPosition(p.number + 1)
	}
	return position
}

// positionSuffix makes the name of a topic's sequence, as the others make those of its indexes. No topic has a $ in its name,
// so these are nobody's table. The longest, of a partition's primary key, has 62 of the 63 bytes that Postgres allows.
const (
	positionSuffix = "$position"
	keySuffix      = "$key"
	xidSuffix      = "$xid"
)

func (l *Log) partitionTable(topic string, n int64) string {
	return l.table(topicPrefix + topic + "$" + strconv.FormatInt(n, 10))
}

// quoted makes a string a literal for SQL that cannot take parameters.
func quoted(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
