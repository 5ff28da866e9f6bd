//go:build unix

package localpg

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// install makes a directory with programs that answer like a PostgreSQL of that version and can do nothing else.
func install(t *testing.T, dir, version string) string {
	t.Helper()
	for _, name := range programs {
		write(t, filepath.Join(dir, name), "#!/bin/sh\necho 'postgres (PostgreSQL) "+version+"'\n", 0o755)
	}
	return dir
}

// places are the patterns of DefaultSearch below another root.
func places(root string) []string {
	var below []string
	for _, place := range DefaultSearch(os.Getenv).Places {
		below = append(below, root+place)
	}
	return below
}

func TestSearchOrder(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := Search{Path: root + "/bin", Places: places(root)}
	// The first is found; without it the second; and so on.
	order := []string{
		"/bin 14.1",
		"/usr/lib/postgresql/18/bin 18.0 (Debian 18.0-1)", "/usr/lib/postgresql/9/bin 16.2", "/usr/lib/postgresql/x/bin 15.2",
		"/usr/pgsql-17/bin 17.6", "/usr/pgsql-13/bin 13.21",
		"/usr/bin 16.9",
		"/opt/homebrew/opt/postgresql@18/bin 18beta1", "/opt/homebrew/opt/postgresql@14/bin 14.0 (Homebrew)",
		"/usr/local/opt/postgresql@15/bin 15.13",
		"/Applications/Postgres.app/Contents/Versions/17/bin 17.0 (Postgres.app)",
		"/Applications/Postgres.app/Contents/Versions/9.6/bin 16devel",
	}
	for _, w := range order {
		dir, version, _ := strings.Cut(w, " ")
		install(t, root+dir, version)
	}
	install(t, root+"/usr/lib/postgresql/19/bin", "12.22")                          // too old
	write(t, root+"/usr/lib/postgresql/20/bin/postgres", "#!/bin/sh\n", 0o755)      // incomplete
	write(t, install(t, root+"/usr/lib/postgresql/21/bin", "1")+"/postgres", "", 0) // does not run
	for _, w := range order {
		dir, _, _ := strings.Cut(w, " ")
		found, _, err := s.find(t.Context(), 0)
		if err != nil || found == nil || found.dir != root+dir {
			t.Fatalf("found %+v, %v; want %s", found, err, dir)
		}
		if err := os.RemoveAll(found.dir); err != nil {
			t.Fatal(err)
		}
	}
	if found, _, err := s.find(t.Context(), 0); found != nil || err != nil {
		t.Errorf("found %+v, %v where nothing is left", found, err)
	}
}

func TestSearchPath(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	there := install(t, filepath.Join(root, "real"), "16.1")
	link := filepath.Join(root, "link")
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(there, "postgres"), filepath.Join(link, "postgres")); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(root, "config")
	write(t, filepath.Join(config, "pg_config"), "#!/bin/sh\n[ \"$1\" = --bindir ] && echo '"+there+"'\n", 0o755)
	for name, path := range map[string]string{"programs": there, "a symbolic link": link, "pg_config": config} {
		s := Search{Path: "relative" + string(os.PathListSeparator) + path}
		if found, _, err := s.find(t.Context(), 0); err != nil || found == nil || found.dir != there || found.major != 16 {
			t.Errorf("%s on the path: found %+v, %v; want %s", name, found, err, there)
		}
	}
	s := Search{Path: there}
	if found, _, err := s.find(t.Context(), 17); found != nil || err != nil {
		t.Errorf("wanted version 17, found %+v, %v", found, err)
	}
}

