// Package arch_test holds what can be checked about the shape of the project without running it: who imports whom, and
// whether the files that people copy from say the same as the code.
package arch_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	module = "postbus"
	// root is the module's directory, seen from this package's.
	root = "../.."
)

func TestArrows(t *testing.T) {
	imports, err := readImports(os.DirFS(root), programFiles)
	if err != nil {
		t.Fatal(err)
	}
	if len(imports) == 0 {
		t.Fatal("no imports found; is the root still " + root + "?")
	}
	for _, violation := range violations(imports) {
		t.Error(violation)
	}
}

// TestArrowsAreCaught is the test of the test: for each way an arrow can be wrong a tree that has one.
func TestArrowsAreCaught(t *testing.T) {
	tests := map[string]struct {
		file, imports string
		want          string // part of the violation, or "" for none
	}{
		"right":              {"internal/account/service.go", "postbus/internal/uow", ""},
		"standard library":   {"internal/bus/bus.go", "net/http", ""},
		"below a module":     {"internal/uow/uow.go", "github.com/jackc/pgx/v5/pgxpool", ""},
		"test file":          {"internal/bus/bus_test.go", "postbus/internal/account", ""},
		"testdata":           {"internal/bus/testdata/x.go", "postbus/internal/account", ""},
		"wiring":             {"cmd/internal/wire/wire.go", "postbus/internal/account", ""},
		"core to account":    {"internal/bus/bus.go", "postbus/internal/account", "internal/bus/bus.go imports internal/account"},
		"core to user":       {"internal/bus/bus.go", "postbus/internal/domain/user", "imports internal/domain/user"},
		"core to mail":       {"internal/uow/uow.go", "postbus/internal/mail", "imports internal/mail"},
		"core to web":        {"internal/broker/other/other.go", "postbus/internal/web", "internal/broker/other is in no row"},
		"domain to database": {"internal/domain/event.go", "github.com/jackc/pgx/v5", "imports github.com/jackc/pgx/v5"},
		"like a module":      {"internal/migrate/m.go", "github.com/jackc/pgx/v50", "imports github.com/jackc/pgx/v50"},
		"platform's file":    {"internal/bus/bus_windows.go", "postbus/internal/web", "bus_windows.go imports internal/web"},
		"unknown package":    {"internal/util/util.go", "strings", "internal/util is in no row"},
		"test only":          {"cmd/app/main.go", "postbus/internal/pgtest", "for tests only"},
		"test only module":   {"cmd/app/main.go", "go.uber.org/goleak", "for tests only"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			source := fmt.Sprintf("package x\n\nimport _ %q\n", test.imports)
			imports, err := readImports(fstest.MapFS{test.file: {Data: []byte(source)}}, programFiles)
			if err != nil {
				t.Fatal(err)
			}
			found := violations(imports)
			switch {
			case test.want == "" && len(found) > 0:
				t.Errorf("violations = %q, want none", found)
			case test.want != "" && len(found) == 0:
				t.Errorf("no violation, want one with %q", test.want)
			case test.want != "" && !strings.Contains(found[0], test.want):
				t.Errorf("violation %q doesn't say %q", found[0], test.want)
			}
		})
	}
}

// TestCoreIsApartInTable keeps an edit of the table from opening a way from the core to the application in two steps.
func TestCoreIsApartInTable(t *testing.T) {
	for _, r := range table {
		if !matchesAny(r.pkg, core) {
			continue
		}
		for reached := range reachable(r.pkg, table) {
			if matchesAny(reached, application) {
				t.Errorf("the table lets %s, which is core, reach %s", r.pkg, reached)
			}
		}
	}

	broken := []row{
		{pkg: "internal/bus", may: []string{"internal/telemetry"}},
		{pkg: "internal/telemetry", may: []string{"internal/mail"}},
	}
	if !reachable("internal/bus", broken)["internal/mail"] {
		t.Error("two steps from the core to the application aren't found")
	}
}

// imported is one import declaration.
type imported struct {
	file string // relative to the module
	pkg  string // the importing package, relative to the module
	path string // as written
}

// programFiles are the files that end in a program.
func programFiles(name string) bool { return !strings.HasSuffix(name, "_test.go") }

// readImports parses the import declarations of all Go files that take accepts, whatever platform they are for. Folders
// that the go command ignores, and modules inside the module, are left out. A file without imports counts as importing "".
func readImports(fsys fs.FS, take func(name string) bool) ([]imported, error) {
	var all []imported
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && skipDir(fsys, name):
			return fs.SkipDir
		case entry.IsDir(), path.Ext(name) != ".go", !take(name):
			return nil
		}
		source, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly)
		if err != nil {
			return fmt.Errorf("parse imports: %w", err)
		}
		all = append(all, imported{file: name, pkg: path.Dir(name)})
		for _, spec := range parsed.Imports {
			target, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("unquote import of %s: %w", name, err)
			}
			all = append(all, imported{file: name, pkg: path.Dir(name), path: target})
		}
		return nil
	})
	return all, err
}

func skipDir(fsys fs.FS, dir string) bool {
	base := path.Base(dir)
	if base == "testdata" || base == "vendor" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return true
	}
	_, err := fs.Stat(fsys, path.Join(dir, "go.mod"))
	return err == nil
}

// violations returns one sentence for each import that the table doesn't allow.
func violations(imports []imported) []string {
	var found []string
	for _, i := range imports {
		r, ok := rowOf(i.pkg)
		if !ok {
			found = append(found, fmt.Sprintf("%s: %s is in no row of the table in internal/arch/table_test.go; "+
				"decide there what it may import", i.file, i.pkg))
			continue
		}
		target, inside := strings.CutPrefix(i.path, module+"/")
		if !inside && !strings.Contains(strings.SplitN(target, "/", 2)[0], ".") {
			continue // the standard library
		}
		if matchesAny(target, testOnly) && !matchesAny(i.pkg, testOnly) {
			found = append(found, fmt.Sprintf("%s imports %s, which is for tests only", i.file, target))
			continue
		}
		if !slices.Contains(r.may, anything) && !matchesAny(target, r.may) {
			found = append(found, fmt.Sprintf("%s imports %s; %s may import the standard library, %s", i.file, target, r.pkg,
				strings.Join(r.may, ", ")))
		}
	}
	return found
}

// rowOf returns the row with the longest pattern that pkg matches.
func rowOf(pkg string) (row, bool) {
	var best row
	for _, r := range table {
		if matches(pkg, r.pkg) && len(r.pkg) > len(best.pkg) {
			best = r
		}
	}
	return best, best.pkg != ""
}

func matchesAny(target string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(target, pattern) })
}

// matches reports whether pattern covers target. "a/..." covers a and all below, and so does the path of another
// module; "a" of this module covers only itself.
func matches(target, pattern string) bool {
	tree, below := strings.CutSuffix(pattern, "/...")
	outside := strings.Contains(strings.SplitN(pattern, "/", 2)[0], ".")
	return target == tree || (below || outside) && strings.HasPrefix(target, tree+"/")
}

// reachable returns every package that from may import by the table, directly or through others.
func reachable(from string, table []row) map[string]bool {
	reached := map[string]bool{}
	var follow func(pkg string)
	follow = func(pkg string) {
		for _, r := range table {
			if !matches(r.pkg, pkg) {
				continue
			}
			for _, next := range r.may {
				if !reached[next] {
					reached[next] = true
					follow(next)
				}
			}
		}
	}
	follow(from)
	return reached
}
