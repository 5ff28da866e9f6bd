package relay_test

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbus/internal/natstest"
	"postbus/internal/pgtest"
	"postbus/internal/redistest"
	"postbus/internal/servertest"
)

// outage is for how long the tests leave a broker unreachable: BROKER_OUTAGE says, as CI does.
func outage(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(os.Getenv("BROKER_OUTAGE"))
	if err != nil {
		return 2 * time.Second
	}
	return d
}

// process is a broker's server.
type process interface {
	Addr() string
	Kill()
	Start()
	Signal(signal syscall.Signal)
}

// servers are the brokers whose process is killed, cut off and stopped: scheme, and how one is started.
func servers() map[string]func(*testing.T) process {
	return map[string]func(*testing.T) process{
		"nats":     func(t *testing.T) process { t.Helper(); return natstest.Start(t) },
		"kafka":    func(t *testing.T) process { t.Helper(); return startKafka(t) },
		"redis":    func(t *testing.T) process { t.Helper(); return redistest.Start(t) },
		"postgres": func(t *testing.T) process { t.Helper(); return &secondPostgres{OwnServer: pgtest.Own(t), t: t} },
	}
}

// to is the BROKER_URL of a server, to which there may be a way.
func to(scheme string, server process, way string) string {
	if second, ok := server.(*secondPostgres); ok {
		return second.through(way)
	}
	return scheme + "://" + way
}

// first is the broker that tests try always. What they do with the others they leave out where there is no time for it.
const first = "nats"

func others(t *testing.T, scheme string) {
	t.Helper()
	if scheme != first {
		servertest.Thorough(t)
	}
}

// road leads to a server, and can be interrupted and be slow.
type road interface {
	Addr() string
	Cut()
	Mend()
	Slow(roundTrip time.Duration, rate int)
}

// roadTo is one to that server.
func roadTo(t *testing.T, server process) road {
	t.Helper()
	if own, ok := server.(road); ok {
		return own
	}
	return natstest.NewProxy(t, server.Addr())
}

func stream(t *testing.T, url string) jetstream.Stream {
	t.Helper()
	conn, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "postbus-"+topic)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestEventsTakeTheWay: commit, relay, broker, arrival, handler, each event once and in order.
func TestEventsTakeTheWay(t *testing.T) {
	t.Parallel()
	for scheme, start := range servers() {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			server := start(t)
			w := newWay(t)
			c := w.start(to(scheme, server, server.Addr()), 0)
			w.write(50)
			w.verify()
			c.stop()
		})
	}
}

// TestBrokerIsKilled while events are on their way, is away while others commit, and comes back with what it has stored.
func TestBrokerIsKilled(t *testing.T) {
	t.Parallel()
	for scheme, start := range servers() {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			others(t, scheme)
			server := start(t)
			w := newWay(t)
			c := w.start(to(scheme, server, server.Addr()), 0)
			for round := range 3 {
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
			c.stop()
		})
	}
}

// TestBrokerIsUnreachable for a while: commits go on, a process may stop and another start, and what has waited goes out when
// it is reached again.
func TestBrokerIsUnreachable(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	for scheme, start := range servers() {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			server := start(t)
			proxy := roadTo(t, server)
			w := newWay(t)
			c := w.start(to(scheme, server, proxy.Addr()), 0)
			w.write(10)
			w.awaitEffects(w.total())
			before, slowestBefore := w.medianAndSlowest()
			proxy.Cut()
			w.writeFor(outage(t))
			without, slowest := w.medianAndSlowest()
			t.Logf("half of the commits took up to %s with the broker, the slowest %s; without it %s and %s", before, slowestBefore, without,
				slowest)
			if without > 10*before+200*time.Millisecond {
				t.Error("commits wait for the broker")
			}
			c.stop()
			c = w.start(to(scheme, server, proxy.Addr()), 0)
			w.write(5)
			if got, sent := w.effects(), w.total(); got == sent {
				t.Error("the broker was reached although the way was cut")
			}
			proxy.Mend()
			w.verify()
			c.stop()
		})
	}
}

// TestBrokerIsSlow: each round trip takes long, and little goes through at a time. Commits know nothing of it, and what waits
// goes out.
func TestBrokerIsSlow(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	for scheme, start := range servers() {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			server := start(t)
			proxy := roadTo(t, server)
			slow(t, proxy, to(scheme, server, proxy.Addr()))
		})
	}
}