func TestNothingFound(t *testing.T) {
	t.Parallel()
	old := install(t, filepath.Join(t.TempDir(), "old"), "12.3")
	broken := install(t, filepath.Join(t.TempDir(), "broken"), "?")
	write(t, filepath.Join(broken, "postgres"), "#!/bin/sh\nexit 3\n", 0o755)
	tests := map[string]struct {
		search Search
		want   []string
	}{
		"nothing":      {want: []string{"apt install postgresql", "dnf install", "brew install", "DATABASE_URL"}},
		"too old":      {search: Search{Path: old}, want: []string{"PostgreSQL 12 in " + old, "13 or newer", "DATABASE_URL"}},
		"does not run": {search: Search{Places: []string{broken}}, want: []string{broken + ", which does not run", "DATABASE_URL"}},
		"no download": {
			search: Search{Repository: "http://127.0.0.1:1", Cache: t.TempDir()},
			want:   []string{"downloading it did not work", "127.0.0.1:1", "DATABASE_URL"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newDir(t)
			s, err := Start(t.Context(), Options{Dir: dir, Search: &test.search})
			if err == nil {
				t.Fatalf("started %v", s.Close())
			}
			if !errors.Is(err, ErrNoPostgres) || strings.Contains(err.Error(), "\n") {
				t.Errorf("want ErrNoPostgres as one sentence, got %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, dataDirName)); !os.IsNotExist(err) {
				t.Errorf("something was made: %v", err)
			}
		})
	}
}

func TestVersionOfTheData(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	search := Search{Places: []string{filepath.Join(root, "*", "bin")}}
	install(t, filepath.Join(root, "18", "bin"), "18.3")
	install(t, filepath.Join(root, "16", "bin"), "16.3")
	for data, want := range map[string]struct {
		major int
		words string
	}{
		"16\n": {major: 16},
		"17\n": {words: "install PostgreSQL 17"},
		"19\n": {words: "install PostgreSQL 19"},
		"12\n": {words: `made by PostgreSQL "12" and this program needs 13 or newer`},
		"9.6":  {words: `made by PostgreSQL "9.6"`},
		"":     {words: `made by PostgreSQL ""`},
	} {
		c := &cluster{dir: newDir(t), options: Options{Search: &search}.defaults()}
		write(t, filepath.Join(c.dataDir(), "PG_VERSION"), data, 0o600)
		found, err := c.installation(t.Context())
		switch {
		case want.major != 0 && (err != nil || found.major != want.major):
			t.Errorf("data of version %q: found %+v, %v", data, found, err)
		case want.major == 0 && (!errors.Is(err, ErrDataVersion) || !strings.Contains(err.Error(), want.words) ||
			!strings.Contains(err.Error(), "DATABASE_URL")):
			t.Errorf("data of version %q: %v; want %q", data, err, want.words)
		}
	}
}

func TestDownload(t *testing.T) {
	t.Parallel()
	repository, asked := repository(t)
	parent := t.TempDir()
	s := Search{Repository: repository, Cache: filepath.Join(parent, "cache")}
	var progress []string
	c := &cluster{dir: newDir(t), options: Options{Search: &s, Progress: func(w string) { progress = append(progress, w) }}.defaults()}
	found, err := c.installation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run(t.Context(), filepath.Join(found.dir, "postgres"), "--version"); err != nil || got != "postgres (PostgreSQL) 17.5" {
		t.Errorf("the downloaded program says %q, %v", got, err)
	}
	if len(progress) != 1 || !strings.Contains(progress[0], "downloading version 17") {
		t.Errorf("said %q", progress)
	}
	if again, err := s.download(t.Context(), 17, nil); err != nil || again.dir != found.dir || len(*asked) != 2 {
		t.Errorf("the second time: %+v, %v after %v", again, err, *asked)
	}
	entries, err := os.ReadDir(s.Cache)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the cache: %v, %v", entries, err)
	}
}

func TestDownloadGivenUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		cancel()
		<-waiting
	}))
	defer server.Close()
	defer close(waiting)
	s := Search{Repository: server.URL, Cache: t.TempDir()}
	if _, err := s.download(ctx, 0, func(string) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("download with a context that ends: %v", err)
	}
}

func TestRootsCacheIsWithinReach(t *testing.T) {
	t.Parallel()
	if dir := cacheDir(); !filepath.IsAbs(dir) || os.Geteuid() == 0 && strings.HasPrefix(dir, "/root") {
		t.Errorf("downloads go to %s", dir)
	}
	off := DefaultSearch(func(name string) string { return map[string]string{"POSTBUS_POSTGRES_DOWNLOAD": "off"}[name] })
	if off.Repository != "" || off.Path != "" {
		t.Errorf("download is off: %+v", off)
	}
}

// repository serves the archive of testdata as Maven Central would, and keeps what it was asked for.
func repository(t *testing.T) (url string, asked *[]string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", "postgresql.txz"))
	if err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	z := zip.NewWriter(&jar)
	w, err := z.Create("postgres-any.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	asked = &[]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.URL.Path)
		switch {
		case !strings.Contains(r.URL.Path, "17.5.0"):
			http.NotFound(w, r)
			return
		case strings.HasSuffix(r.URL.Path, ".sha256"):
			sum := sha256.Sum256(jar.Bytes())
			_, _ = io.WriteString(w, hex.EncodeToString(sum[:]))
			return
		}
		_, _ = w.Write(jar.Bytes())
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}
