package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// mavenCentral has the binaries of https://github.com/zonkyio/embedded-postgres-binaries.
const mavenCentral = "https://repo1.maven.org/maven2"

// releases are the versions that can be downloaded, by major version.
var releases = map[int]embedded.PostgresVersion{
	13: embedded.V13, 14: embedded.V14, 15: embedded.V15, 16: embedded.V16, 17: embedded.V17, 18: embedded.V18,
}

// majorDownloaded is what a new cluster gets.
const majorDownloaded = 17

// errNoDownload comes when there is nothing to download, or nowhere to download it from.
var errNoDownload = errors.New("and there is none to download")

// download returns the installation of that major version in the cache (0: of majorDownloaded), and fetches it first if it
// is not there yet.
func (s *Search) download(ctx context.Context, want int, progress func(string)) (*installation, error) {
	if want == 0 {
		want = majorDownloaded
	}
	release, ok := releases[want]
	if !ok || s.Repository == "" || s.Cache == "" {
		return nil, errNoDownload
	}
	home := filepath.Join(s.Cache, "postgresql-"+string(release))
	inst := &installation{dir: filepath.Join(home, "bin"), major: want}
	if complete(inst.dir) {
		return inst, nil
	}
	progress("No PostgreSQL found on this machine: downloading version " + strconv.Itoa(want) + " to " + s.Cache + " (once).")
	if err := makeDirs(s.Cache, os.Geteuid() == 0); err != nil {
		return nil, fmt.Errorf("and its download has no place: %w", err)
	}
	done := make(chan error, 1)
	// The library takes no context. Given up, it ends with the program; what it has unpacked by then is in a directory that
	// nobody looks at.
	go func() { done <- s.fetch(release, home) }()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case err := <-done:
		if err != nil {
			return nil, fmt.Errorf("and downloading it did not work: %w", err)
		}
	}
	return inst, nil
}

// fetch downloads and unpacks a release, and moves it to home when it is whole.
func (s *Search) fetch(release embedded.PostgresVersion, home string) (err error) {
	work, err := os.MkdirTemp(s.Cache, "download-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	unpacked := filepath.Join(work, "unpacked")
	if err := unpack(s.Repository, release, work, unpacked); err != nil {
		return err
	}
	if err := os.Rename(unpacked, home); err != nil && !complete(filepath.Join(home, "bin")) {
		return err
	}
	return nil
}

// unpack has the library download into dir. It has no other verb for that than Start, which goes on to run what it has
// unpacked. So it is given a data directory that looks finished, which spares us initdb, but has nothing to run: the
// server gives up at once. Whether Start did what is wanted here is seen by its result on disk.
func unpack(repository string, release embedded.PostgresVersion, dir, unpacked string) error {
	data := filepath.Join(dir, "no-data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	major := strconv.Itoa(majorOf(release))
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(major), 0o600); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	err = embedded.NewDatabase(embedded.DefaultConfig().
		Version(release).
		Port(uint32(port)). //nolint:gosec // a port
		BinaryRepositoryURL(repository).
		CachePath(dir).
		RuntimePath(filepath.Join(dir, "runtime")).
		BinariesPath(unpacked).
		DataPath(data).
		Logger(io.Discard)).Start()
	if complete(filepath.Join(unpacked, "bin")) {
		return nil
	}
	if err == nil {
		err = errors.New("the archive has no PostgreSQL in it")
	}
	return err
}

func majorOf(release embedded.PostgresVersion) int {
	for major, r := range releases {
		if r == release {
			return major
		}
	}
	return 0
}
