package localpg

import (
	"context"
	"errors"
	"os"
	"time"
)

// lockMode is how a lock file is held: by one, or by all who share it.
type lockMode int

const (
	lockShared lockMode = iota + 1
	lockExclusive
)

// lockFile is a held lock. It ends with Close, or with the process.
type lockFile struct{ f *os.File }

// Close gives the lock up. A second call does nothing.
func (l *lockFile) Close() error {
	if l == nil || l.f == nil {
		return nil
	}
	// Unlocked by name and not only by closing: a child that is just being started holds a copy of the descriptor until
	// its exec.
	err := errors.Join(unlock(l.f), l.f.Close())
	l.f = nil
	return err
}

// tryLock takes the lock of that file in the cluster's directory if it can be had now.
func (c *cluster) tryLock(name string, mode lockMode) (l *lockFile, held bool, err error) {
	f, err := c.openFile(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, false, err
	}
	held, err = tryFlock(f, mode)
	if err != nil || !held {
		return nil, false, errors.Join(err, f.Close())
	}
	return &lockFile{f}, true, nil
}

// exclusively calls fn while no other process starts or stops this server.
func (c *cluster) exclusively(ctx context.Context, fn func() error) (err error) {
	var l *lockFile
	err = poll(ctx, 20*time.Millisecond, func() (held bool, err error) {
		l, held, err = c.tryLock(startFile, lockExclusive)
		return held, err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return fn()
}

// share takes a share in the server. The caller holds the start lock, so nobody can be holding users exclusively.
func (c *cluster) share() (*lockFile, error) {
	l, held, err := c.tryLock(usersFile, lockShared)
	if err == nil && !held {
		err = errors.New("share the private PostgreSQL: its users file is held by a program that is not postbus")
	}
	return l, err
}

// unused tells whether nobody has a share. The caller holds the start lock.
func (c *cluster) unused() (bool, error) {
	l, held, err := c.tryLock(usersFile, lockExclusive)
	if err != nil || !held {
		return false, err
	}
	return true, l.Close()
}

// caretake stops the server when nobody has had a share for as long as idle. Its duty ends under the start lock: the next
// to start the server finds that there is no caretaker.
func (c *cluster) caretake(ctx context.Context, idle time.Duration, duty *lockFile) error {
	since := time.Now()
	return poll(ctx, min(idle/4, time.Second), func() (done bool, err error) {
		err = c.exclusively(ctx, func() error {
			free, err := c.unused()
			switch {
			case err != nil:
				return err
			case !free:
				since = time.Now()
				return nil
			case time.Since(since) < idle:
				return nil
			}
			done = true
			return errors.Join(c.stop(ctx), duty.Close())
		})
		return done, err
	})
}

// poll calls fn, and again every so often, until it says done or fails. Where another process is waited for, there is no
// signal to wait on.
func poll(ctx context.Context, every time.Duration, fn func() (done bool, err error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if done, err := fn(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
