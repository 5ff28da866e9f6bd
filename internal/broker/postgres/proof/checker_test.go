package proof_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The kinds of lines that a reader process writes.
const (
	kindReady  = "ready"
	kindBegin  = "begin"
	kindEnd    = "end" // about to acknowledge
	kindRefuse = "refuse"
	kindSlow   = "slow" // a commit took too long
)

// delivery is one message in one handler.
type delivery struct {
	event
	process string
	began   time.Time
	ended   time.Time // zero if it never was, and then the process was killed
	refused bool
}

func (d *delivery) done() bool { return !d.ended.IsZero() && !d.refused }

// fault is something that the test did to a process, or to all of them by way of Postgres.
type fault struct {
	what    string
	process string // "" is all
	from    time.Time
	to      time.Time
}

// slack is how long it may take a process to notice what has happened to it, and to be done with it: a handler's time, a
// refused message's wait, and a busy machine.
const slack = 3 * time.Second

// lag is by how much a place may lag behind what was acknowledged: the time between two checkpoints, on a busy machine.
const lag = 2 * time.Second

// explains tells that the fault is a reason for what d was to be delivered again at that time: it hit d's process while
// d was under way, or before d can be expected to have been stored.
func (f fault) explains(d *delivery, again time.Time) bool {
	return (f.process == "" || f.process == d.process) &&
		!f.from.After(again) && !d.began.After(f.to.Add(slack)) &&
		(d.ended.IsZero() || !d.ended.Before(f.from.Add(-lag)))
}

// verdict is what the checker finds. All but repeats are faults of the log.
type verdict struct {
	deliveries  int
	repeats     int      // deliveries again of what was refused, or for which a fault is the reason
	lost        []string // committed, never handled
	phantom     []string // handled, never committed
	disorder    []string // first deliveries of a key that came too early
	overlaps    []string // a key in two handlers at once, with no fault as a reason
	unexplained []string // repeats with no fault as a reason
}

func (v *verdict) wrong() bool {
	return len(v.lost)+len(v.phantom)+len(v.disorder)+len(v.overlaps)+len(v.unexplained) > 0
}

func (v *verdict) String() string {
	s := fmt.Sprintf("%d deliveries, %d of them repeats; lost %d, phantom %d, out of order %d, at once %d, repeated without reason %d",
		v.deliveries, v.repeats, len(v.lost), len(v.phantom), len(v.disorder), len(v.overlaps), len(v.unexplained))
	for _, list := range [][]string{v.lost, v.phantom, v.disorder, v.overlaps, v.unexplained} {
		for _, line := range list[:min(3, len(list))] {
			s += "\n\t" + line
		}
	}
	return s
}

// check judges what one consumer's processes have done with what was committed.
func check(committed map[string]event, deliveries []*delivery, faults []fault) *verdict {
	v := &verdict{deliveries: len(deliveries)}
	slices.SortStableFunc(deliveries, func(a, b *delivery) int { return a.began.Compare(b.began) })
	handled := make(map[string]bool)
	keys := make(map[string][]*delivery)
	previous := make(map[string]*delivery)
	for _, d := range deliveries {
		if want, ok := committed[d.id]; !ok || want != d.event {
			v.phantom = append(v.phantom, d.describe("phantom"))
			continue
		}
		handled[d.id] = handled[d.id] || d.done()
		if isKey(d.key) {
			keys[d.key] = append(keys[d.key], d)
		}
		if p := previous[d.id]; p != nil {
			v.repeats++
			refused := p.refused && !p.ended.After(d.began)
			if !refused && !explained(faults, p, d.began) {
				v.unexplained = append(v.unexplained, p.describe("repeated")+"; "+d.describe("again"))
			}
		}
		previous[d.id] = d
	}
	for id, e := range committed {
		if !handled[id] {
			v.lost = append(v.lost, (&delivery{event: e}).describe("lost"))
		}
	}
	for _, ds := range keys {
		v.checkKey(ds, faults)
	}
	return v
}

func explained(faults []fault, d *delivery, again time.Time) bool {
	return slices.ContainsFunc(faults, func(f fault) bool { return f.explains(d, again) })
}

