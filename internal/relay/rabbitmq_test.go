package relay_test

import (
	"syscall"
	"testing"
	"time"

	driver "github.com/rabbitmq/amqp091-go"

	"postbus/internal/broker/amqp"
	"postbus/internal/natstest"
	"postbus/internal/rabbittest"
	"postbus/internal/servertest"
)

// TestRabbitMQIsKilledOrHangs while events are on their way, is away while others commit, and comes back with what it has stored;
// then it keeps its connections and answers nothing, for longer than the relay waits for an answer.
func TestRabbitMQIsKilledOrHangs(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := rabbittest.Start(t)
	w := newWay(t)
	c := w.start(server.URL(), 0)
	for round := range 2 {
		written := make(chan struct{})
		go func() {
			defer close(written)
			w.write(40)
		}()
		w.awaitEffects(w.effects() + 10*(round+1)) // in the middle of it
		server.Kill()
		<-written // commits need no broker
		server.Start()
	}
	w.verify()

	server.Signal(syscall.SIGSTOP)
	w.writeFor(outage(t) + hangs)
	server.Signal(syscall.SIGCONT)
	w.verify()
	c.stop()
}

// TestRabbitMQIsUnreachable for a while: commits go on, a process may stop and another start, and what has waited goes out when
// it is reached again.
func TestRabbitMQIsUnreachable(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	proxy := natstest.NewProxy(t, rabbittest.Shared(t).Addr())
	url := rabbittest.URL(proxy.Addr()) + "?prefix=unreachable"
	w := newWay(t)
	c := w.start(url, 0)
	w.write(10)
	w.awaitEffects(w.total())
	proxy.Cut()
	w.writeFor(outage(t))
	c.stop()
	c = w.start(url, 0)
	w.write(5)
	if got, sent := w.effects(), w.total(); got == sent {
		t.Error("the broker was reached although the way was cut")
	}
	proxy.Mend()
	w.verify()
	c.stop()
}

// TestRabbitMQIsSlow as the others are in TestBrokerIsSlow.
func TestRabbitMQIsSlow(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	proxy := natstest.NewProxy(t, rabbittest.Shared(t).Addr())
	slow(t, proxy, rabbittest.URL(proxy.Addr())+"?prefix=slow")
}

// TestWatermillsSuiteOverRabbitMQ is the same over RabbitMQ.
func TestWatermillsSuiteOverRabbitMQ(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	runSuite(t, amqp.Kind(), rabbittest.Shared(t).URL()+"?prefix=suite")
}

// TestProcessesShareTheWayOverRabbitMQ: one dies between an acknowledgement and its note, again and again, one stops in good order, one
// comes, and the others go on. RabbitMQ knows no repeats; events are published twice, and have one effect.
func TestProcessesShareTheWayOverRabbitMQ(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := rabbittest.Shared(t)
	url := server.URL() + "?prefix=shared"
	w := newWay(t)
	w.write(10)
	for _, after := range []int64{1, 7, 30} {
		w.start(url, after).dies()
		w.expire()
		w.write(2)
	}
	stopped, stays := w.start(url, 0), w.start(url, 0)
	w.write(20)
	stopped.stop()
	late := w.start(url, 0)
	w.write(20)
	w.verify()
	late.stop()
	stays.stop()
	if got := published(t, server, "shared-"+topic); got <= int64(w.total()) {
		t.Errorf("the broker has %d messages of %d events: none was published twice", got, w.total())
	}
}

// published is how many messages a stream has.
func published(t *testing.T, server *rabbittest.Server, stream string) int64 {
	t.Helper()
	conn, err := driver.Dial(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.Qos(1, 0, false); err != nil {
		t.Fatal(err)
	}
	mark, err := channel.Consume(stream, "", false, false, false, false, driver.Table{"x-stream-offset": "next"})
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.Publish("", stream, true, false, driver.Publishing{MessageId: "mark"}); err != nil {
		t.Fatal(err)
	}
	select {
	case d := <-mark:
		offset, _ := d.Headers["x-stream-offset"].(int64)
		return offset
	case <-time.After(patience):
		t.Fatal("the stream does not answer")
		return 0
	}
}
