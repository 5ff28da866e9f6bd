package e2e_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The programs.
const (
	app      = "app"
	consumer = "consumer"
)

const (
	// outputShownMax is how much of a process's output, from its end, is shown when a test fails.
	outputShownMax = 6 << 10
	// pipeDelay is how long the output may stay open after the process has ended. A Postgres that has inherited it would
	// keep it open for as long as it runs.
	pipeDelay = 10 * time.Second
)

// settings are environment variables.
type settings map[string]string

// process is a program that runs, or has run.
type process struct {
	t       testing.TB
	name    string
	cmd     *exec.Cmd
	out     output // stdout
	err     output // stderr: sentences and the log
	ended   chan struct{}
	waitErr error
}

// output is what a process has written so far.
type output struct{ watched[[]byte] }

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.update(func(text []byte) []byte { return append(text, p...) })
	return len(p), nil
}

func (o *output) String() string {
	text, _ := o.get()
	return string(text)
}

// start runs a program, ours or that of a path, with these settings and no others. The process is killed at the test's end, if it still runs then.
func start(t testing.TB, program string, env settings, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: program, ended: make(chan struct{})}
	path := program
	if !filepath.IsAbs(program) {
		path = filepath.Join(binaries, program)
	}
	p.cmd = exec.Command(path, args...)
	// The race detector's own default is to wait for a second at the end of the program.
	p.cmd.Env = []string{"GORACE=atexit_sleep_ms=0"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME"} {
		if value, ok := os.LookupEnv(name); ok {
			p.cmd.Env = append(p.cmd.Env, name+"="+value)
		}
	}
	for name, value := range env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.WaitDelay = &p.out, &p.err, pipeDelay
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	go func() {
		defer close(p.ended)
		p.waitErr = p.cmd.Wait()
	}()
	t.Cleanup(p.cleanUp)
	return p
}

func (p *process) cleanUp() {
	p.kill()
	if p.waitErr != nil && !p.signalled(syscall.SIGKILL) && p.cmd.ProcessState.Success() {
		p.t.Errorf("%s has ended, but left its output open: %v", p, p.waitErr)
	}
	for _, sign := range []string{"DATA RACE", "panic:", "goroutine 1 ["} {
		if strings.Contains(p.err.String(), sign) {
			p.t.Errorf("%s says %q", p, sign)
		}
	}
	if p.t.Failed() {
		p.t.Logf("%s wrote to stdout:\n%s\nand to stderr:\n%s", p, last(p.out.String()), last(p.err.String()))
	}
}

func last(text string) string {
	if len(text) > outputShownMax {
		text = "…" + text[len(text)-outputShownMax:]
	}
	return text
}

// String names the process for messages.
func (p *process) String() string {
	return strings.Join(slices.Concat([]string{p.name}, p.cmd.Args[1:]), " ")
}

// signal sends a signal. One to a process that has ended is lost.
func (p *process) signal(signal os.Signal) { _ = p.cmd.Process.Signal(signal) }

// kill ends the process as a power cut would, and waits until it is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// over tells whether the process has ended.
func (p *process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *process) signalled(signal syscall.Signal) bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == signal
}

// exits waits until the process ends by itself, with that code.
func (p *process) exits(code int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("waited %v for %s to end", patience, p)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%s ended with %v, want code %d", p, p.cmd.ProcessState, code)
	}
}

// stop ends the process in good order, as Ctrl-C (SIGINT) or a service manager (SIGTERM) does.
func (p *process) stop(signal os.Signal) {
	p.t.Helper()
	p.signal(signal)
	p.exits(0)
}

// says waits until the text stands in the output.
func (p *process) says(o *output, text string) {
	p.t.Helper()
	gone := make(chan struct{})
	defer close(gone)
	go func() { // the end of the process is a change of its output, too: nothing more will come
		select {
		case <-p.ended:
			o.update(func(text []byte) []byte { return text })
		case <-gone:
		}
	}()
	said := o.await(p.t, p.String()+" to say "+text, patience, func(said []byte) bool {
		return bytes.Contains(said, []byte(text)) || p.over()
	})
	if !bytes.Contains(said, []byte(text)) {
		p.t.Fatalf("%s has ended and did not say %q", p, text)
	}
}
