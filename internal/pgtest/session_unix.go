//go:build unix

package pgtest

import "syscall"

// ownSession keeps a Ctrl-C that ends the tests from the caretaker.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
