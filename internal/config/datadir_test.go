package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestDataDirThatIsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		_, err := LoadOrCreateSecret(dir)
		for what, err := range map[string]error{"secret": err, "public URL": KeepPublicURL(dir, "http://localhost")} {
			if err == nil || !strings.HasPrefix(err.Error(), "POSTBUS_DATA_DIR, which is "+dir+", is not a directory") {
				t.Errorf("%s in %s: %v", what, dir, err)
			}
		}
	}
}

func TestDataDirThatIsNotForWriting(t *testing.T) {
	for _, cause := range []error{syscall.EACCES, syscall.EPERM, syscall.EROFS} {
		err := ExplainDataDir("/data", &os.PathError{Op: "mkdir", Path: "/data", Err: cause})
		if !strings.HasPrefix(err.Error(), "POSTBUS_DATA_DIR, which is /data, cannot be used by this user") || !errors.Is(err, cause) {
			t.Errorf("%v: %v", cause, err)
		}
	}
	missing := &os.PathError{Op: "mkdir", Path: "/proc/data", Err: syscall.ENOENT}
	if err := ExplainDataDir("/proc/data", missing); !strings.HasPrefix(err.Error(),
		"POSTBUS_DATA_DIR, which is /proc/data, cannot be made; set it to a directory on a disk: ") || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, cause := range []error{syscall.ENAMETOOLONG, syscall.ENOSPC, syscall.ELOOP} {
		err := ExplainDataDir("/data", fmt.Errorf("make it: %w", &os.PathError{Op: "mkdir", Path: "/data", Err: cause}))
		if !strings.HasPrefix(err.Error(), "POSTBUS_DATA_DIR, which is /data, cannot be used; set it to another: make it: ") ||
			!errors.Is(err, cause) {
			t.Errorf("%v: %v", cause, err)
		}
	}
	if other := errors.New("other"); ExplainDataDir("/data", other).Error() != "other" || ExplainDataDir("/data", nil) != nil {
		t.Error("other errors do not stay as they are")
	}
	if os.Geteuid() == 0 {
		return // root may write everywhere
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateSecret(dir); err == nil || !strings.Contains(err.Error(), "POSTBUS_DATA_DIR") {
		t.Errorf("read-only directory: %v", err)
	}
}

func TestPublicURLIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b", ".postbus")
	if got := KeptPublicURL(dir); got != "" {
		t.Errorf("before there is one: %q", got)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := KeepPublicURL(dir, "http://127.0.0.1:9000"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := KeepPublicURL(dir, "https://post.example"); err != nil {
		t.Fatal(err)
	}
	if got := KeptPublicURL(dir); got != "https://post.example" {
		t.Errorf("kept %q", got)
	}
	checkOnlySecret(t, dir) // the same mode, and nothing beside it
	for _, damaged := range []string{"", "ftp://x", "http://", "https://a.example/?x"} {
		if err := os.WriteFile(filepath.Join(dir, publicURLFile), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := KeptPublicURL(dir); got != "" {
			t.Errorf("%q is taken for %q", damaged, got)
		}
	}
}

func TestPublicURLIsGuessedOnlyWhenNothingWasSaid(t *testing.T) {
	for _, tt := range []struct {
		said []string
		want bool
	}{
		{nil, true},
		{[]string{"HTTP_ADDR=127.0.0.1:8080"}, false},
		{[]string{"PUBLIC_URL=http://127.0.0.1:8080"}, false},
		{[]string{"PUBLIC_URL=http://127.0.0.1:8080", "HTTP_ADDR=:9000"}, false},
	} {
		c, err := Load(Consumer, nil, env(tt.said...), io.Discard)
		if err != nil || c.PublicURLGuessed != tt.want {
			t.Errorf("%q: guessed is %v (%v), want %v", tt.said, c.PublicURLGuessed, err, tt.want)
		}
	}
}
