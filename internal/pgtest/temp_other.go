//go:build !linux

package pgtest

const shm = ""

func shmBytesFree() uint64 { return 0 }
