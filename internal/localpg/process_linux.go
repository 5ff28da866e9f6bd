package localpg

import (
	"fmt"
	"os"
	"strings"
)

// worksIn tells whether that process is alive and is the server of that data directory.
func worksIn(pid int, dataDir string) bool {
	if !exists(pid) {
		return false
	}
	name, state := procStat(pid)
	if state == "Z" || state == "X" {
		return false
	}
	// The kernel keeps this link from root in a container without CAP_SYS_PTRACE; then the name has to do.
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return name == "postgres" || name == "postmaster"
	}
	data, err := os.Stat(dataDir)
	return err == nil && os.SameFile(cwd, data)
}

// procStat returns the name and the state letter of a process; both are empty if it is gone.
func procStat(pid int) (name, state string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	// 1234 (name) S …, and the name may hold parentheses itself.
	_, rest, _ := strings.Cut(string(b), "(")
	end := strings.LastIndex(rest, ")")
	if end < 0 || len(rest) < end+3 {
		return "", ""
	}
	return rest[:end], rest[end+2 : end+3]
}
