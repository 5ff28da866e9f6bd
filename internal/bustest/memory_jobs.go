package bustest

import (
	"cmp"
	"slices"
	"time"

	"postbus/internal/job"
)

// failuresMax is how many failures of a job are kept, as in the work table: the first, and the last ones.
const failuresMax = 25

// jobTable is the work table in memory.
type jobTable struct {
	rows []*jobRow // in the order in which they were enqueued
}

type jobRow struct{ job.Status }

func (r *jobRow) dueAt(now time.Time) bool { return r.State == job.StateWaiting && !r.RunAt.After(now) }

// pending tells whether the job has not ended.
func (r *jobRow) pending() bool {
	return r.State == job.StateWaiting || r.State == job.StateBehind || r.State == job.StateRunning
}

// store keeps a job, unless its id is known or its unique key is taken.
func (t *jobTable) store(j job.Job, now time.Time) {
	s := j.Status(now)
	taken := slices.ContainsFunc(t.rows, func(r *jobRow) bool {
		return r.ID == s.ID || (s.UniqueKey != "" && r.UniqueKey == s.UniqueKey && r.Kind == s.Kind && r.pending())
	})
	if taken {
		return
	}
	if s.LockKey != "" {
		s.State = job.StateBehind
	}
	t.rows = append(t.rows, &jobRow{s})
	t.settle(s.LockKey)
}

// settle makes the first of those behind a lock key its head, if there is none.
func (t *jobTable) settle(key string) {
	if key == "" {
		return
	}
	var next *jobRow
	for _, r := range t.rows {
		switch {
		case r.LockKey != key:
		case r.State == job.StateWaiting, r.State == job.StateRunning:
			return
		case r.State == job.StateBehind && next == nil:
			next = r
		}
	}
	if next != nil {
		next.State = job.StateWaiting
	}
}

// due returns the next job of a queue: the highest priority first, then the earliest, then the first.
func (t *jobTable) due(queue string, now time.Time) (next *jobRow) {
	for _, r := range t.rows {
		if r.Queue != queue || !r.dueAt(now) {
			continue
		}
		if next == nil || cmp.Or(cmp.Compare(next.Priority, r.Priority), r.RunAt.Compare(next.RunAt)) < 0 {
			next = r
		}
	}
	return next
}

// end stores the outcome of a run.
func (t *jobTable) end(r *jobRow, o job.Outcome, now time.Time) {
	r.State = o.State
	if o.State == job.StateWaiting {
		r.RunAt = now.Add(o.Wait.Truncate(time.Microsecond))
	} else {
		r.FinalizedAt = &now
	}
	if !o.Counts {
		r.Attempt--
	}
	if o.Failure != nil {
		if len(r.Failures) >= failuresMax {
			r.Failures = slices.Delete(slices.Clone(r.Failures), 1, 2)
		}
		r.Failures = append(r.Failures, *o.Failure)
	}
	if o.Progress != nil {
		r.Progress = o.Progress
	}
	if o.Result != nil {
		r.Result = o.Result
	}
	t.settle(r.LockKey)
}

// retry has the dead jobs of a kind tried again, behind those that were enqueued since. One whose unique key was taken meanwhile
// stays dead.
func (t *jobTable) retry(kind string, now time.Time) {
	var again []*jobRow
	for _, r := range t.rows {
		taken := r.UniqueKey != "" && slices.ContainsFunc(slices.Concat(t.rows, again), func(o *jobRow) bool {
			return o != r && o.Kind == kind && o.UniqueKey == r.UniqueKey && o.pending()
		})
		if r.Kind != kind || r.State != job.StateDead || taken {
			continue
		}
		r.State, r.RunAt, r.Attempt, r.FinalizedAt = job.StateWaiting, now, 0, nil
		if r.LockKey != "" {
			r.State = job.StateBehind
		}
		again = append(again, r)
	}
	t.rows = append(slices.DeleteFunc(t.rows, func(r *jobRow) bool { return slices.Contains(again, r) }), again...)
	for _, r := range again {
		t.settle(r.LockKey)
	}
}
