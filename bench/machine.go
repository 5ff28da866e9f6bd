package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// machine is where and with what the figures were taken.
type machine struct {
	Cores    int               `json:"cores"`
	CPU      string            `json:"cpu"`
	RAM      string            `json:"ram"`
	System   string            `json:"system"`
	Sync     string            `json:"fsync"` // how long the disk takes to keep 8 kB
	Go       string            `json:"go"`
	Postgres string            `json:"postgres"`
	Settings map[string]string `json:"settings"` // Postgres's, as far as they matter here
	Versions map[string]string `json:"versions"` // of the peers
}

// peers are the modules whose versions belong to the figures.
var peers = []string{
	"github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-sql/v3", "github.com/ThreeDotsLabs/watermill-nats/v2",
	"github.com/ThreeDotsLabs/watermill-redisstream", "github.com/riverqueue/river", "github.com/nats-io/nats-server/v2",
	"github.com/jackc/pgx/v5",
}

func readMachine(ctx context.Context, s *server) (machine, error) {
	m := machine{
		Cores: runtime.NumCPU(), CPU: field("/proc/cpuinfo", "model name"), RAM: gigabytes(field("/proc/meminfo", "MemTotal")),
		System: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), Versions: make(map[string]string),
	}
	var err error
	if m.Sync, err = syncTime(s.dir()); err != nil {
		return m, err
	}
	if m.Postgres, m.Settings, err = s.settings(ctx); err != nil {
		return m, err
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if slices.Contains(peers, d.Path) {
				m.Versions[d.Path] = d.Version
			}
		}
	}
	if said, err := exec.CommandContext(ctx, redisProgram, "--version").Output(); err == nil {
		for word := range strings.FieldsSeq(string(said)) {
			if v, ok := strings.CutPrefix(word, "v="); ok {
				m.Versions[redisProgram] = v
			}
		}
	}
	return m, nil
}

// String is the machine in two lines.
func (m machine) String() string {
	var versions []string
	for name, version := range m.Versions {
		versions = append(versions, name[strings.LastIndex(strings.TrimSuffix(strings.TrimSuffix(name, "/v2"), "/v3"), "/")+1:]+" "+version)
	}
	slices.Sort(versions)
	return fmt.Sprintf("%d cores of %s, %s, %s, fsync %s, PostgreSQL %s, %s\n%s", m.Cores, m.CPU, m.RAM, m.System, m.Sync,
		m.Postgres, m.Go, strings.Join(versions, ", "))
}

// field is the value of the first line "name: value" of a file; "" where there is none, as on systems without /proc.
func field(path, name string) string {
	f, err := os.Open(path) //nolint:gosec // one of two constants
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func gigabytes(kilobytes string) string {
	kb, err := strconv.ParseFloat(strings.TrimSuffix(kilobytes, " kB"), 64)
	if err != nil {
		return "unknown RAM"
	}
	return fmt.Sprintf("%.0f GB", kb/(1<<20))
}

// peakMemory is the most memory that this process has ever had, in bytes; 0 where the system does not say.
func peakMemory() int64 {
	kb, err := strconv.ParseInt(strings.TrimSuffix(field("/proc/self/status", "VmHWM"), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return kb << 10
}

// syncTime tells what commits depend on most: how long the disk takes to make 8 kB durable.
func syncTime(dir string) (text string, err error) {
	f, err := os.Create(filepath.Join(dir, "sync-probe")) //nolint:gosec // the directory is the one that a flag names
	if err != nil {
		return "", fmt.Errorf("measure fsync: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	var took []time.Duration
	for range 50 {
		began := time.Now()
		if _, err := f.WriteAt(make([]byte, 8<<10), 0); err != nil {
			return "", fmt.Errorf("measure fsync: %w", err)
		}
		if err := f.Sync(); err != nil {
			return "", fmt.Errorf("measure fsync: %w", err)
		}
		took = append(took, time.Since(began))
	}
	return quantile(took, 0.5).Round(10 * time.Microsecond).String(), nil
}
