package main

import (
	"os"
	"testing"
)

// TestRunsKeepToThemselves: a run does not touch the directory of one that lives, and removes that of one that is gone.
func TestRunsKeepToThemselves(t *testing.T) {
	base := t.TempDir()
	first, err := newRunDir(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(first.path, 0o700); err != nil {
		t.Fatal(err)
	}
	second, err := newRunDir(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first.path); err != nil || first.path == second.path {
		t.Fatalf("the second run took the first's directory: %v", err)
	}
	if err := first.lock.Close(); err != nil { // as the end of its process would
		t.Fatal(err)
	}
	if err := sweep(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first.path); !os.IsNotExist(err) {
		t.Errorf("what the first run left is still there: %v", err)
	}
	if err := second.close(); err != nil {
		t.Error(err)
	}
}
