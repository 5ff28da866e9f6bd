package main

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
)

// plot is a picture of curves, written as SVG. It has a background of its own, so that it is legible on any page.
type plot struct {
	title string
	x, y  axis
	lines []line
}

// axis is one of the two. Its ticks are made to fit where none are given.
type axis struct {
	label string // with the unit
	log   bool
	ticks []tick
}

type tick struct {
	at    float64
	label string
}

// line is one curve; its name stands at its end.
type line struct {
	name   string
	color  string
	dashed bool
	points []point
}

type point struct{ x, y float64 }

// Sizes in pixels.
const (
	plotWidth, plotHeight = 800.0, 440.0
	plotLeft, plotRight   = 84.0, 600.0
	plotTop, plotBottom   = 56.0, 372.0
	labelGap              = 10.0 // from the end of a line to its name
	labelHeight           = 18.0
	tickTarget            = 5 // about as many on a linear axis
	tickMost              = 9 // between the ends of a logarithmic one, before it has powers of ten only
)

// scale is an axis laid out between two pixels.
type scale struct {
	axis
	low, high, from, to float64
}

func (a axis) scale(values []float64, from, to float64) scale {
	s := scale{axis: a, low: slices.Min(values), high: slices.Max(values), from: from, to: to}
	switch {
	case len(a.ticks) > 0:
		s.low, s.high = min(s.low, a.ticks[0].at), max(s.high, a.ticks[len(a.ticks)-1].at)
	case a.log:
		s.low, s.high, s.ticks = logTicks(s.low, s.high)
	default:
		s.low, s.high, s.ticks = linearTicks(s.high)
	}
	return s
}

// at is where a value lies, in pixels.
func (s scale) at(v float64) float64 {
	low, high := s.low, s.high
	if s.log {
		v, low, high = math.Log(v), math.Log(low), math.Log(high)
	}
	if high == low {
		return s.from
	}
	return s.from + (v-low)/(high-low)*(s.to-s.from)
}

// logTicks reach from below the lowest to above the highest: at powers of ten, and between them where these are few.
func logTicks(lowest, highest float64) (low, high float64, ticks []tick) {
	steps := []float64{1, 2, 5}
	var all []float64
	for e := math.Floor(math.Log10(lowest)); e <= math.Ceil(math.Log10(highest)); e++ {
		for _, step := range steps {
			all = append(all, step*math.Pow(10, e))
		}
	}
	first, last := 0, len(all)-1
	for all[first+1] <= lowest {
		first++
	}
	for last > first+1 && all[last-1] >= highest {
		last--
	}
	few := last-first <= tickMost
	for i, v := range all[first : last+1] {
		if few || (first+i)%len(steps) == 0 {
			ticks = append(ticks, tick{v, number(v)})
		}
	}
	return all[first], all[last], ticks
}

// linearTicks reach from zero to above the highest.
func linearTicks(highest float64) (low, high float64, ticks []tick) {
	if highest <= 0 {
		highest = 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(highest/tickTarget)))
	step := unit
	for _, factor := range []float64{2, 5, 10} {
		if highest/step > tickTarget {
			step = factor * unit
		}
	}
	for v := 0.0; ; v += step {
		ticks = append(ticks, tick{v, strconv.FormatFloat(v, 'g', 6, 64)})
		if v >= highest {
			return 0, v, ticks
		}
	}
}

// svg draws it. There is a line at least, and each has a point at least; those on a logarithmic axis are above zero.
func (p plot) svg() []byte {
	var xs, ys []float64
	for _, l := range p.lines {
		for _, at := range l.points {
			xs, ys = append(xs, at.x), append(ys, at.y)
		}
	}
	x, y := p.x.scale(xs, plotLeft, plotRight), p.y.scale(ys, plotBottom, plotTop)
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%[1]g" height="%[2]g" role="img" `+
		`font-family="system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="13" fill="#1f2328">`+"\n",
		plotWidth, plotHeight)
	fmt.Fprintf(&out, "<title>%s</title>\n", html.EscapeString(p.title))
	fmt.Fprintf(&out, `<rect x="0.5" y="0.5" width="%g" height="%g" rx="8" fill="#ffffff" stroke="#d0d7de"/>`+"\n",
		plotWidth-1, plotHeight-1)
	text(&out, 20, 30, `font-size="16" font-weight="600"`, p.title)
	p.grid(&out, x, y)
	for _, l := range p.lines {
		l.draw(&out, x, y)
	}
	p.names(&out, x, y)
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func text(out *bytes.Buffer, x, y float64, attributes, content string) {
	fmt.Fprintf(out, `<text x="%.1f" y="%.1f" %s>%s</text>`+"\n", x, y, attributes, html.EscapeString(content))
}

