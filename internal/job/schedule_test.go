package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// every second, for tests that wait for ticks.
func everySecond(t *testing.T) Timetable {
	t.Helper()
	e, err := Every(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestScheduleRunsOnceInManyProcesses: of four schedulers, each on its own table handle, and each deciding from a place that is
// old by then, one makes a tick's job.
func TestScheduleRunsOnceInManyProcesses(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	schedule := Schedule{Name: "cleanup", When: everySecond(t), Args: note{"tick"}}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 4 {
		s, err := openTable(t, table.pool, Config{NotifyOff: true}).Scheduler(schedule)
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	o := work(t, table, 2, nil)
	o.await(t, 2)
	// A tick, made many times at once, also when its job's history is gone.
	s, err := table.Scheduler(schedule)
	if err != nil {
		t.Fatal(err)
	}
	tick := time.Now().Add(time.Hour).Truncate(time.Second)
	for round := range 2 {
		for range 8 {
			running.Go(func() {
				if err := s.fire(t.Context(), schedule, tick, true); err != nil {
					t.Error(err)
				}
			})
		}
		if round == 0 {
			eventually(t, "the job", func() bool {
				return value[int](t, table.pool, `select count(*) from postbus.jobs where run_at > now() + interval '1 minute'`) == 1
			})
			execute(t, table.pool, `delete from postbus.jobs where run_at > now() + interval '1 minute'`)
		}
	}
	stop()
	running.Wait()
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs where run_at > now() + interval '1 minute'`); n != 0 {
		t.Errorf("a tick that was dealt with has come %d times again", n)
	}
	ticks := column[string](t, table.pool, `select metadata::json->>'tick' from postbus.jobs order by run_at`)
	if unique := slices.Compact(slices.Clone(ticks)); len(unique) != len(ticks) {
		t.Errorf("ticks are %q", ticks)
	}
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs where metadata::json->>'schedule' = 'cleanup'
		and run_at = (metadata::json->>'tick')::timestamptz`); n != len(ticks) {
		t.Errorf("%d of %d jobs know their schedule and tick", n, len(ticks))
	}
}

// TestMissedTicks: of those at which nobody was there the latest runs, once, or none.
func TestMissedTicks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		missed Missed
		gap    string
		want   int
	}{
		"the latest runs": {RunLatest, "90 days", 1}, "skipped": {SkipMissed, "90 days", 0}, "nothing missed": {RunLatest, "0", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := newTable(t, Config{})
			s, err := table.Scheduler(Schedule{Name: "nightly", When: cronOf(t, fmt.Sprintf("0 %d * * *", (time.Now().UTC().Hour()+12)%24), "UTC"),
				Args: note{"tick"}, Missed: c.missed})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.tick(t.Context()); err != nil { // it begins now
				t.Fatal(err)
			}
			if n := value[int](t, table.pool, `select count(*) from postbus.jobs`); n != 0 {
				t.Errorf("a new schedule has run %d times", n)
			}
			execute(t, table.pool, `update postbus.job_schedules set last_tick = last_tick - $1::interval`, c.gap)
			for range 3 {
				wait, err := s.tick(t.Context())
				if err != nil || wait <= 0 || wait > lookAgain {
					t.Errorf("the next look is in %s, %v", wait, err)
				}
			}
			if n := value[int](t, table.pool, `select count(*) from postbus.jobs`); n != c.want {
				t.Errorf("%d jobs, want %d", n, c.want)
			}
		})
	}
}

// TestScheduleSkipsWhileItsJobRuns: with a unique key a tick makes no job beside one that has not ended.
func TestScheduleSkipsWhileItsJobRuns(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	schedule := Schedule{Name: "cleanup", When: everySecond(t), Args: note{"tick"}, Options: []Option{UniqueKey("cleanup")}}
	s, err := table.Scheduler(schedule)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		tick := time.Now().Add(time.Duration(i+10) * time.Minute)
		if err := s.fire(t.Context(), schedule, tick, true); err != nil {
			t.Fatal(err)
		}
	}
	if n := value[int](t, table.pool, `select count(*) from postbus.jobs`); n != 1 {
		t.Errorf("%d jobs", n)
	}
}

func TestScheduleRefusals(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{})
	good := Schedule{Name: "a", When: everySecond(t), Args: note{}}
	for name, c := range map[string]struct {
		change func(*Schedule)
		want   error
	}{
		"no name":  {func(s *Schedule) { s.Name = "" }, ErrShape},
		"no time":  {func(s *Schedule) { s.When = nil }, ErrShape},
		"no args":  {func(s *Schedule) { s.Args = nil }, ErrShape},
		"queue":    {func(s *Schedule) { s.Options = []Option{Queue("No")} }, ErrShape},
		"the same": {func(s *Schedule) { s.Name = good.Name }, ErrDuplicate},
	} {
		s := good
		s.Name = "b"
		c.change(&s)
		if _, err := table.Scheduler(good, s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
