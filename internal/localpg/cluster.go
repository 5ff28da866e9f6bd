package localpg

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The files in a cluster's directory; see the package's documentation.
const (
	dataDirName   = "data"
	newDataPrefix = "data.new-"
	oldDataPrefix = "data.old-"
	passwordFile  = "password"
	portFile      = "port"
	logFile       = "postgres.log"
	startFile     = "lock"
	usersFile     = "users"
	caretakerFile = "caretaker"
)

// logBytesMax is the size from which on the server's log is begun anew at a start; the one before is kept.
const logBytesMax = 8 << 20

// cluster is the directory with what is done there. Whatever changes something is called under the start lock.
type cluster struct {
	options  Options
	dir      string
	account  *account // whom the server runs as; nil is the program's own user
	password string
	found    *installation // found when first needed: adopting a server takes no binaries
}

func openCluster(ctx context.Context, o Options) (c *cluster, note string, err error) {
	if err := supported(); err != nil {
		return nil, "", err
	}
	dir, note, err := place(ctx, o)
	if err != nil {
		return nil, "", err
	}
	c = &cluster{options: o, dir: dir}
	if c.account, err = accountFor(c.dataDir()); err != nil {
		return nil, "", err
	}
	if err := makeDirs(dir, c.account != nil); err != nil {
		return nil, "", denied(err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, "", denied(err)
	}
	if uid := owner(info); uid != os.Geteuid() && os.Geteuid() != 0 {
		return nil, "", fmt.Errorf("%w: %s belongs to user %d; take another directory, or set DATABASE_URL", ErrNotOurs, dir, uid)
	}
	return c, note, nil
}

func (c *cluster) dataDir() string { return filepath.Join(c.dir, dataDirName) }

// openFile opens a file of the cluster's directory, readable by the program and the server's user only.
func (c *cluster) openFile(name string, flag int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.dir, name), flag|noFollow, 0o600) //nolint:gosec // a name from the list above
	if err != nil {
		return nil, denied(err)
	}
	if c.account != nil && flag&os.O_CREATE != 0 {
		if err := f.Chown(c.account.uid, c.account.gid); err != nil {
			return nil, errors.Join(denied(err), f.Close())
		}
	}
	return f, nil
}

func (c *cluster) readFile(name string) (string, error) {
	f, err := c.openFile(name, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<16))
	return strings.TrimSpace(string(b)), errors.Join(err, f.Close())
}

func (c *cluster) writeFile(name, content string) error {
	f, err := c.openFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

// exists tells whether there is a cluster in the directory.
func (c *cluster) exists() (bool, error) {
	_, err := os.Stat(filepath.Join(c.dataDir(), "PG_VERSION"))
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, denied(err)
	}
	entries, err := os.ReadDir(c.dataDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, denied(err)
	}
	if len(entries) > 0 {
		return false, fmt.Errorf("%w: %s holds files, but no cluster; move it away or take another directory", ErrNotOurs, c.dataDir())
	}
	return false, nil
}

