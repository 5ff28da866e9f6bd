package wire

import (
	"os"
	"strings"
	"testing"

	"postbus/internal/broker"
	"postbus/internal/config"
)

// TestBrokersAreDocumented compares docs/brokers.md with what the brokers declare.
func TestBrokersAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/brokers.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := broker.Table(kinds()...); !strings.Contains(string(text), "-->\n"+want+"<!-- end -->") {
		t.Errorf("the table in docs/brokers.md is not what the brokers declare, which is:\n%s", want)
	}
}

func TestBrokerURLs(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"":                                    "",
		"nats://one:4222,two":                 "",
		"memory://?volatile=yes":              "",
		"memory://":                           "BROKER_URL is for tests",
		"pulsar://localhost":                  "BROKER_URL must begin with nats:// or kafka:// or amqp:// or redis:// or postgres:// or memory://",
		"kafka://one:9092,two":                "",
		"kafka://one?acks=1":                  "BROKER_URL has an unknown parameter",
		"postgres://u:p@h/db":                 "",
		"postgres://h/db?sslmode=x":           "BROKER_URL must look like postgres://",
		"postgres://h/db?durability=everysec": "BROKER_URL has a parameter durability that is not unchecked",
		"nats://":                             "BROKER_URL must name one HOST:PORT",
		"nats://one?replicas=many":            "BROKER_URL has a parameter replicas that is not 1 to 5",
		"nats://one?retention=1m":             "BROKER_URL has a parameter retention of less than 2m0s",
		"nats://one?tls=maybe":                "BROKER_URL has a parameter tls that is none of its values",
		"nats://one?prefix=Shop":              "BROKER_URL has a prefix",
		"nats://u:secr/et@one":                "BROKER_URL must look like",
		"amqp://one,two/shop":                 "",
		"amqp://one?heartbeat=5":              "BROKER_URL has an unknown parameter",
		"redis://one":                         "",
		"redis://one:6379/3":                  "",
		"redis://one,two":                     "BROKER_URL must name one HOST:PORT of Redis",
		"redis://one/db":                      "BROKER_URL has a path that is not the number of a database",
		"redis://one?durability=no":           "BROKER_URL has a parameter durability that is not always, everysec, memory or unchecked",
		"redis://one?maxlen=1":                "BROKER_URL has an unknown parameter",
	} {
		err := checkBroker(config.Config{BrokerURL: url})
		if (err == nil) != (want == "") || err != nil && (!strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "secr")) {
			t.Errorf("%q: %v, want %q", url, err, want)
		}
	}
}
