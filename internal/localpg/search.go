package localpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// majorMin is the oldest major version that is used: the first with DROP DATABASE … WITH (FORCE) and xid8.
const majorMin = 13

// programs are what an installation has to have, all in one directory.
var programs = [...]string{"initdb", "pg_ctl", "postgres"}

// Search says where PostgreSQL is looked for.
type Search struct {
	// Path is a list of directories as in $PATH. In each, the programs themselves, what symbolic links to them lead to, and
	// what pg_config says are looked at. It comes first.
	Path string
	// Places are patterns of directories, as in filepath.Glob; of the matches of one pattern the newest comes first.
	Places []string
	// Repository is where PostgreSQL is downloaded from if none was found: a Maven repository. Empty: nothing is downloaded.
	Repository string
	// Cache is the directory that downloads are unpacked in.
	Cache string
}

// DefaultSearch is $PATH, then the usual places of Debian, Fedora, Homebrew and Postgres.app, then a download from Maven
// Central. The environment is asked for PATH, and for POSTBUS_POSTGRES_DOWNLOAD=off, which keeps it from downloading.
func DefaultSearch(env func(string) string) Search {
	s := Search{
		Path: env("PATH"),
		Places: []string{
			"/usr/lib/postgresql/*/bin",
			"/usr/pgsql-*/bin",
			"/usr/bin",
			"/opt/homebrew/opt/postgresql@*/bin",
			"/usr/local/opt/postgresql@*/bin",
			"/Applications/Postgres.app/Contents/Versions/*/bin",
		},
		Repository: mavenCentral,
		Cache:      cacheDir(),
	}
	if env("POSTBUS_POSTGRES_DOWNLOAD") == "off" {
		s.Repository = ""
	}
	return s
}

// cacheDir is where downloads go: for root a directory that the server's user can reach, too.
func cacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/postbus"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return filepath.Join(os.TempDir(), "postbus-cache-"+strconv.Itoa(os.Geteuid()))
	}
	return filepath.Join(dir, "postbus")
}

// installation is a directory with the programs of one version of PostgreSQL.
type installation struct {
	dir   string
	major int
}

// installation finds the programs to use: those of the cluster's own major version, or the first that is new enough.
func (c *cluster) installation(ctx context.Context) (*installation, error) {
	if c.found != nil {
		return c.found, nil
	}
	want, err := c.dataMajor()
	if err != nil {
		return nil, err
	}
	found, seen, err := c.options.Search.find(ctx, want)
	if err == nil && found == nil {
		found, err = c.options.Search.download(ctx, want, c.options.Progress)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, c.notFound(want, seen, err)
	}
	c.found = found
	return found, nil
}

// dataMajor is the major version that made the cluster, or 0 if there is none yet.
func (c *cluster) dataMajor() (int, error) {
	if there, err := c.exists(); err != nil || !there {
		return 0, err
	}
	b, err := os.ReadFile(filepath.Join(c.dataDir(), "PG_VERSION"))
	if err != nil {
		return 0, denied(err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || major < majorMin {
		return 0, fmt.Errorf("%w: %s was made by PostgreSQL %.20q and this program needs %d or newer; move it away or set DATABASE_URL",
			ErrDataVersion, c.dataDir(), strings.TrimSpace(string(b)), majorMin)
	}
	return major, nil
}

// notFound says what was there, what to install, and which variable to set instead.
func (c *cluster) notFound(want int, seen []string, err error) error {
	others := ""
	if len(seen) > 0 {
		others = " (found but not usable: " + strings.Join(seen, ", ") + ")"
	}
	if want != 0 {
		return fmt.Errorf("%w: %s was made by PostgreSQL %d%s, %w; install PostgreSQL %d, move the directory away, or set DATABASE_URL",
			ErrDataVersion, c.dataDir(), want, others, err, want)
	}
	return fmt.Errorf("%w on PATH or in the usual places%s, %w; install it (Debian, Ubuntu: apt install postgresql; "+
		"Fedora: dnf install postgresql-server; macOS: brew install postgresql@17), or set DATABASE_URL to a server you have",
		ErrNoPostgres, others, err)
}

// find returns the first installation of that major version, or of any from majorMin on if it is 0; nil if there is none.
// It also returns, in words, those that it had to pass over.
func (s *Search) find(ctx context.Context, want int) (found *installation, seen []string, err error) {
	known := map[string]bool{}
	for dir := range s.candidates(ctx) {
		if known[dir] || !complete(dir) {
			continue
		}
		known[dir] = true
		major, words, err := version(ctx, dir)
		switch {
		case ctx.Err() != nil:
			return nil, seen, context.Cause(ctx)
		case err != nil:
			seen = append(seen, dir+", which does not run")
		case major == want || want == 0 && major >= majorMin:
			return &installation{dir: dir, major: major}, seen, nil
		default:
			seen = append(seen, words+" in "+dir)
		}
	}
	return nil, seen, nil
}

// candidates yields the directories to look at, in order.
func (s *Search) candidates(ctx context.Context) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, dir := range filepath.SplitList(s.Path) {
			if !filepath.IsAbs(dir) {
				continue // exec.LookPath does not run programs from there either
			}
			for _, candidate := range onPath(ctx, dir) {
				if !yield(candidate) {
					return
				}
			}
		}
		for _, pattern := range s.Places {
			dirs, err := filepath.Glob(pattern)
			if err != nil {
				continue // a malformed pattern matches nothing
			}
			slices.SortStableFunc(dirs, func(a, b string) int { return number(b) - number(a) })
			for _, dir := range dirs {
				if !yield(dir) {
					return
				}
			}
		}
	}
}

// onPath returns the directories that a directory of the path leads to.
func onPath(ctx context.Context, dir string) []string {
	dirs := []string{dir}
	for _, name := range programs {
		if target, err := filepath.EvalSymlinks(filepath.Join(dir, name)); err == nil && filepath.Dir(target) != dir {
			dirs = append(dirs, filepath.Dir(target))
		}
	}
	if out, err := run(ctx, filepath.Join(dir, "pg_config"), "--bindir"); err == nil && filepath.IsAbs(out) {
		dirs = append(dirs, out)
	}
	return dirs
}

// complete tells whether all programs are in the directory.
func complete(dir string) bool {
	for _, name := range programs {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// version asks the server program which version it is.
func version(ctx context.Context, dir string) (major int, words string, err error) {
	out, err := run(ctx, filepath.Join(dir, "postgres"), "--version")
	if err != nil {
		return 0, "", err
	}
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		return 0, "", fmt.Errorf("read version of %s: %.80q", dir, out)
	}
	major, err = strconv.Atoi(m[1])
	return major, "PostgreSQL " + m[1], err
}

func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output() //nolint:gosec // from the search
	return strings.TrimSpace(string(out)), err
}

var numberPattern = regexp.MustCompile(`\d+`)

// number is the version in a directory's name such as /usr/lib/postgresql/15/bin, or 0.
func number(dir string) int {
	n, err := strconv.Atoi(numberPattern.FindString(filepath.Base(filepath.Dir(dir))))
	if err != nil {
		return 0
	}
	return n
}
