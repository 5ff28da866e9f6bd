package job

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Missed says what becomes of ticks at which no process was there.
type Missed int

const (
	// RunLatest runs the latest of them, once, as soon as a process is there.
	RunLatest Missed = iota
	// SkipMissed runs none of them.
	SkipMissed
)

// The metadata by which a job knows the schedule and the tick, in RFC 3339 and UTC, that it was made for.
const (
	MetadataSchedule = "schedule"
	MetadataTick     = "tick"
)

const (
	// missedAfter is how old a tick is that counts as missed.
	missedAfter = time.Minute
	// lookAgain bounds how long a scheduler trusts its clock for the wait.
	lookAgain = time.Minute
	// scheduleRetry is the wait after the database did not answer.
	scheduleRetry = time.Second
)

// Schedule makes a job at each tick of a timetable. Its name is a durable identity, named like a kind.
type Schedule struct {
	Name    string
	When    Timetable
	Args    Args
	Options []Option // of each job; not At, In or WithID
	Missed  Missed   // default: RunLatest
}

// Scheduler makes the jobs of schedules.
type Scheduler struct {
	table     *Table
	schedules map[string]Schedule
	names     []string
}

// Scheduler returns a scheduler for the schedules; every process that may make their jobs has one, and each tick is one job
// all the same. It returns ErrShape or ErrDuplicate for schedules that cannot be, and the errors of New for their jobs.
func (t *Table) Scheduler(schedules ...Schedule) (*Scheduler, error) {
	s := &Scheduler{table: t, schedules: make(map[string]Schedule)}
	for _, schedule := range schedules {
		if !isName(schedule.Name) || schedule.When == nil || schedule.Args == nil {
			return nil, fmt.Errorf("%w: schedule %q needs a name like user-cleanup, When and Args", ErrShape, schedule.Name)
		}
		if _, ok := s.schedules[schedule.Name]; ok {
			return nil, fmt.Errorf("schedule %s: %w", schedule.Name, ErrDuplicate)
		}
		if _, err := schedule.Job(time.Now()); err != nil {
			return nil, fmt.Errorf("schedule %s: %w", schedule.Name, err)
		}
		s.schedules[schedule.Name] = schedule
		s.names = append(s.names, schedule.Name)
	}
	return s, nil
}

// Due returns the latest tick after last and up to now, the zero time when there is none, and whether it is to have a job: one
// that was missed has it as Missed says.
func (s Schedule) Due(last, now time.Time) (tick time.Time, runs bool) {
	tick = latest(s.When, last, now)
	return tick, !tick.IsZero() && (s.Missed != SkipMissed || now.Sub(tick) <= missedAfter)
}

// Job makes the job of a tick. It returns the errors of New.
func (s Schedule) Job(tick time.Time) (Job, error) {
	options := append([]Option(nil), s.Options...)
	options = append(options, At(tick), WithID(tickID(s.Name, tick)), Metadata(MetadataSchedule, s.Name),
		Metadata(MetadataTick, tick.UTC().Format(time.RFC3339)))
	return New(s.Args, options...)
}

// tickID is a UUIDv7 whose time is the tick's and whose rest is a hash, so that a tick has one id wherever it is made.
func tickID(name string, tick time.Time) (id uuid.UUID) {
	ms := tick.UnixMilli()
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, tick.UnixNano()))
	copy(id[:], sum[:])
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i) & 0xff)
	}
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// Run makes the jobs until ctx ends. A schedule whose name was not known begins now. When the database does not answer Run
// goes on by itself.
func (s *Scheduler) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait, err := s.tick(ctx)
		if err != nil && ctx.Err() == nil {
			s.table.logger.Warn("schedules are held up, will go on by themselves", slog.Any("error", err))
			wait = scheduleRetry
		}
		sleep(ctx, wait)
	}
	return nil
}

// Tick makes the jobs of the ticks that have come by now, once. Run does so at each tick; a test that moves the database's clock
// does without Run.
func (s *Scheduler) Tick(ctx context.Context) error {
	_, err := s.tick(ctx)
	return err
}

// tick makes the jobs of the ticks that have come, and returns how long it is until the next one.
func (s *Scheduler) tick(ctx context.Context) (wait time.Duration, err error) {
	last, now, err := s.places(ctx)
	if err != nil {
		return 0, fmt.Errorf("look at schedules: %w", err)
	}
	wait = lookAgain
	for _, name := range s.names {
		schedule := s.schedules[name]
		if tick, runs := schedule.Due(last[name], now); !tick.IsZero() {
			if err := s.fire(ctx, schedule, tick, runs); err != nil {
				return 0, fmt.Errorf("make job of schedule %s: %w", name, err)
			}
		}
		if next := schedule.When.Next(now); !next.IsZero() {
			wait = min(wait, next.Sub(now))
		}
	}
	return wait, nil
}

// places returns the last tick of each schedule that is dealt with, and the database's time. It begins schedules that are not
// known.
func (s *Scheduler) places(ctx context.Context) (last map[string]time.Time, now time.Time, err error) {
	last = make(map[string]time.Time, len(s.names))
	for range 2 {
		rows, err := s.table.pool.Query(ctx, `SELECT coalesce(name, ''), coalesce(last_tick, now()), clock_timestamp()
			FROM (SELECT) AS one LEFT JOIN `+s.table.table("job_schedules")+` ON name = ANY ($1)`, s.names)
		if err != nil {
			return nil, now, err
		}
		var name string
		var tick time.Time
		_, err = pgx.ForEachRow(rows, []any{&name, &tick, &now}, func() error {
			if name != "" {
				last[name] = tick
			}
			return nil
		})
		if err != nil || len(last) == len(s.names) {
			return last, now, err
		}
		_, err = s.table.pool.Exec(ctx, `INSERT INTO `+s.table.table("job_schedules")+` (name, last_tick)
			SELECT name, clock_timestamp() FROM unnest($1::text[]) AS s (name) ORDER BY name ON CONFLICT DO NOTHING`, s.names)
		if err != nil {
			return nil, now, err
		}
	}
	return nil, now, errors.New("schedules do not stay")
}

// fire makes the job of a tick if it is to have one, unless another process has been at that tick. The schedule's row lets one
// through, also when the job's history has gone; the job's id is the index's guarantee besides.
func (s *Scheduler) fire(ctx context.Context, schedule Schedule, tick time.Time, runs bool) error {
	j, err := schedule.Job(tick)
	if err != nil {
		return err
	}
	fired := false
	err = s.table.change(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE `+s.table.table("job_schedules")+` SET last_tick = $2 WHERE name = $1 AND last_tick < $2`,
			schedule.Name, tick)
		if err != nil || tag.RowsAffected() == 0 || !runs {
			return err
		}
		fired = true
		batch := &pgx.Batch{}
		if err := s.table.Append(batch, j); err != nil {
			return err
		}
		return tx.SendBatch(ctx, batch).Close()
	})
	if err == nil && fired {
		s.table.Wake(j.queue)
	}
	return err
}

// latest returns the last tick after one time and up to another, or the zero time. It does not go through years of ticks.
func latest(when Timetable, after, until time.Time) (tick time.Time) {
	for _, span := range []time.Duration{time.Hour, 24 * time.Hour, 32 * 24 * time.Hour, 366 * 24 * time.Hour, 1 << 62} {
		from := until.Add(-span)
		whole := from.Before(after)
		if whole {
			from = after
		}
		for next := when.Next(from); !next.IsZero() && !next.After(until); next = when.Next(next) {
			tick = next
		}
		if !tick.IsZero() || whole {
			return tick
		}
	}
	return tick
}
