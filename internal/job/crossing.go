package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The names under which jobs cross. No event type may have the topic, and no consumer of events can have the name.
const (
	// CrossingTopic is the topic of the application's log that jobs cross in.
	CrossingTopic = "postbus_job"
	// CrossingConsumer is who reads it: the relay, in whatever process Crossing.Run is called.
	CrossingConsumer = "jobs:crossing"
)

const (
	// crossingSchema is the form of the messages that jobs cross in.
	crossingSchema = "urn:postbus:schema:postbus_job.enqueued:1"
	// crossedKeep is how long it is remembered at least that a job has crossed.
	crossedKeep = 7 * 24 * time.Hour
	// crossingSlack is by how much the clocks of the two databases may differ.
	crossingSlack = 24 * time.Hour
	// crossingBatchMax is how many jobs are on their way at a time, and go together if they come together.
	crossingBatchMax = 100
	// crossingLocks is how many locks the lock keys share while they are put on the way.
	crossingLocks = 256
	// crossingLockClass keeps these locks apart from other advisory locks.
	crossingLockClass = 0x706f7374 // "post"
)

// Log is the event log in the database of the transactions that enqueue jobs: a *postgres.Log.
type Log interface {
	// Append queues what stores the messages on a batch.
	Append(batch *pgx.Batch, topic string, messages ...*message.Message) error
	// Wake tells who reads the topics, after the commit.
	Wake(topics ...string)
	// Refuse says why a message will be refused; it is called before the Nack. The log parks a message whose reason has
	// Next(attempt int) (wait time.Duration, again bool), with its key, and delivers it again after the wait.
	Refuse(m *message.Message, reason error)
	// Subscriber returns the subscriber of a consumer, which delivers as many keys at a time.
	Subscriber(consumer string, concurrency int) (message.Subscriber, error)
	// Unread tells how old the oldest message is that the consumer has not passed; 0 when there is none, and false when there
	// are too many to say.
	Unread(ctx context.Context, consumer, topic string) (oldest time.Duration, known bool, err error)
}

// Crossing takes jobs to a work table in another database than that of the transactions which enqueue them. No transaction
// spans both, so a job is stored as a message of the log in the first (Append), and a relay (Run) carries it to the second. It
// may be used from many goroutines.
//
// A job that was committed reaches the table once, and one that was rolled back never: the message shares the fate of the
// transaction, and the table remembers, in the transaction that stores the job, that its id has come. It forgets it when the
// relay has passed the message for good, and a week later at the earliest. While the table's database is away jobs wait in
// the log, and commits are not held up.
//
// Jobs of one lock key cross in the order in which they were committed. What the table decides it decides when a job arrives:
// it is skipped then if its unique key is taken. In counts from the commit, by the clock of the process; what is due when it
// arrives runs at once.
type Crossing struct {
	log    Log
	table  *Table
	logger *slog.Logger
}

// NewCrossing returns the way from the log to the table. The log has CrossingTopic, and CrossingConsumer reads it from its
// beginning.
func NewCrossing(log Log, table *Table) *Crossing {
	return &Crossing{log: log, table: table, logger: table.logger}
}

// crossingJob is the payload of the message that a job crosses in.
type crossingJob struct {
	Kind      string          `json:"kind"`
	Queue     string          `json:"queue"`
	Priority  int8            `json:"priority"`
	At        *time.Time      `json:"at,omitempty"`
	LockKey   string          `json:"lock_key,omitempty"`
	UniqueKey string          `json:"unique_key,omitempty"`
	Metadata  json.RawMessage `json:"metadata"`
	Args      json.RawMessage `json:"args"`
}

// Append queues what puts jobs on their way, in their order, on a batch that the caller sends within its transaction,
// preferably with the COMMIT. Nothing is sent here. Wake is to be called after the commit.
//
// Lock keys of the jobs are locked until the transaction ends; some share a lock.
func (c *Crossing) Append(batch *pgx.Batch, jobs ...Job) error {
	if len(jobs) == 0 {
		return nil
	}
	if len(jobs) > jobsPerEnqueueMax {
		return &LimitError{Limit: "jobsPerEnqueueMax", Max: jobsPerEnqueueMax, Got: len(jobs)}
	}
	messages := make([]*message.Message, len(jobs))
	for i, j := range jobs {
		m, err := encodeCrossing(j, time.Now())
		if err != nil {
			return err
		}
		messages[i] = m
	}
	if locks := crossingLocksOf(jobs); len(locks) > 0 {
		// Positions of one key are then drawn in the order of the commits.
		batch.Queue(`SELECT pg_advisory_xact_lock($1::int, lock) FROM unnest($2::int[]) AS l (lock)`, crossingLockClass, locks)
	}
	if err := c.log.Append(batch, CrossingTopic, messages...); err != nil {
		return fmt.Errorf("put jobs on their way: %w", err)
	}
	return nil
}

