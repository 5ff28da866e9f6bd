package main

import (
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	for name, test := range map[string]struct {
		values           []float64
		median, min, max float64
	}{
		"one":  {[]float64{3}, 3, 3, 3},
		"odd":  {[]float64{9, 1, 5}, 5, 1, 9},
		"even": {[]float64{4, 1, 2, 8}, 3, 1, 8},
	} {
		if got := spreadOf(test.values); got.Median != test.median || got.Min != test.min || got.Max != test.max {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestQuantile(t *testing.T) {
	var values []time.Duration
	for i := 100; i > 0; i-- {
		values = append(values, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}

func TestVerdictComparesRoundByRound(t *testing.T) {
	samples := map[string][]sample{
		"a": {{"rate": 10}, {"rate": 30}, {"rate": 60}},
		"b": {{"rate": 10}, {"rate": 10}, {"rate": 10}},
	}
	v := check{limit: 3, of: ratio("rate", "a", "b")}.verdict(3, samples)
	if !v.Met || v.Median != 3 || v.Min != 1 || v.Max != 6 {
		t.Errorf("%+v", v)
	}
	v = check{limit: 2, atMost: true, of: ratio("rate", "a", "b")}.verdict(3, samples)
	if v.Met {
		t.Errorf("an upper limit is met from above: %+v", v)
	}
	if v := (check{of: value("absent", "rate")}).verdict(3, samples); v.Taken || v.Met {
		t.Errorf("nothing was taken: %+v", v)
	}
}
