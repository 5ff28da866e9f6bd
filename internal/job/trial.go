package job

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Trial is one run of a job without a table: a test's memory has it (package bustest), so that a job's handler sees, and what
// it returns means, what they do under a worker. It belongs to one goroutine, beside the handler's.
type Trial struct {
	delivery *delivery
	progress string // under the delivery's lock
}

type trialKey struct{}

// NewTrial begins a run of the job. Its Attempt is that of this run.
func NewTrial(ctx context.Context, s Status) (*Trial, error) {
	metadata, err := json.Marshal(s.Metadata)
	if err != nil {
		return nil, fmt.Errorf("encode metadata of %s: %w", s.Kind, err)
	}
	t := &Trial{}
	t.delivery = newDelivery(context.WithValue(ctx, trialKey{}, t), nil, row{
		id: s.ID, kind: s.Kind, attempt: s.Attempt, metadata: string(metadata), args: s.Args,
	}, s.Queue)
	return t, nil
}

// Message returns the message for the handler.
func (t *Trial) Message() *message.Message { return t.delivery.message() }

// Outcome is what becomes of a job after a run.
type Outcome struct {
	State    string        // StateCompleted, StateDead, or StateWaiting
	Wait     time.Duration // of one that waits
	Counts   bool          // the run was an attempt, and not put off
	Failure  *Failure      // nil where the run was none
	Progress json.RawMessage
	Result   json.RawMessage
}

// End tells what becomes of the job, once its message was acknowledged or refused, and ends the message's context.
func (t *Trial) End(acknowledged bool) (Outcome, error) {
	defer t.delivery.end(nil)
	var o outcome
	if acknowledged {
		o = t.delivery.acknowledged()
	} else {
		o = t.delivery.refused()
	}
	t.delivery.mu.Lock()
	defer t.delivery.mu.Unlock()
	end := Outcome{State: StateWaiting, Wait: o.wait, Counts: o.verdict != verdictSnoozed, Progress: json.RawMessage(t.progress)}
	switch o.verdict {
	case verdictCompleted:
		end.State = StateCompleted
	case verdictDead:
		end.State = StateDead
	}
	if o.result != nil {
		end.Result = json.RawMessage(*o.result)
	}
	if o.failure != nil {
		end.Failure = &Failure{}
		if err := json.Unmarshal([]byte(*o.failure), end.Failure); err != nil {
			return Outcome{}, fmt.Errorf("read failure: %w", err)
		}
	}
	return end, nil
}

// tried keeps the progress of a delivery that is a trial.
func (d *delivery) tried(progress string) {
	if t, ok := d.ctx.Value(trialKey{}).(*Trial); ok {
		d.mu.Lock()
		defer d.mu.Unlock()
		t.progress = progress
	}
}
