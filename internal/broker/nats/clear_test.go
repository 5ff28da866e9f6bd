package nats_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"postbus/internal/broker"
	"postbus/internal/broker/nats"
)

// TestPasswordOfNobody is refused rather than left out.
func TestPasswordOfNobody(t *testing.T) {
	t.Parallel()
	a, err := broker.Parse("nats://one?password_file=f")
	if err != nil {
		t.Fatal(err)
	}
	var refused *broker.URLError
	if err := nats.Kind().Check(a); !errors.As(err, &refused) {
		t.Errorf("a password and no user: %v", err)
	}
}

// elsewhere is an address of this machine that is not the loopback's, as another machine's are not.
func elsewhere(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no other address than the loopback's")
	return ""
}

// listen is a server that tells of another one, says what it is sent as CONNECT, and hangs up.
func listen(t *testing.T, host, other string, heard chan<- string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(conn, "INFO {\"server_id\":\"x\",\"max_payload\":1048576,\"headers\":true,\"connect_urls\":[%q]}\r\n", other)
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				if strings.HasPrefix(lines.Text(), "CONNECT ") {
					heard <- lines.Text()
				}
				if lines.Text() == "PING" {
					_, _ = conn.Write([]byte("PONG\r\n"))
					break
				}
			}
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// TestClearTextStaysHere: with a NATS on this machine no TLS is spoken, and so a password is not sent to others that it tells of.
func TestClearTextStaysHere(t *testing.T) {
	t.Parallel()
	here, there := make(chan string, 100), make(chan string, 100)
	other := listen(t, elsewhere(t), "", there)
	b := open(t, "nats://ann:secretword@"+listen(t, "127.0.0.1", other, here))
	defer b.Close()
	for range 4 { // those in between are the other's turns
		select {
		case <-here:
		case sent := <-there:
			t.Fatalf("another machine was sent %s", sent)
		case <-time.After(time.Minute):
			t.Fatal("nobody was connected to")
		}
	}
}
