package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
)

// Limits on what a running job tells of itself.
const (
	progressBytesMax = 8 << 10
	resultBytesMax   = 64 << 10
)

type deliveryKey struct{}

// delivery is a job that this process has taken, until its outcome is stored.
type delivery struct {
	row    row
	queue  string
	worker *worker         // nil for a Trial
	ctx    context.Context //nolint:containedctx // the message's; the worker ends it when the job is cancelled or lost
	end    context.CancelCauseFunc
	done   bool // its outcome is noted; under the worker's lock

	mu      sync.Mutex
	policy  Policy
	reason  error // of the refusal, by the job's handler
	refusal error // the same by the middleware around it
	result  *string
}

func newDelivery(handling context.Context, w *worker, r row, queue string) *delivery {
	d := &delivery{row: r, queue: queue, worker: w}
	ctx, end := context.WithCancelCause(handling)
	d.ctx, d.end = context.WithValue(ctx, deliveryKey{}, d), end
	return d
}

// message makes the message that a handler gets.
func (d *delivery) message() *message.Message {
	m := message.NewMessage(d.row.id.String(), d.row.args)
	m.Metadata = decodeMetadata(d.row.metadata)
	m.Metadata[metadataKind] = d.row.kind
	m.Metadata[metadataQueue] = d.queue
	m.Metadata[metadataAttempt] = strconv.Itoa(d.row.attempt)
	m.SetContext(d.ctx)
	return m
}

// fail notes what the job's handler returned.
func (d *delivery) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reason = err
}

// refuse notes why the job is refused, as the middleware sees it. The last reason holds.
func (d *delivery) refuse(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refusal = err
}

// why is the reason of the refusal: the handler's own error, which the middleware may have wrapped in one with a policy of
// its own, or what the middleware has to say without it.
func (d *delivery) why() (class string, reason error) {
	var c classer
	if errors.As(d.refusal, &c) {
		class = c.Class()
	}
	switch {
	case d.reason != nil && (d.refusal == nil || errors.Is(d.refusal, d.reason)):
		return class, d.reason
	case d.refusal != nil:
		return class, d.refusal
	}
	return "", errNoReason
}

func (d *delivery) setPolicy(p Policy) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.policy = p
}

// acknowledged is the outcome of a job whose message was acknowledged: it has succeeded, or was put off.
func (d *delivery) acknowledged() outcome {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s snooze
	if errors.As(d.reason, &s) {
		return outcome{verdict: verdictSnoozed, wait: s.d}
	}
	return outcome{verdict: verdictCompleted, result: d.result}
}

// refused is the outcome of a job whose message was refused.
func (d *delivery) refused() outcome {
	d.mu.Lock()
	defer d.mu.Unlock()
	class, err := d.why()
	var s snooze
	switch {
	case errors.As(err, &s):
		return outcome{verdict: verdictSnoozed, wait: s.d}
	case errors.Is(context.Cause(d.ctx), ErrStopped):
		return outcome{verdict: verdictBack}
	}
	version := ""
	if d.worker != nil {
		version = d.worker.table.config.Version
	}
	return judge(err, class, d.policy, d.row.attempt, version)
}

var errNoReason = errors.New("refused without a reason")

// deliveryOf finds the job that runs under the context.
func deliveryOf(ctx context.Context) (*delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*delivery)
	return d, ok
}

// Refuse notes why the message of a job is refused; it is called before Nack, and does nothing for another message. What the
// job's handler returned decides what is to become of the job, also where middleware has wrapped it; and if it did not come
// to a handler, err does:
//
//   - an error of Snooze puts it off;
//   - one with Next(attempt int) (wait time.Duration, again bool) says when it is tried again, or that it is not: it is dead;
//   - for any other, the policy that the job's handler was given decides, or the default one.
//
// Class() string and Stack() string of an error are noted with it; where the handler's error has no class, err's is.
func (t *Table) Refuse(m *message.Message, err error) {
	if d, ok := deliveryOf(m.Context()); ok {
		d.refuse(err)
	}
}

// Running is what a handler may know of the job that it runs.
type Running struct {
	ID      uuid.UUID
	Kind    string
	Queue   string
	Attempt int // the first is 1
}

// Current returns the job that runs under the context, a handler's; false outside of one.
func Current(ctx context.Context) (Running, bool) {
	d, ok := deliveryOf(ctx)
	if !ok {
		return Running{}, false
	}
	return Running{ID: d.row.id, Kind: d.row.kind, Queue: d.queue, Attempt: d.row.attempt}, true
}

// Progress stores how far the running job is, a value that becomes JSON, for Table.Get to show. It is stored at once, and
// whatever becomes of the job. It returns ErrNotRunning outside of a handler, and when the job is another worker's by now.
func Progress(ctx context.Context, value any) error {
	d, ok := deliveryOf(ctx)
	if !ok {
		return ErrNotRunning
	}
	encoded, err := encodeBounded(value, "progressBytesMax", progressBytesMax, d.row.kind)
	if err != nil {
		return err
	}
	if d.worker == nil {
		d.tried(encoded)
		return nil
	}
	t := d.worker.table
	tag, err := t.pool.Exec(ctx, t.sql.progress,
		t.perValue, d.row.id, d.row.epoch, encoded)
	if err != nil {
		return fmt.Errorf("store progress: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNotRunning
	}
	return nil
}

// SetResult keeps a value, as JSON, with the job when its handler succeeds, for as long as completed jobs are kept. The
// last one holds. It returns ErrNotRunning outside of a handler.
func SetResult(ctx context.Context, value any) error {
	d, ok := deliveryOf(ctx)
	if !ok {
		return ErrNotRunning
	}
	encoded, err := encodeBounded(value, "resultBytesMax", resultBytesMax, d.row.kind)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.result = &encoded
	return nil
}

func encodeBounded(value any, limit string, bytesMax int, kind string) (string, error) {
	encoded, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("encode for %s: %w", kind, err)
	}
	switch {
	case len(encoded) > bytesMax:
		return "", &LimitError{limit, bytesMax, len(encoded), kind}
	case !isText(string(encoded)): // a json.RawMessage may have anything in its strings
		return "", fmt.Errorf("%w: a value of %s is not text", ErrShape, kind)
	}
	return string(encoded), nil
}

// endedGrace is how long a handler gets to return after its context has ended with the worker.
const endedGrace = time.Second
