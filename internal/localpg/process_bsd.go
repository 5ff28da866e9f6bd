//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package localpg

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// worksIn tells whether that process is alive and is a PostgreSQL server. Which directory it works in cannot be seen
// here; the caller finds out by connecting to it.
func worksIn(pid int, _ string) bool {
	if !exists(pid) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ps", "-o", "stat=,comm=", "-p", strconv.Itoa(pid)).Output() //nolint:gosec // a number
	if err != nil {
		return false
	}
	state, name, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	name = filepath.Base(strings.TrimSuffix(strings.TrimSpace(name), ":"))
	return !strings.HasPrefix(state, "Z") && (name == "postgres" || name == "postmaster")
}