// checkKey looks at the deliveries of one key, in the order in which they began.
func (v *verdict) checkKey(deliveries []*delivery, faults []fault) {
	doneBy := make(map[int]time.Time) // when a number was first acknowledged
	for _, d := range deliveries {
		if d.done() && (doneBy[d.n].IsZero() || d.ended.Before(doneBy[d.n])) {
			doneBy[d.n] = d.ended
		}
	}
	var under []*delivery // that may be under way
	for _, d := range deliveries {
		if before := doneBy[d.n-1]; d.n > 1 && (before.IsZero() || before.After(d.began)) {
			v.disorder = append(v.disorder, d.describe("before its predecessor was done"))
		}
		under = slices.DeleteFunc(under, func(u *delivery) bool { return !u.ended.IsZero() && !u.ended.After(d.began) })
		for _, u := range under {
			if !explained(faults, u, d.began) {
				v.overlaps = append(v.overlaps, u.describe("at once")+"; "+d.describe("with"))
			}
		}
		under = append(under, d)
	}
}

func (d *delivery) describe(what string) string {
	s := fmt.Sprintf("%s: %s %d (%s)", what, d.key, d.n, d.id)
	if d.began.IsZero() {
		return s
	}
	s += " in " + d.process + " " + d.began.Format("05.000")
	if !d.ended.IsZero() {
		s += " to " + d.ended.Format("05.000")
	}
	return s
}

// records reads what a process has written, as it grows.
type records struct {
	consumer string
	process  string
	file     string
	offset   int64
	all      []*delivery
	open     map[int64]*delivery
	slow     []fault // that may yet be too many
	starved  []fault
}

func (r *records) read() error {
	f, err := os.Open(r.file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(r.offset, io.SeekStart); err != nil {
		return err
	}
	content, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	content = content[:bytes.LastIndexByte(content, '\n')+1]
	r.offset += int64(len(content))
	for line := range strings.Lines(string(content)) {
		if err := r.line(line); err != nil {
			return fmt.Errorf("%s: line %q: %w", r.process, line, err)
		}
	}
	return nil
}

func (r *records) line(line string) error {
	if strings.HasPrefix(line, kindReady) {
		return nil
	}
	var kind string
	var number, at int64
	if strings.HasPrefix(line, kindSlow) {
		_, err := fmt.Sscan(line, &kind, &number, &at)
		r.noteSlow(time.Unix(0, number), time.Unix(0, at))
		return err
	}
	var e event
	if _, err := fmt.Sscan(line, &kind, &number, &at, &e.id, &e.key, &e.n); err != nil {
		return err
	}
	if kind == kindBegin {
		d := &delivery{event: e, process: r.process, began: time.Unix(0, at)}
		r.all = append(r.all, d)
		r.open[number] = d
		return nil
	}
	d := r.open[number]
	if d == nil {
		return errors.New("ends what has not begun")
	}
	delete(r.open, number)
	d.ended, d.refused = time.Unix(0, at), kind == kindRefuse
	return nil
}

// noteSlow makes a fault of slow commits that together took a fifth of the time that a lease lasts: as many renewals may be lost.
func (r *records) noteSlow(from, to time.Time) {
	r.slow = append(r.slow, fault{what: "starved", process: r.process, from: from, to: to})
	r.slow = slices.DeleteFunc(r.slow, func(f fault) bool { return f.to.Before(to.Add(-lease)) })
	var sum time.Duration
	for _, f := range r.slow {
		sum += f.to.Sub(f.from)
	}
	if sum <= lease/5 {
		return
	}
	if n := len(r.starved); n > 0 && !r.starved[n-1].to.Before(r.slow[0].from) {
		r.starved[n-1].to = to
	} else {
		r.starved = append(r.starved, fault{what: "starved", process: r.process, from: r.slow[0].from, to: to})
	}
}

// TestCheckerFindsWhatIsWrong is the test of the checker: small histories of the key k with one fault each.
func TestCheckerFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	one, two := event{id: "1", key: "k", n: 1}, event{id: "2", key: "k", n: 2}
	both := map[string]event{"1": one, "2": two}
	handled := func(e event, process string, from, to int) *delivery {
		return &delivery{event: e, process: process, began: at(from), ended: at(to)}
	}
	unended := func(e event, process string, from int) *delivery {
		return &delivery{event: e, process: process, began: at(from)}
	}
	refused := func(d *delivery) *delivery { d.refused = true; return d }
	killed := func(process string, ms int) []fault { return []fault{{process: process, from: at(ms), to: at(ms)}} }
	tests := map[string]struct {
		deliveries []*delivery
		faults     []fault
		want       string
	}{
		"right":                  {[]*delivery{handled(one, "a", 0, 5), handled(two, "b", 5, 9)}, nil, ""},
		"lost":                   {[]*delivery{handled(one, "a", 0, 5)}, nil, "lost 1"},
		"begun, never handled":   {[]*delivery{handled(one, "a", 0, 5), unended(two, "a", 6)}, nil, "lost 1"},
		"refused, never again":   {[]*delivery{handled(one, "a", 0, 5), refused(handled(two, "a", 6, 7))}, nil, "lost 1"},
		"phantom":                {[]*delivery{handled(one, "a", 0, 5), handled(two, "a", 5, 9), handled(event{"3", "k", 3}, "a", 9, 9)}, nil, "phantom 1"},
		"another content":        {[]*delivery{handled(one, "a", 0, 5), handled(event{"2", "k", 1}, "a", 5, 9)}, nil, "phantom 1"},
		"turned round":           {[]*delivery{handled(two, "a", 0, 5), handled(one, "a", 5, 9)}, nil, "out of order 1"},
		"too early":              {[]*delivery{handled(one, "a", 0, 5), handled(two, "a", 4, 9)}, nil, "at once 1"},
		"refused and passed":     {[]*delivery{refused(handled(one, "a", 0, 5)), handled(two, "a", 5, 9), handled(one, "a", 9, 10)}, nil, "out of order 1"},
		"refused and repeated":   {[]*delivery{refused(handled(one, "a", 0, 5)), handled(one, "a", 6, 9), handled(two, "a", 9, 10)}, nil, ""},
		"repeated":               {[]*delivery{handled(one, "a", 0, 5), handled(one, "a", 6, 7), handled(two, "a", 8, 9)}, nil, "without reason 1"},
		"killed and repeated":    {[]*delivery{unended(one, "a", 0), handled(one, "b", 6, 7), handled(two, "b", 8, 9)}, killed("a", 3), ""},
		"another was killed":     {[]*delivery{handled(one, "a", 0, 2), handled(one, "b", 6, 7), handled(two, "b", 8, 9)}, killed("b", 3), "without reason 1"},
		"killed much later":      {[]*delivery{handled(one, "a", 0, 2), handled(two, "a", 3, 4), handled(one, "b", 8000, 8001)}, killed("a", 7000), "without reason 1"},
		"killed much before":     {[]*delivery{handled(one, "a", 6000, 6002), handled(one, "b", 6003, 6004), handled(two, "a", 6005, 7006)}, killed("a", 0), "without reason 1"},
		"Postgres was restarted": {[]*delivery{handled(one, "a", 0, 2), handled(one, "b", 6, 7), handled(two, "b", 8, 9)}, killed("", 3), ""},
		"two owners":             {[]*delivery{handled(one, "a", 0, 9), handled(one, "b", 5, 7), handled(two, "b", 8, 10)}, nil, "at once 2"},
		"paused in the middle":   {[]*delivery{handled(one, "a", 0, 90), handled(one, "b", 50, 51), handled(two, "b", 52, 60)}, []fault{{process: "a", from: at(1), to: at(80)}}, ""},
	}
	for name, test := range tests {
		got := check(both, test.deliveries, test.faults)
		if test.want == "" && got.wrong() || test.want != "" && !strings.Contains(got.String(), test.want) {
			t.Errorf("%s: got %v; want %s", name, got, cmp.Or(test.want, "nothing wrong"))
		}
	}
}

