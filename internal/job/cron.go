package job

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Timetable says when a schedule's jobs run. It is the same in every process.
type Timetable interface {
	// Next returns the first tick after a time, or the zero time when there is none.
	Next(after time.Time) time.Time
}

// Every returns a timetable with a tick each d, a second at least and whole milliseconds, counted from midnight UTC of
// 1 January 1970, so that all processes have the same ones. It returns ErrShape.
func Every(d time.Duration) (Timetable, error) {
	if d < time.Second || d%time.Millisecond != 0 { // Postgres keeps microseconds
		return nil, fmt.Errorf("%w: a schedule every %s, at least a second, in whole milliseconds", ErrShape, d)
	}
	return every(d), nil
}

type every time.Duration

// Next implements Timetable.
func (e every) Next(after time.Time) time.Time {
	d := time.Duration(e)
	since := after.Sub(time.Unix(0, 0))
	return time.Unix(0, 0).Add(since - since%d + d).UTC()
}

// Cron returns the timetable of a crontab line's five fields: minute, hour, day of month, month, day of week. Each is a
// list of numbers, ranges and steps, such as "*/15" or "1-5,9"; months and days of the week also have their English names of
// three letters, and 7 is Sunday too. Where both days are given, a day that fits one of them fits. "@hourly", "@daily",
// "@weekly", "@monthly" and "@yearly" stand for the usual five.
//
// The times are those of the zone, by its name in the IANA database, such as "Europe/Berlin". When clocks are put forward, a
// time that is left out is a tick all the same, as long after midnight as on any other day; when they are put back, a time
// that comes twice is a tick the first time. Where the hour is "*" or "*/n" ticks go by the clock instead, and come in the
// doubled hour twice. Cron returns ErrShape.
func Cron(fields, zone string) (Timetable, error) {
	location, err := time.LoadLocation(zone)
	if err != nil || zone == "" || zone == "Local" {
		return nil, fmt.Errorf("%w: %q is not a time zone", ErrShape, zone)
	}
	c, err := parseCron(fields)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrShape, fields, err)
	}
	c.location = location
	if c.Next(time.Unix(0, 0)).IsZero() {
		return nil, fmt.Errorf("%w: %q never comes", ErrShape, fields)
	}
	return c, nil
}

// cron has a bit for each value of a field that fits.
type cron struct {
	minutes, hours, days, months, weekdays uint64
	anyDay, anyWeekday                     bool // the field begins with *
	byClock                                bool // the hour does
	location                               *time.Location
}

var cronNames = map[string]string{
	"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *",
}

var (
	monthNames   = []string{"", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}
	weekdayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
)

func parseCron(text string) (c *cron, err error) {
	if usual, ok := cronNames[text]; ok {
		text = usual
	}
	fields := strings.Fields(text)
	if len(fields) != 5 {
		return nil, fmt.Errorf("%d fields, want 5", len(fields))
	}
	c = &cron{
		anyDay: strings.HasPrefix(fields[2], "*"), anyWeekday: strings.HasPrefix(fields[4], "*"),
		byClock: strings.HasPrefix(fields[1], "*"),
	}
	for i, f := range []struct {
		into             *uint64
		lowest, greatest int
		names            []string
	}{
		{&c.minutes, 0, 59, nil}, {&c.hours, 0, 23, nil}, {&c.days, 1, 31, nil}, {&c.months, 1, 12, monthNames},
		{&c.weekdays, 0, 7, weekdayNames},
	} {
		for part := range strings.SplitSeq(fields[i], ",") {
			bits, err := parseCronPart(part, f.lowest, f.greatest, f.names)
			if err != nil {
				return nil, err
			}
			*f.into |= bits
		}
	}
	if c.weekdays&(1<<7) != 0 {
		c.weekdays |= 1
	}
	return c, nil
}

