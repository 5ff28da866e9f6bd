package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	driver "github.com/redis/go-redis/v9"

	"postbus/internal/broker"
	"postbus/internal/broker/brokertest"
	"postbus/internal/redistest"
)

// readerPatience is how long a reader may take for what it has to return at once.
const readerPatience = 20 * time.Second

// batchMax is how many messages a reader gives at once when there are more, or a few more than these.
const batchMax = 1000

// TestStreamThatIsNotTheSame is read from its beginning, and told of, since what was not read of the other is lost; also when it
// has had more events meanwhile than the other.
func TestStreamThatIsNotTheSame(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	b := provisioned(t, server.URL())
	publish(t, b, 1)
	_, places := brokertest.Read(t, b, "user", nil, 1)
	client.Del(t.Context(), stream)
	if err := b.Provision(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	first := publish(t, b, 2)
	publish(t, b, 3)
	var log bytes.Buffer
	telling := openWith(t, server.URL(), slog.New(slog.NewTextHandler(&log, nil)))
	defer telling.Close()
	got, after := brokertest.Read(t, telling, "user", places, 2)
	if got[0].UUID != first || !strings.Contains(log.String(), "the stream is not the one that was read before") {
		t.Errorf("after the stream was made anew %s was read first, want %s; the log has %q", got[0].UUID, first, &log)
	}

	// As of a server that has lost its end and given an id again: another event has the id that was read.
	for partition, place := range after {
		after[partition] = place[:strings.LastIndex(place, "/")+1] + "another"
	}
	if got, _ := brokertest.Read(t, b, "user", after, 2); got[0].UUID != first {
		t.Errorf("with another event in its place %s was read first, want %s", got[0].UUID, first)
	}
}

// TestStreamThatHasLostItsEnd is read again, also when others have come in the place of what was lost.
func TestStreamThatHasLostItsEnd(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := provisioned(t, server.URL())
	first := publish(t, b, 1)
	server.Kill()
	files, copied := filepath.Join(server.Dir(), "appendonlydir"), filepath.Join(t.TempDir(), "copied")
	if err := os.CopyFS(copied, os.DirFS(files)); err != nil {
		t.Fatal(err)
	}
	server.Start()
	publish(t, provisioned(t, server.URL()), 2)
	_, places := brokertest.Read(t, b, "user", nil, 2)
	server.Kill()
	if err := errors.Join(os.RemoveAll(files), os.CopyFS(files, os.DirFS(copied))); err != nil {
		t.Fatal(err)
	}
	server.Start()
	again := provisioned(t, server.URL())
	if got, _ := brokertest.Read(t, again, "user", places, 1); got[0].UUID != first {
		t.Errorf("with the end lost %s was read first, want %s", got[0].UUID, first)
	}
	publish(t, again, 3)
	publish(t, again, 4)
	got, after := brokertest.Read(t, again, "user", places, 3)
	if got[0].UUID != first {
		t.Errorf("with others in the lost end's place %s was read first, want %s", got[0].UUID, first)
	}
	last := publish(t, again, 5)
	if got, _ := brokertest.Read(t, again, "user", after, 1); got[0].UUID != last {
		t.Errorf("read on with %s, want %s", got[0].UUID, last)
	}
}

// TestGapIsNotPassedOver: what was trimmed before it was read stops the reading, unless that is meant.
func TestGapIsNotPassedOver(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	b := provisioned(t, server.URL())
	publish(t, b, 1)
	_, places := brokertest.Read(t, b, "user", nil, 1)
	publish(t, b, 2)
	last := publish(t, b, 3)
	client.XTrimMaxLen(t.Context(), stream, 1)
	var gap *broker.GapError
	if _, err := b.Reader(t.Context(), "user", maps.Clone(places)); !errors.As(err, &gap) || gap.Events != 1 {
		t.Errorf("reading over a gap: %v", err)
	}
	skipping := provisioned(t, server.URL()+"?gap=skip")
	got, after := brokertest.Read(t, skipping, "user", places, 1)
	if got[0].UUID != last {
		t.Errorf("read %s, want %s", got[0].UUID, last)
	}
	next := publish(t, b, 4)
	if got, _ := brokertest.Read(t, b, "user", after, 1); got[0].UUID != next {
		t.Errorf("read on with %s, want %s", got[0].UUID, next)
	}
}

// TestReadEventsMayGo: what was read may be trimmed or deleted, all of it too.
func TestReadEventsMayGo(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	b := provisioned(t, server.URL())
	for n := range 5 {
		publish(t, b, n)
	}
	_, places := brokertest.Read(t, b, "user", nil, 5)
	for name, remove := range map[string]func(){
		"the last": func() {
			client.XDel(t.Context(), stream, client.XRevRangeN(t.Context(), stream, "+", "-", 1).Val()[0].ID)
		},
		"all but one": func() { client.XTrimMaxLen(t.Context(), stream, 1) },
		"all":         func() { client.XTrimMaxLen(t.Context(), stream, 0) },
	} {
		remove()
		id := publish(t, b, 9)
		var got []*message.Message
		if got, places = brokertest.Read(t, b, "user", places, 1); got[0].UUID != id {
			t.Errorf("with %s gone %s was read, want %s", name, got[0].UUID, id)
		}
	}
}

// TestGapWhileReading: events that are gone are not passed over where the reader has not come to them yet.
func TestGapWhileReading(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	const events = 3 * batchMax / 2
	for name, remove := range map[string]func(key string){
		"trimmed": func(key string) { client.XTrimMaxLen(t.Context(), key, 1) },
		"deleted": func(key string) {
			client.XDel(t.Context(), key, client.XRange(t.Context(), key, "-", "+").Val()[events-10].ID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			url := server.URL() + "?prefix=" + name
			b := provisioned(t, url)
			fill(t, client, name+":user", events)
			r, err := b.Reader(t.Context(), "user", nil)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), readerPatience)
			defer cancel()
			read := 0
			for err == nil {
				var batch broker.Batch
				batch, err = r.Next(ctx)
				for _, m := range batch.Messages {
					if m.UUID != fmt.Sprint(read) {
						t.Fatalf("read %s after %d", m.UUID, read)
					}
					read++
				}
				if read == len(batch.Messages) { // it was the first
					remove(name + ":user")
				}
			}
			var gap *broker.GapError
			if !errors.As(err, &gap) || gap.Events == 0 || read < batchMax {
				t.Errorf("read %d, then %v", read, err)
			}
			_ = r.Close()
			left := int(client.XLen(t.Context(), name+":user").Val())
			brokertest.Read(t, provisioned(t, url+"&gap=skip"), "user", nil, left)
		})
	}
}

