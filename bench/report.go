package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// result is a figure as it was taken.
type result struct {
	Figure  string    `json:"figure"`
	Title   string    `json:"title"`
	How     string    `json:"how"`
	Scale   float64   `json:"scale"`
	Rounds  int       `json:"rounds"`
	Taken   time.Time `json:"taken"`
	Seconds float64   `json:"seconds"`
	Note    string    `json:"note,omitempty"`
	Rows    []row     `json:"rows"`
	Checks  []verdict `json:"checks"`
	Machine machine   `json:"machine"`
}

type row struct {
	Contender string `json:"contender"`
	Metric    string `json:"metric,omitempty"`
	Unit      string `json:"unit,omitempty"`
	Skipped   string `json:"skipped,omitempty"`
	Point     bool   `json:"point,omitempty"` // for the picture, not for the table
	spread
}

// verdict is what became of a check. The spread is over the rounds; the median decides.
type verdict struct {
	What   string  `json:"what"`
	Limit  float64 `json:"limit"`
	AtMost bool    `json:"at_most,omitempty"`
	Taken  bool    `json:"taken"`
	Met    bool    `json:"met"`
	spread
}

func (v verdict) wanted() string {
	if v.AtMost {
		return "at most " + number(v.Limit)
	}
	return "at least " + number(v.Limit)
}

func (v verdict) outcome() string {
	switch {
	case !v.Taken:
		return "not taken"
	case v.Met:
		return "met"
	default:
		return "missed"
	}
}

// table is the result for a terminal.
func (r result) table() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, row := range r.Rows {
		if row.Skipped != "" {
			_, _ = fmt.Fprintf(w, "%s\tskipped: %s\n", row.Contender, row.Skipped) // a strings.Builder does not fail
			continue
		}
		if row.Point {
			continue
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s %s\t(%s to %s)\n", row.Contender, row.Metric, number(row.Median), row.Unit,
			number(row.Min), number(row.Max))
	}
	for _, v := range r.Checks {
		_, _ = fmt.Fprintf(w, "→ %s\t%s\t%s\t(%s to %s), %s\n", v.What, v.outcome(), number(v.Median), number(v.Min),
			number(v.Max), v.wanted())
	}
	_ = w.Flush()
	return out.String()
}

