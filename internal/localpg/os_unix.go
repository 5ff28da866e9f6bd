//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// runAs lists users to run the server as when the program is root, in order of preference.
var runAs = [...]string{"postgres", "_postgres", "nobody", "daemon"}

// noFollow makes opening a symbolic link fail: root must not be led out of a directory that others may write to.
const noFollow = syscall.O_NOFOLLOW

func supported() error { return nil }

func tryFlock(f *os.File, mode lockMode) (held bool, err error) {
	how := syscall.LOCK_SH
	if mode == lockExclusive {
		how = syscall.LOCK_EX
	}
	for {
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

func unlock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

// account is the user that a server started by root runs as.
type account struct {
	name     string
	uid, gid int
	groups   []uint32
}

// accountOf returns the user with that id, which may be one without a name.
func accountOf(uid, gid int) *account {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return &account{name: strconv.Itoa(uid), uid: uid, gid: gid}
	}
	return newAccount(u)
}

func newAccount(u *user.User) *account {
	a := &account{name: u.Username}
	a.uid, _ = strconv.Atoi(u.Uid) // both are numbers on every unix
	a.gid, _ = strconv.Atoi(u.Gid)
	ids, err := u.GroupIds()
	if err != nil {
		return a // without its further groups the user has less rights, not more
	}
	for _, id := range ids {
		if g, err := strconv.ParseUint(id, 10, 32); err == nil {
			a.groups = append(a.groups, uint32(g))
		}
	}
	return a
}

// accountFor returns the user to run the server of that data directory as; nil is the user that the program runs as.
func accountFor(dataDir string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if info, err := os.Lstat(dataDir); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			return accountOf(int(st.Uid), int(st.Gid)), nil
		}
	}
	for _, name := range runAs {
		if u, err := user.Lookup(name); err == nil && u.Uid != "0" {
			return newAccount(u), nil
		}
	}
	return nil, fmt.Errorf("%w: PostgreSQL refuses to run as root and none of the users %v exists: "+
		"run this program as an ordinary user, or set DATABASE_URL", ErrDenied, runAs)
}

// owner returns the user id that owns the file.
func owner(info os.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return os.Geteuid()
}

// detached makes a child leave the terminal, so that Ctrl-C does not reach it, and run as that user.
func detached(a *account) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: a.groups} //nolint:gosec // ids fit
	}
	return attr
}

func signalFast(pid int) error      { return syscall.Kill(pid, syscall.SIGINT) }
func signalImmediate(pid int) error { return syscall.Kill(pid, syscall.SIGQUIT) }

// exists tells whether there is a process of that id which is not a zombie that this user may signal.
func exists(pid int) bool { return syscall.Kill(pid, 0) == nil }
