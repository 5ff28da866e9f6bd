//go:build unix

// Package rabbittest runs RabbitMQ servers, as processes of their own, for tests. The program is that of Debian's package
// rabbitmq-server, which .ci/run installs.
package rabbittest

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"postbus/internal/broker/brokertest"
	"postbus/internal/servertest"
)

const (
	// patience is for a server to start on a busy machine.
	patience = 2 * time.Minute
	poll     = 20 * time.Millisecond
)

// program is the path of the server's script. Debian's own, in /usr/sbin, runs as one user only.
func program() string {
	for _, pattern := range []string{
		"/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server",
	} {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return found[len(found)-1]
		}
	}
	path, _ := exec.LookPath("rabbitmq-server") // "" if there is none
	return path
}

// Whom a server lets in, and where to.
const (
	User     = "ann"
	Password = "se:cr@t word" //nolint:gosec // of a server in a test
	VHost    = "shop"
)

// node is a server's name for its kind. They do not hear of each other.
const node = "test@localhost"

// Server is a RabbitMQ without plugins, whose files outlive it.
type Server struct {
	t    testing.TB
	dir  string
	path string
	port int // of AMQP; those of AMQP over TLS, of its node and of the directory of nodes follow
	*servertest.Process
}

// portCount is how many ports one after the other a server takes.
const portCount = 4

// Start starts a server of the test's own. It ends with the test, or with the test's process.
func Start(t testing.TB) *Server {
	t.Helper()
	s := newServer(t)
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(s.dir)
	})
	s.first()
	return s
}

// shared is the server that the tests of a process have in common.
var shared struct {
	sync.Mutex
	*Server
}

// Shared returns the one server that the tests of a process have in common, and starts it for the first. They keep apart by
// prefixes. It ends with the process.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.Server == nil {
		s := newServer(t)
		s.first()
		shared.Server = s
	}
	return shared.Server
}

// newServer writes down what a server is told. Without the program it skips the test, but in CI it fails.
func newServer(t testing.TB) *Server {
	t.Helper()
	path := program()
	if path == "" {
		servertest.Missing(t, "rabbitmq-server")
	}
	dir, err := os.MkdirTemp("", "rabbittest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: dir, path: path, port: servertest.FreePort(t, portCount)}
	certificate, key := brokertest.SelfSigned(t)
	text := fmt.Sprintf(`listeners.tcp.1 = 127.0.0.1:%d
listeners.ssl.1 = 127.0.0.1:%d
ssl_options.certfile = %s
ssl_options.keyfile = %s
default_user = %s
default_pass = %s
default_vhost = %s
log.file.level = warning
`, s.port, s.port+1, s.Certificate(), s.in("key.pem"), User, Password, VHost)
	if err := errors.Join(
		os.Rename(certificate, s.Certificate()), os.Rename(key, s.in("key.pem")), // from a directory of this test's
		os.WriteFile(s.in("rabbitmq.conf"), []byte(text), 0o600), os.WriteFile(s.in("plugins"), []byte("[]."), 0o600)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) in(name string) string { return filepath.Join(s.dir, name) }

// Certificate names the file of the server's certificate, which is its own authority.
func (s *Server) Certificate() string { return s.in("cert.pem") }

// Addr is host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// AddrTLS is host and port for connections with TLS.
func (s *Server) AddrTLS() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port+1)) }

// URL is what clients connect to.
func (s *Server) URL() string { return URL(s.Addr()) }

// URL is that of a server at, or behind, an address.
func URL(addr string) string {
	return (&url.URL{Scheme: "amqp", User: url.UserPassword(User, Password), Host: addr, Path: VHost}).String()
}

// keep runs the server, and what tells nodes their ports (epmd), in whose place the server would start one that stays. It kills both
// when nobody holds the other end of its input any more, and, unless it was told that they stay, removes the files. The server looks
// every minute whether there is an epmd, and starts one otherwise; that ends as well.
const keep = `
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 >/dev/null 2>&1 & epmd=$!
for i in $(seq 100); do epmd -port "$ERL_EPMD_PORT" -names >/dev/null 2>&1 && break; sleep 0.05; done
"$0" >"$HOME/out" 2>&1 </dev/null & server=$!
echo $server
while read -r word; do said=$word; done
kill -9 $server $epmd; wait
for i in $(seq 20); do
	epmd -port "$ERL_EPMD_PORT" -names >/dev/null 2>&1 || break
	epmd -port "$ERL_EPMD_PORT" -kill >/dev/null 2>&1
	sleep 0.1
done
[ "$said" = stays ] || rm -rf "$HOME"`

// environment has nothing of an installed server's.
func (s *Server) environment() []string {
	return append(os.Environ(),
		"HOME="+s.dir, // of the node's cookie
		"RABBITMQ_CONF_ENV_FILE="+s.in("none"), "RABBITMQ_CONFIG_FILE="+s.in("rabbitmq.conf"),
		"RABBITMQ_MNESIA_BASE="+s.in("mnesia"), "RABBITMQ_LOG_BASE="+s.in("log"), "RABBITMQ_ENABLED_PLUGINS_FILE="+s.in("plugins"),
		"RABBITMQ_NODENAME="+node, fmt.Sprintf("RABBITMQ_DIST_PORT=%d", s.port+2),
		fmt.Sprintf("ERL_EPMD_PORT=%d", s.port+3), "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_ALLOW_INPUT=1", // the script becomes the server, and no process between takes its signals
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "+
			"-kernel inet_dist_use_interface {127,0,0,1}")
}

// registration is how long after its first stream a new server has noted that it has streams. One that is killed before finds none
// of them again.
const registration = time.Second

// first starts the server for the first time.
func (s *Server) first() {
	s.t.Helper()
	s.Start()
	conn, err := amqp.Dial(s.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	channel, err := conn.Channel()
	if err == nil {
		_, err = channel.QueueDeclare("first", true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream})
	}
	if err := errors.Join(err, conn.Close()); err != nil {
		s.t.Fatal(err)
	}
	<-time.After(registration) // there is no signal
}

// Start starts the server again, with what it has stored, and waits for it.
func (s *Server) Start() {
	s.t.Helper()
	keeper := exec.Command("sh", "-c", keep, s.path) //nolint:gosec,noctx // found above; it ends with its input
	keeper.Env = s.environment()
	keeper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal is not for it
	s.Process = servertest.Start(s.t, "rabbitmq-server", keeper)
	s.await()
}

// await waits until the server lets somebody in.
func (s *Server) await() {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		conn, err := amqp.Dial(s.URL())
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			out, _ := os.ReadFile(s.in("out"))
			s.t.Fatalf("rabbitmq-server does not answer: %v\n%s", err, out)
		}
		<-time.After(poll) // polls what has no signal
	}
}

// Kill ends the server's process without a word to it. Its files stay.
func (s *Server) Kill() {
	s.Tell("stays")
	s.Process.Kill()
}

// Control gives the server an order with its own tool, rabbitmqctl.
func (s *Server) Control(arguments ...string) {
	s.t.Helper()
	arguments = append([]string{"--node", node}, arguments...)
	tool := filepath.Join(filepath.Dir(s.path), "rabbitmqctl")
	order := exec.CommandContext(s.t.Context(), tool, arguments...) //nolint:gosec // beside the server
	order.Env = s.environment()
	if out, err := order.CombinedOutput(); err != nil {
		s.t.Fatalf("rabbitmqctl %q: %v\n%s", arguments, err, out)
	}
}
