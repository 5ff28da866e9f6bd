package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/goleak"
)

// binaries is the directory of the programs, built once for all tests.
var binaries string

func TestMain(m *testing.M) {
	var err error
	if binaries, err = build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // a TestMain has no other way to fail
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(binaries)
		os.Exit(code) //nolint:forbidigo // as goleak does by itself
	}))
}

func build() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "postbus-e2e-bin-"); err != nil {
		return "", err
	}
	args := slices.Concat([]string{"build"}, raceArgs, []string{"-o", dir + string(filepath.Separator), "../cmd/app", "../cmd/consumer"})
	if said, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, said)
	}
	return dir, nil
}
