package broker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postbus/internal/broker"
)

const password = "se:cr@t/wo rd"

func TestParse(t *testing.T) {
	t.Parallel()
	a, err := broker.Parse("nats://ann:se%3Acr%40t%2Fwo%20rd@one:4222,[::1]:4223,three?prefix=shop&tls=off")
	if err != nil {
		t.Fatal(err)
	}
	secret, err := a.Password()
	if a.User != "ann" || secret != password || err != nil || !slices.Equal(a.Hosts, []string{"one:4222", "[::1]:4223", "three"}) ||
		a.Parameter("prefix", "") != "shop" || a.Parameter("gap", "stop") != "stop" || a.Local() {
		t.Errorf("got %s, user %q, hosts %q, %v", a, a.User, a.Hosts, err)
	}
	for _, text := range []string{a.String(), fmt.Sprintf("%v %+v %#v", a, a, a), fmt.Sprint(&a)} {
		if strings.Contains(text, "wo rd") {
			t.Errorf("the password is in %q", text)
		}
	}
	if err := a.Known("prefix", "tls"); err != nil {
		t.Error(err)
	}
	var refused *broker.URLError
	if err := a.Known("prefix"); !errors.As(err, &refused) {
		t.Errorf("an unknown parameter: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "nats", "nats:host", "://host", "nats://u:p/w@host", "nats://u:p@w@host", "nats://u:p#w@host", "nats://:p@host",
		"nats://u:%zz@host", "nats://host:port", "nats://a,,b", "nats://host?x", "nats://host?x=1&x=2", "nats://host?x=%zz",
		"nats://u:p?w@host", "nats://u:12?w@host:4222", "nats://u:12?w&w=w@host", "nats://u:12?w",
	} {
		var refused *broker.URLError
		if a, err := broker.Parse(url); !errors.As(err, &refused) || strings.Contains(err.Error(), "p@w") ||
			strings.Contains(err.Error(), `"w`) {
			t.Errorf("%q: %s, %v", url, a, err)
		}
	}
}

func TestPasswordFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "password")
	a, err := broker.Parse("nats://ann@localhost?password_file=" + path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Password(); err == nil {
		t.Error("a file that is missing has a password")
	}
	if err := os.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Password(); got != password || err != nil || !a.Local() {
		t.Errorf("got %q, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("nats://u:p@h:1,i:2/path?x=y")
	f.Fuzz(func(t *testing.T, url string) {
		a, err := broker.Parse(url)
		if err != nil {
			return
		}
		if _, err := broker.Parse(a.String()); err != nil {
			t.Errorf("%q is printed as %q, which is refused: %v", url, a, err)
		}
	})
}
