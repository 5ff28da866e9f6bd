package localpg

import (
	"errors"
	"os"
	"path/filepath"
	"time"
)

// Options say where the private server lives and what it is for. The zero value is ready to use.
type Options struct {
	// Dir is the directory of the cluster, its password and its log. Default ".postbus/postgres".
	Dir string
	// Disposable is for tests: the server does not wait for disks, and a cluster that no longer starts is replaced by a
	// new one. Default false: what was committed survives.
	Disposable bool
	// MaxConnections is the server's max_connections. Default 100.
	MaxConnections int
	// StartTimeout bounds how long the server may take until it answers, recovery after a crash included. Default 1m.
	StartTimeout time.Duration
	// Search says where PostgreSQL is looked for. Default DefaultSearch.
	Search *Search
	// Progress is told in a sentence before something begins that takes long, such as a download. Default: nobody is told.
	Progress func(sentence string)

	// systemDir holds the clusters of root whose own place its server's user cannot reach. Default "/var/lib/postbus".
	systemDir string
}

func (o Options) defaults() Options {
	if o.Dir == "" {
		o.Dir = filepath.Join(".postbus", "postgres")
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 100
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = time.Minute
	}
	if o.Search == nil {
		s := DefaultSearch(os.Getenv)
		o.Search = &s
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.systemDir == "" {
		o.systemDir = "/var/lib/postbus"
	}
	return o
}

func (o Options) validate() error {
	if o.MaxConnections < 10 {
		return errors.New("max connections: 10 at least")
	}
	if o.StartTimeout < time.Second {
		return errors.New("start timeout: 1s at least")
	}
	return nil
}
