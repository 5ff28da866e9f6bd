package proof_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mutationVariable lets TestBrokenBuildsAreCaught run; it takes too long for every `go test`.
const mutationVariable = "MUTATION"

// broken is a build of the log with a mistake in it.
type broken struct {
	file, right, wrong string
	faults             string // that bring it to light
	length             string // of the soak, which ends sooner when the deliveries there are show it; what is lost shows at the end
	finding            string // what the checker says of it
}

var brokenBuilds = map[string]broken{
	"position without windows": {
		file:   "reader.go",
		right:  `if from.position < from.floor {`,
		wrong:  `if false {`, // rows that become visible behind the place are not looked for
		faults: "restart", length: "5s",
		finding: `lost [1-9]`,
	},
	"checkpoint before acknowledgement": {
		file:  "account.go",
		right: `place: s.track.place,`,
		// beyond all that was read
		wrong:  `place: func() place { if o := s.track.open; len(o) > 0 { return o[len(o)-1].after }; return s.track.place }(),`,
		faults: "slow", length: "10s",
		finding: `lost [1-9]`,
	},
	"no epoch in the checkpoint": {
		file:   "share.go",
		right:  "AND s.epoch = c.epoch AND s.owner = $10",
		wrong:  "AND (s.epoch = c.epoch OR NOT c.release) AND $10::text <> ''", // owners of the past store their place
		faults: "heirs", length: "10s",
		finding: `repeated without reason [1-9]`,
	},
}

// TestBrokenBuildsAreCaught is the test of TestSoak: it soaks builds of the log that are wrong, and wants them found
// out.
func TestBrokenBuildsAreCaught(t *testing.T) {
	if os.Getenv(mutationVariable) == "" {
		t.Skip("set " + mutationVariable + "=1 to run it; it takes a minute")
	}
	for name, b := range brokenBuilds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			program := b.build(t)
			output := b.soak(t, program)
			t.Log(output)
			if !regexp.MustCompile(b.finding).MatchString(output) {
				t.Errorf("the checker has not said %q", b.finding)
			}
		})
	}
}

// build compiles this package's tests with the mistake.
func (b broken) build(t *testing.T) string {
	t.Helper()
	original, err := filepath.Abs(filepath.Join("..", b.file))
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(content), b.right); n != 1 {
		t.Fatalf("%s holds %q %d times, want once; the mistake has to be put elsewhere", b.file, b.right, n)
	}
	dir := t.TempDir()
	mistaken := filepath.Join(dir, b.file)
	if err := os.WriteFile(mistaken, []byte(strings.Replace(string(content), b.right, b.wrong, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: mistaken}})
	if err != nil {
		t.Fatal(err)
	}
	overlayFile, program := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "proof.test")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", overlayFile, "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// soak returns what the soak has to say.
func (b broken) soak(t *testing.T, program string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestSoak$", "-test.v")
	cmd.Env = append(os.Environ(), soakVariable+"="+b.length, faultsVariable+"="+b.faults, seedVariable+"=")
	out, err := cmd.CombinedOutput()
	if failed := new(exec.ExitError); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return string(out)
}
