package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"postbus/internal/localpg"
)

// runDir is a directory that one run has for itself: two runs at once spoil each other's figures, but must not remove
// each other's Postgres. Beside it lies a file that is locked for as long as the run lives.
type runDir struct {
	path string
	lock *os.File
}

const (
	lockSuffix = ".lock"
	sweepIdle  = 100 * time.Millisecond // nobody comes to a directory whose run is gone
)

// newRunDir names a directory below base, and removes those of runs that were killed. It leaves making it to localpg, who
// knows which user has to reach it.
func newRunDir(ctx context.Context, base string) (*runDir, error) {
	if err := os.MkdirAll(base, 0o755); err != nil { //nolint:gosec // Postgres runs as another user than root
		return nil, fmt.Errorf("make directory of the benchmarks: %w", err)
	}
	if err := sweep(ctx, base); err != nil {
		return nil, err
	}
	path := filepath.Join(base, fmt.Sprintf("run-%d-%d", os.Getpid(), time.Now().UnixNano()))
	lock, held, err := tryLock(path + lockSuffix)
	if err == nil && !held {
		err = errors.New("another run has it")
	}
	if err != nil {
		return nil, fmt.Errorf("lock directory of this run: %w", err)
	}
	return &runDir{path: path, lock: lock}, nil
}

// close gives the directory up; what is in it has been removed.
func (d *runDir) close() error {
	return errors.Join(os.Remove(d.lock.Name()), d.lock.Close()) //nolint:gosec // it made that file
}

// sweep stops and removes what runs that are no more have left.
func sweep(ctx context.Context, base string) error {
	locks, err := filepath.Glob(filepath.Join(base, "run-*"+lockSuffix))
	if err != nil {
		return fmt.Errorf("look for earlier runs: %w", err)
	}
	for _, name := range locks {
		lock, held, err := tryLock(name)
		if err != nil {
			return fmt.Errorf("look for earlier runs: %w", err)
		}
		if !held {
			continue
		}
		left := &runDir{path: strings.TrimSuffix(name, lockSuffix), lock: lock}
		err = localpg.StopUnused(ctx, localpg.Options{Dir: left.path}, sweepIdle)
		if err := errors.Join(err, os.RemoveAll(left.path), left.close()); err != nil {
			return fmt.Errorf("remove what an earlier run has left: %w", err)
		}
	}
	return nil
}

// tryLock opens the file and locks it, and reports false when another process has it locked.
func tryLock(name string) (lock *os.File, held bool, err error) {
	lock, err = os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // below the directory that a flag names
	if err != nil {
		return nil, false, err
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case err == nil:
		return lock, true, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, false, lock.Close()
	default:
		return nil, false, errors.Join(err, lock.Close())
	}
}
