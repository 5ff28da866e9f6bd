package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// TestStopUnderLoad sends SIGTERM to the app while requests wait for the database. Each of them gets its answer, and the
// events of all are handled after the next start.
func TestStopUnderLoad(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSiteOn(t, openOffice(t))
	p := s.startApp(nil)

	const requests = 12
	unlock := s.lockUsers()
	var answers sync.WaitGroup
	for i := range requests {
		answers.Go(func() {
			a, err := s.askFor(fmt.Sprintf("person-%d@example.com", i))
			if err != nil || a.status != http.StatusAccepted {
				t.Errorf("request %d: %v, %v", i, a, err)
			}
		})
	}
	s.untilBlocked(requests)
	p.signal(syscall.SIGTERM)
	s.untilClosed()
	unlock()
	answers.Wait()
	p.exits(0)

	if users := s.texts(`SELECT email FROM users`); len(users) != requests {
		t.Errorf("%d users, want %d", len(users), requests)
	}
	s.startApp(nil)
	for i := range requests {
		s.office.await(fmt.Sprintf("person-%d@example.com", i), verification)
	}
	if n := len(s.office.of("", "")); n != requests {
		t.Errorf("%d mails for %d users: a process that stops in good order has nothing delivered twice", n, requests)
	}
}

// untilClosed waits until the app takes no new connections.
func (s *site) untilClosed() {
	s.t.Helper()
	until(s.t, "the app takes no new connections", func() bool {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}

// lockUsers makes all that write to users wait, until unlock is called.
func (s *site) lockUsers() (unlock func()) {
	s.t.Helper()
	conn := s.connect()
	if _, err := conn.Exec(context.Background(), `BEGIN; LOCK TABLE users IN SHARE MODE`); err != nil {
		s.t.Fatalf("lock users: %v", err)
	}
	return func() { s.close(conn) }
}

// untilBlocked waits until that many sessions of this database wait for a lock.
func (s *site) untilBlocked(n int) {
	s.t.Helper()
	conn := s.connect()
	defer s.close(conn)
	until(s.t, fmt.Sprintf("%d sessions are blocked", n), func() bool {
		return len(s.textsOf(conn, `SELECT pid::text FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`)) == n
	})
}

// TestStopWhileSending stops a consumer that waits for the mail server's answer. It waits for it, and the mail is not
// sent again.
func TestStopWhileSending(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSiteOn(t, openOffice(t))
	s.startApp(settings{"CONSUMERS": "none"})
	p := s.start(consumer, settings{"LOG_LEVEL": "debug"})
	release := s.office.holdBack()
	defer release()
	s.signUp(anna)
	s.office.await(anna, verification)
	p.signal(os.Interrupt)
	p.says(&p.err, `"Closing router"`)
	release()
	p.exits(0)

	s.startConsumer()
	until(t, "no mail waits", func() bool {
		list := s.start(consumer, nil, "--list")
		list.exits(0)
		return nothingWaits.MatchString(list.out.String())
	})
	if n := len(s.office.of(anna, verification)); n != 1 {
		t.Errorf("the mail was sent %d times", n)
	}
}

// nothingWaits is what --list says of the queue of mails when all of them are sent.
var nothingWaits = regexp.MustCompile(`(?m)^job:outgoing-mail +- +0 +- +0 +0 +\S+, resting `)

// TestStopLeavesNoPostgres ends the app as a terminal does that is closed, and by two signals in quick succession.
func TestStopLeavesNoPostgres(t *testing.T) {
	parallel(t)
	s := newSite(t)
	p := s.startApp(nil)
	postgres := s.postgresPID()
	hangUp := syscall.SIGHUP
	if signal.Ignored(hangUp) { // under nohup, and so by the app as well
		hangUp = syscall.SIGTERM
	}
	p.stop(hangUp)
	s.wantNoPostgres(postgres)

	for try := 0; ; try++ {
		p = s.startApp(nil)
		postgres = s.postgresPID()
		first := time.Now()
		p.signal(os.Interrupt)
		p.says(&p.err, "postbus app: stopping; Ctrl-C again, in a moment, stops at once and leaves the private Postgres running\n")
		p.signal(os.Interrupt)
		if time.Since(first) < 400*time.Millisecond { // else it is a second one indeed
			break
		}
		<-p.ended
		if try == 10 {
			t.Fatal("the machine is too busy for two signals in quick succession")
		}
	}
	p.exits(0)
	s.wantNoPostgres(postgres)
}

// TestNohup ends the terminal of an app that was started not to care.
func TestNohup(t *testing.T) {
	parallel(t)
	nohup, err := exec.LookPath("nohup")
	if err != nil {
		t.Skip("there is no nohup")
	}
	s := newSiteOn(t, openOffice(t))
	p := s.start(nohup, nil, filepath.Join(binaries, app))
	p.says(&p.out, "  stop       Ctrl-C\n")
	p.signal(syscall.SIGHUP)
	s.signUp(anna)
	if strings.Contains(p.err.String(), "stopping") {
		t.Error("the app stops")
	}
	p.stop(syscall.SIGTERM)
}

// TestSecondSignalEndsAtOnce is for the person who does not want to wait.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	parallel(t)
	s := newSiteOn(t, openOffice(t))
	p := s.startApp(nil)
	release := s.office.holdBack()
	defer release()
	s.signUp(anna)
	s.office.await(anna, verification)
	p.signal(os.Interrupt)
	p.says(&p.err, "postbus app: stopping; Ctrl-C again, in a moment, stops at once\n")
	s.untilClosed()
	closed, signals := time.Now(), 0
	until(t, "the app is gone", func() bool {
		p.signal(os.Interrupt)
		signals++
		return p.over()
	})
	if !p.signalled(syscall.SIGINT) {
		t.Errorf("%s ended with %v, %d signals and %s after it had closed", p, p.cmd.ProcessState, signals, time.Since(closed))
	}
	if strings.Contains(p.err.String(), "goroutine ") {
		t.Errorf("%s shows its stack", p)
	}
}

// TestReaderGoesFirst has the reader of the output end, such as tee, before the app, which goes on and writes to it.
func TestReaderGoesFirst(t *testing.T) {
	parallel(t)
	servertest.Thorough(t)
	s := newSite(t)
	pipe := filepath.Join(pgtest.Dir(t), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	p := s.start("/bin/sh", nil, "-c", `exec "$0" >"$1" 2>&1`, filepath.Join(binaries, app), pipe)
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // waits for nobody
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := reader.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(reader); lines.Text() != "  stop       Ctrl-C"; {
		if !lines.Scan() {
			t.Fatalf("the app does not start: %v", lines.Err())
		}
	}
	postgres := s.postgresPID()
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if a := s.get("/healthz"); a.status != http.StatusOK { // which is logged
		t.Errorf("/healthz answers %v", a)
	}
	s.signUp(anna)
	p.stop(os.Interrupt)
	s.wantNoPostgres(postgres)
}