// readPassword reads the password of the role; there has to be one if there is a cluster.
func (c *cluster) readPassword() (err error) {
	c.password, err = c.readFile(passwordFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && c.password == "" {
		return fmt.Errorf("%w: %s has no password in it; bring the file back or move %s away",
			ErrNotOurs, filepath.Join(c.dir, passwordFile), c.dataDir())
	}
	return err
}

// create makes the cluster. Nothing is called data before it is whole: a run that ended in the middle leaves a
// directory that the next one removes.
func (c *cluster) create(ctx context.Context) error {
	if err := c.removeUnfinished(); err != nil {
		return err
	}
	inst, err := c.installation(ctx)
	if err != nil {
		return err
	}
	c.password = rand.Text()
	if err := c.writeFile(passwordFile, c.password); err != nil {
		return err
	}
	data, err := os.MkdirTemp(c.dir, newDataPrefix)
	if err != nil {
		return denied(err)
	}
	if err := c.initdb(ctx, inst, data); err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	if err := os.Remove(c.dataDir()); err != nil && !errors.Is(err, fs.ErrNotExist) { // if it is there, it is empty
		return errors.Join(denied(err), os.RemoveAll(data))
	}
	if err := os.Rename(data, c.dataDir()); err != nil {
		return errors.Join(denied(err), os.RemoveAll(data))
	}
	return c.syncDir()
}

func (c *cluster) initdb(ctx context.Context, inst *installation, data string) error {
	if c.account != nil {
		if err := os.Chown(data, c.account.uid, c.account.gid); err != nil {
			return denied(err)
		}
	}
	// Paths are relative to the command's directory: PostgreSQL's programs hand them to a shell.
	args := []string{"-D", filepath.Base(data), "-U", roleName, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale"}
	if c.options.Disposable {
		const verifierFile = newDataPrefix + passwordFile
		if err := c.writeFile(verifierFile, verifier(c.password)); err != nil {
			return err
		}
		defer func() { _ = os.Remove(filepath.Join(c.dir, verifierFile)) }() // or the next run does
		// Writing a log segment of 16 MB takes longer than the rest.
		args = append(args, "--pwfile", verifierFile, "--no-sync", "--wal-segsize", "1")
	} else {
		args = append(args, "--pwfile", passwordFile)
	}
	out, err := c.command(ctx, inst, "initdb", args...).CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("make the private PostgreSQL in %s: %w: %s", c.dir, err, lastWords(string(out)))
	}
	return nil
}

// verifier is what a server keeps of a password that is random: hashed once, and not the 4,096 times that are to protect one that
// somebody can guess, which every connection of a test would have to repeat. Some drivers refuse so few.
func verifier(password string) string {
	salt := []byte(rand.Text())
	salted, err := pbkdf2.Key(sha256.New, password, salt, 1, sha256.Size)
	if err != nil {
		panic(err) // for parameters that are not allowed
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		_, _ = io.WriteString(h, text) // a hash takes everything
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$1:%s$%s:%s", encode(salt), encode(stored[:]), encode(mac("Server Key")))
}

// removeUnfinished removes what runs that were killed left behind.
func (c *cluster) removeUnfinished() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return denied(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newDataPrefix) || strings.HasPrefix(e.Name(), oldDataPrefix) {
			if err := os.RemoveAll(filepath.Join(c.dir, e.Name())); err != nil {
				return denied(err)
			}
		}
	}
	return nil
}

// discard takes a disposable cluster away that does not start.
func (c *cluster) discard() error {
	old := filepath.Join(c.dir, oldDataPrefix+rand.Text())
	if err := os.Rename(c.dataDir(), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return denied(err)
	}
	return os.RemoveAll(old)
}

// syncDir makes the rename last: should the power fail later, commits must not be found under the unfinished name.
func (c *cluster) syncDir() error {
	d, err := os.Open(c.dir)
	if err != nil {
		return denied(err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// command is a program of PostgreSQL, run in the cluster's directory by the server's user, away from the terminal, and
// without the program's environment: it holds secrets, and variables that PostgreSQL would listen to.
func (c *cluster) command(ctx context.Context, inst *installation, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(inst.dir, name), args...) //nolint:gosec // from the search
	cmd.Dir = c.dir
	cmd.Env = []string{"LC_ALL=C", "PGTZ=UTC", "HOME=" + c.dir, "PWD=" + c.dir}
	for _, name := range []string{"PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.SysProcAttr = detached(c.account)
	return cmd
}

// denied turns the operating system's refusal into a sentence. Other errors stay as they are.
func denied(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w: %w; let this user have it, take another with POSTBUS_DATA_DIR, or set DATABASE_URL", ErrDenied, err)
}

// lastWords is the line that says why a program of PostgreSQL gave up.
func lastWords(out string) string {
	last := ""
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		for _, mark := range []string{"FATAL:", "PANIC:", "error:"} {
			if _, text, ok := strings.Cut(line, mark); ok {
				return strings.TrimSpace(text)
			}
		}
		if line != "" {
			last = line
		}
	}
	return last
}
