package arch_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDependenciesAreExplained demands a row in docs/dependencies.md for each module that go.mod requires directly,
// offers as a tool, or that any file imports, and that no row outlives its module.
func TestDependenciesAreExplained(t *testing.T) {
	required, wanted := requirements(t)

	imports, err := readImports(os.DirFS(root), func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range imports {
		if m := moduleOf(i.path, required); m != "" {
			wanted[m] = i.file
		}
	}

	explained := dependencyRows(t)
	for m, because := range wanted {
		if !explained[m] {
			t.Errorf("docs/dependencies.md has no row for %s (%s)", m, because)
		}
	}
	for m := range explained {
		// Tools that are built on their own are in nobody's go.mod.
		if !required[m] && m != "github.com/golangci/golangci-lint/v2" {
			t.Errorf("docs/dependencies.md explains %s, which go.mod doesn't require", m)
		}
	}
}

// requirements returns all modules that go.mod requires, and of those the direct ones and the tools with the reason.
func requirements(t *testing.T) (all map[string]bool, direct map[string]string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	command.Dir = root
	out, err := command.Output()
	if err != nil {
		t.Fatalf("read go.mod: %v", err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
		Tool []struct{ Path string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatalf("read go.mod: %v", err)
	}
	all, direct = map[string]bool{}, map[string]string{}
	for _, r := range mod.Require {
		all[r.Path] = true
		if !r.Indirect {
			direct[r.Path] = "go.mod, require"
		}
	}
	for _, tool := range mod.Tool {
		direct[moduleOf(tool.Path, all)] = "go.mod, tool"
	}
	return all, direct
}

// moduleOf returns the longest of modules that holds the package pkg, or "".
func moduleOf(pkg string, modules map[string]bool) string {
	for ; pkg != "." && pkg != ""; pkg = strings.TrimSuffix(pkg[:max(strings.LastIndex(pkg, "/"), 0)], "/") {
		if modules[pkg] {
			return pkg
		}
	}
	return ""
}

// dependencyRows returns the modules that open a row of a table in docs/dependencies.md.
func dependencyRows(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, match := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		rows[match[1]] = true
	}
	return rows
}
