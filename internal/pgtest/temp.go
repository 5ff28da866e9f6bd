package pgtest

import (
	"os"
	"testing"
)

// shmBytesMin is the room that the server's files may need in memory: the databases, and a test that fills one of them.
const shmBytesMin = 4 << 30

// tempDir is where the server's files are: where TMPDIR says, else in memory if there is enough of it, else in the usual
// temporary directory. A database has hundreds of files, and ext4 makes files slowly for minutes after as many were
// removed: a test's database takes 300 ms there and 13 ms in memory.
func tempDir() string {
	if os.Getenv("TMPDIR") == "" && shmBytesFree() >= shmBytesMin {
		return shm
	}
	return os.TempDir()
}

// Dir makes a directory in which a PostgreSQL can run, and which is gone when the test ends. It is not t.TempDir: the user
// that root drops to cannot enter that.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(tempDir(), "postbus-own-")
	if err != nil {
		t.Fatalf("make a directory for PostgreSQL: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		err = os.Chmod(dir, 0o711) //nolint:gosec // for that user
	}
	if err != nil {
		t.Fatalf("open the directory to PostgreSQL's user: %v", err)
	}
	return dir
}
