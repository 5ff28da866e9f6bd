package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	natsStart       = 10 * time.Second
	natsPendingMax  = 4096 // of asynchronous publishes while loading
	natsLoadTimeout = 5 * time.Minute
)

// natsServerRole runs a NATS server with JetStream on files, until it is told to stop. The request's URL is the directory.
func natsServerRole(ctx context.Context, r request, ready func(reply) error) (reply, error) {
	s, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, JetStream: true, StoreDir: r.URL, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return reply{}, fmt.Errorf("make NATS server: %w", err)
	}
	s.Start()
	defer func() { s.Shutdown(); s.WaitForShutdown() }()
	if !s.ReadyForConnections(natsStart) {
		return reply{}, errors.New("the NATS server did not start")
	}
	if err := ready(reply{URL: s.ClientURL()}); err != nil {
		return reply{}, err
	}
	<-ctx.Done()
	return reply{}, nil
}

func openNATS(r request) (peer, error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	return routed{codec: codec, subscribers: natsSubscribers(r.URL)}, nil
}

// natsSubscribers read a stream through Watermill: a durable consumer shared by as many subscriptions as postbus has lanes,
// acknowledging without waiting for the server's answer, the faster of its two ways.
func natsSubscribers(url string) subscribers {
	return func(consumer string) (message.Subscriber, error) {
		return wmnats.NewSubscriber(wmnats.SubscriberConfig{
			URL: url, QueueGroupPrefix: consumer, SubscribersCount: lanesDefault, CloseTimeout: time.Second,
			SubjectCalculator: func(prefix, topic string) *wmnats.SubjectDetail {
				return &wmnats.SubjectDetail{Primary: topic, QueueGroup: prefix}
			},
			JetStream: wmnats.JetStreamConfig{
				DurablePrefix: consumer, AckAsync: true,
				SubscribeOptions: []nats.SubOpt{nats.DeliverAll(), nats.AckExplicit(), nats.ManualAck()},
			},
		}, watermill.NopLogger{})
	}
}

// loadNATS makes the stream and publishes to it.
func loadNATS(ctx context.Context, address string, count int) error {
	codec, err := newCodec()
	if err != nil {
		return err
	}
	conn, err := nats.Connect(address)
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer conn.Close()
	stream, err := conn.JetStream(nats.PublishAsyncMaxPending(natsPendingMax))
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	if _, err := stream.AddStream(&nats.StreamConfig{Name: topicName, Subjects: []string{topicName}}, nats.Context(ctx)); err != nil {
		return fmt.Errorf("make stream: %w", err)
	}
	for from := 0; from < count; from += loadBatch {
		messages, err := newMessages(ctx, codec, from, min(from+loadBatch, count))
		if err != nil {
			return err
		}
		for _, m := range messages {
			encoded, err := (&wmnats.NATSMarshaler{}).Marshal(topicName, m)
			if err != nil {
				return err
			}
			if _, err := stream.PublishMsgAsync(encoded); err != nil {
				return fmt.Errorf("load stream: %w", err)
			}
		}
	}
	select {
	case <-stream.PublishAsyncComplete():
		return nil
	case <-time.After(natsLoadTimeout):
		return errors.New("load stream: not all was acknowledged")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
