package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestSecretIsMadeOnceAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b", ".postbus")
	first, err := LoadOrCreateSecret(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateSecret(dir)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("second call: another key, %v", err)
	}
	other, err := LoadOrCreateSecret(t.TempDir())
	if err != nil || bytes.Equal(first, other) {
		t.Errorf("another directory: the same key, %v", err)
	}
	if err := setSecretKey(&Config{}, string(first)); err != nil {
		t.Errorf("SECRET_KEY would not take it: %v", err)
	}
	content, err := os.ReadFile(filepath.Join(dir, secretFile))
	if err != nil || string(content) != string(first)+"\n" {
		t.Errorf("the file is not the key as SECRET_KEY takes it: %v", err)
	}
	checkOnlySecret(t, dir)
}

// checkOnlySecret sees that the key can be read by its owner only, and that nothing else was left behind.
func checkOnlySecret(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("directory holds %v, %v", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode().Perm() != secretFileMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestSecretOfManyAtOnceIsOne(t *testing.T) {
	dir := t.TempDir()
	const programs = 32
	keys := make([][]byte, programs)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range programs {
		wg.Go(func() {
			<-start
			var err error
			if keys[i], err = LoadOrCreateSecret(dir); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
	for i := range keys {
		if !bytes.Equal(keys[i], keys[0]) {
			t.Fatalf("program %d has another key", i)
		}
	}
	checkOnlySecret(t, dir)
}

// Two that both found no key: the slower one must not replace what the faster one has already used.
func TestSecretIsNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadOrCreateSecret(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := createSecret(dir, filepath.Join(dir, secretFile)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want that it exists", err)
	}
	if again, err := LoadOrCreateSecret(dir); err != nil || !bytes.Equal(again, first) {
		t.Errorf("it was replaced, %v", err)
	}
	checkOnlySecret(t, dir)
}

func TestSecretThatIsNoneIsRefusedAndKept(t *testing.T) {
	valid := "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU="
	tests := []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"empty", "", 0o600, "is damaged; put back a copy"},
		{"cut off", valid[:20], 0o600, "is damaged"},
		{"longer", valid + valid, 0o600, "is damaged"},
		{"no base64", strings.Repeat("!", 44), 0o600, "is damaged"},
		{"public", valid, 0o644, "can be read by others; run: chmod 600"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, secretFile)
			if err := os.WriteFile(path, []byte(tt.content), tt.mode); err != nil {
				t.Fatal(err)
			}
			key, err := LoadOrCreateSecret(dir)
			if err == nil || key != nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("got %q, %v", key, err)
			}
			if tt.content != "" && strings.Contains(err.Error(), tt.content) {
				t.Errorf("the error shows it: %v", err)
			}
			if content, err := os.ReadFile(path); err != nil || string(content) != tt.content {
				t.Errorf("the file has changed: %q, %v", content, err)
			}
		})
	}
}

func TestSecretWhereNothingCanBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateSecret(file); err == nil {
		t.Error("no error though the directory is a file")
	}
}
