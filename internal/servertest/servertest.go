//go:build unix

// Package servertest runs servers as processes of their own, for tests: they can be killed and stopped, and end with the test's
// process whatever becomes of it.
package servertest

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Process is a server that runs. A nil one was never started; it can be killed.
type Process struct {
	keeper *exec.Cmd
	stdin  io.WriteCloser
	server int // process id
}

// keep runs the server and kills it when nobody holds the other end of its input any more.
const keep = `log="$0"; "$@" >"$log" 2>&1 & echo $!; cat >/dev/null; kill -9 $!; wait`

// Run runs a program, which writes to a file of that name.
func Run(t testing.TB, log, program string, arguments []string, environment ...string) *Process {
	t.Helper()
	shell := append([]string{"-c", keep, log, program}, arguments...)
	keeper := exec.Command("sh", shell...) //nolint:gosec,noctx // of a test; it ends with its input
	keeper.Env = append(keeper.Environ(), environment...)
	return Start(t, program, keeper)
}

// Start starts a keeper of a server's own: it says which process the server is, and kills it when its input ends.
func Start(t testing.TB, name string, keeper *exec.Cmd) *Process {
	t.Helper()
	p := &Process{keeper: keeper}
	var err error
	if p.stdin, err = keeper.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := keeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		p.server, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	return p
}

// Kill ends the server without a word to it. It may be called again.
func (p *Process) Kill() {
	if p == nil || p.keeper == nil {
		return
	}
	p.Signal(syscall.SIGKILL)
	_ = p.stdin.Close()
	_ = p.keeper.Wait() // it says that it was killed
	p.keeper = nil
}

// Tell says a word to a keeper of the server's own.
func (p *Process) Tell(word string) {
	if p != nil && p.keeper != nil {
		_, _ = io.WriteString(p.stdin, word+"\n") // it may be gone
	}
}

// Signal sends the server a signal, SIGSTOP for one.
func (p *Process) Signal(signal syscall.Signal) { _ = syscall.Kill(p.server, signal) }

// FreePort is the first of so many ports below those that systems give to outgoing connections: a server that is started again
// wants them again.
func FreePort(t testing.TB, count int) int {
	t.Helper()
	for range 100 {
		port := 10000 + rand.IntN(20000) //nolint:gosec // any will do
		if areFree(port, count) {
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func areFree(port, count int) bool {
	for p := port; p < port+count; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p))) //nolint:noctx // closed at once
		if err != nil {
			return false
		}
		_ = l.Close()
	}
	return true
}