// slow has the way to a server be slow, which that BROKER_URL takes.
func slow(t *testing.T, proxy road, url string) {
	t.Helper()
	const roundTrip, rate = 200 * time.Millisecond, 256 << 10
	w := newWay(t)
	c := w.start(url, 0)
	w.write(10)
	w.awaitEffects(w.total())
	before, _ := w.medianAndSlowest()
	proxy.Slow(roundTrip, rate)
	w.write(20)
	during, _ := w.medianAndSlowest()
	t.Logf("half of the commits took up to %s, and %s with a slow broker", before, during)
	if during >= roundTrip {
		t.Error("commits wait for the broker")
	}
	if got, sent := w.effects(), w.total(); got == sent {
		t.Error("the broker is not slow")
	}
	w.verify()
	c.stop()
}

// hangs is longer than any relay waits for an answer.
const hangs = 12 * time.Second

// TestBrokerHangs: it keeps its connections and answers nothing, for longer than the relay waits for an answer.
func TestBrokerHangs(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	for scheme, start := range servers() {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			server := start(t)
			w := newWay(t)
			c := w.start(to(scheme, server, server.Addr()), 0)
			w.write(10)
			w.awaitEffects(w.total())
			server.Signal(syscall.SIGSTOP)
			w.writeFor(outage(t) + hangs)
			server.Signal(syscall.SIGCONT)
			w.verify()
			c.stop()
		})
	}
}

// TestRelayDiesBetweenAckAndNote, again and again, and comes back when the broker has forgotten the message ids: events are
// published twice, and have one effect.
func TestRelayDiesBetweenAckAndNote(t *testing.T) {
	t.Parallel()
	const window = 100 * time.Millisecond // the least that a server takes
	server := natstest.Start(t)
	conn, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "postbus-" + topic, Subjects: []string{"postbus." + topic + ".*"}, Duplicates: window,
	})
	if err != nil {
		t.Fatal(err)
	}
	url := server.URL() + "?provision=verify"
	w := newWay(t)
	w.write(20)
	for _, after := range []int64{1, 7, 30} {
		w.start(url, after).dies()
		<-time.After(3 * window) // the fault is that the broker has forgotten
		w.expire()
		w.write(2)
	}
	c := w.start(url, 0)
	w.verify()
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if int(info.State.Msgs) <= w.total() {
		t.Errorf("the broker has %d messages of %d events: none was published twice", info.State.Msgs, w.total())
	}
	c.stop()
}

// relayDies has the relay die between acknowledgement and note, again and again, over a broker that does not know repeats: events
// are published twice, as its count of messages tells, and have one effect.
func relayDies(t *testing.T, url string, stored func() (int64, error)) {
	t.Helper()
	w := newWay(t)
	w.write(20)
	for _, after := range []int64{1, 7, 30} {
		w.start(url, after).dies()
		w.expire()
		w.write(2)
	}
	c := w.start(url, 0)
	w.verify()
	n, err := stored()
	if err != nil {
		t.Fatal(err)
	}
	if n <= int64(w.total()) {
		t.Errorf("the broker has %d messages of %d events: none was published twice", n, w.total())
	}
	c.stop()
}

// TestProcessesShareTheWay: one is killed, one stops in good order, one comes, and the others go on.
func TestProcessesShareTheWay(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	server := natstest.Start(t)
	w := newWay(t)
	killed, stopped, stays := w.start(server.URL(), 0), w.start(server.URL(), 0), w.start(server.URL(), 0)
	w.write(30)
	eventually(t, "a part of the relay's work in each process", func() bool { return len(w.status().Owners) == 3 })
	killed.kill()
	w.write(30)
	stopped.stop()
	late := w.start(server.URL(), 0)
	w.write(30)
	w.verify()
	late.stop()
	stays.stop()
}

// TestNodeIsLostWhilePublishing: of three servers with three replicas any one may go.
func TestNodeIsLostWhilePublishing(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	servers := natstest.Cluster(t, 3)
	hosts := make([]string, len(servers))
	for i, s := range servers {
		hosts[i] = s.Addr()
	}
	url := "nats://" + strings.Join(hosts, ",")
	w := newWay(t)
	c := w.start(url, 0)
	w.write(10)
	w.awaitEffects(w.total())
	leader := stream(t, strings.Join(hosts, ",")).CachedInfo().Cluster.Leader
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.write(60)
	}()
	w.awaitEffects(w.effects() + 20) // in the middle of it
	for _, s := range servers {
		if s.Name() == leader {
			s.Kill()
		}
	}
	<-written
	w.verify()
	c.stop()
}
