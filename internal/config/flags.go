package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

const variablePrefix = "POSTBUS_"

// given is the value of a flag as it was typed; it is checked later, with the variables.
type given struct {
	name string
	all  map[string]string
	bool bool
}

func (g given) String() string     { return "" }
func (g given) IsBoolFlag() bool   { return g.bool }
func (g given) Set(v string) error { g.all[g.name] = v; return nil }

// parseFlags returns the values of the flags that stand in args, by name.
func parseFlags(program string, settings []Setting, args []string) (map[string]string, error) {
	values := map[string]string{}
	set := flag.NewFlagSet(program, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	for _, s := range settings {
		set.Var(given{name: s.Flag, all: values, bool: s.Value == ""}, s.Flag, s.Meaning)
	}
	switch err := set.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		values[flagHelp] = "true" // -h
	case err != nil:
		return nil, explain(program, set, args)
	case set.NArg() > 0 && values[flagHelp] == "":
		return nil, &Error{
			Setting: fmt.Sprintf("argument %d", len(args)-set.NArg()+1),
			Problem: "is not expected: everything is a flag, such as --log-level=debug; see --help",
		}
	}
	return values, nil
}

// explain says what is wrong with the flag that the flag package stopped at. Its own error is of no use: it may quote a
// secret.
func explain(program string, set *flag.FlagSet, args []string) error {
	at, name := offender(set, args)
	if set.Lookup(name) != nil {
		return &Error{Setting: "--" + name, Problem: "needs a value: --" + name + "=…"}
	}
	if !isName(name) || len(name) > 40 {
		return &Error{Setting: fmt.Sprintf("argument %d", at+1), Problem: "is not a flag; see --help"}
	}
	for _, s := range Settings() {
		if s.Flag == name {
			return &Error{Setting: "--" + name, Problem: "is not a flag of " + program + ", but of " + strings.Join(s.programs, ", ")}
		}
	}
	return &Error{Setting: "--" + name, Problem: "is not a flag of " + program + "; see --help"}
}

// offender is the first argument that is no flag of set or has no value, and its name.
func offender(set *flag.FlagSet, args []string) (at int, name string) {
	for at < len(args) {
		var hasValue bool
		name, _, hasValue = strings.Cut(strings.TrimPrefix(strings.TrimPrefix(args[at], "-"), "-"), "=")
		f := set.Lookup(name)
		if f == nil {
			break
		}
		if g, ok := f.Value.(given); hasValue || ok && g.bool {
			at++
			continue
		}
		if at+1 == len(args) {
			break
		}
		at += 2
	}
	return at, name
}

// checkEnviron refuses a variable that looks like a setting and is none: most likely a name that was mistyped.
func checkEnviron(environ []string) error {
	known := func(name string) bool {
		return slices.ContainsFunc(table(), func(s Setting) bool { return s.Name == name })
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		rest, ok := strings.CutPrefix(name, variablePrefix)
		if !ok || value == "" || known(name) {
			continue
		}
		if known(rest) {
			return &Error{Setting: name, Problem: "is not a setting; it is called " + rest}
		}
		return &Error{Setting: name, Problem: "is not a setting; see --help"}
	}
	return nil
}
