package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"postbus/internal/localpg"
)

const (
	// caretakerVariable makes a test binary the caretaker of the shared server in the directory that it names.
	caretakerVariable = "POSTBUS_PGTEST_CARETAKER"
	// idle is how long the shared server outlives the last test process: the gap between two packages of one run.
	idle = 4 * time.Second
	// startTimeout covers the first start on a slow machine, with nine other packages before this one.
	startTimeout = 3 * time.Minute
)

// init turns the process into the caretaker if it was started as such. A test binary has no other place that comes before
// its tests and that a package need not remember to call.
func init() { //nolint:gochecknoinits // see above
	dir := os.Getenv(caretakerVariable)
	if dir == "" {
		return
	}
	if err := localpg.StopUnused(context.Background(), sharedOptions(dir), idle); err != nil {
		os.Exit(1) //nolint:forbidigo // it must not go on to run tests
	}
	os.Exit(0) //nolint:forbidigo // it must not go on to run tests
}

// host is the server that tests get their databases in.
type host struct {
	url *url.URL
	// share is what keeps the shared server running, as long as the process can reach it. It is nil if the server is given.
	share          *localpg.Server
	administrators *administrators
}

// server returns the host of this process, which is found or started with the first test that needs it.
var server = sync.OnceValues(func() (h host, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	h.administrators = &administrators{}
	address := os.Getenv("TEST_DATABASE_URL")
	if address == "" {
		if h.share, err = startShared(ctx); err != nil {
			return h, err
		}
		address = h.share.URL()
	}
	if h.url, err = url.Parse(address); err != nil || h.url.Scheme != "postgres" && h.url.Scheme != "postgresql" {
		return h, errors.New("read TEST_DATABASE_URL: it has to look like postgres://user:password@host:port/database")
	}
	if err := h.sweep(ctx); err != nil {
		return h, fmt.Errorf("drop databases of earlier tests: %w", err)
	}
	return h, nil
})

// apart is what Apart has said.
var apart string

// Apart gives this process a server that it shares with no other package: for tests that wait until all transactions of a moment
// have ended, which those of others could keep them from. It is called in TestMain, before any test; with TEST_DATABASE_URL it
// has no effect.
func Apart(name string) { apart = "-" + name }

// startShared takes a share in the shared server. It ends with the process.
func startShared(ctx context.Context) (*localpg.Server, error) {
	o := sharedOptions(filepath.Join(tempDir(), "postbus-test-"+strconv.Itoa(os.Geteuid())+apart))
	s, err := localpg.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := startCaretaker(o.Dir); err != nil {
		return nil, errors.Join(err, s.Close()) //nolint:contextcheck // closing goes on when ctx has ended
	}
	return s, nil
}

func sharedOptions(dir string) localpg.Options {
	return localpg.Options{Dir: dir, Disposable: true, MaxConnections: 200}
}

// startCaretaker leaves a caretaker behind. All but one of them find that there is one, and end.
func startCaretaker(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start caretaker: %w", err)
	}
	cmd := exec.Command(self) //nolint:gosec,noctx // this very program; it outlives us
	cmd.Dir = filepath.Dir(dir)
	cmd.Env = append(os.Environ(), caretakerVariable+"="+dir)
	cmd.SysProcAttr = ownSession()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start caretaker: %w", err)
	}
	return cmd.Process.Release()
}
