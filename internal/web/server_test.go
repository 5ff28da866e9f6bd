package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// serve runs an app on a listener of its own; stop ends it and gives what Serve returned.
func serve(t *testing.T, a Accounts, change ...func(*Config)) (addr string, stop func() error) {
	t.Helper()
	app := newApp(t, a, change...)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- app.Serve(ctx, listener) }()
	stop = func() error {
		cancel()
		err, ok := <-served
		if ok {
			close(served)
		}
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return listener.Addr().String(), stop
}

// patience bounds what has no limit of its own to prove, on a machine that is busy with other things.
const patience = 30 * time.Second

// dial connects. What is then waited for has to come in time.
func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// await waits for a channel to be closed.
func await(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited %v for %s", patience, what)
	}
}

// dribble sends what it is given byte by byte, for ever the last one, until the server hangs up. It returns what the
// server said and how long it stayed.
func dribble(t *testing.T, conn net.Conn, text string) (string, time.Duration) {
	t.Helper()
	started := time.Now()
	var answer strings.Builder
	for i := 0; ; i++ {
		if time.Since(started) > 10*time.Second {
			t.Fatal("the server still listens after 10 s")
		}
		if _, err := conn.Write([]byte{text[min(i, len(text)-1)]}); err != nil {
			return answer.String(), time.Since(started)
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(&answer, conn); !errors.Is(err, os.ErrDeadlineExceeded) {
			return answer.String(), time.Since(started)
		}
	}
}

// say sends text, as far as a client can know.
func say(t *testing.T, conn net.Conn, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(conn, format, args...); err != nil {
		t.Fatal(err)
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	const limit = 300 * time.Millisecond
	f := &accounts{}
	addr, _ := serve(t, f, func(c *Config) {
		c.ReadHeaderTimeout, c.ReadTimeout = limit, limit
	})
	t.Run("header", func(t *testing.T) {
		_, took := dribble(t, dial(t, addr), "GET / HTTP/1.1\r\nX-Slow: a")
		if took < limit/2 || took > 10*limit {
			t.Errorf("cut off after %s", took)
		}
	})
	t.Run("body", func(t *testing.T) {
		conn := dial(t, addr)
		say(t, conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n")
		answer, took := dribble(t, conn, `{"email":"a`)
		if !strings.HasPrefix(answer, "HTTP/1.1 408 ") || !strings.Contains(answer, "request_timeout") ||
			!strings.Contains(answer, "Connection: close") {
			t.Errorf("answer is %q", answer)
		}
		if took > 10*limit {
			t.Errorf("cut off after %s", took)
		}
	})
	t.Run("idle", func(t *testing.T) {
		addr, _ := serve(t, f, func(c *Config) { c.IdleTimeout = limit })
		conn := dial(t, addr)
		say(t, conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
			t.Errorf("connection ended with %v after %q", err, answer)
		}
	})
	if f.called() != "" {
		t.Errorf("called %s", f.called())
	}
}

func TestCutBodyReachesNoAccount(t *testing.T) {
	f := &accounts{}
	addr, _ := serve(t, f)
	conn := dial(t, addr)
	say(t, conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{\"email\":")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(status, "HTTP/1.1 400 ") || f.called() != "" {
		t.Errorf("status is %q, %v; called %q", status, err, f.called())
	}
}

func TestOversizedHeader(t *testing.T) {
	addr, _ := serve(t, &accounts{})
	conn := dial(t, addr)
	say(t, conn, "GET / HTTP/1.1\r\nHost: x\r\nX-Large: %s\r\n\r\n", strings.Repeat("a", 2*headerBytesMax))
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(status, "HTTP/1.1 431 ") {
		t.Errorf("status is %q, %v", status, err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	addr, _ := serve(t, &accounts{}, func(c *Config) { c.ConnectionsMax = 1 })
	first := dial(t, addr)
	say(t, first, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := bufio.NewReader(first).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	second := dial(t, addr)
	say(t, second, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	if err := second.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := second.Read(make([]byte, 1)); err == nil {
		t.Fatalf("the second connection was answered with %d bytes", n)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err != nil {
		t.Errorf("the second connection was not served after the first: %v", err)
	}
}

// A request under way when the server is told to stop is answered, and not cancelled.
func TestShutdownFinishesRequests(t *testing.T) {
	started, goOn := make(chan struct{}), make(chan struct{})
	f := &accounts{onWork: func(ctx context.Context, _ string) error {
		close(started)
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	addr, stop := serve(t, f)
	conn := dial(t, addr)
	body := `{"email":"ada@example.com"}`
	say(t, conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	await(t, started, "the work to start")
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	waitForRefusal(t, addr)
	close(goOn)
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(status, "HTTP/1.1 202 ") {
		t.Errorf("status is %q, %v", status, err)
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	case <-time.After(patience):
		t.Errorf("the server has not stopped within %v", patience)
	}
}

// waitForRefusal returns once nobody listens at addr any more.
func waitForRefusal(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		_ = conn.Close()
	}
	t.Fatal("the listener is still open after 10 s")
}

func TestShutdownHasADeadline(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	f := &accounts{onWork: func(ctx context.Context, _ string) error {
		close(started)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}}
	addr, stop := serve(t, f, func(c *Config) {
		c.ShutdownTimeout, c.WorkTimeout = 50*time.Millisecond, time.Minute
	})
	conn := dial(t, addr)
	body := `{"email":"ada@example.com"}`
	say(t, conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	await(t, started, "the work to start")
	if err := stop(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("serve: %v", err)
	}
	await(t, ended, "the work to end")
}

func TestListenerFails(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := newApp(t, &accounts{}).Serve(t.Context(), listener); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve: %v", err)
	}
}

func TestHealth(t *testing.T) {
	ready := errors.New("database: password=geheim")
	var log syncBuffer
	h := newApp(t, &accounts{}, logTo(&log), func(c *Config) {
		c.Ready = func(ctx context.Context) error {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("the check is not bounded")
			}
			return ready
		}
	}).Handler()
	wantStatus(t, get("/healthz").do(h), http.StatusOK)
	w := get("/readyz").with("Accept", "text/html").do(h)
	wantStatus(t, w, http.StatusServiceUnavailable)
	if code, message := errorOf(t, w); code != "not_ready" || strings.Contains(message, "geheim") {
		t.Errorf("error is %s: %s", code, message)
	}
	if w.Header().Get("Retry-After") == "" || !strings.Contains(log.String(), `"msg":"not ready"`) {
		t.Errorf("header is %v, log is %s", w.Header(), log.String())
	}
	ready = nil
	w = get("/readyz").do(h)
	wantStatus(t, w, http.StatusOK)
	if got := w.Body.String(); got != `{"status":"ready"}`+"\n" {
		t.Errorf("body is %s", got)
	}
}

func TestStaticFiles(t *testing.T) {
	app := newApp(t, &accounts{})
	page := get("/").do(app.Handler()).Body.String()
	for name, contentType := range map[string]string{
		"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml", "mailbox.js": "text/javascript; charset=utf-8",
	} {
		path, err := app.assets.path(name)
		if err != nil {
			t.Fatal(err)
		}
		if name != "mailbox.js" && !strings.Contains(page, `href="`+path+`"`) {
			t.Errorf("the page does not use %s", path)
		}
		w := get(path).do(app.Handler())
		wantStatus(t, w, http.StatusOK)
		if got := w.Header().Get("Content-Type"); got != contentType {
			t.Errorf("%s: content type is %q", name, got)
		}
		if got := w.Header().Get("Cache-Control"); !strings.Contains(got, "immutable") {
			t.Errorf("%s: cache control is %q", name, got)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]Config{
		"no URL":            {},
		"relative URL":      {PublicURL: "postbus.example"},
		"other scheme":      {PublicURL: "ftp://postbus.example"},
		"path":              {PublicURL: publicURL + "/app"},
		"query":             {PublicURL: publicURL + "?x"},
		"password":          {PublicURL: "https://a:geheim@postbus.example"},
		"negative timeout":  {PublicURL: publicURL, ReadTimeout: -1},
		"negative limit":    {PublicURL: publicURL, RateClients: -1},
		"negative interval": {PublicURL: publicURL, RateInterval: -1},
	} {
		if _, err := New(&accounts{}, c); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if _, err := New(nil, Config{PublicURL: publicURL}); err == nil {
		t.Error("no accounts are accepted")
	}
	if _, err := New(&accounts{}, Config{PublicURL: publicURL + "/", TrustedProxies: []netip.Prefix{{}}}); err != nil {
		t.Errorf("a trailing slash is refused: %v", err)
	}
}
