package bustest_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"postbus/internal/bus"
	"postbus/internal/bustest"
	"postbus/internal/job"
	"postbus/internal/servertest"
)

var errLine = errors.New("the line is dead")

// scenarios are what both flavours have to go through with the same results.
var scenarios = map[string]func(s *scene){
	"failed event holds its key only": func(s *scene) {
		s.h.Publish(Moved{"a", 1, scripts("hold", "tt")}, Moved{"a", 2, nil}, Moved{"b", 1, nil})
		s.runs(4, time.Second)
	},
	"dead event holds its key, or lets it pass": func(s *scene) {
		s.h.Publish(Moved{"a", 1, scripts("hold", "ttttt", "pass", "ttttt", "tally", "p")}, Moved{"a", 2, nil})
		s.runs(4, time.Second)
		s.h.Publish(Moved{"a", 3, nil})
		s.run()
		s.h.RetryDead("hold")
		s.h.RetryDead("pass")
		s.h.Publish(Moved{"a", 4, nil})
		s.runs(4, time.Second)
		s.h.RetryDead("tally")
		s.runs(2, time.Second)
	},
	"failures by class": func(s *scene) {
		for i, script := range []string{"a", "p", "x", "xxx", "atat", "e"} {
			s.h.Publish(Moved{fmt.Sprint("box ", i), i, scripts("hold", script, "tally", script)})
		}
		s.runs(8, time.Second)
	},
	"effect is had once": func(s *scene) {
		s.h.Publish(Moved{"a", 1, scripts("tally", "ee")})
		s.h.Enqueue(Chore{N: 1, Script: "ee"})
		s.runs(4, time.Second)
	},
	"everything fails": func(s *scene) { // more often in a row than makes a consumer slow down
		s.h.FailNext("hold", 20, errLine)
		for i := range 20 {
			s.h.Publish(Moved{fmt.Sprint("box ", i), i, nil})
		}
		s.runs(2, time.Second)
	},
	"failing next": func(s *scene) {
		s.h.FailNext("hold", 2, errLine)
		s.h.FailNext("tally", 1, bus.Permanent(errLine))
		s.h.FailNext("clerk", 1, errLine) // whose backoff is the default one
		s.h.FailNext("chore", 2, job.RetryAfter(time.Minute, errLine))
		s.h.FailNext("errand", 1, job.Snooze(time.Minute))
		s.h.Publish(Moved{"a", 1, nil}, Moved{"a", 2, nil})
		s.h.Enqueue(Chore{N: 1})
		s.runs(4, time.Second)
		s.h.RetryDead("tally")
		s.runs(4, time.Minute)
	},
	"jobs by priority and time": func(s *scene) {
		for i, options := range [][]job.Option{
			{}, {job.Priority(2)}, {job.In(time.Minute), job.Priority(1)}, {job.Priority(-2)}, {job.At(s.start.Add(-time.Hour))},
			{job.At(s.start.Add(time.Minute))}, {job.Queue("default")},
		} {
			s.h.Enqueue(Chore{N: i, Lock: "none"}, options...) // the same group of the transcript, and no lock key
		}
		s.runs(3, 30*time.Second)
	},
	"jobs of one lock key": func(s *scene) {
		s.h.Enqueue(Chore{1, "tt", "k"}, job.LockKey("k"))
		s.h.Enqueue(Chore{2, "s", "k"}, job.LockKey("k"), job.Priority(2))
		s.h.Enqueue(Chore{3, "p", "k"}, job.LockKey("k"), job.In(time.Minute))
		s.h.Enqueue(Chore{4, "", "k"}, job.LockKey("k"))
		s.h.Enqueue(Chore{5, "", "l"}, job.LockKey("l"))
		s.runs(6, 20*time.Second)
		s.h.RetryDead("chore")
		s.run()
	},
	"jobs of one unique key": func(s *scene) {
		s.h.Enqueue(Chore{N: 1, Script: "ttt"}, job.UniqueKey("u"))
		s.h.Enqueue(Chore{N: 2}, job.UniqueKey("u"))
		s.runs(3, time.Second)
		s.h.Enqueue(Chore{N: 3, Script: "t"}, job.UniqueKey("u"))
		s.h.RetryDead("chore")
		s.runs(3, time.Second)
	},
	"schedules": func(s *scene) {
		s.runs(3, 10*time.Second)
		s.h.Advance(25 * time.Second) // two ticks, of which the latest runs
		s.run()
		s.h.Advance(30*time.Minute - 55*time.Second) // a tick that is not missed
		s.run()
		s.h.Advance(3 * time.Hour)
		s.run()
	},
}

