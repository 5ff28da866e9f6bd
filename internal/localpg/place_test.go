//go:build unix

package localpg

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postbus/internal/servertest"
)

func TestRootGoesWhereItsServersUserCan(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user takes any directory it has")
	}
	parent := newDir(t)
	if err := os.Mkdir(parent, 0o700); err != nil { // as /root is
		t.Fatal(err)
	}
	o := Options{Dir: filepath.Join(parent, "project", "cluster"), systemDir: newDir(t)}
	s := start(t, o)
	wantState(t, s, Created)
	if filepath.Dir(s.Dir()) != o.systemDir {
		t.Errorf("placed in %s, want it in %s", s.Dir(), o.systemDir)
	}
	for _, want := range []string{o.Dir, s.Dir(), s.cluster.account.name} {
		if !strings.Contains(s.Note(), want) {
			t.Errorf("note %q does not say %q", s.Note(), want)
		}
	}
	if info, err := os.Stat(parent); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the person's directory: %v, %v", info.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	if err := os.Chmod(parent, 0o755); err != nil { // by the person, later
		t.Fatal(err)
	}
	again := start(t, o)
	wantState(t, again, Started)
	if again.Dir() != s.Dir() {
		t.Errorf("the cluster was in %s and is now looked for in %s", s.Dir(), again.Dir())
	}
	if st := uidOf(t, again.cluster.dataDir()); st != again.cluster.account.uid || st == 0 {
		t.Errorf("the data belongs to user %d", st)
	}
}

func TestOrdinaryUserThenRoot(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	as := ordinary(t)
	dir := newDir(t)
	if err := os.Chown(filepath.Dir(dir), as.uid, as.gid); err != nil {
		t.Fatal(err)
	}
	p := startProgram(t, dir, as)
	g := p.greeting()
	if g.UID != as.uid || g.State != Created.String() || g.Dir != dir || g.Note != "" {
		t.Errorf("as user %d: %+v", as.uid, g)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 || uidOf(t, dir) != as.uid {
		t.Errorf("directory made by user %d: %v, %v", as.uid, info.Mode(), err)
	}
	p.leave()
	if worksIn(g.PID, filepath.Join(dir, dataDirName)) {
		t.Error("the server still runs")
	}

	s := start(t, Options{Dir: dir})
	wantState(t, s, Started)
	if s.cluster.account.uid != as.uid {
		t.Errorf("root runs the server as %d; want the data's owner, %d", s.cluster.account.uid, as.uid)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	p = startProgram(t, dir, as)
	if g := p.greeting(); g.State != Started.String() {
		t.Errorf("after root had it, the user's server was %s", g.State)
	}
	p.leave()
}

func TestOrdinaryUserWithoutRights(t *testing.T) {
	t.Parallel()
	as := ordinary(t)
	closed := newDir(t) // its parent is root's
	said := startProgram(t, closed, as).failure()
	for _, want := range []string{ErrDenied.Error(), closed, "POSTBUS_DATA_DIR", "DATABASE_URL"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in: %s", want, said)
		}
	}
	others := newCluster(t)
	said = startProgram(t, others, as).failure()
	for _, want := range []string{ErrNotOurs.Error(), others, "DATABASE_URL"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in: %s", want, said)
		}
	}
}

func TestDisposableClusterThatDoesNotStart(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	s := start(t, Options{Dir: newCluster(t)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	control := filepath.Join(s.cluster.dataDir(), "global", "pg_control")
	if err := os.Truncate(control, 10); err != nil {
		t.Fatal(err)
	}
	if other, err := Start(t.Context(), Options{Dir: s.Dir()}); !errors.Is(err, ErrNotStarted) {
		t.Fatalf("a broken cluster that is not disposable: %v, %v", other, err)
	}
	if info, err := os.Stat(control); err != nil || info.Size() != 10 {
		t.Fatalf("it was touched: %v, %v", info, err)
	}
	wantState(t, start(t, Options{Dir: s.Dir()}), Created)
}

func TestSentences(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		cluster func(t *testing.T) string
		is      error
		says    []string
	}{
		"a setting that the server does not know": {
			cluster: func(t *testing.T) string {
				t.Helper()
				dir := newCluster(t)
				write(t, filepath.Join(dir, dataDirName, "postgresql.auto.conf"), "no_such_setting = 1\n", 0o600)
				return dir
			},
			is: ErrNotStarted, says: []string{"errors", logFile},
		},
		"no password": {
			cluster: func(t *testing.T) string {
				t.Helper()
				dir := newDir(t)
				write(t, filepath.Join(dir, dataDirName, "PG_VERSION"), "15\n", 0o644)
				return dir
			},
			is: ErrNotOurs, says: []string{passwordFile, "move"},
		},
		"files that are not a cluster": {
			cluster: func(t *testing.T) string {
				t.Helper()
				dir := newDir(t)
				write(t, filepath.Join(dir, dataDirName, "diary.txt"), "", 0o644)
				return dir
			},
			is: ErrNotOurs, says: []string{"no cluster", "move it away"},
		},
		"a link in the place of a file": {
			cluster: func(t *testing.T) string {
				t.Helper()
				dir := newDir(t)
				write(t, filepath.Join(dir, dataDirName, "PG_VERSION"), "15\n", 0o644)
				if err := os.Symlink("/etc/passwd", filepath.Join(dir, passwordFile)); err != nil {
					t.Fatal(err)
				}
				return dir
			},
			says: []string{passwordFile},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := Start(t.Context(), Options{Dir: test.cluster(t)})
			if err == nil {
				t.Fatalf("started: %v", s.Close())
			}
			if test.is != nil && !errors.Is(err, test.is) || strings.Contains(err.Error(), "\n") {
				t.Errorf("want one sentence of %q, got %v", test.is, err)
			}
			for _, want := range test.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestLogDoesNotGrowForEver(t *testing.T) {
	t.Parallel()
	c := &cluster{dir: t.TempDir()}
	if err := c.writeFile(logFile, strings.Repeat("x", logBytesMax)); err != nil {
		t.Fatal(err)
	}
	size, err := c.prepareLog()
	if err != nil || size != 0 {
		t.Errorf("the log has %d bytes, %v; want a new one", size, err)
	}
	if _, err := os.Stat(filepath.Join(c.dir, logFile+".1")); err != nil {
		t.Errorf("the former log: %v", err)
	}
}

func uidOf(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return owner(info)
}
