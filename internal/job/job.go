package job

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Limits on what is enqueued (LimitError).
const (
	argsBytesMax      = 256 << 10
	metadataBytesMax  = 8 << 10
	nameBytesMax      = 60 // of kinds, queues and schedules
	keyBytesMax       = 200
	jobsPerEnqueueMax = 10_000
)

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// DefaultQueue is the queue of jobs that name none.
const DefaultQueue = "default"

// The priorities that there are. Higher goes first; 0 is what a job has that names none.
const (
	PriorityMin int8 = -2
	PriorityMax int8 = 2
)

// The metadata of a job's message that the table writes itself, beside what was given with Metadata.
const (
	metadataKind    = "kind"
	metadataQueue   = "queue"
	metadataAttempt = "attempt"
)

// The metadata by which a job tells what it follows from. They have the names of an event's attributes.
const (
	MetadataCorrelation = "correlationid"
	MetadataCausation   = "causationid"
)

// Args are a job's arguments: a value that is stored as JSON.
//
// Kind is the job's durable name, lower case, words joined by dashes, the noun first: "verification-email". It is never
// the Go type's name and never changes: it stands in stored jobs. It is asked of the zero value too.
type Args interface{ Kind() string }

// Job is what is to be enqueued: checked arguments and how they are to be run. It does not change after New.
type Job struct {
	id       uuid.UUID
	kind     string
	args     string
	queue    string
	priority int8
	at       *time.Time
	delay    time.Duration
	lock     string
	unique   string
	metadata map[string]string
	encoded  string // the metadata
}

// ID returns the job's id, a UUIDv7 unless WithID gave another.
func (j Job) ID() uuid.UUID { return j.id }

// Kind returns the kind of the job.
func (j Job) Kind() string { return j.kind }

// Queue returns the queue that the job goes to.
func (j Job) Queue() string { return j.queue }

// Status returns what a table has of the job when it is stored at a time: waiting, or in the future. The table alone knows whether
// it has to wait behind its lock key.
func (j Job) Status(now time.Time) Status {
	runAt := now.Add(j.delay)
	if j.at != nil {
		runAt = *j.at
	}
	return Status{
		ID: j.id, Kind: j.kind, Queue: j.queue, Priority: j.priority, State: StateWaiting, RunAt: runAt.Truncate(time.Microsecond),
		CreatedAt: now, LockKey: j.lock, UniqueKey: j.unique, Args: json.RawMessage(j.args), Metadata: decodeMetadata(j.encoded),
	}
}

// Option says how a job is to be run.
type Option func(*Job)

// At has the job wait until t. A time that has passed is now.
func At(t time.Time) Option { return func(j *Job) { j.at = &t } }

// In has the job wait for d, by the database's clock, from when it is stored.
func In(d time.Duration) Option { return func(j *Job) { j.at, j.delay = nil, d } }

// Queue sends the job to a queue of that name; it is named like a kind. Default: DefaultQueue.
func Queue(name string) Option { return func(j *Job) { j.queue = name } }

// Priority has the job taken before those of lower priority in its queue, from PriorityMin to PriorityMax. Default: 0.
func Priority(p int8) Option { return func(j *Job) { j.priority = p } }

// LockKey has the jobs of one key, of whatever kind and queue, run one after another, in the order in which they were
// enqueued. A job that waits for its time, for another attempt, or out a snooze, has those behind it wait. One that is
// dead, cancelled or discarded lets them go on.
func LockKey(key string) Option { return func(j *Job) { j.lock = key } }

// UniqueKey has the job skipped while another of its kind and key has not ended.
func UniqueKey(key string) Option { return func(j *Job) { j.unique = key } }

// WithID gives the job its id. Enqueueing an id twice makes one job; it is known until the job's history has gone.
func WithID(id uuid.UUID) Option { return func(j *Job) { j.id = id } }

// Metadata adds a value to the metadata of the job's message.
func Metadata(key, value string) Option {
	return func(j *Job) {
		if j.metadata == nil {
			j.metadata = make(map[string]string)
		}
		j.metadata[key] = value
	}
}

// New checks a job. It returns ErrShape for a name, key, priority or time that cannot be, and a *LimitError for what is too
// large.
func New(args Args, options ...Option) (Job, error) {
	j := Job{kind: args.Kind(), queue: DefaultQueue}
	for _, o := range options {
		o(&j)
	}
	if err := check(&j); err != nil {
		return Job{}, err
	}
	encoded, err := json.Marshal(args)
	if err != nil {
		return Job{}, fmt.Errorf("encode %s: %w", j.kind, err)
	}
	switch {
	case len(encoded) > argsBytesMax:
		return Job{}, &LimitError{"argsBytesMax", argsBytesMax, len(encoded), j.kind}
	case !isText(string(encoded)): // a json.RawMessage may have anything in its strings
		return Job{}, fmt.Errorf("%w: arguments of %s are not text", ErrShape, j.kind)
	}
	j.args = string(encoded)
	if j.id == uuid.Nil {
		if j.id, err = uuid.NewV7(); err != nil {
			return Job{}, fmt.Errorf("make job id: %w", err)
		}
	}
	return j, nil
}

func check(j *Job) error {
	switch {
	case !isName(j.kind):
		return fmt.Errorf("%w: a kind is named like verification-email, not %q", ErrShape, j.kind)
	case !isName(j.queue):
		return fmt.Errorf("%w: a queue is named like outgoing-mail, not %q", ErrShape, j.queue)
	case j.priority < PriorityMin || j.priority > PriorityMax:
		return fmt.Errorf("%w: priority of %s is %d, from %d to %d", ErrShape, j.kind, j.priority, PriorityMin, PriorityMax)
	case j.delay < 0:
		return fmt.Errorf("%w: %s is to wait for %s", ErrShape, j.kind, j.delay)
	case j.at != nil && (j.at.Year() < 1970 || j.at.Year() > 9999):
		return fmt.Errorf("%w: %s is to run in the year %d", ErrShape, j.kind, j.at.Year())
	}
	for _, key := range []string{j.lock, j.unique} {
		if len(key) > keyBytesMax {
			return &LimitError{"keyBytesMax", keyBytesMax, len(key), j.kind}
		}
		if !isText(key) {
			return fmt.Errorf("%w: a key of %s is not text", ErrShape, j.kind)
		}
	}
	return checkMetadata(j)
}

func checkMetadata(j *Job) error {
	size := 0
	for k, v := range j.metadata {
		size += len(k) + len(v)
		switch {
		case k == metadataKind, k == metadataQueue, k == metadataAttempt:
			return fmt.Errorf("%w: metadata %s of %s is the table's own", ErrShape, k, j.kind)
		case !isText(k) || !isText(v):
			return fmt.Errorf("%w: metadata of %s is not text", ErrShape, j.kind)
		}
	}
	if size > metadataBytesMax {
		return &LimitError{"metadataBytesMax", metadataBytesMax, size, j.kind}
	}
	encoded, err := json.Marshal(j.metadata)
	if err != nil {
		return fmt.Errorf("encode metadata of %s: %w", j.kind, err)
	}
	j.encoded = string(encoded)
	return nil
}

func isName(s string) bool { return len(s) <= nameBytesMax && namePattern.MatchString(s) }

// isText is true for what Postgres takes as text.
func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
