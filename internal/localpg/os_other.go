//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package localpg

import (
	"os"
	"syscall"
)

const noFollow = 0

type account struct {
	name     string
	uid, gid int
}

func supported() error { return ErrUnsupported }

func tryFlock(*os.File, lockMode) (bool, error) { return false, ErrUnsupported }
func unlock(*os.File) error                     { return nil }

func accountFor(string) (*account, error) { return nil, ErrUnsupported }
func owner(os.FileInfo) int               { return os.Geteuid() }

func detached(*account) *syscall.SysProcAttr { return nil }
func signalFast(int) error                   { return ErrUnsupported }
func signalImmediate(int) error              { return ErrUnsupported }
func worksIn(int, string) bool               { return false }
