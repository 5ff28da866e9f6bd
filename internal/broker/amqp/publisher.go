package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// underWayMax is how many messages are under way to a stream at a time.
	underWayMax    = 1024
	reconnectFirst = 50 * time.Millisecond
	reconnectLast  = time.Second
)

var (
	errUnroutable = errors.New("the stream is not there, or not yet")
	errNotTaken   = errors.New("the server did not take the message")
	errSilent     = errors.New("the server confirms nothing")
	errLost       = errors.New("the connection was lost")
	errClosed     = errors.New("the broker was closed")
)

// publisher sends a message and waits for the server to have it. Many goroutines make a pipeline.
type publisher struct{ *Broker }

// Publish implements message.Publisher.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := p.publish(p.stream(topic), m); err != nil {
			return fmt.Errorf("publish to stream %s: %w", p.stream(topic), err)
		}
	}
	return nil
}

func (p publisher) publish(stream string, m *message.Message) error {
	ctx, cancel := context.WithTimeout(m.Context(), requestTimeout)
	defer cancel()
	s, err := p.session(ctx, stream)
	if err != nil {
		return err
	}
	err = s.publish(ctx, toAMQP(m))
	if err != nil && m.Context().Err() == nil {
		s.endIfSilent()
	}
	return err
}

// line is the way to one stream: at most one session at a time.
type line struct {
	current    *session
	connecting *attempt // to make one
	failed     error    // why there is none
	wait       time.Duration
	notBefore  time.Time // another attempt
}

// attempt is one to make a session, for all who want one at that time.
type attempt struct {
	done    chan struct{}
	session *session
	err     error
}

// session is a connection with a channel on which messages are published to one stream. Whatever goes wrong on it ends it; those that
// were under way are not known to be stored then.
//
// It has one stream, and nothing is sent on it behind a message that came back or was not taken, because of what RabbitMQ does
// before 4.0 when a stream's leader changes: it sends what is under way again with the number of the publishing on the channel
// instead of that in the stream. Where these differ, it takes later messages for repeats, and confirms and drops them.
type session struct {
	stream  string
	link    *link
	channel *amqp.Channel
	ctx     context.Context //nolint:containedctx // ends with the session
	end     context.CancelCauseFunc
	offered chan offer
	slots   chan struct{}          // one for each message that is under way
	blocked atomic.Pointer[string] // why the server takes nothing now
	heard   atomic.Int64           // when something was confirmed, in nanoseconds; 0: not yet
	began   time.Time

	mu       sync.Mutex
	returned chan amqp.Return // has room for all that is under way
}

// offer is a message to send.
type offer struct {
	message amqp.Publishing
	sent    chan sent // has room for the answer
}

type sent struct {
	confirmation *amqp.DeferredConfirmation
	err          error
}