// TestStarvedIsWhoeverLosesRenewals: one slow commit is no fault, nor are some that are far apart; several at once are, of that
// process alone.
func TestStarvedIsWhoeverLosesRenewals(t *testing.T) {
	t.Parallel()
	start := time.Now()
	const slow = lease / 8
	r := &records{process: "a"}
	for _, after := range []time.Duration{0, 2 * lease, 4 * lease} {
		r.noteSlow(start.Add(after), start.Add(after+slow))
	}
	if len(r.starved) != 0 {
		t.Fatalf("commits that were slow now and then made %d faults", len(r.starved))
	}
	from := start.Add(4*lease + slow)
	r.noteSlow(from, from.Add(slow))
	if len(r.starved) != 1 || !r.starved[0].from.Equal(start.Add(4*lease)) || !r.starved[0].to.Equal(from.Add(slow)) {
		t.Fatalf("slow commits in a row made the faults %v", r.starved)
	}
	at := func(process string) *delivery {
		return &delivery{process: process, began: from, ended: from.Add(time.Millisecond)}
	}
	if again := from.Add(lease); !r.starved[0].explains(at("a"), again) || r.starved[0].explains(at("b"), again) {
		t.Error("the fault is a reason for somebody else's repeat, or not for its own process's")
	}
}