// number writes three significant digits, and whole numbers with separators from a thousand on.
func number(v float64) string {
	switch {
	case v >= 1e3 || v <= -1e3:
		digits := strconv.FormatFloat(v, 'f', 0, 64)
		for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		return digits
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	default:
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
}

// merge puts the results into bench/results.json, and writes docs/benchmarks.md and its pictures from all that is there.
func merge(project string, taken []result) error {
	path := filepath.Join(project, "bench", "results.json")
	all, err := readResults(path)
	if err != nil {
		return err
	}
	for _, r := range taken {
		all = slices.DeleteFunc(all, func(old result) bool { return old.Figure == r.Figure })
		all = append(all, r)
	}
	order := make(map[string]int)
	for i, f := range figures() {
		order[f.name] = i
	}
	slices.SortFunc(all, func(x, y result) int { return order[x.Figure] - order[y.Figure] })
	encoded, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	docs := filepath.Join(project, "docs")
	files := map[string][]byte{path: append(encoded, '\n'), filepath.Join(docs, "benchmarks.md"): document(all)}
	for _, p := range pictures() {
		if drawn := p.draw(all); drawn != nil {
			files[filepath.Join(docs, picturesDir, p.file)] = drawn
		}
	}
	if err := os.MkdirAll(filepath.Join(docs, picturesDir), 0o755); err != nil { //nolint:gosec // for all to read, too
		return fmt.Errorf("make directory of pictures: %w", err)
	}
	for path, content := range files {
		if err := os.WriteFile(path, content, 0o644); err != nil { //nolint:gosec // part of the project, for all to read
			return fmt.Errorf("write results: %w", err)
		}
	}
	return nil
}

// picturesDir is in docs.
const picturesDir = "benchmarks"

func readResults(path string) ([]result, error) {
	content, err := os.ReadFile(path) //nolint:gosec // the directory is the one that a flag names
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var all []result
	if err := json.Unmarshal(content, &all); err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	return all, nil
}

// documentHead stands before the results in docs/benchmarks.md.
const documentHead = `# Benchmarks

Written by ` + "`go tool task bench`" + ` (the module in ` + "`bench/`" + `) from ` +
	"`bench/results.json`" + `; please don't edit it by hand.

Each figure is measured in one run on one private Postgres with ` + "`synchronous_commit=on` and `fsync=on`" + `, the same settings for
all that use it. The contenders of a figure take turns, round by round. A number is the median of the rounds, with the
lowest and the highest behind it; a comparison is made within each round, and its median decides. Each measurement has a
fresh database and, for what is measured, a process of its own.

To repeat all of it: ` + "`go tool task bench`" + `. One figure: ` + "`go tool task bench -- -only drain`" + `; quickly: ` +
	"`-scale 0.01 -rounds 1`" + `; to see
what there is: ` + "`-list`" + `; to keep what was taken: ` + "`-write`" + `; to write this document and its
pictures again: ` + "`-draw`" + `. Redis Streams are measured where ` + "`redis-server`" + ` is installed.
`

// document is docs/benchmarks.md.
func document(all []result) []byte {
	var out bytes.Buffer
	out.WriteString(documentHead)
	out.WriteString("\n## In short\n\n| figure | comparison | wanted | median | lowest to highest | |\n|---|---|---|---|---|---|\n")
	for _, r := range all {
		for _, v := range r.Checks {
			fmt.Fprintf(&out, "| %s | %s | %s | %s | %s to %s | %s |\n", r.Figure, v.What, v.wanted(), number(v.Median),
				number(v.Min), number(v.Max), v.outcome())
		}
	}
	if slices.ContainsFunc(all, func(r result) bool { return r.Scale < 1 }) {
		out.WriteString("\nSome of these were taken at a smaller scale, with smaller backlogs than their names say, and mean little.\n")
	}
	short := make(map[string]string)
	for _, f := range figures() {
		short[f.name] = f.short
	}
	var last string
	for _, r := range all {
		fmt.Fprintf(&out, "\n## %s\n\n%s. %s\n\n", r.Figure, r.Title, r.How)
		fmt.Fprintf(&out, "Taken on %s in %s rounds at scale %s, in %s s.", r.Taken.Format(time.DateOnly),
			strconv.Itoa(r.Rounds), number(r.Scale), number(r.Seconds))
		if r.Note != "" {
			fmt.Fprintf(&out, " %s", r.Note)
		}
		if m := r.Machine.String(); m != last {
			fmt.Fprintf(&out, "\nMachine: %s.", strings.ReplaceAll(m, "\n", "; "))
			last = m
		}
		for _, p := range pictures() {
			if p.figure == r.Figure && p.draw(all) != nil {
				fmt.Fprintf(&out, "\n\n![%s: %s](%s/%s)", r.Figure, r.Title, picturesDir, p.file)
			}
		}
		r.rows(&out)
		if short[r.Figure] != "" {
			fmt.Fprintf(&out, "\n%s\n", short[r.Figure])
		}
	}
	return out.Bytes()
}

// rows writes the table of what was found.
func (r result) rows(out *bytes.Buffer) {
	out.WriteString("\n\n| contender | metric | median | lowest to highest |\n|---|---|---|---|\n")
	for _, row := range r.Rows {
		switch {
		case row.Skipped != "":
			fmt.Fprintf(out, "| %s | skipped: %s | | |\n", row.Contender, row.Skipped)
		case !row.Point:
			fmt.Fprintf(out, "| %s | %s | %s %s | %s to %s |\n", row.Contender, row.Metric, number(row.Median), row.Unit,
				number(row.Min), number(row.Max))
		}
	}
}
