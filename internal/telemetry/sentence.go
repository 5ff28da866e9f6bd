package telemetry

import (
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

// markFirst and markLast are the characters that stand for paths while the rest is scrubbed. They are for private use.
const markFirst, markLast = '\ue000', '\uf8ff'

// Sentence is the error as it may be told to the person at the terminal: like a log line, but the paths of files that it
// is about can be read, and those given, such as that of the data directory.
func Sentence(err error, paths ...string) string {
	paths = slices.Clone(paths)
	walk(err, func(e error) {
		switch e := e.(type) { //nolint:errorlint // walk visits each error of the chain
		case *fs.PathError:
			paths = append(paths, e.Path)
		case *os.LinkError:
			paths = append(paths, e.Old, e.New)
		}
	})
	// The longest first: one may be the beginning of another.
	slices.SortFunc(paths, func(a, b string) int { return len(b) - len(a) })
	paths = slices.DeleteFunc(slices.Compact(paths), func(path string) bool { return path == "" })
	paths = paths[:min(len(paths), markLast-markFirst)]

	text := call(func() string { return errorText(err) })
	text = strings.Map(func(r rune) rune {
		if r >= markFirst && r <= markLast {
			return -1
		}
		return r
	}, text)
	for i, path := range paths {
		text = mark(text, path, string(markFirst+rune(i)))
	}
	text = scrub(strings.ReplaceAll(text, "\n", "; "))
	for i, path := range paths {
		text = strings.ReplaceAll(text, string(markFirst+rune(i)), clean(path))
	}
	return text
}

// mark puts the mark in the place of the path wherever that stands by itself, or begins a longer one. Elsewhere a short
// path could cut a token into pieces that no longer look like one.
func mark(text, path, mark string) string {
	alone := regexp.MustCompile(`(^|[\s"'(=])` + regexp.QuoteMeta(path) + `($|[\s"'),:;/])`)
	for { // what ends one may begin the next
		next := alone.ReplaceAllString(text, "${1}"+mark+"${2}")
		if next == text {
			return text
		}
		text = next
	}
}