func (p plot) grid(out *bytes.Buffer, x, y scale) {
	const muted = `fill="#59636e"`
	for _, t := range y.ticks {
		at := y.at(t.at)
		fmt.Fprintf(out, `<path d="M%.1f %.1fH%.1f" stroke="#e6e9ed" fill="none"/>`+"\n", plotLeft, at, plotRight)
		text(out, plotLeft-8, at+4.5, muted+` text-anchor="end"`, t.label)
	}
	for _, t := range x.ticks {
		at := x.at(t.at)
		fmt.Fprintf(out, `<path d="M%.1f %.1fv5" stroke="#59636e" fill="none"/>`+"\n", at, plotBottom)
		text(out, at, plotBottom+20, muted+` text-anchor="middle"`, t.label)
	}
	fmt.Fprintf(out, `<path d="M%.1f %.1fH%.1f" stroke="#59636e" fill="none"/>`+"\n", plotLeft, plotBottom, plotRight)
	text(out, (plotLeft+plotRight)/2, plotBottom+46, muted+` text-anchor="middle"`, p.x.label)
	middle := (plotTop + plotBottom) / 2
	text(out, 22, middle, fmt.Sprintf(`%s text-anchor="middle" transform="rotate(-90 22 %.1f)"`, muted, middle), p.y.label)
}

func (l line) draw(out *bytes.Buffer, x, y scale) {
	var path strings.Builder
	for i, at := range l.points {
		command := "L"
		if i == 0 {
			command = "M"
		}
		fmt.Fprintf(&path, "%s%.1f %.1f", command, x.at(at.x), y.at(at.y))
	}
	dash := ""
	if l.dashed {
		dash = ` stroke-dasharray="6 4"`
	}
	fmt.Fprintf(out, `<path d="%s" stroke="%s" stroke-width="2" stroke-linejoin="round" fill="none"%s/>`+"\n",
		path.String(), l.color, dash)
	if len(l.points) > marksMax {
		return
	}
	for _, at := range l.points {
		fmt.Fprintf(out, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x.at(at.x), y.at(at.y), l.color)
	}
}

// marksMax is how many points of a line are marked.
const marksMax = 12

// names writes each line's name beside its end, and moves those apart that would cover each other.
func (p plot) names(out *bytes.Buffer, x, y scale) {
	type label struct {
		line
		x, y, at float64 // the line's end, and the name's height
	}
	var all []label
	for _, l := range p.lines {
		end := l.points[len(l.points)-1]
		all = append(all, label{l, x.at(end.x), y.at(end.y), y.at(end.y)})
	}
	slices.SortStableFunc(all, func(a, b label) int { return cmp.Compare(a.y, b.y) })
	for i := range all { // downwards
		if i > 0 {
			all[i].at = max(all[i].at, all[i-1].at+labelHeight)
		}
	}
	for i := len(all) - 1; i >= 0; i-- { // and up again, where that went beyond the bottom
		limit := plotBottom
		if i < len(all)-1 {
			limit = all[i+1].at - labelHeight
		}
		all[i].at = min(all[i].at, limit)
	}
	for _, l := range all {
		if math.Abs(l.at-l.y) > 3 || l.x < plotRight-1 {
			fmt.Fprintf(out, `<path d="M%.1f %.1fL%.1f %.1f" stroke="%s" stroke-opacity="0.4" fill="none"/>`+"\n",
				l.x+4, l.y, plotRight+labelGap-2, l.at, l.color)
		}
		text(out, plotRight+labelGap, l.at+4.5, fmt.Sprintf(`font-weight="600" fill=%q`, l.color), l.name)
	}
}
