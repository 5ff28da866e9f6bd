package proof_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// process is a reader process.
type process struct {
	t      *testing.T
	name   string
	config readerConfig
	wire   *wire // its way to Postgres
	cmd    *exec.Cmd
	stdin  io.Closer
	output *bytes.Buffer // to be looked at after it has ended
	ended  chan error
	waited bool

	paused, resumes time.Time // when it is
}

var processes atomic.Int64

// startReader starts a reader process, and returns when it has subscribed.
func startReader(t *testing.T, config readerConfig) *process {
	t.Helper()
	name := fmt.Sprint(config.Consumer, "-", processes.Add(1))
	config.Records = filepath.Join(config.Records, name)
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: name, config: config, output: &bytes.Buffer{}, ended: make(chan error, 1)}
	p.cmd = exec.Command(self)
	p.cmd.Env = append(os.Environ(), readerVariable+"="+string(encoded), "GORACE=atexit_sleep_ms=10") // not a second
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(p.kill)
	await(t, name+" to subscribe", func() bool {
		content, err := os.ReadFile(config.Records)
		return err == nil && bytes.HasPrefix(content, []byte(kindReady))
	})
	return p
}

// ownsAny tells whether the process is one of those that hold shares.
func (p *process) ownsAny(owners map[string]int) bool {
	for owner := range owners {
		if strings.Contains(owner, fmt.Sprintf("/%d/", p.cmd.Process.Pid)) {
			return true
		}
	}
	return false
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Errorf("%v to %s: %v", s, p.name, err)
	}
}

// kill ends the process without a word to it.
func (p *process) kill() {
	if !p.waited {
		_ = p.cmd.Process.Kill()
		_ = p.wait() // says that it was killed
	}
}

// stop lets the process end in good order.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if err := p.wait(); err != nil {
		p.t.Errorf("%s: %v\n%s", p.name, err, p.output)
	}
}

func (p *process) wait() error {
	p.t.Helper()
	p.waited = true
	var err error
	select {
	case err = <-p.ended:
	case <-time.After(2 * patience):
		p.t.Errorf("%s does not end", p.name)
		_ = p.cmd.Process.Signal(syscall.SIGABRT) // prints what it is at
		err = <-p.ended
	}
	if out := p.output.String(); strings.Contains(out, "DATA RACE") || strings.Contains(out, "panic") {
		p.t.Errorf("%s: %s", p.name, out)
	}
	return err
}

// await waits for what others have to bring about.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for ; !condition(); <-time.After(10 * time.Millisecond) { // polls what has no signal
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}