// parseCronPart reads "*", a value or a range, each with a step or without.
func parseCronPart(part string, lowest, greatest int, names []string) (set uint64, err error) {
	span, stepText, stepped := strings.Cut(part, "/")
	step := 1
	if stepped {
		if step, err = strconv.Atoi(stepText); err != nil || step < 1 || step > greatest {
			return 0, fmt.Errorf("%q has no step from 1 to %d", part, greatest)
		}
	}
	value := func(text string) (int, error) { return parseCronValue(text, lowest, greatest, names) }
	from, to := lowest, greatest
	if span != "*" {
		first, last, ranged := strings.Cut(span, "-")
		if from, err = value(first); err != nil {
			return 0, err
		}
		switch {
		case ranged:
			if to, err = value(last); err != nil {
				return 0, err
			}
		case !stepped:
			to = from
		}
	}
	if from > to {
		return 0, fmt.Errorf("%q ends before it begins", part)
	}
	for v := from; v <= to; v += step {
		set |= 1 << v
	}
	return set, nil
}

func parseCronValue(text string, lowest, greatest int, names []string) (int, error) {
	if i := slices.Index(names, strings.ToLower(text)); i >= 0 && text != "" {
		return i, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < lowest || n > greatest {
		return 0, fmt.Errorf("%q is not from %d to %d", text, lowest, greatest)
	}
	return n, nil
}

// cronDaysMax is how far ahead the next tick may be: 29 February can be eight years away.
const cronDaysMax = 9 * 366

// Next implements Timetable.
func (c *cron) Next(after time.Time) time.Time {
	year, month, day := after.In(c.location).Date()
	// A time that was left out counts for the day before, and may come after midnight.
	for i := -1; i < cronDaysMax; i++ {
		date := time.Date(year, month, day+i, 0, 0, 0, 0, time.UTC)
		if !c.fits(date) {
			continue
		}
		if tick := c.firstOn(date, after); !tick.IsZero() {
			return tick
		}
	}
	return time.Time{}
}

func (c *cron) fits(date time.Time) bool {
	if c.months&(1<<date.Month()) == 0 {
		return false
	}
	day, weekday := c.days&(1<<date.Day()) != 0, c.weekdays&(1<<date.Weekday()) != 0
	if c.anyDay || c.anyWeekday {
		return day && weekday
	}
	return day || weekday
}

// firstOn returns the first tick of a date after a time. The order on the clock need not be that in which times come.
func (c *cron) firstOn(date, after time.Time) (first time.Time) {
	for hours := c.hours; hours != 0; hours &= hours - 1 {
		for minutes := c.minutes; minutes != 0; minutes &= minutes - 1 {
			clock := date.Add(time.Duration(bits.TrailingZeros64(hours))*time.Hour +
				time.Duration(bits.TrailingZeros64(minutes))*time.Minute)
			for _, tick := range c.whenClockShows(clock) {
				if tick.After(after) && (first.IsZero() || tick.Before(first)) {
					first = tick
				}
			}
		}
	}
	return first
}

// whenClockShows returns when the zone's clock shows what clock shows in UTC: once, as a rule.
func (c *cron) whenClockShows(clock time.Time) []time.Time {
	offset := func(t time.Time) time.Duration {
		_, seconds := t.In(c.location).Zone()
		return time.Duration(seconds) * time.Second
	}
	before, later := offset(clock.Add(-24*time.Hour)), offset(clock.Add(24*time.Hour))
	first, second := clock.Add(-before), clock.Add(-later)
	switch firstRight, secondRight := offset(first) == before, offset(second) == later; {
	case before == later:
		return []time.Time{first}
	case firstRight && secondRight: // it comes twice
		if c.byClock {
			return []time.Time{first, second}
		}
		return []time.Time{first}
	case secondRight:
		return []time.Time{second}
	case firstRight, !c.byClock:
		return []time.Time{first} // or the clock never shows it
	default:
		return nil
	}
}
