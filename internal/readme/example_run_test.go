package readme_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	exampleDir = "cmd/parcel"
	patience   = time.Minute // with a program that does not print what it should, or does not end
)

// TestReadmeExampleRuns does what README says: its Go files, in the folder that it names, are compiled as a program of this
// module and run, with a private Postgres of their own. go build's overlay puts the files there without touching the
// folder.
func TestReadmeExampleRuns(t *testing.T) {
	blocks := namedBlocks(read(t, "README.md"))
	program := buildExample(t, blocks)
	dir := reachable(t)
	shown := strings.Split(strings.TrimSpace(blocks[exampleDir]), "\n")
	arguments, ok := strings.CutPrefix(shown[0], "$ go run ./"+exampleDir+" ")
	if !ok || len(shown) < 2 {
		t.Fatalf("README shows %q, want the command and its output", shown)
	}

	// A run prints what README shows, and ends at Ctrl-C.
	want := shown[1:]
	if got := runExample(t, program, dir, strings.Fields(arguments), len(want)); !sameLines(got, want) {
		t.Errorf("%s printed %q, README shows %q", shown[0], got, want)
	}

	// The same row once more is refused, and then there is no event either.
	again := exec.CommandContext(t.Context(), program, strings.Fields(arguments)[0])
	again.Dir = dir
	out, err := again.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "duplicate key") {
		t.Errorf("a row that is there already: %v\n%s", err, out)
	}
	if got := runExample(t, program, dir, []string{"NL-3"}, 1); !sameLines(got, []string{"delivered: NL-3"}) {
		t.Errorf("after the refusal it printed %q", got)
	}
}

// TestReadmeExampleIsFormatted spares people who paste it a first diff of nothing but white space.
func TestReadmeExampleIsFormatted(t *testing.T) {
	for name, source := range namedBlocks(read(t, "README.md")) {
		if filepath.Ext(name) != ".go" {
			continue
		}
		formatted, err := format.Source([]byte(source))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(formatted, []byte(source)) {
			t.Errorf("%s is not as gofmt would have it", name)
		}
	}
}

// buildExample compiles the blocks that are Go files of exampleDir and returns the program's path.
func buildExample(t *testing.T, blocks map[string]string) string {
	t.Helper()
	module, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	dir := reachable(t)
	replace := map[string]string{}
	for name, source := range blocks {
		if filepath.ToSlash(filepath.Dir(name)) != exampleDir || filepath.Ext(name) != ".go" {
			continue
		}
		file := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(module, filepath.FromSlash(name))] = file
	}
	if len(replace) == 0 {
		t.Fatalf("README has no Go files of %s", exampleDir)
	}
	overlay := filepath.Join(dir, "overlay.json")
	content, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, content, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "parcel")
	arguments := slices.Concat([]string{"build", "-buildvcs=false"}, raceArgs, []string{"-overlay", overlay, "-o", program, "./" + exampleDir})
	command := exec.CommandContext(t.Context(), "go", arguments...)
	command.Dir = module
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// runExample starts the program, reads that many lines of what it prints, sends it what Ctrl-C sends, and returns all
// lines. It fails the test when the program ends in another way than well.
func runExample(t *testing.T, program, dir string, arguments []string, lines int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, program, arguments...)
	command.Dir = dir
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) } // lets it stop its Postgres
	command.WaitDelay = patience
	var problems bytes.Buffer
	command.Stderr = &problems
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var printed []string
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		printed = append(printed, scanner.Text())
		if len(printed) == lines {
			if err := command.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := command.Wait(); err != nil {
		t.Fatalf("after printing %q: %v\n%s", printed, err, problems.String())
	}
	return printed
}

// sameLines compares in any order: the lines are of different keys, and nothing is promised between keys.
func sameLines(got, want []string) bool {
	count := map[string]int{}
	for _, line := range got {
		count[line]++
	}
	for _, line := range want {
		count[line]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// reachable is a temporary directory that others may pass through: as root, Postgres runs as another user. Of that user's
// files in it nothing is left when the test ends, as the server has stopped and root may remove them.
func reachable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