// session returns what to publish on, and connects if there is nothing. After a failure it fails at once, for a while.
func (b *Broker) session(ctx context.Context, stream string) (*session, error) {
	b.mu.Lock()
	l := b.lines[stream]
	if l == nil {
		l = new(line)
		b.lines[stream] = l
	}
	switch {
	case b.ctx.Err() != nil:
		b.mu.Unlock()
		return nil, errClosed
	case l.current != nil && l.current.ctx.Err() == nil:
		defer b.mu.Unlock()
		return l.current, nil
	case l.connecting == nil && time.Now().Before(l.notBefore):
		defer b.mu.Unlock()
		return nil, l.failed
	}
	if l.connecting == nil {
		l.connecting = &attempt{done: make(chan struct{})}
		b.running.Go(func() { b.connect(l, stream) })
	}
	a := l.connecting
	b.mu.Unlock()
	select {
	case <-a.done:
		return a.session, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// connect makes a session.
func (b *Broker) connect(l *line, stream string) {
	ctx, cancel := context.WithTimeout(b.ctx, requestTimeout)
	defer cancel()
	s, err := b.open(ctx, stream)
	b.mu.Lock()
	defer b.mu.Unlock()
	a := l.connecting
	a.session, a.err, l.connecting = s, err, nil
	close(a.done)
	if err != nil {
		l.fails(err)
		return
	}
	l.current = s
	b.running.Go(func() { b.watch(l, s) })
	b.running.Go(s.send)
}

// fails has those who publish wait for a while, longer each time.
func (l *line) fails(err error) {
	l.wait = min(max(2*l.wait, reconnectFirst), reconnectLast)
	l.failed, l.notBefore = err, time.Now().Add(l.wait)
}

func (b *Broker) open(ctx context.Context, stream string) (*session, error) {
	l, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer l.until(ctx)()
	s := &session{
		stream: stream, link: l, offered: make(chan offer), slots: make(chan struct{}, underWayMax), began: time.Now(),
	}
	s.channel, err = l.Channel()
	if err == nil {
		err = s.channel.Confirm(false)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("open a channel: %w", err)
	}
	s.returned = s.channel.NotifyReturn(make(chan amqp.Return, underWayMax))
	s.ctx, s.end = context.WithCancelCause(b.ctx)
	return s, nil
}

// watch ends the session when its connection or channel is closed, and the connection when the session ends.
func (b *Broker) watch(l *line, s *session) {
	connection := s.link.NotifyClose(make(chan *amqp.Error, 1))
	channel := s.channel.NotifyClose(make(chan *amqp.Error, 1))
	blocked := s.link.NotifyBlocked(make(chan amqp.Blocking, 1))
	for s.ctx.Err() == nil {
		select {
		case why := <-connection:
			s.end(lost(why))
		case why := <-channel:
			s.end(lost(why))
		case what, ok := <-blocked:
			switch {
			case !ok: // the connection is closed
				blocked = nil
			case what.Active:
				s.blocked.Store(&what.Reason)
			default:
				s.blocked.Store(nil)
			}
		case <-s.ctx.Done():
		}
	}
	why := context.Cause(s.ctx)
	worked := s.heard.Load() > 0
	b.mu.Lock()
	if worked {
		l.wait = 0
	}
	l.fails(why)
	b.mu.Unlock()
	if worked && b.ctx.Err() == nil {
		b.logger.Warn("connection to the broker was lost", slog.String("partition", scheme+":"+s.stream), slog.Any("error", why))
	}
	s.link.close()
}

// lost is why a connection was closed: nil means that nobody says.
func lost(why *amqp.Error) error {
	if why == nil {
		return errLost
	}
	return why
}

// send sends what is offered, one message after another. A server that reads nothing holds up this goroutine only.
func (s *session) send() {
	for {
		select {
		case o := <-s.offered:
			confirmation, err := s.channel.PublishWithDeferredConfirm("", s.stream, true, false, o.message)
			o.sent <- sent{confirmation, err}
		case <-s.ctx.Done():
			return
		}
	}
}

// publish returns when the server has confirmed the message.
func (s *session) publish(ctx context.Context, m amqp.Publishing) error {
	if why := s.blocked.Load(); why != nil {
		return fmt.Errorf("the server takes nothing: %s", *why)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil { // both were there
		return err
	}
	o := offer{message: m, sent: make(chan sent, 1)}
	select {
	case s.offered <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	var under sent
	select {
	case under = <-o.sent:
	case <-ctx.Done():
		return ctx.Err()
	}
	if under.err != nil {
		return under.err
	}
	select {
	case <-under.confirmation.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.confirmed(under.confirmation.Acked())
}

// confirmed tells what a confirmation means. A message that came back was confirmed too, after it came.
func (s *session) confirmed(acked bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case _, ok := <-s.returned:
		if ok { // or the channel is closed
			s.end(errUnroutable)
		}
	default:
	}
	if s.ctx.Err() != nil { // and then the driver confirms nothing
		return context.Cause(s.ctx)
	}
	if !acked {
		s.end(errNotTaken)
		return errNotTaken
	}
	s.heard.Store(time.Now().UnixNano())
	return nil
}

// endIfSilent ends a session on which the server confirms nothing any more: on another it may.
func (s *session) endIfSilent() {
	last := s.began
	if heard := s.heard.Load(); heard > 0 {
		last = time.Unix(0, heard)
	}
	if s.blocked.Load() == nil && time.Since(last) >= requestTimeout {
		s.end(errSilent)
	}
}
