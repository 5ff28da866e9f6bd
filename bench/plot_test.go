package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestTicks(t *testing.T) {
	labels := func(_, _ float64, ticks []tick) string {
		var all []string
		for _, k := range ticks {
			all = append(all, k.label)
		}
		return strings.Join(all, " ")
	}
	for _, test := range []struct{ got, want string }{
		{labels(logTicks(1.4, 33)), "1 2 5 10 20 50"},
		{labels(logTicks(0.7, 900)), "1 10 100 1,000"},
		{labels(logTicks(10, 10)), "10 20"},
		{labels(linearTicks(107)), "0 50 100 150"},
		{labels(linearTicks(1000)), "0 200 400 600 800 1000"},
		{labels(linearTicks(0)), "0 0.2 0.4 0.6 0.8 1"},
	} {
		if test.got != test.want {
			t.Errorf("ticks are %s, want %s", test.got, test.want)
		}
	}
}

// TestPictures: every figure that has a picture gives one, which is XML and names its lines; a result from before there were pictures,
// or of one contender, gives what there is.
func TestPictures(t *testing.T) {
	var all []result
	for _, f := range figures() {
		samples := make(map[string][]sample)
		for _, c := range f.contenders {
			s := sample{}
			for i, m := range append(f.metrics, f.points...) {
				s[m.name] = float64(1 + i*i)
			}
			samples[c.name] = []sample{s}
		}
		b := bench{options: options{rounds: 1, scale: 1}}
		all = append(all, b.summarise(f, samples, nil, 0))
	}
	for _, p := range pictures() {
		drawn := p.draw(all)
		if drawn == nil {
			t.Errorf("%s was not drawn", p.file)
			continue
		}
		names := 0
		for decoder := xml.NewDecoder(bytes.NewReader(drawn)); ; {
			token, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", p.file, err)
			}
			if said, ok := token.(xml.CharData); ok && (string(said) == kindPostbus || string(said) == retentionName()) {
				names++
			}
		}
		if names != 1 {
			t.Errorf("%s names the line of postbus %d times", p.file, names)
		}
		if !bytes.Contains(document(all), []byte("](benchmarks/"+p.file+")")) {
			t.Errorf("the document does not show %s", p.file)
		}
		if p.draw([]result{{Figure: p.figure}}) != nil {
			t.Errorf("%s is drawn of nothing", p.file)
		}
	}
}
