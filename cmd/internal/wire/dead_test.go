package wire

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbus/internal/config"
	"postbus/internal/domain/user"
	"postbus/internal/pgtest"
)

// TestDeadEventFromTheCommandLine: an event that does not fit its type is dead. It is listed and shown, and tried again with
// another payload, with a note; then its job is enqueued.
func TestDeadEventFromTheCommandLine(t *testing.T) {
	t.Parallel()
	settings := config.Config{
		Program: config.Consumer, DatabaseURL: pgtest.URL(t), DataDir: pgtest.Dir(t), PublicURL: "http://localhost",
		SecretKey: []byte(strings.Repeat("k", 32)), SMTPURL: "smtp://127.0.0.1:1", Only: []string{"verification-email"},
	}
	b, err := Open(t.Context(), settings, slog.New(slog.DiscardHandler), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	event, payload := b.breakAnEvent(t)
	defer b.consuming(t, settings.Only)()
	run := func(verb string, more func(*config.Config)) string {
		t.Helper()
		c := settings
		c.Dead = verb
		if more != nil {
			more(&c)
		}
		var out bytes.Buffer
		if err := b.Dead(t.Context(), &out, c); err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
		return out.String()
	}
	await(t, "the event to be dead", func() bool {
		said := run("list", nil)
		return strings.Contains(said, "verification-email") && strings.Contains(said, "user.registered") &&
			strings.Contains(said, "undecodable: ")
	})
	one := func(c *config.Config) { c.WhichConsumer, c.WhichID = "verification-email", event }
	if said := run("show", one); !strings.Contains(said, "verification-email:"+event.String()) || !strings.Contains(said, `{"user_id":1}`) ||
		!strings.Contains(said, ", after 1 attempt\n") {
		t.Errorf("show says\n%s", said)
	}
	ofKey := func(key string) func(*config.Config) {
		return func(c *config.Config) { c.WhichConsumer, c.WhichKey = "verification-email", key }
	}
	if said := run("show", ofKey(b.keyOf(t, event))); !strings.Contains(said, event.String()) {
		t.Errorf("of its key show says %q", said)
	}
	if said := run("retry", ofKey("another")); !strings.HasPrefix(said, "retry would be done to 0 of verification-email\n") {
		t.Errorf("of another key it says %q", said)
	}
	file := filepath.Join(pgtest.Dir(t), "payload.json")
	if err := os.WriteFile(file, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	mended := func(c *config.Config) { one(c); c.Payload, c.Note = file, "mended by hand" }
	if said := run("retry", mended); said != "retry would be done to 1 of verification-email\nnothing was changed; add --apply to do it\n" {
		t.Errorf("without --apply it says %q", said)
	}
	if said := run("retry", func(c *config.Config) { mended(c); c.Apply = true }); said != "retry: 1 of verification-email\n" {
		t.Errorf("it says %q", said)
	}
	await(t, "the mail's job", func() bool {
		var jobs int
		err := b.database.pool.QueryRow(t.Context(), `SELECT count(*) FROM postbus.jobs WHERE args::json->>'event_id' = $1`,
			event.String()).Scan(&jobs)
		return err == nil && jobs == 1
	})
	if said := run("list", nil); said != "nothing is dead\n" {
		t.Errorf("in the end it says %q", said)
	}
}

// breakAnEvent registers a user and spoils the event's payload, which it returns as it was.
func (b *Backbone) breakAnEvent(t *testing.T) (event uuid.UUID, payload []byte) {
	t.Helper()
	address, err := user.ParseAddress("anna@example.org")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Accounts.Register(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	pool := b.database.pool
	if err := pool.QueryRow(t.Context(), `SELECT id, payload FROM postbus.topic_user`).Scan(&event, &payload); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE postbus.topic_user SET payload = '{"user_id":1}'`); err != nil {
		t.Fatal(err)
	}
	return event, payload
}

func (b *Backbone) keyOf(t *testing.T, event uuid.UUID) (key string) {
	t.Helper()
	err := b.database.pool.QueryRow(t.Context(), `SELECT metadata::json->>'partitionkey' FROM postbus.topic_user WHERE id = $1`,
		event).Scan(&key)
	if err != nil || key == "" {
		t.Fatalf("the event's key is %q: %v", key, err)
	}
	return key
}

// consuming runs what the names select until end is called, which closes all.
func (b *Backbone) consuming(t *testing.T, only []string) (end func()) {
	t.Helper()
	selected, err := b.Select(only)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- b.Consume(ctx, selected) }()
	return func() {
		stop()
		if err := errors.Join(<-ended, b.Close()); err != nil {
			t.Error(err)
		}
	}
}

// await polls what gives no signal.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestReadingTheDeadMakesNothing: neither tables where there are none, nor the hand-over to a broker.
func TestReadingTheDeadMakesNothing(t *testing.T) {
	t.Parallel()
	settings := config.Config{
		Program: config.Consumer, DatabaseURL: pgtest.URL(t), DataDir: pgtest.Dir(t), PublicURL: "http://localhost",
		SecretKey: []byte(strings.Repeat("k", 32)), SMTPURL: "smtp://127.0.0.1:1",
	}
	logger, say := slog.New(slog.DiscardHandler), func(string) {}
	list := settings
	list.Dead = "list"
	var out bytes.Buffer
	if err := ReadDead(t.Context(), list, &out, logger, say); !errors.Is(err, errNothingSetUp) {
		t.Errorf("before the first start: %v", err)
	}
	pool := pgtest.Open(t, settings.DatabaseURL)
	value := func(query string) (n int) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := value(`SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'postbus%'`); n > 0 {
		t.Errorf("%d schemas were made", n)
	}
	b, err := Open(t.Context(), settings, logger, say)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ReadDead(t.Context(), list, &out, logger, say); err != nil || out.String() != "nothing is dead\n" {
		t.Errorf("after it: %v, %q", err, &out)
	}
	list.BrokerURL = "memory://?volatile=yes"
	out.Reset()
	if err := ReadDead(t.Context(), list, &out, logger, say); err != nil || out.String() != "nothing is dead\n" {
		t.Errorf("with a broker that no program has used: %v, %q", err, &out)
	}
	if n := value(`SELECT count(*) FROM postbus.consumers WHERE handed_over IS NOT NULL`) +
		value(`SELECT count(*) FROM pg_namespace WHERE nspname = 'postbus_inbound'`); n > 0 {
		t.Error("the consumers were handed over")
	}
}
