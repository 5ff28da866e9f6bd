//go:build unix

// Package kafkatest runs Kafka for tests, as a process of its own that can be killed and made to hang: franz-go's kfake, which
// keeps its topics on files. A package that uses it calls Main first in its TestMain.
package kafkatest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postbus/internal/servertest"
)

const (
	// variable makes a test's program a Kafka.
	variable = "POSTBUS_TEST_KAFKA"
	patience = 2 * time.Minute
	poll     = 20 * time.Millisecond
)

// config is what such a process is told.
type config struct {
	Dir string
	// Ports are those to listen on, one a broker, and Addresses what the brokers say of themselves.
	Ports     []int
	Addresses []string
}

// Main is Kafka in a process that Cluster has started; it returns true when that ends. In others it returns false.
func Main() bool {
	told := os.Getenv(variable)
	if told == "" {
		return false
	}
	if err := serve(told); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return true
	}
	select {} // until it is killed
}

func serve(told string) error {
	var c config
	if err := json.Unmarshal([]byte(told), &c); err != nil {
		return fmt.Errorf("read what Kafka is told: %w", err)
	}
	said := make(map[string]string, len(c.Ports))
	for i, port := range c.Ports {
		said[strconv.Itoa(port)] = c.Addresses[i]
	}
	_, err := kfake.NewCluster(kfake.Ports(c.Ports...), kfake.DataDir(c.Dir),
		kfake.ListenFn(func(network, address string) (net.Listener, error) {
			l, err := net.Listen(network, address) //nolint:noctx // ends with the process
			if err != nil {
				return nil, fmt.Errorf("listen: %w", err)
			}
			_, port, err := net.SplitHostPort(l.Addr().String())
			if err != nil {
				return nil, fmt.Errorf("listen: %w", err)
			}
			return listener{l, way(said[port])}, nil
		}))
	if err != nil {
		return fmt.Errorf("start Kafka: %w", err)
	}
	return nil
}

// listener says that it is elsewhere: at the way that leads to it.
type listener struct {
	net.Listener
	address way
}

func (l listener) Addr() net.Addr { return l.address }

// way is an address.
type way string

func (way) Network() string  { return "tcp" }
func (w way) String() string { return string(w) }

// Cluster is a Kafka in a process of its own.
type Cluster struct {
	t      testing.TB
	config config
	*servertest.Process
}

// Start starts so many brokers in one process. It ends with the test, or with the test's process.
func Start(t testing.TB, brokers int) *Cluster {
	t.Helper()
	return StartBehind(t, brokers, func(address string) string { return address })
}

// StartBehind starts brokers that are reached at other addresses than their own: at says at which.
func StartBehind(t testing.TB, brokers int, at func(address string) string) *Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "kafkatest")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, config: config{Dir: filepath.Join(dir, "data")}}
	for range brokers {
		port := servertest.FreePort(t, 1)
		c.config.Ports = append(c.config.Ports, port)
		c.config.Addresses = append(c.config.Addresses, at(net.JoinHostPort("127.0.0.1", strconv.Itoa(port))))
	}
	t.Cleanup(func() {
		c.Kill()
		_ = os.RemoveAll(dir)
	})
	c.Start()
	return c
}

// Addr is host and port of all brokers, with commas between them.
func (c *Cluster) Addr() string { return strings.Join(c.config.Addresses, ",") }

// URL is what BROKER_URL has.
func (c *Cluster) URL() string { return "kafka://" + c.Addr() }

// Start starts the process again, with what it has stored, and waits for it.
func (c *Cluster) Start() {
	c.t.Helper()
	told, err := json.Marshal(c.config)
	if err != nil {
		c.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	c.Process = servertest.Run(c.t, c.config.Dir+".log", self, nil, variable+"="+string(told))
	c.await()
}

// await waits until the brokers answer.
func (c *Cluster) await() {
	c.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.config.Addresses...), kgo.MetadataMinAge(poll))
	if err != nil {
		c.t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := client.Ping(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(c.config.Dir + ".log")
			c.t.Fatalf("Kafka does not answer: %v\n%s", err, log)
		}
		<-time.After(poll) // polls what has no signal
	}
}
