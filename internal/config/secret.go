package config

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	secretFile     = "secret.key"
	secretBytes    = 32
	secretFileMode = 0o600
)

// LoadOrCreateSecret returns the secret key that is kept in dir, which is made with the directory on the first call. It
// may be called by many programs at once: all get the same key, and a key that is there is never replaced. The file has
// mode 0600 and holds the key as text, so that its content, copied into SECRET_KEY, is the same key.
//
// A file that others may read, or that does not hold a key, is an error that says what to do.
func LoadOrCreateSecret(dir string) ([]byte, error) {
	path := filepath.Join(dir, secretFile)
	key, err := readSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, ExplainDataDir(dir, err)
	}
	if err := MakeDataDir(dir); err != nil {
		return nil, err
	}
	if err := createSecret(dir, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, ExplainDataDir(dir, fmt.Errorf("keep secret key: %w", err))
	}
	return readSecret(path)
}

func readSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read secret key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("secret key %s can be read by others; run: chmod 600 %q", path, path)
	}
	content, err := os.ReadFile(path) //nolint:gosec // a file of ours
	if err != nil {
		return nil, fmt.Errorf("read secret key: %w", err)
	}
	text := strings.TrimSuffix(string(content), "\n")
	if raw, err := base64.StdEncoding.Strict().DecodeString(text); err != nil || len(raw) != secretBytes {
		return nil, fmt.Errorf("secret key %s is damaged; put back a copy of it, or delete it: a new one is made then, and "+
			"the links in mails already sent no longer work", path)
	}
	return []byte(text), nil
}

// createSecret writes the whole file under another name and links it to its own, which fails if that exists. So nobody
// ever reads a half of it, and of many programs one wins. The error is fs.ErrExist for the others.
func createSecret(dir, path string) (err error) {
	temp, err := os.CreateTemp(dir, secretFile+".*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(temp.Name())) }()
	key := make([]byte, secretBytes)
	if _, err := rand.Read(key); err != nil {
		return errors.Join(err, temp.Close())
	}
	_, err = temp.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	if err := errors.Join(err, temp.Chmod(secretFileMode), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the new name durable: a key that a power cut takes back would break the links that were made with it.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // a directory of ours
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