// Wake tells the relay of new jobs. It is called after the commit and waits for nothing.
func (c *Crossing) Wake(...string) { c.log.Wake(CrossingTopic) }

func crossingLocksOf(jobs []Job) (locks []int32) {
	for _, key := range lockKeysOf(jobs) {
		h := fnv.New32a()
		_, _ = h.Write([]byte(key)) // a hash takes everything
		locks = append(locks, int32(h.Sum32()%crossingLocks))
	}
	slices.Sort(locks) // so that two transactions never wait for each other
	return slices.Compact(locks)
}

// encodeCrossing makes the message of a job, whose id is the job's, with the attributes of a CloudEvent.
func encodeCrossing(j Job, now time.Time) (*message.Message, error) {
	at := j.at
	if j.delay > 0 {
		due := now.Add(j.delay)
		at = &due
	}
	payload, err := json.Marshal(crossingJob{
		Kind: j.kind, Queue: j.queue, Priority: j.priority, At: at, LockKey: j.lock, UniqueKey: j.unique,
		Metadata: json.RawMessage(j.encoded), Args: json.RawMessage(j.args),
	})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", j.kind, err)
	}
	m := message.NewMessage(j.id.String(), payload)
	m.Metadata = message.Metadata{
		"specversion": "1.0", "id": j.id.String(), "source": "/postbus/job", "type": CrossingTopic + ".enqueued",
		"time": now.UTC().Format(time.RFC3339Nano), "datacontenttype": "application/json", "dataschema": crossingSchema,
	}
	if j.lock != "" {
		m.Metadata["partitionkey"] = j.lock
	}
	return m, nil
}

// decodeCrossing reads the job of a message. Its error quotes nothing of it.
func decodeCrossing(m *message.Message) (Job, error) {
	if m.Metadata.Get("dataschema") != crossingSchema {
		return Job{}, errors.New("the message of a job is of a form that this program does not know")
	}
	id, err := uuid.Parse(m.UUID)
	if err != nil {
		return Job{}, errors.New("the message of a job has no UUID")
	}
	var p crossingJob
	if err := json.Unmarshal(m.Payload, &p); err != nil {
		return Job{}, undecodable("a job that crosses", len(m.Payload), err)
	}
	return Job{
		id: id, kind: p.Kind, queue: p.Queue, priority: p.Priority, at: p.At, lock: p.LockKey, unique: p.UniqueKey,
		encoded: string(p.Metadata), args: string(p.Args),
	}, nil
}

// Run is the relay: it carries jobs across until ctx ends, and hands over in good order. Any number of processes may run it;
// they share the work. When a database does not answer it goes on by itself. It returns an error where the log has no
// CrossingConsumer.
func (c *Crossing) Run(ctx context.Context) error {
	subscriber, err := c.log.Subscriber(CrossingConsumer, crossingBatchMax)
	if err != nil {
		return fmt.Errorf("run the relay of jobs: %w", err)
	}
	messages, err := subscriber.Subscribe(ctx, CrossingTopic)
	if err != nil {
		return fmt.Errorf("run the relay of jobs: %w", errors.Join(err, subscriber.Close()))
	}
	var sweeping sync.WaitGroup
	sweeping.Go(func() { c.keepForgetting(ctx) })
	defer sweeping.Wait()
	for m := range messages {
		c.carry(ctx, gather(m, messages))
	}
	return subscriber.Close()
}

// gather returns the message with those that are ready too: what comes while some are being stored goes together.
func gather(first *message.Message, from <-chan *message.Message) []*message.Message {
	all := []*message.Message{first}
	for len(all) < crossingBatchMax {
		select {
		case m, ok := <-from:
			if !ok {
				return all
			}
			all = append(all, m)
		default:
			return all
		}
	}
	return all
}

