package servertest

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// InCI is whether this is a run that leaves out nothing: the variable CI is set, as .ci/run does.
func InCI() bool { return os.Getenv("CI") != "" }

// Thorough is called by a test that takes long, or that does with one more broker or fault what another has done with the first.
// It is left out everywhere but in CI.
func Thorough(t testing.TB) {
	t.Helper()
	if !InCI() {
		leaveOut(t, "tests that take long are left out; CI=true runs them too")
	}
}

// Missing is called by a test whose program is not installed. It is left out; in CI it fails.
func Missing(t testing.TB, program string) {
	t.Helper()
	if InCI() {
		t.Fatalf("%s is not installed", program)
	}
	leaveOut(t, program+" is not installed, and what needs it is left out; .ci/run installs it")
}

// told are the reasons that this process has told the terminal.
var told sync.Map

// leaveOut skips the test. The terminal is told the reason too, once: of a package that passes go test shows no output.
func leaveOut(t testing.TB, why string) {
	t.Helper()
	if _, again := told.LoadOrStore(why, nil); !again {
		if terminal, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil {
			_, _ = fmt.Fprintf(terminal, "%s: %s\n", filepath.Base(os.Args[0]), why)
			_ = terminal.Close()
		}
	}
	t.Skip(why)
}
