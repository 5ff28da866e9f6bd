package redis_test

import (
	"bufio"
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/redistest"
)

// TestServerThatLosesFromNowOn: a server that comes back with other settings, as another that has taken its place may have, gets
// nothing that it would acknowledge and lose.
func TestServerThatLosesFromNowOn(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	b := provisioned(t, server.URL())
	publish(t, b, 1)
	if err := client.ConfigSet(t.Context(), "appendfsync", "everysec").Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err(); err != nil {
		t.Fatal(err)
	}
	var refused *broker.RefusedError
	eventually(t, "a refusal", func() bool {
		m := brokertest.New("k", 2)
		m.SetContext(t.Context())
		err := b.Publisher().Publish("user", m)
		if err == nil {
			t.Fatal("acknowledged by a server that can lose it")
		}
		return errors.As(err, &refused)
	})
	if err := client.ConfigSet(t.Context(), "appendfsync", "always").Err(); err != nil {
		t.Fatal(err)
	}
	publish(t, b, 3)
}

// TestClearTextStaysHere: with sentinels on this machine no TLS is spoken, and so nothing is sent to a server that is elsewhere.
func TestClearTextStaysHere(t *testing.T) {
	t.Parallel()
	sentinel, err := net.Listen("tcp", "127.0.0.1:0")
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
			go tellElsewhere(conn)
		}
	}()
	refuses(t, "redis://ann:secretword@"+sentinel.Addr().String()+"?master=shop", "the sentinels tell of a server elsewhere")
}

// tellElsewhere answers as a sentinel that knows a server at an address that nobody has.
func tellElsewhere(conn net.Conn) {
	defer conn.Close()
	words := 0 // of a command that are to come yet
	told := false
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		text := lines.Text()
		switch {
		case strings.HasPrefix(text, "*"):
			words, _ = strconv.Atoi(text[1:])
			told = false
			continue
		case strings.HasPrefix(text, "$"):
			continue
		}
		told = told || text == "get-master-addr-by-name"
		if words--; words > 0 {
			continue
		}
		answer := "-ERR unknown command\r\n"
		if told {
			answer = "*2\r\n$9\r\n192.0.2.1\r\n$4\r\n6379\r\n"
		}
		if _, err := conn.Write([]byte(answer)); err != nil {
			return
		}
	}
}

// TestUserOfAnotherDatabase has to be allowed to select it, beside what docs/brokers.md names for all.
func TestUserOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	server := redistest.StartWith(t, redistest.Durable+
		"user ann on >secretword ~postbus:* +info +config|get +multi +exec +xadd +xread +xrange +xinfo +xgroup|create\n"+
		"user eve on >secretword ~postbus:* +info +config|get +multi +exec +xadd +xread +xrange +xinfo +xgroup|create +select\n"+
		"user default off\n")
	refuses(t, "redis://ann:secretword@"+server.Addr()+"/1", "the server refuses what has to be done: NOPERM")
	b := provisioned(t, "redis://eve:secretword@"+server.Addr()+"/1")
	id := publish(t, b, 1)
	if got, _ := brokertest.Read(t, b, "user", nil, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}
