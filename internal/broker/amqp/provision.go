package amqp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"postbus/internal/broker"
)

const (
	// segmentBytes is how much a file of a stream has. What is old goes by the file.
	segmentBytes    = 128 << 20
	replicasDefault = 3
)

// Provision makes the streams. One that is there with other settings is a *broker.RefusedError with the difference: nobody can
// change them, and a policy of the server's can override them. With provision=verify it only sees that they are there, and streams.
func (b *Broker) Provision(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if b.verify {
		for _, topic := range topics {
			if err := b.ask(ctx, func(l *link) error { return verify(l, b.stream(topic)) }); err != nil {
				return err
			}
		}
	} else if err := b.ask(ctx, func(l *link) error { return b.create(l, topics) }); err != nil {
		return err
	}
	if b.takesLarge.Load() {
		return nil
	}
	return b.ask(ctx, b.tryLarge)
}

// ask asks something on a connection of its own: some refusals end it.
func (b *Broker) ask(ctx context.Context, question func(*link) error) error {
	l, err := b.dial(ctx)
	if err != nil {
		return refused(err)
	}
	defer l.close()
	defer l.until(ctx)()
	return refused(question(l))
}

// tryLarge sends a message as large as an event may be to nobody, who sends it back: otherwise the first large event would hold
// up its key for ever. A server that takes nothing at all now is not asked again.
func (b *Broker) tryLarge(l *link) error {
	channel, err := l.Channel()
	if err != nil {
		return err
	}
	returned := channel.NotifyReturn(make(chan amqp.Return, 1))
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	blocked := l.NotifyBlocked(make(chan amqp.Blocking, 1))
	large := amqp.Publishing{Body: make([]byte, broker.MessageBytesMax)}
	if _, err := channel.PublishWithDeferredConfirm("", b.stream("-"), true, false, large); err != nil {
		return err
	}
	select {
	case <-returned:
		b.takesLarge.Store(true)
	case why := <-closed:
		if why != nil && why.Server && why.Code == amqp.PreconditionFailed {
			return &broker.RefusedError{
				Reason: "the server takes no messages as large as an event may be (max_message_size): " + why.Reason,
			}
		}
		return lost(why)
	case <-blocked:
	}
	return nil
}

// create makes streams, or sees that they are there with these settings.
func (b *Broker) create(l *link, topics []string) error {
	channel, err := l.Channel()
	if err != nil {
		return err
	}
	for _, topic := range topics {
		if _, err := channel.QueueDeclare(b.stream(topic), true, false, false, false, b.arguments()); err != nil {
			return fmt.Errorf("make stream %s: %w", b.stream(topic), err)
		}
	}
	return nil
}

// arguments are the settings of a stream.
func (b *Broker) arguments() amqp.Table {
	replicas := b.replicas
	if replicas == 0 {
		replicas = replicasDefault
	}
	arguments := amqp.Table{
		amqp.QueueTypeArg:                 amqp.QueueTypeStream,
		"x-initial-cluster-size":          int64(replicas),
		"x-stream-max-segment-size-bytes": int64(segmentBytes),
	}
	if b.retention > 0 {
		arguments["x-max-age"] = strconv.FormatInt(int64(b.retention.Seconds()), 10) + "s"
	}
	return arguments
}

// notThere is in what the server says of a queue that does not exist. Of one that is not ready yet it says something else.
const notThere = "no queue"

// verify sees whether there is a stream of that name. Nothing of a stream can be had by basic.get, and the server says so; any
// other queue answers it.
func verify(l *link, stream string) error {
	channel, err := l.Channel()
	if err != nil {
		return err
	}
	var said *amqp.Error
	_, err = channel.QueueDeclarePassive(stream, true, false, false, false, nil)
	if errors.As(err, &said) && said.Code == amqp.NotFound && strings.Contains(said.Reason, notThere) {
		return &broker.RefusedError{Reason: "there is no stream " + stream}
	}
	if err != nil {
		return fmt.Errorf("look for stream %s: %w", stream, err)
	}
	_, _, err = channel.Get(stream, false)
	switch {
	case errors.As(err, &said) && said.Code == amqp.NotImplemented:
		return nil
	case err != nil:
		return err
	}
	return notAStream(stream)
}

func notAStream(queue string) error {
	return &broker.RefusedError{Reason: fmt.Sprintf("queue %s is no stream, and drops events when somebody has read them; "+
		"it has to be declared with x-queue-type=stream", queue)}
}
