package main

import (
	"time"
)

// picture is made of a figure's result, where a curve tells more than a table.
type picture struct {
	figure string
	file   string // in docs/benchmarks
	plot   func(r result) plot
}

// The lines' colours, which differ in lightness as well. A peer has the same in all pictures.
const (
	colorPostbus = "#0b5cad"
	colorRiver   = "#bc4c00"
	colorStock   = "#6e7781"
)

func pictures() []picture {
	return []picture{
		{"backlog", "backlog.svg", backlogPlot},
		{"latency-load", "latency-load.svg", latencyPlot},
		{"retention", "retention.svg", retentionPlot},
	}
}

// draw returns the picture of a result; nil where there is nothing to draw, as when it was taken before there were pictures.
func (p picture) draw(all []result) []byte {
	for _, r := range all {
		if r.Figure != p.figure {
			continue
		}
		drawn := p.plot(r)
		var lines []line
		for _, l := range drawn.lines {
			if len(l.points) > 1 {
				lines = append(lines, l)
			}
		}
		if drawn.lines = lines; len(lines) > 0 {
			return drawn.svg()
		}
	}
	return nil
}

// median is the metric of a contender, if it was taken.
func (r result) median(contender, metric string) (v float64, ok bool) {
	for _, row := range r.Rows {
		if row.Contender == contender && row.Metric == metric {
			return row.Median, true
		}
	}
	return 0, false
}

func backlogPlot(r result) plot {
	p := plot{
		title: "Rate of one consumer against what it has not read yet",
		x:     axis{label: "unread events at the start, logarithmic", log: true},
		y:     axis{label: "events/s, logarithmic", log: true},
	}
	for _, size := range backlogs {
		p.x.ticks = append(p.x.ticks, tick{float64(size.count), number(float64(size.count))})
	}
	for _, l := range []struct{ kind, name, color string }{
		{kindPostbus, "postbus", colorPostbus}, {kindStock, "stock subscriber", colorStock},
	} {
		curve := line{name: l.name, color: l.color}
		for _, size := range backlogs {
			if v, ok := r.median(unread(l.kind, size.name), "rate"); ok && v > 0 {
				curve.points = append(curve.points, point{float64(size.count), v})
			}
		}
		p.lines = append(p.lines, curve)
	}
	return p
}

func latencyPlot(r result) plot {
	p := plot{
		title: "Commit to handler at 1,000 events/s offered",
		x:     axis{label: "percentile of the events", log: true},
		y:     axis{label: "ms, logarithmic", log: true},
	}
	rarity := func(share float64) float64 { return 1 / (1 - share) } // one of so many takes longer
	for _, s := range latencyShares {
		p.x.ticks = append(p.x.ticks, tick{rarity(s.share), s.name})
	}
	for _, l := range []struct{ kind, color string }{
		{kindPostbus, colorPostbus}, {kindRiver, colorRiver}, {kindStock, colorStock},
	} {
		for _, other := range []string{"", otherProcess} {
			curve := line{name: l.kind + other, color: l.color, dashed: other != ""}
			for _, s := range latencyShares {
				if v, ok := r.median(l.kind+other, s.name); ok && v > 0 {
					curve.points = append(curve.points, point{rarity(s.share), v})
				}
			}
			p.lines = append(p.lines, curve)
		}
	}
	return p
}

func retentionPlot(r result) plot {
	p := plot{
		title: "Size of a topic's table over a simulated day, 25 events/s",
		x:     axis{label: "simulated time, hours"},
		y:     axis{label: "MB with indexes"},
	}
	for h := time.Duration(0); h <= dayLength; h += dayAge {
		p.x.ticks = append(p.x.ticks, tick{h.Hours(), number(h.Hours())})
	}
	for _, l := range []line{{name: retentionName(), color: colorPostbus}, {name: keptName, color: colorStock}} {
		for h := dayPoint; h <= dayLength; h += dayPoint {
			if v, ok := r.median(l.name, sizeAt(h)); ok {
				l.points = append(l.points, point{h.Hours(), v})
			}
		}
		p.lines = append(p.lines, l)
	}
	return p
}