func scripts(pairs ...string) map[string]string {
	m := make(map[string]string)
	for pair := range slices.Chunk(pairs, 2) {
		m[pair[0]] = pair[1]
	}
	return m
}

// runs runs n times and moves the clock in between.
func (s *scene) runs(n int, d time.Duration) {
	s.t.Helper()
	for i := range n {
		if i > 0 {
			s.h.Advance(d)
		}
		s.run()
	}
}

// TestFlavoursAgree: the same scenarios have the same results in memory and on Postgres.
func TestFlavoursAgree(t *testing.T) {
	t.Parallel()
	for name, play := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			agree(t, play)
		})
	}
	seeds := uint64(1)
	if servertest.InCI() {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			agree(t, func(s *scene) { s.random(rand.New(rand.NewPCG(seed, 0)), 25) })
		})
	}
}

func agree(t *testing.T, play func(s *scene)) {
	t.Helper()
	var transcripts [2]string
	for i, flavour := range []bustest.Flavour{bustest.Memory, bustest.Postgres} {
		s := newScene(t, flavour)
		play(s)
		transcripts[i] = s.transcript()
	}
	if transcripts[0] != transcripts[1] {
		t.Errorf("the flavours disagree:\n%s", difference(transcripts[0], transcripts[1]))
	}
}

// difference tells the lines that the two do not share, with the group that they are in.
func difference(memory, postgres string) string {
	a, b := grouped(memory), grouped(postgres)
	var text strings.Builder
	for group := range a {
		if a[group] != b[group] {
			fmt.Fprintf(&text, "%s, in memory:\n%s%s, on Postgres:\n%s", group, a[group], group, b[group])
		}
	}
	for group := range b {
		if _, ok := a[group]; !ok {
			fmt.Fprintf(&text, "%s, on Postgres only:\n%s", group, b[group])
		}
	}
	return text.String()
}

func grouped(transcript string) map[string]string {
	groups, group := make(map[string]string), ""
	for line := range strings.Lines(transcript) {
		if strings.HasPrefix(line, "\t") {
			groups[group] += line
		} else {
			group = strings.TrimSpace(line)
		}
	}
	return groups
}

// random does so many things at random.
func (s *scene) random(r *rand.Rand, steps int) {
	s.t.Helper()
	n := 0
	for range steps {
		switch r.IntN(10) {
		case 0, 1, 2, 3:
			for range 1 + r.IntN(4) {
				n++
				box := string(rune('a' + r.IntN(3)))
				s.h.Publish(Moved{box, n, scripts("hold", script(r, "taxpe"), "pass", script(r, "taxpe"), "tally", script(r, "taxpe"))})
			}
		case 4, 5, 6:
			for range 1 + r.IntN(3) {
				n++
				s.enqueue(r, n)
			}
		case 7:
			s.h.RetryDead([]string{"hold", "pass", "tally", "chore"}[r.IntN(4)])
		default:
			s.h.Advance([]time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 70 * time.Second}[r.IntN(4)])
		}
		if r.IntN(10) < 6 {
			s.run()
		}
	}
	s.runs(3, time.Minute)
}

// script is empty as a rule.
func script(r *rand.Rand, letters string) string {
	if r.IntN(2) == 0 {
		return ""
	}
	var s strings.Builder
	for range 1 + r.IntN(3) {
		s.WriteByte(letters[r.IntN(len(letters))])
	}
	return s.String()
}

func (s *scene) enqueue(r *rand.Rand, n int) {
	s.t.Helper()
	options := []job.Option{
		job.Priority(int8(r.IntN(5) - 2)),
		job.In([]time.Duration{0, 0, 2 * time.Second, 10 * time.Second}[r.IntN(4)]),
	}
	chore := Chore{N: n, Script: script(r, "tapxse"), Lock: []string{"", "", "k1", "k2"}[r.IntN(4)]}
	if chore.Lock != "" {
		options = append(options, job.LockKey(chore.Lock))
	}
	if unique := []string{"", "", "u1", "u2"}[r.IntN(4)]; unique != "" {
		options = append(options, job.UniqueKey(unique))
	}
	s.h.Enqueue(chore, options...)
}