// TestServerRestartsWhileReading: the reader ends, and another goes on behind what was read.
func TestServerRestartsWhileReading(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := provisioned(t, server.URL())
	publish(t, b, 1)
	ctx, r := reading(t, b)
	batch, err := r.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	server.Kill()
	server.Start()
	id := publish(t, provisioned(t, server.URL()), 2)
	if _, err := r.Next(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("reading went on over another connection: %v", err)
	}
	if got, _ := brokertest.Read(t, b, "user", map[string]string{batch.Partition: batch.Place}, 1); got[0].UUID != id {
		t.Errorf("read %s, want %s", got[0].UUID, id)
	}
}

// TestReaderEndsWithItsConnection, also if that is lost between two requests: the server may have lost what was read, and have
// got as much anew.
func TestReaderEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	b := provisioned(t, server.URL())
	const events = 3 * batchMax / 2
	fill(t, client, stream, events)
	ctx, r := reading(t, b)
	first, err := r.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	before, same := "", 0
	eventually(t, "the reader to have read ahead", func() bool {
		now := requests(t, client)
		if same++; now != before {
			before, same = now, 0
		}
		return same == 20
	})
	server.Kill()
	server.Start()
	read := len(first.Messages)
	for err == nil {
		var batch broker.Batch
		batch, err = r.Next(ctx)
		read += len(batch.Messages)
	}
	if ctx.Err() != nil || read == events {
		t.Errorf("reading went on over another connection: %d of %d, %v", read, events, err)
	}
}

// TestBatchThatTakesAll: what ends a batch because it is full may be the end of the stream too, and then what comes next is in the next
// one.
func TestBatchThatTakesAll(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b := provisioned(t, server.URL())
	const events = 4 + 8 + 16 + 32 + 64 + 128 + 3*256 // the chunks that a reader asks for, beyond batchMax
	fill(t, server.Client(), stream, events)
	ctx, r := reading(t, b)
	first, err := r.Next(ctx)
	if err != nil || len(first.Messages) != events {
		t.Fatalf("a batch has %d of %d, %v", len(first.Messages), events, err)
	}
	last := publish(t, b, 1)
	if next, err := r.Next(ctx); err != nil || len(next.Messages) != 1 || next.Messages[0].UUID != last {
		t.Errorf("the next batch has %d, %v", len(next.Messages), err)
	}
}

// reading begins to read the topic, with the time that a reader may take.
func reading(t *testing.T, b broker.Broker) (context.Context, broker.Reader) {
	t.Helper()
	r, err := b.Reader(t.Context(), "user", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), readerPatience)
	t.Cleanup(func() {
		cancel()
		_ = r.Close() // it may have ended with its connection
	})
	return ctx, r
}

// requests is how many of the requests that readers make there have been.
func requests(t *testing.T, client *driver.Client) string {
	t.Helper()
	for line := range strings.Lines(client.Info(t.Context(), "commandstats").Val()) {
		if calls, _, ok := strings.Cut(line, ",usec"); ok && strings.HasPrefix(calls, "cmdstat_xrange:") {
			return calls
		}
	}
	return ""
}

// fill adds so many entries, with their numbers for ids.
func fill(t *testing.T, client *driver.Client, key string, n int) {
	t.Helper()
	pipeline := client.Pipeline()
	for i := range n {
		pipeline.XAdd(t.Context(), &driver.XAddArgs{Stream: key, Values: []string{"id", fmt.Sprint(i)}})
	}
	if _, err := pipeline.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
}
