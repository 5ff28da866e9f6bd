package postgres

import "errors"

var (
	// ErrTopicName is returned for a topic whose name does not match ^[a-z][a-z0-9_]{0,39}$.
	ErrTopicName = errors.New("topic name is not allowed")
	// ErrTopicChanged is returned when a consumer's name is known with another topic. A consumer's name is a durable
	// identity; one that reads another topic needs another name.
	ErrTopicChanged = errors.New("consumer is known with another topic")
	// ErrHandedOver is returned for a consumer that reads from another broker (HandOver).
	ErrHandedOver = errors.New("consumer reads from another broker")
	// ErrUnknownConsumer is returned for a consumer that was never provisioned.
	ErrUnknownConsumer = errors.New("consumer is not known")
	// ErrIntakeTaken is returned when another process stores what arrives from a broker.
	ErrIntakeTaken = errors.New("another process stores what arrives")
	// ErrConsumerAtWork is returned for a consumer that is to be forgotten while some process works for it.
	ErrConsumerAtWork = errors.New("some process works for the consumer")
	// ErrClosed is returned by a subscriber that was closed.
	ErrClosed = errors.New("subscriber is closed")

	// errMoved ends a process's work for a consumer in a log that has no shares of it, or a relay's for another broker.
	errMoved = errors.New("the consumer has no shares here")
	// errLeaseLost ends a process's work for a consumer that another process owns by now.
	errLeaseLost = errors.New("lease was lost")
)
