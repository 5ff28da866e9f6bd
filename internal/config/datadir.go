package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// Others may pass through the data directory, not list it: a private Postgres below it runs as another user if the
	// program runs as root.
	dataDirMode   = 0o711
	publicURLFile = "public-url"
)

// ExplainDataDir puts an error of using the data directory into a sentence that says what to do, where it is one that a
// person can mend. It returns other errors, and nil, as they are.
func ExplainDataDir(dir string, err error) error {
	var ofPath *fs.PathError
	switch {
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("POSTBUS_DATA_DIR, which is %s, is not a directory; set it to one: %w", dir, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("POSTBUS_DATA_DIR, which is %s, cannot be used by this user; let them have it, or set it to another: %w",
			dir, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("POSTBUS_DATA_DIR, which is %s, cannot be made; set it to a directory on a disk: %w", dir, err)
	case errors.As(err, &ofPath):
		return fmt.Errorf("POSTBUS_DATA_DIR, which is %s, cannot be used; set it to another: %w", dir, err)
	}
	return err
}

// MakeDataDir makes dir where it is missing.
func MakeDataDir(dir string) error {
	if err := os.MkdirAll(dir, dataDirMode); err != nil {
		return ExplainDataDir(dir, fmt.Errorf("make data directory: %w", err))
	}
	return nil
}

// KeepPublicURL notes in dir where the app is, for consumers that were not told. dir is made where missing. A reader
// finds the old URL or the new one, never a half.
func KeepPublicURL(dir, publicURL string) (err error) {
	if err := MakeDataDir(dir); err != nil {
		return err
	}
	defer func() { err = ExplainDataDir(dir, err) }()
	temp, err := os.CreateTemp(dir, publicURLFile+".*") // with mode 0600
	if err != nil {
		return fmt.Errorf("keep public URL: %w", err)
	}
	_, err = temp.WriteString(publicURL + "\n")
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), filepath.Join(dir, publicURLFile))
	}
	if err != nil {
		return fmt.Errorf("keep public URL: %w", errors.Join(err, os.Remove(temp.Name())))
	}
	return nil
}

// KeptPublicURL returns what KeepPublicURL noted last, or "" when that is nothing, or no URL to begin links with.
func KeptPublicURL(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, publicURLFile)) //nolint:gosec // a file of ours
	var c Config
	if err != nil || setPublicURL(&c, strings.TrimSpace(string(text))) != nil {
		return ""
	}
	return c.PublicURL
}
