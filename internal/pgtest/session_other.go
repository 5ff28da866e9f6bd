//go:build !unix

package pgtest

import "syscall"

func ownSession() *syscall.SysProcAttr { return nil }
