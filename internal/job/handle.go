package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"runtime/debug"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Workers are typed handlers, one for each kind of job. They are put together while wiring, by one goroutine.
type Workers struct {
	handlers map[string]handler
}

type handler struct {
	policy Policy
	run    func(ctx context.Context, args []byte) error
}

// NewWorkers returns Workers without handlers.
func NewWorkers() *Workers { return &Workers{handlers: make(map[string]handler)} }

// Handle adds the handler for jobs with arguments A, a value type, with a policy, or the default one.
//
// The handler is called at least once for each job. It returns nil when the job is done; an error, a panic included, has it
// tried again as the policy says, or the error itself: Permanent, RetryAfter, Snooze, or any that has Next. Current has the
// job's id, which is the same at every attempt; under the bus's router domain.IdempotencyKey gives it too. The context ends as
// Subscriber.Subscribe says, or with the policy's Timeout.
// Handle returns ErrDuplicate for a second handler of a kind, and ErrShape for a kind or a policy that cannot be.
func Handle[A Args](w *Workers, h func(ctx context.Context, args A) error, policy ...Policy) error {
	t := reflect.TypeFor[A]()
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return fmt.Errorf("%w: %s is not a value type", ErrShape, t)
	}
	var zero A
	kind := zero.Kind()
	if !isName(kind) {
		return fmt.Errorf("%w: the kind of %s is %q; it is named like verification-email", ErrShape, t, kind)
	}
	if _, ok := w.handlers[kind]; ok {
		return fmt.Errorf("handler of %s: %w", kind, ErrDuplicate)
	}
	var p Policy
	if len(policy) > 0 {
		p = policy[0]
	}
	if err := p.validate(); err != nil || len(policy) > 1 {
		return fmt.Errorf("%w: the policy of %s", ErrShape, kind)
	}
	w.handlers[kind] = handler{policy: p, run: func(ctx context.Context, encoded []byte) error {
		var args A
		if err := json.Unmarshal(encoded, &args); err != nil {
			return &verdict{err: undecodable(kind, len(encoded), err), class: "undecodable"}
		}
		return h(ctx, args)
	}}
	return nil
}

// undecodable tells what is wrong with arguments without quoting them, as the errors of encoding/json do.
func undecodable(kind string, size int, err error) error {
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		return fmt.Errorf("arguments of %s, %d bytes, have a wrong type in field %q", kind, size, mismatch.Field)
	}
	return fmt.Errorf("arguments of %s, %d bytes, do not fit", kind, size)
}

// Kinds returns the kinds that have a handler, sorted.
func (w *Workers) Kinds() []string { return slices.Sorted(maps.Keys(w.handlers)) }

// Handler returns the handler of a queue's messages for a Watermill router: it calls the job's own, recovers its panic, and
// notes the reason of a refusal, which need not be told to Table.Refuse. Several queues may share it. before, if given, are
// called ahead of each job's handler, under its policy and timeout; an error of theirs stands for the handler's.
func (w *Workers) Handler(before ...func(context.Context) error) message.NoPublishHandlerFunc {
	return func(m *message.Message) error {
		err := w.handle(m, before)
		d, ok := deliveryOf(m.Context())
		if !ok || err == nil {
			return err
		}
		d.fail(err)
		var s snooze
		if errors.As(err, &s) {
			return nil // no failure: the router has nothing to report
		}
		return err
	}
}

func (w *Workers) handle(m *message.Message, before []func(context.Context) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, stack: debug.Stack()}
		}
	}()
	kind := m.Metadata.Get(metadataKind)
	h, ok := w.handlers[kind]
	if !ok {
		return &unknownKindError{kind}
	}
	ctx := m.Context()
	if d, ok := deliveryOf(ctx); ok {
		d.setPolicy(h.policy)
	}
	if h.policy.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, h.policy.Timeout, ErrTimeout)
		defer cancel()
	}
	defer watch(ctx, kind)()
	for _, b := range before {
		if err == nil {
			err = b(ctx)
		}
	}
	if err == nil {
		err = h.run(ctx, m.Payload)
	}
	if err != nil && errors.Is(context.Cause(ctx), ErrTimeout) {
		return &timeoutError{err}
	}
	return err
}

// stuckGrace is how long after the end of its time a handler that still runs is named in the log.
const stuckGrace = 5 * time.Second

// watch names a handler that runs on when its time is over, unless it is called off before.
func watch(ctx context.Context, kind string) (off func()) {
	d, ok := deliveryOf(ctx)
	end, limited := ctx.Deadline()
	if !ok || !limited || d.worker == nil {
		return func() {}
	}
	timer := time.AfterFunc(time.Until(end)+stuckGrace, func() {
		d.worker.table.logger.Error("the handler of a job ignores that its time is over", slog.String("job_kind", kind),
			slog.String("job_id", d.row.id.String()))
	})
	return func() { timer.Stop() }
}

// unknownKindError refuses a job that this program has no handler for. A newer one may have it, so it is tried again.
type unknownKindError struct{ kind string }

func (e *unknownKindError) Error() string { return "no handler for jobs of kind " + e.kind }

// Class implements what Refuse looks for.
func (e *unknownKindError) Class() string { return "unknown-kind" }

// timeoutError is what a handler returned after its time was up.
type timeoutError struct{ err error }

func (e *timeoutError) Error() string { return ErrTimeout.Error() + ": " + e.err.Error() }

func (e *timeoutError) Unwrap() []error { return []error{ErrTimeout, e.err} }

// Class implements what Refuse looks for.
func (e *timeoutError) Class() string { return "timeout" }
