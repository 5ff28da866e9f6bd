//go:build unix

package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"postbus/internal/localpg"
	"postbus/internal/migrate"
	"postbus/internal/servertest"
)

func TestSweepDropsOldLeftovers(t *testing.T) {
	t.Parallel()
	h, err := server()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), h.url.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	mark := strings.ToLower(rand.Text()[:8]) // unlike the names of other processes
	young, old := time.Now().Unix(), time.Now().Add(-2*time.Hour).Unix()
	want := map[string]bool{
		fmt.Sprintf("%s%d_%s", testPrefix, old, mark):      false,
		fmt.Sprintf("%s%d_used_%s", testPrefix, old, mark): true,
		fmt.Sprintf("%s%d_%s", testPrefix, young, mark):    true,
	}
	for name := range want {
		if _, err := conn.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.drop(context.Background(), name) })
		if strings.Contains(name, "used") {
			user, err := pgx.Connect(t.Context(), h.address(name))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = user.Close(context.Background()) })
		}
	}
	if err := h.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, stays := range want {
		var there bool
		err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&there)
		if err != nil || there != stays {
			t.Errorf("%s is there: %v, %v; want %v", name, there, err, stays)
		}
	}
}

func TestOutlived(t *testing.T) {
	t.Parallel()
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	for name, want := range map[string]bool{
		fmt.Sprintf("postbus_test_%d_x", ago(time.Minute)):           false,
		fmt.Sprintf("postbus_test_%d_x", ago(2*time.Hour)):           true,
		fmt.Sprintf("postbus_new_%d_x", ago(time.Minute)):            false,
		fmt.Sprintf("postbus_new_%d_x", ago(2*time.Hour)):            true,
		fmt.Sprintf("postbus_template_%d_x_y", ago(2*time.Hour)):     false,
		fmt.Sprintf("postbus_template_%d_x_y", ago(30*24*time.Hour)): true,
		fmt.Sprintf("postbus_other_%d_x", ago(30*24*time.Hour)):      false,
		fmt.Sprintf("postbus_%d_x", ago(30*24*time.Hour)):            false,
		"postbus_test_mine": false,
		"postbus":           false,
	} {
		if got := outlived(name); got != want {
			t.Errorf("%s has outlived its use: %v; want %v", name, got, want)
		}
	}
}

func TestFailedMigrationLeavesNoTemplate(t *testing.T) {
	t.Parallel()
	h, err := server()
	if err != nil {
		t.Fatal(err)
	}
	sets := []migrate.Set{{Name: "test", Schema: "public", FS: fstest.MapFS{"0001_wrong.sql": {Data: []byte("no sql")}}}}
	for range 2 {
		if name, err := h.create(t.Context(), sets); err == nil {
			t.Errorf("made %s from migrations that fail", name)
		}
	}
}

func TestHashTellsMigrationsApart(t *testing.T) {
	t.Parallel()
	files := func(named ...string) fstest.MapFS {
		m := fstest.MapFS{}
		for _, file := range named {
			name, content, _ := strings.Cut(file, " ")
			m[name] = &fstest.MapFile{Data: []byte(content)}
		}
		return m
	}
	seen := map[string]int{}
	for i, sets := range [][]migrate.Set{
		{},
		{{Name: "a", Schema: "s", FS: files("1 x")}},
		{{Name: "a", Schema: "s", FS: files("1 y")}},
		{{Name: "a", Schema: "s", FS: files("2 x")}},
		{{Name: "a", Schema: "s", FS: files("1 x", "2")}},
		{{Name: "b", Schema: "s", FS: files("1 x")}},
		{{Name: "a", Schema: "r", FS: files("1 x")}},
		{{Name: "a", Schema: "s", FS: files("1 x")}, {Name: "b", Schema: "s", FS: files()}},
	} {
		sum, err := hash(sets)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[sum]; ok {
			t.Errorf("migrations %d and %d have one hash", i, other)
		}
		seen[sum] = i
		if again, err := hash(sets); err != nil || again != sum {
			t.Errorf("the hash of migrations %d changes: %s, %s, %v", i, sum, again, err)
		}
	}
}

// TestUser is what TestManyPackagesAtOnceOnAnEmptyMachine runs in processes of its own; by itself it is one more test.
func TestUser(t *testing.T) {
	t.Parallel()
	sets := []migrate.Set{{Name: "user", Schema: "public", FS: fstest.MapFS{"0001_t.sql": {Data: []byte("CREATE TABLE t ()")}}}}
	if _, err := New(t, sets...).Exec(t.Context(), "SELECT FROM t"); err != nil {
		t.Fatal(err)
	}
	wantShare(t)
}

// wantShare makes sure that this process has a share in the server which the garbage collector cannot take away. If there
// are other users as well nothing can be seen.
func wantShare(t *testing.T) {
	t.Helper()
	h, err := server()
	if err != nil {
		t.Fatal(err)
	}
	if h.share == nil {
		return
	}
	users, err := os.Open(filepath.Join(h.share.Dir(), "users"))
	if err != nil {
		t.Fatal(err)
	}
	defer users.Close()
	runtime.GC()
	runtime.GC()
	if err := syscall.Flock(int(users.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("nobody has a share in the server that this test uses: %v", err)
	}
}

func TestManyPackagesAtOnceOnAnEmptyMachine(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	if os.Getenv("TEST_DATABASE_URL") != "" {
		t.Skip("the server is given")
	}
	temp, err := os.MkdirTemp(tempDir(), "pgtest-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o711); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	use := func() {
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestUser$", "-test.count=1")
		cmd.Env = append(os.Environ(), "TMPDIR="+temp)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("a process that uses the server: %v: %s", err, out)
		}
	}
	var all sync.WaitGroup
	for range 10 {
		all.Go(use)
	}
	all.Wait()
	use() // and alone
	wantStoppedByCaretaker(t, temp)
}

func TestGivenServer(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	s := Own(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	use := func(address string) (string, error) {
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestUser$", "-test.count=1")
		cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+address)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := use(s.URL()); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var names []string
	err = conn.QueryRow(t.Context(), "SELECT array_agg(datname) FROM pg_database WHERE starts_with(datname, 'postbus_')").Scan(&names)
	if err != nil || len(names) != 1 || !strings.HasPrefix(names[0], templatePrefix) {
		t.Errorf("the given server has databases %v, %v; want a template", names, err)
	}
	if out, err := use("host=secret"); err == nil || !strings.Contains(out, "TEST_DATABASE_URL") || strings.Contains(out, "secret") {
		t.Errorf("a malformed address: %v: %s", err, out)
	}
}

// wantStoppedByCaretaker waits, as nobody uses the server any more, for the caretaker to stop it.
func wantStoppedByCaretaker(t *testing.T, temp string) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(temp, "postbus-test-*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("want one cluster, got %v, %v", dirs, err)
	}
	pidFile := filepath.Join(dirs[0], "data", "postmaster.pid")
	if _, err := os.Stat(pidFile); err != nil {
		t.Errorf("the server was stopped with its first user: %v", err)
	}
	// A second caretaker does not wait, as there is one.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := localpg.StopUnused(ctx, sharedOptions(dirs[0]), time.Hour); err != nil {
		t.Errorf("there was no caretaker: %v", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(3 * idle); ; <-tick.C {
		if _, err := os.Stat(pidFile); os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody stopped the server")
		}
	}
}