// carry stores the jobs of messages, however long it takes, and acknowledges them. When ctx ends before, they are refused: the
// next one to read them carries them.
func (c *Crossing) carry(ctx context.Context, messages []*message.Message) {
	var jobs []Job
	var known []*message.Message
	for _, m := range messages {
		j, err := decodeCrossing(m)
		if err != nil {
			c.leave(m, err)
			continue
		}
		jobs, known = append(jobs, j), append(known, m)
	}
	for failures := 1; len(jobs) > 0; failures++ {
		err := c.table.cross(ctx, jobs)
		switch {
		case err == nil:
			for _, m := range known {
				m.Ack()
			}
			return
		case refused(err) && len(known) > 1: // the others are not to wait for one
			for _, m := range known {
				c.carry(ctx, []*message.Message{m})
			}
			return
		case refused(err):
			c.leave(known[0], err)
			return
		}
		if ctx.Err() == nil {
			c.logger.Warn("jobs do not reach their database, will go on by itself", slog.Any("error", err))
			sleep(ctx, Policy{WaitMin: retryWait, WaitMax: c.table.config.Lease}.wait(failures))
		}
		if ctx.Err() != nil {
			for _, m := range known {
				m.Nack()
			}
			return
		}
	}
}

// leave has one message parked, and come again after up to a minute. Its lock key waits, others go on.
func (c *Crossing) leave(m *message.Message, err error) {
	c.logger.Error("a job cannot be stored in its database, it is tried again", slog.String("job_id", m.UUID), slog.Any("error", err))
	c.log.Refuse(m, &strandedError{err})
	m.Nack()
}

// strandedError is why a job does not cross. It is tried again however often it fails: nobody may lose one by a click.
type strandedError struct{ err error }

func (e *strandedError) Error() string { return e.err.Error() }
func (e *strandedError) Unwrap() error { return e.err }

// Next and Class tell the log what to do with the message.
func (e *strandedError) Next(attempt int) (wait time.Duration, again bool) {
	return Policy{WaitMin: time.Second, WaitMax: time.Minute}.wait(attempt), true
}
func (e *strandedError) Class() string { return "stranded" }

// refused is true when Postgres does not take what a job holds, such as a letter that the database's encoding does not have.
func refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "54"))
}

// cross stores jobs that come from another database, all of them or none, and wakes the workers. One whose id has come before
// is passed over, also when the job is gone by now.
func (t *Table) cross(ctx context.Context, jobs []Job) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	stored, err := t.store(ctx, t.sql.cross, jobs)
	if err != nil {
		return fmt.Errorf("store jobs that cross: %w", err)
	}
	var queues []string
	for _, j := range jobs {
		if stored[j.id] {
			queues = append(queues, j.queue)
		}
	}
	t.Wake(queues...)
	return nil
}

// keepForgetting forgets what has crossed, once it cannot come again, until ctx ends. It begins with a wait: what was parked, and
// had crossed when every relay died, comes again before its note may go.
func (c *Crossing) keepForgetting(ctx context.Context) {
	for sleep(ctx, c.table.config.CleanEvery); ctx.Err() == nil; sleep(ctx, c.table.config.CleanEvery) {
		if err := c.forget(ctx); err != nil && ctx.Err() == nil {
			c.logger.Debug("what has crossed is still remembered", slog.Any("error", err))
		}
	}
}

// forget deletes the notes that jobs have crossed which are older than crossedKeep, unless the relay has yet to pass a message
// of nearly that age.
func (c *Crossing) forget(ctx context.Context) error {
	oldest, known, err := c.log.Unread(ctx, CrossingConsumer, CrossingTopic)
	if err != nil || !known || oldest > crossedKeep-crossingSlack {
		return err
	}
	for deleted := cleanMax; deleted == cleanMax; {
		tag, err := c.table.pool.Exec(ctx, forgetSQL(c.table), c.table.perValue, crossedKeep.Microseconds(), cleanMax)
		if err != nil {
			return fmt.Errorf("forget what has crossed: %w", err)
		}
		deleted = int(tag.RowsAffected())
	}
	return nil
}

func forgetSQL(t *Table) string {
	return `DELETE FROM ` + t.table("job_crossed") + ` WHERE id = ANY (ARRAY(
		SELECT id FROM ` + t.table("job_crossed") + ` WHERE crossed_at < statement_timestamp() - $1::bigint * interval '1 microsecond'
		ORDER BY crossed_at LIMIT $2 FOR UPDATE SKIP LOCKED))`
}
