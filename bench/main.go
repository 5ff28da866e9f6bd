// Command bench measures postbus and its peers side by side: on one Postgres, with the same settings, in rounds that take
// turns, so that a machine that is busy for a while is busy for all of them. It prints a table for each figure, and
// writes docs/benchmarks.md and results.json.
//
// It is a module of its own, so that the peers stay out of the project's go.mod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) == 2 && os.Args[1] == childArgument {
		err = serveChild(ctx, os.Stdin, os.Stdout)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:forbidigo,gocritic // main decides to die; stop has been called
	}
}

// options are what the flags say.
type options struct {
	only    string
	list    bool
	rounds  int
	scale   float64
	timeout time.Duration
	dir     string
	project string
	write   bool
	profile string
	note    string
	hold    time.Duration
	draw    bool
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&o.only, "only", "", "take only these figures, or contenders as figure/contender; comma-separated")
	flags.BoolVar(&o.list, "list", false, "list the figures and their contenders")
	flags.IntVar(&o.rounds, "rounds", 5, "how often each contender has its turn")
	flags.Float64Var(&o.scale, "scale", 1, "size of backlogs and length of measurements; 1 is what the figures are about")
	flags.DurationVar(&o.timeout, "timeout", 3*time.Hour, "end the run after this time, whatever it is at")
	flags.StringVar(&o.dir, "dir", "/var/tmp/postbus-bench", "where each run makes a directory for Postgres and the peers; on a real disk")
	flags.StringVar(&o.project, "project", "..", "the project's directory, for docs/benchmarks.md and bench/results.json")
	flags.BoolVar(&o.write, "write", false, "write them also when not all is taken at scale 1")
	flags.StringVar(&o.profile, "cpuprofile", "", "directory for CPU profiles of the measured processes")
	flags.StringVar(&o.note, "note", "", "a sentence about the circumstances, kept with the results")
	flags.DurationVar(&o.hold, "hold", holdOpen, "how long jobs-held has a transaction open")
	flags.BoolVar(&o.draw, "draw", false, "measure nothing; write docs/benchmarks.md and its pictures from bench/results.json")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	case o.hold <= 0:
		return o, errors.New("a transaction is held for more than no time")
	case o.rounds < 1 || o.scale <= 0 || o.scale > 1:
		return o, errors.New("rounds are 1 at least; scale is above 0 and at most 1")
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	chosen, err := choose(figures(), o.only)
	if err != nil {
		return err
	}
	switch {
	case o.list:
		return list(out, chosen)
	case o.draw:
		return merge(o.project, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	b, err := open(ctx, o, out)
	if err != nil {
		return err
	}
	taken, err := b.takeAll(ctx, chosen)
	err = errors.Join(err, b.close())
	if len(taken) > 0 && (o.write || (o.only == "" && o.scale == 1 && err == nil)) {
		err = errors.Join(err, merge(o.project, taken))
	}
	return err
}

// choose keeps the figures and contenders that only names; all of them when it is empty.
func choose(all []figure, only string) ([]figure, error) {
	if only == "" {
		return all, nil
	}
	wanted := make(map[string][]string)
	whole := make(map[string]bool)
	for named := range strings.SplitSeq(only, ",") {
		name, contenderName, one := strings.Cut(strings.TrimSpace(named), "/")
		i := slices.IndexFunc(all, func(f figure) bool { return f.name == name })
		if i < 0 || (one && len(all[i].with([]string{contenderName}).contenders) == 0) {
			return nil, fmt.Errorf("there is no figure %q; -list shows them", named)
		}
		whole[name] = whole[name] || !one
		wanted[name] = append(wanted[name], contenderName)
	}
	var chosen []figure
	for _, f := range all {
		switch names := wanted[f.name]; {
		case whole[f.name]:
			chosen = append(chosen, f)
		case len(names) > 0:
			chosen = append(chosen, f.with(names))
		}
	}
	return chosen, nil
}

func list(out io.Writer, all []figure) error {
	for _, f := range all {
		if _, err := fmt.Fprintf(out, "%-18s %s\n", f.name, f.title); err != nil {
			return err
		}
		for _, c := range f.contenders {
			if _, err := fmt.Fprintf(out, "%-18s   %s\n", "", c.name); err != nil {
				return err
			}
		}
	}
	return nil
}
