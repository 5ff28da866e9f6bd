package redis_test

import (
	"net"
	"testing"
)

// TestClearTextStaysHere: with sentinels on this machine no TLS is spoken, and so nothing is sent to a server that is elsewhere.
func TestClearTextStaysHere(t *testing.T) {
	t.Parallel()
	sentinel, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // of this test
	if err != nil {
		t.Fatal(err)
	}
	defer sentinel.Close()
	go func() {
		for {
			conn, err := sentinel.Accept()
			if err != nil {
				return
			}
			if _, err := conn.Read(make([]byte, 1<<10)); err == nil {
				_, _ = conn.Write([]byte("*2\r\n$9\r\n192.0.2.1\r\n$4\r\n6379\r\n"))
			}
			_ = conn.Close()
		}
	}()
	refuses(t, "redis://ann:secretword@"+sentinel.Addr().String()+"?master=shop", "the sentinels tell of a server elsewhere")
}
