package config

import (
	"bytes"
	"errors"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHelp(t *testing.T) {
	for _, program := range []string{App, Consumer} {
		for _, args := range [][]string{{"--help"}, {"-h"}, {"--log-level=debug", "-help", "stray"}, {"--help", "--http-addr=nonsense"}} {
			var out bytes.Buffer
			if _, err := load(program, args, env("LOG_LEVEL=nonsense"), []string{"POSTBUS_X=1"}, &out); !errors.Is(err, ErrHelp) {
				t.Fatalf("%v: error %v", args, err)
			}
			if out.String() != Help(program) {
				t.Errorf("%v: got %q", args, out.String())
			}
		}
		text := Help(program)
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > helpColumnsMax {
				t.Errorf("%d columns: %s", n, line)
			}
		}
		for _, s := range Settings() {
			if got, want := strings.Contains(text, "--"+s.Flag+"\n") || strings.Contains(text, "--"+s.Flag+"="), s.of(program); got != want {
				t.Errorf("help of %s has --%s: %v, want %v", program, s.Flag, got, want)
			}
		}
		if strings.Contains(text, "OPS_TOKEN") {
			t.Error("help shows what is not supported")
		}
	}
}

func TestSettingsAreComplete(t *testing.T) {
	groups := []string{}
	for _, s := range Settings() {
		if s.Meaning == "" || s.Group == "" || s.Flag == "" || s.set == nil || len(s.programs) == 0 {
			t.Errorf("incomplete: %+v", s)
		}
		if s.Name != "" && (s.Default == "" || s.Value == "" || s.Flag != strings.ReplaceAll(strings.ToLower(s.Name), "_", "-")) {
			t.Errorf("incomplete: %+v", s)
		}
		if !strings.HasSuffix(s.Meaning, ".") || strings.HasSuffix(s.Default, ".") {
			t.Errorf("full stop: %+v", s)
		}
		if len(groups) == 0 || groups[len(groups)-1] != s.Group {
			groups = append(groups, s.Group)
		}
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(groups))); len(sorted) != len(groups) {
		t.Errorf("a group comes twice: %v", groups)
	}
	if all, app, consumer := len(Settings()), len(Settings(App)), len(Settings(Consumer)); app >= all || consumer >= all {
		t.Errorf("%d settings, %d of app, %d of consumer", all, app, consumer)
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	if _, err := Load(App, []string{"--version"}, env(), &out); !errors.Is(err, ErrHelp) {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "postbus app ") || !strings.Contains(out.String(), "go1.") {
		t.Errorf("got %q", out.String())
	}
	vcs := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.modified", Value: "true"}}
	tests := []struct {
		info debug.BuildInfo
		want string
	}{
		{debug.BuildInfo{GoVersion: "go1.26"}, "(devel) go1.26"},
		{debug.BuildInfo{GoVersion: "go1.26", Settings: vcs}, "(devel) 0123456789ab+dirty go1.26"},
		{debug.BuildInfo{GoVersion: "go1.26", Main: debug.Module{Version: "v1.2.3"}, Settings: vcs}, "v1.2.3 go1.26"},
	}
	for _, tt := range tests {
		if got := versionOf(&tt.info); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("pipe is closed") }

func TestHelpThatCannotBeWrittenIsAnError(t *testing.T) {
	if _, err := Load(App, []string{"--help"}, env(), broken{}); err == nil || errors.Is(err, ErrHelp) {
		t.Errorf("got %v", err)
	}
}
