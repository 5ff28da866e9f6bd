package main

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"

	"postbus/internal/rabbittest"
)

// rabbitServerRole runs RabbitMQ as the project's tests do, until it is told to stop. The request's URL is the directory.
func rabbitServerRole(ctx context.Context, r request, ready func(reply) error) (reply, error) {
	err := os.Setenv("TMPDIR", r.URL)
	if err != nil {
		return reply{}, err
	}
	err = skipped{"rabbitmq-server is not installed"}
	testing.Benchmark(func(b *testing.B) { // it takes a test to start one; this one runs once, since it takes so long
		server := rabbittest.Start(b)
		if err = ready(reply{URL: server.URL()}); err == nil {
			<-ctx.Done()
		}
	})
	return reply{}, err
}

func startRabbit(ctx context.Context, b *bench, p *prepared, kind string) (string, error) {
	return b.serve(ctx, p, "rabbit", kind)
}

// rabbitConfig is Watermill's for durable queues and persistent messages, with confirms, and one channel that stays.
func rabbitConfig(url string) amqp.Config {
	c := amqp.NewDurableQueueConfig(url)
	c.Publish.ConfirmDelivery, c.Publish.ChannelPoolSize = true, 1
	return c
}

// provisionRabbit makes the queue: what is published before it is there is lost.
func provisionRabbit(_ context.Context, url string) error {
	s, err := amqp.NewSubscriber(rabbitConfig(url), watermill.NopLogger{})
	if err != nil {
		return err
	}
	return errors.Join(s.SubscribeInitialize(topicName), s.Close())
}

// connectRabbit publishes one message at a time, and has as many subscribers as postbus has lanes.
func connectRabbit(url string) (endpoints, error) {
	publisher, err := amqp.NewPublisher(rabbitConfig(url), watermill.NopLogger{})
	if err != nil {
		return endpoints{}, err
	}
	return endpoints{publisher, func(string) (message.Subscriber, error) {
		var all fanIn
		for range lanesDefault {
			s, err := amqp.NewSubscriber(rabbitConfig(url), watermill.NopLogger{})
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		return all, nil
	}, publisher.Close}, nil
}
