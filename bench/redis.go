package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// redisProgram is looked for on PATH; Debian's package redis-server has it.
const redisProgram = "redis-server"

// redisScheme begins the URLs that postbus takes.
const redisScheme = "redis://"

const (
	redisStart = 10 * time.Second
	redisRetry = 20 * time.Millisecond
)

// startDurableRedis runs a Redis that syncs before it answers, and returns its URL.
func startDurableRedis(ctx context.Context, b *bench, p *prepared, _ string) (string, error) {
	address, err := startRedis(ctx, b, p, "always")
	return redisScheme + address, err
}

// startRedis runs a Redis that keeps its append-only file, and syncs it "always" or "everysec", until p is closed.
func startRedis(ctx context.Context, b *bench, p *prepared, fsync string) (address string, err error) {
	program, err := exec.LookPath(redisProgram)
	if err != nil {
		return "", skipped{redisProgram + " is not installed"}
	}
	dir, err := b.scratch(p)
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0") //nolint:noctx // it binds and waits for nothing
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	address = l.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err := errors.Join(err, l.Close()); err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, "--bind", "127.0.0.1", "--port", port, "--dir", dir, //nolint:gosec // found on PATH
		"--appendonly", "yes", "--appendfsync", fsync, "--save", "")
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start Redis: %w", err)
	}
	p.ends = append(p.ends, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
		return nil
	})
	client := redis.NewClient(&redis.Options{Addr: address})
	defer func() { _ = client.Close() }()
	deadline := time.Now().Add(redisStart)
	for client.Ping(ctx).Err() != nil {
		if ctx.Err() != nil || time.Now().After(deadline) {
			return "", errors.New("redis did not start")
		}
		<-time.After(redisRetry)
	}
	return address, nil
}

func openRedis(r request) (peer, error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	return routed{codec: codec, subscribers: redisSubscribers(r.URL)}, nil
}

// connectRedis publishes one message at a time, and reads with as many subscribers as postbus has lanes.
func connectRedis(url string) (endpoints, error) {
	address := strings.TrimPrefix(url, redisScheme)
	client := redis.NewClient(&redis.Options{Addr: address})
	publisher, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: client}, watermill.NopLogger{})
	if err != nil {
		return endpoints{}, errors.Join(err, client.Close())
	}
	return endpoints{publisher, redisSubscribers(address), publisher.Close}, nil // which closes its client
}

// provisionRedis does nothing: a stream is made by who publishes to it.
func provisionRedis(context.Context, string) error { return nil }

// redisSubscribers read a stream through Watermill. A subscriber has one message in flight, so a group has as many subscribers
// as postbus has lanes; the order of a key is lost with that.
func redisSubscribers(address string) subscribers {
	client := redis.NewClient(&redis.Options{Addr: address, PoolSize: 4 * lanesDefault})
	return func(consumer string) (message.Subscriber, error) {
		var all fanIn
		for i := range lanesDefault {
			s, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{
				Client: client, ConsumerGroup: consumer, Consumer: strconv.Itoa(i), DisableIndefiniteInitialBlock: true,
			}, watermill.NopLogger{})
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		return all, nil
	}
}

// loadRedis fills the stream, in pipelines.
func loadRedis(ctx context.Context, address string, count int) error {
	codec, err := newCodec()
	if err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: address})
	defer func() { _ = client.Close() }()
	for from := 0; from < count; from += loadBatch {
		messages, err := newMessages(ctx, codec, from, min(from+loadBatch, count))
		if err != nil {
			return err
		}
		pipe := client.Pipeline()
		for _, m := range messages {
			values, err := redisstream.DefaultMarshallerUnmarshaller{}.Marshal(topicName, m)
			if err != nil {
				return err
			}
			pipe.XAdd(ctx, &redis.XAddArgs{Stream: topicName, Values: values})
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return fmt.Errorf("load stream: %w", err)
		}
	}
	return nil
}

// scratch is a directory of this run for a peer's files, until p is closed.
func (b *bench) scratch(p *prepared) (string, error) {
	dir, err := os.MkdirTemp(b.server.dir(), "peer-")
	if err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	p.ends = append(p.ends, func() error { return os.RemoveAll(dir) }) //nolint:gosec // made by MkdirTemp
	return dir, nil
}
