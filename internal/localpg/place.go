package localpg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// place decides on the directory: o.Dir, unless the program is root and the user it has to drop to cannot get there.
// Wherever a cluster has been made it stays, whatever permissions have become since.
func place(ctx context.Context, o Options) (dir, note string, err error) {
	dir, err = filepath.Abs(o.Dir)
	if err != nil {
		return "", "", fmt.Errorf("find the directory of the private PostgreSQL: %w", err)
	}
	as, err := accountFor(filepath.Join(dir, dataDirName))
	if err != nil || as == nil || hasCluster(dir) {
		return dir, "", err
	}
	sum := sha256.Sum256([]byte(dir))
	instead := filepath.Join(o.systemDir, hex.EncodeToString(sum[:6]))
	if !hasCluster(instead) && reachable(ctx, deepest(dir), as) {
		return dir, "", nil
	}
	note = fmt.Sprintf("PostgreSQL does not run as root and user %s cannot reach %s, so its data is in %s.", as.name, dir, instead)
	return instead, note, nil
}

func hasCluster(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, dataDirName, "PG_VERSION"))
	return err == nil
}

// deepest is the last directory on the way to dir that exists.
func deepest(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// reachable tells whether that user can enter the directory. It is tried rather than computed, as permission bits are not
// all there is: a child changes to the user first and to its directory after that.
func reachable(ctx context.Context, dir string, as *account) bool {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", ":")
	cmd.Dir = dir
	cmd.SysProcAttr = detached(as)
	return cmd.Run() == nil
}

// makeDirs makes what is missing of dir. Directories that exist are left as they are. Those that root makes may be
// entered by the server's user, whatever the umask.
func makeDirs(dir string, asRoot bool) error {
	var missing []string
	for at := dir; ; at = filepath.Dir(at) {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(at) == at {
			return err
		}
		missing = append(missing, at)
	}
	mode := fs.FileMode(0o700)
	if asRoot {
		mode = 0o711
	}
	for _, at := range slices.Backward(missing) {
		err := os.Mkdir(at, mode)
		if errors.Is(err, fs.ErrExist) {
			continue // another program that starts for the first time as well
		}
		if err == nil && asRoot {
			err = os.Chmod(at, mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
