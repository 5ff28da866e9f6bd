package job

import (
	"errors"
	"testing"
	"time"
)

func cronOf(t *testing.T, fields, zone string) Timetable {
	t.Helper()
	c, err := Cron(fields, zone)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCronTicks: the ticks after a time, with the offset that the zone's clock has then. In Berlin clocks go from 2:00 to 3:00
// on 29 March 2026 and from 3:00 to 2:00 on 25 October; in Lord Howe by half an hour; in Santiago at midnight.
func TestCronTicks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fields, zone, after string
		want                []string
	}{
		"nightly": {"17 3 * * *", "UTC", "2026-12-31T03:17:00Z", []string{"2027-01-01T03:17:00Z", "2027-01-02T03:17:00Z"}},
		"steps":   {"*/20 9-10 * * mon-fri", "UTC", "2026-11-20T10:30:00Z", []string{"2026-11-20T10:40:00Z", "2026-11-23T09:00:00Z"}},
		"either day": {"0 0 13 * fri", "UTC", "2026-02-12T12:00:00Z", []string{"2026-02-13T00:00:00Z", "2026-02-20T00:00:00Z",
			"2026-02-27T00:00:00Z", "2026-03-06T00:00:00Z", "2026-03-13T00:00:00Z"}},
		"Sunday is 7":  {"0 0 * * 7", "UTC", "2026-11-20T00:00:00Z", []string{"2026-11-22T00:00:00Z", "2026-11-29T00:00:00Z"}},
		"leap day":     {"0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", []string{"2104-02-29T00:00:00Z"}},
		"a name":       {"@monthly", "UTC", "2026-11-20T00:00:00Z", []string{"2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"}},
		"left out":     {"30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", []string{"2026-03-29T03:30:00+02:00", "2026-03-30T02:30:00+02:00"}},
		"twice":        {"30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", []string{"2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"}},
		"hourly, back": {"30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", []string{"2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"}},
		"hourly, on":   {"30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", []string{"2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00"}},
		"half an hour": {"15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", []string{"2026-10-04T02:45:00+11:00", "2026-10-05T02:15:00+11:00"}},
		"no midnight":  {"0 0 * * *", "America/Santiago", "2026-09-05T12:00:00Z", []string{"2026-09-06T01:00:00-03:00", "2026-09-07T00:00:00-03:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := cronOf(t, c.fields, c.zone)
			at, err := time.Parse(time.RFC3339, c.after)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range c.want {
				want, err := time.Parse(time.RFC3339, text)
				if err != nil {
					t.Fatal(err)
				}
				if at = table.Next(at); !at.Equal(want) {
					t.Fatalf("the tick is %s, want %s", at, text)
				}
			}
		})
	}
}

func TestCronRefusals(t *testing.T) {
	t.Parallel()
	for _, fields := range []string{"", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8",
		"5-1 * * * *", "*/0 * * * *", "x * * * *", "* * * * funday", "@never", "0 0 31 2 *", "1,,2 * * * *", "-1 * * * *"} {
		if _, err := Cron(fields, "UTC"); !errors.Is(err, ErrShape) {
			t.Errorf("%q: %v", fields, err)
		}
	}
	for _, zone := range []string{"", "Local", "Mars/Olympus"} {
		if _, err := Cron("@daily", zone); !errors.Is(err, ErrShape) {
			t.Errorf("zone %q: %v", zone, err)
		}
	}
	for _, d := range []time.Duration{0, -time.Second, time.Millisecond, 1500*time.Millisecond + 1} {
		if _, err := Every(d); !errors.Is(err, ErrShape) {
			t.Errorf("every %s: %v", d, err)
		}
	}
}

// TestEveryCountsFromOneBeginning: all processes have the same ticks.
func TestEveryCountsFromOneBeginning(t *testing.T) {
	t.Parallel()
	e, err := Every(90 * time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 20, 0, 0, 0, 1, time.FixedZone("x", 3600))
	for range 100 {
		next := e.Next(at)
		if !next.After(at) || next.Sub(at) > 90*time.Minute || next.Unix()%5400 != 0 {
			t.Fatalf("after %s comes %s", at, next)
		}
		at = next
	}
}

// FuzzCron: whatever it takes has ticks that come one after another, and fit.
func FuzzCron(f *testing.F) {
	for _, s := range []string{"* * * * *", "*/7 1-5,9 1 jan-mar mon", "@daily", "0 0 29 2 *", "59 23 31 12 7"} {
		f.Add(s, int64(1_800_000_000))
	}
	f.Fuzz(func(t *testing.T, fields string, unix int64) {
		c, err := Cron(fields, "Europe/Berlin")
		if err != nil || unix < 0 || unix > 4_000_000_000 {
			return
		}
		at := time.Unix(unix, 0)
		for range 3 {
			next := c.Next(at)
			if !next.After(at) || next.Second() != 0 {
				t.Fatalf("%q: after %s comes %s", fields, at, next)
			}
			at = next
		}
	})
}
