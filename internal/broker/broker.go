package broker

import (
	"context"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Remembered is for how long, at least, the reading database knows an event that has arrived.
const Remembered = 60 * 24 * time.Hour

// MessageBytesMax is what a broker has to take: the largest event that can be committed, with its attributes encoded.
const MessageBytesMax = 300 << 10

// Broker carries topics. It may be used from many goroutines.
type Broker interface {
	// Provision makes sure that the topics are there, with settings that keep what is acknowledged. It may be called again and
	// by many at once. It returns a *RefusedError for what no waiting will mend.
	Provision(ctx context.Context, topics ...string) error
	// Publisher publishes. Publish returns when all messages are stored, or with an error when the first is not known to be;
	// then those after it were not sent. A message's own context bounds it.
	Publisher() message.Publisher
	// Reader reads a topic from the places on that an earlier reader's batches had; a partition without one from its
	// beginning. It returns a *GapError when what follows a place is gone.
	Reader(ctx context.Context, topic string, places map[string]string) (Reader, error)
	// Close gives up the connection. Nothing may be running.
	Close() error
}

// Reader reads one topic. It is for one goroutine at a time.
type Reader interface {
	// Next waits for messages. After an error other than the end of ctx the reader is of no use.
	Next(ctx context.Context) (Batch, error)
	// Stored says that the batch was stored with its place, for brokers that keep account of what was read themselves.
	Stored(ctx context.Context, batch Batch) error
	// Close ends the reading.
	Close() error
}

// Batch are messages of one partition in their order.
type Batch struct {
	Messages []*message.Message
	// Partition names the part of the topic that they are of, among those of all brokers.
	Partition string
	// Place is where the partition is to be read on when they are stored.
	Place string
}

// Kind is a broker that programs can be told to use.
type Kind struct {
	// Scheme begins the URLs that mean it.
	Scheme string
	// Name is what people call it.
	Name string
	// Capabilities are what it can and cannot do.
	Capabilities Capabilities
	// Check returns what is wrong with a URL's parameters, without touching anything.
	Check func(Address) error
	// Identity names the broker that a URL means among all of the kind, without a password, for as long as it has the events:
	// consumers that read from one do not change to another.
	Identity func(Address) string
	// Open makes the broker. It does not wait for a connection.
	Open func(Address, *slog.Logger) (Broker, error)
}

// Capabilities are what a broker declares, and its tests check.
type Capabilities struct {
	// Crash tells whether what was acknowledged is there after the broker's process was killed.
	Crash bool
	// Loss tells what has to be lost before something that was acknowledged is; for people.
	Loss string
	// Repeats is for how long the broker itself leaves out what is published again; beyond, and where it is 0, the reading
	// database does.
	Repeats time.Duration
	// Replay tells whether a topic can be read again from its beginning.
	Replay bool
	// Age tells whether the broker can be told to drop old events.
	Age bool
}
