// Package readme_test holds the documents to the code: what README tells people to type runs, its table of settings is
// that of --help, each promise names a test that exists, and no link leads nowhere.
package readme_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root is the module's directory, seen from this package's.
const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// documents returns the paths of all Markdown files of the project, relative to root.
func documents(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			found = append(found, strings.TrimPrefix(filepath.ToSlash(name), root+"/"))
		}
	}
	if len(found) < 10 {
		t.Fatalf("only %q found; is the root still %s?", found, root)
	}
	return found
}

// fence begins and ends a block of code.
const fence = "```"

// namedBlocks returns the blocks of code that follow a line with nothing but a name in code type, by that name.
func namedBlocks(text string) map[string]string {
	blocks := map[string]string{}
	name, inside := "", false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, fence):
			if inside = !inside; !inside {
				name = ""
			}
		case inside && name != "":
			blocks[name] += line
		case !inside && strings.TrimSpace(line) != "":
			name = nameOf(strings.TrimSpace(line))
		}
	}
	return blocks
}

// nameOf returns what a line like `name`: names, or "".
func nameOf(line string) string {
	name, opened := strings.CutPrefix(strings.TrimSuffix(line, ":"), "`")
	name, closed := strings.CutSuffix(name, "`")
	if !opened || !closed || strings.Contains(name, "`") {
		return ""
	}
	return name
}

// prose is a document without its blocks of code.
func prose(text string) string {
	var kept strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, fence) {
			inside = !inside
		} else if !inside {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
