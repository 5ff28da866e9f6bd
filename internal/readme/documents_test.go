package readme_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postbus/internal/config"
)

// TestReadmeHasTheSettings compares README's table with the one that --help is made of.
func TestReadmeHasTheSettings(t *testing.T) {
	rows := []string{"| variable, or flag of the same name | meaning | default | of |", "|---|---|---|---|"}
	for _, s := range config.Settings() {
		rows = append(rows, settingRow(s))
	}
	if want := strings.Join(rows, "\n") + "\n"; !strings.Contains(read(t, "README.md"), "\n"+want) {
		t.Errorf("README's table of settings is not that of --help, which is:\n%s", want)
	}
}

func settingRow(s config.Setting) string {
	name := s.Name
	if name == "" {
		name = "--" + s.Flag
	}
	if s.Value != "" {
		name += "=" + s.Value
	}
	cells := []string{"`" + name + "`", s.Meaning, s.Default, programsOf(s)}
	for i, cell := range cells {
		cells[i] = strings.ReplaceAll(cell, "|", `\|`)
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

func programsOf(s config.Setting) string {
	var of []string
	for _, program := range []string{config.App, config.Consumer} {
		for _, other := range config.Settings(program) {
			if other.Flag == s.Flag {
				of = append(of, program)
			}
		}
	}
	return strings.Join(of, ", ")
}

var testName = regexp.MustCompile("`([a-z0-9]+)\\.((?:Test|Fuzz|Example)[A-Za-z0-9_]*)`")

// TestGuaranteesAreProved demands that each promise names a test, and that each test named is there.
func TestGuaranteesAreProved(t *testing.T) {
	known := tests(t)
	promised, _, found := strings.Cut(read(t, "docs/guarantees.md"), "\n## What is not promised")
	if !found {
		t.Fatal("guarantees.md doesn't say what is not promised")
	}
	promises := 0
	for line := range strings.Lines(promised) {
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) < 2 || strings.HasPrefix(line, "| promise ") {
			continue
		}
		promises++
		if !testName.MatchString(cells[len(cells)-1]) {
			t.Errorf("no test proves: %s", line)
		}
	}
	if promises < 20 {
		t.Errorf("%d promises found; is the table still a table?", promises)
	}
	for _, name := range documents(t) {
		for _, match := range testName.FindAllStringSubmatch(read(t, name), -1) {
			if named := match[1] + "." + match[2]; !known[named] {
				t.Errorf("%s names %s, which doesn't exist", name, named)
			}
		}
	}
}

// tests returns all tests of the module, as folder.TestName.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	module := os.DirFS(root)
	err := fs.WalkDir(module, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case entry.IsDir(), !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		source, err := fs.ReadFile(module, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declaration := range file.Decls {
			if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil {
				known[path.Base(path.Dir(name))+"."+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// TestTestingPageQuotesWhatIsCompiled: the code that docs/testing.md shows stands like that in the file that it names.
func TestTestingPageQuotesWhatIsCompiled(t *testing.T) {
	blocks := namedBlocks(read(t, "docs/testing.md"))
	if len(blocks) == 0 {
		t.Error("docs/testing.md quotes no file")
	}
	for name, code := range blocks {
		if !strings.Contains(read(t, name), code) {
			t.Errorf("docs/testing.md and %s differ", name)
		}
	}
}

var (
	link     = regexp.MustCompile(`(?:\]\(|(?:src|srcset|href)=")([^)"\s]+)`)
	pathName = regexp.MustCompile("`((?:cmd|internal|docs|e2e)/[A-Za-z0-9_./-]+|\\.ci/run|[A-Z]+\\.md)`")
)

// TestDocumentsLeadSomewhere follows the links within the project, and looks for every file that is named.
func TestDocumentsLeadSomewhere(t *testing.T) {
	for _, name := range documents(t) {
		text := prose(read(t, name))
		var targets []string
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			target, _, _ := strings.Cut(match[1], "#")
			if target != "" && !strings.Contains(target, ":") {
				targets = append(targets, path.Join(path.Dir(name), target))
			}
		}
		for _, match := range pathName.FindAllStringSubmatch(text, -1) {
			if !strings.HasPrefix(match[1], exampleDir) { // people make that one
				targets = append(targets, match[1])
			}
		}
		for _, target := range targets {
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(target))); err != nil {
				t.Errorf("%s: there is no %s", name, target)
			}
		}
	}
}
