package pgtest

import "golang.org/x/sys/unix"

// shm is a file system in memory that every Linux has.
const shm = "/dev/shm"

// shmBytesFree is the room on it, or 0 if it cannot be used.
func shmBytesFree() uint64 {
	var st unix.Statfs_t
	if unix.Statfs(shm, &st) != nil || st.Type != unix.TMPFS_MAGIC || unix.Access(shm, unix.W_OK|unix.X_OK) != nil {
		return 0
	}
	return st.Bavail * uint64(st.Bsize) //nolint:gosec // a size is not negative
}
