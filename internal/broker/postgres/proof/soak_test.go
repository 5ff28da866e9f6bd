package proof_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/broker/postgres"
	"postbus/internal/migrate"
	"postbus/internal/pgtest"
	"postbus/internal/servertest"
)

// Variables that a person or CI sets.
const (
	soakVariable = "SOAK"      // how long TestSoak takes, for example 2m
	seedVariable = "SOAK_SEED" // repeats the writes and faults of a seed; chance has its part in the rest
	// faultsVariable names the kinds of faults, separated by commas, when it is not to be all of them.
	faultsVariable = "SOAK_FAULTS"
)

const (
	soakDefault = 10 * time.Second
	roundMax    = 2 * time.Minute // a longer soak begins anew, with another seed
)

// TestSoak writes, reads, breaks what can break, and has the checker judge.
func TestSoak(t *testing.T) {
	t.Parallel()
	left := soakDefault
	var err error
	if value := os.Getenv(soakVariable); value != "" {
		if left, err = time.ParseDuration(value); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	} else {
		servertest.Thorough(t)
	}
	seed := rand.Uint64()
	if value := os.Getenv(seedVariable); value != "" {
		if seed, err = strconv.ParseUint(value, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	for ; left > 0 && !t.Failed(); left -= roundMax {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { soak(t, seed, min(left, roundMax)) })
		seed++
	}
}

// world is a server, its writers, and the reader processes of two consumers: one that is shared by several, and one
// that one process has for itself.
type world struct {
	t       *testing.T
	server  *pgtest.OwnServer
	log     log
	writers *writers
	config  readerConfig
	readers []*process
	ended   []*process
	records map[string]*records // of all processes there were, by name
	faults  []fault
}

const (
	shared      = "shared"
	alone       = "alone"
	sharedCount = 3
)

func newWorld(t *testing.T, rate time.Duration) *world {
	t.Helper()
	w := &world{t: t, server: pgtest.Own(t), records: make(map[string]*records)}
	w.config = readerConfig{URL: w.server.URL(), Records: t.TempDir(), Lease: lease}
	config, err := pgxpool.ParseConfig(w.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = writerCount + 4
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := migrate.Up(t.Context(), pool, postgres.Migrations(postgres.DefaultSchema)); err != nil {
		t.Fatal(err)
	}
	w.log = openLog(t, pool, postgres.Config{})
	subscriptions := []postgres.Subscription{{Consumer: shared, Topic: topic}, {Consumer: alone, Topic: topic}}
	if err := w.log.Provision(t.Context(), []string{topic}, subscriptions); err != nil {
		t.Fatal(err)
	}
	w.writers = newWriters(t, w.log, pool, rate)
	return w
}

func (w *world) start(consumer string) {
	w.t.Helper()
	config := w.config
	config.Consumer = consumer
	way, url := newWire(w.t, config.URL)
	config.URL = url
	p := startReader(w.t, config)
	p.wire = way
	w.readers = append(w.readers, p)
	w.records[p.name] = &records{consumer: consumer, process: p.name, file: p.config.Records, open: make(map[int64]*delivery)}
}

// remove forgets a process that has ended or is about to.
func (w *world) remove(p *process) {
	w.readers = slices.DeleteFunc(w.readers, func(other *process) bool { return other == p })
	w.ended = append(w.ended, p)
}

func soak(t *testing.T, seed uint64, length time.Duration) {
	t.Helper()
	w := newWorld(t, 8*time.Millisecond)
	w.config.Refuses = true
	for range sharedCount {
		w.start(shared)
	}
	w.start(alone)
	stopWriting := w.writers.start(seed)
	w.breakThings(rand.New(rand.NewPCG(seed, 0)), time.Now().Add(length))
	stopWriting()
	w.finish()
}

// breakThings lets each kind of fault happen once, and then any, until the time is up or something is wrong.
func (w *world) breakThings(random *rand.Rand, deadline time.Time) {
	kinds := map[string]func(*rand.Rand){
		"kill": w.killOne, "slow": w.killWhileSlow, "pause": w.pauseOne, "restart": w.restartOne,
		"cut": w.cutSessions, "heirs": w.holdThenKillHeirs, "crash": w.crashPostgres,
	}
	names := slices.Sorted(maps.Keys(kinds))
	if value := os.Getenv(faultsVariable); value != "" {
		names = strings.Split(value, ",")
	}
	order := random.Perm(len(names))
	for time.Now().Before(deadline) && !w.t.Failed() && !w.wrongAlready() {
		next := random.IntN(len(names))
		if len(order) > 0 {
			next, order = order[0], order[1:]
		}
		kinds[names[next]](random)
		wait(time.Duration(random.IntN(400)) * time.Millisecond)
		w.resume(time.Now())
	}
	w.resume(time.Now().Add(time.Hour))
}

// wrongAlready tells that the checker has found what no later event can put right. What was handled counts as
// committed, since nobody knows yet.
func (w *world) wrongAlready() bool {
	if !w.looksWrong() {
		return false
	}
	wait(lease) // for what a process still has to say of the machine
	return w.looksWrong()
}

func (w *world) looksWrong() bool {
	w.readDeliveries()
	for _, deliveries := range w.deliveries() {
		handled := make(map[string]event)
		for _, d := range deliveries {
			handled[d.id] = d.event
		}
		if v := check(handled, deliveries, w.allFaults()); len(v.disorder)+len(v.overlaps)+len(v.unexplained) > 0 {
			return true
		}
	}
	return false
}

// any returns a process that is not paused, or nil.
func (w *world) any(random *rand.Rand) *process {
	running := slices.DeleteFunc(slices.Clone(w.readers), func(p *process) bool { return !p.resumes.IsZero() })
	if len(running) == 0 {
		return nil
	}
	return running[random.IntN(len(running))]
}

// allFaults are those of the test, and those of the machine that it runs on.
func (w *world) allFaults() []fault {
	faults := slices.Clone(w.faults)
	for _, r := range w.records {
		faults = append(faults, r.starved...)
	}
	for _, p := range w.readers {
		if !p.resumes.IsZero() {
			faults = append(faults, fault{what: "paused", process: p.name, from: p.paused, to: time.Now()})
		}
	}
	slices.SortFunc(faults, func(a, b fault) int { return a.from.Compare(b.from) })
	return faults
}

// blame notes a fault; process is "" when it hits all.
func (w *world) blame(what, process string, from time.Time) {
	w.faults = append(w.faults, fault{what: what, process: process, from: from, to: time.Now()})
}

func (w *world) killOne(random *rand.Rand) {
	if p := w.any(random); p != nil {
		w.kill(p)
		w.start(p.config.Consumer)
	}
}

// killWhileSlow is the worst moment for a kill: the process has stored how far it has come while a handler is not done with an
// event. The place must not have passed that.
func (w *world) killWhileSlow(random *rand.Rand) {
	p := w.awaitSlow([]string{shared, alone}[random.IntN(2)])
	w.kill(p)
	w.start(p.config.Consumer)
}

// awaitSlow writes an event that takes long, behind some that do not, and returns the process that has it with a handler when
// that has stored how far it has come.
func (w *world) awaitSlow(consumer string) *process {
	w.t.Helper()
	w.awaitSpread()
	for _, p := range w.readers {
		if p.config.Consumer == consumer {
			w.awaitCheckpoint(p) // the first one takes longer
		}
	}
	from := time.Now()
	w.writers.commit(w.t, oneSlow)
	var name string
	await(w.t, "the slow event", func() bool {
		w.readDeliveries()
		for _, d := range w.deliveries()[consumer] {
			if d.key == slowNoKey && d.began.After(from) {
				name = d.process
				return true
			}
		}
		return false
	})
	p := w.readers[slices.IndexFunc(w.readers, func(p *process) bool { return p.name == name })]
	jam := p.wire.hold()
	select {
	case <-jam.began:
		p.wire.release()
		w.awaitSignal("the checkpoint to arrive", jam.arrived)
	case <-time.After(slow * 3 / 5): // it had stored that before, and has nothing to store now
		p.wire.release()
	}
	return p
}

// awaitCheckpoint waits until a process has stored something more.
func (w *world) awaitCheckpoint(p *process) {
	w.t.Helper()
	jam := p.wire.hold()
	release := sync.OnceFunc(p.wire.release)
	defer release()
	w.awaitSignal("a checkpoint of "+p.name, jam.began)
	release()
	w.awaitSignal("the checkpoint to arrive", jam.arrived)
}

func (w *world) kill(p *process) {
	from := time.Now()
	p.kill()
	w.blame("killed", p.name, from)
	w.remove(p)
}

// restartOne is no fault: a process that ends in good order is no reason for a repeat.
func (w *world) restartOne(random *rand.Rand) {
	p := w.any(random)
	if p == nil {
		return
	}
	p.stop()
	w.remove(p)
	w.start(p.config.Consumer)
}

// pauseOne stops a process in the middle of what it does, for longer than its leases last. Other faults go on
// meanwhile.
func (w *world) pauseOne(random *rand.Rand) {
	if p := w.any(random); p != nil {
		w.pause(p, lease+time.Duration(random.Int64N(int64(lease))))
	}
}

func (w *world) pause(p *process, length time.Duration) {
	p.paused = time.Now()
	p.resumes = p.paused.Add(length)
	p.signal(syscall.SIGSTOP)
}

// resume lets paused processes go on whose time has come.
func (w *world) resume(now time.Time) {
	for _, p := range w.readers {
		if !p.resumes.IsZero() && p.resumes.Before(now) {
			p.signal(syscall.SIGCONT)
			w.blame("paused", p.name, p.paused)
			p.resumes = time.Time{}
		}
	}
}

// holdThenKillHeirs is the worst case for a place: a checkpoint is held up, others take over and get ahead, all falls silent,
// those that took over are killed, and what was held up arrives before anybody else has the shares. It must not take back what
// they had stored. They are killed when nothing is left to store, which is no reason for a repeat.
func (w *world) holdThenKillHeirs(random *rand.Rand) {
	w.t.Helper()
	w.awaitSpread()
	heirs := slices.DeleteFunc(slices.Clone(w.readers), func(p *process) bool { return p.config.Consumer != shared })
	i := random.IntN(len(heirs))
	p := heirs[i]
	heirs = slices.Delete(heirs, i, i+1)

	from := time.Now()
	jam := p.wire.hold()
	release := sync.OnceFunc(p.wire.release)
	defer release()
	w.awaitSignal("a checkpoint to be held up", jam.began)
	w.writers.pause.Lock()
	defer w.writers.pause.Unlock()
	w.awaitOwners("the heirs to take over", func(owners map[string]int) bool { return !p.ownsAny(owners) })
	w.writers.commit(w.t, everyShare)
	await(w.t, "everything to be stored", func() bool { return w.stored(shared) })
	for _, heir := range heirs {
		heir.kill()
		w.remove(heir)
	}
	release()
	w.awaitSignal("what was held up to arrive", jam.arrived)
	w.blame("held up", p.name, from)
	for range heirs {
		w.start(shared)
	}
	w.awaitOwners("the heirs of the heirs", func(owners map[string]int) bool {
		return !slices.ContainsFunc(heirs, func(heir *process) bool { return heir.ownsAny(owners) })
	})
	await(w.t, "what was taken back to be stored again", func() bool { return w.stored(shared) })
}

// shareCount is into how many shares the log cuts a consumer's work, and fairCount the most that a process keeps of them.
const (
	shareCount = 16
	fairCount  = (shareCount + sharedCount - 1) / sharedCount
)

// awaitSpread has all processes go on and waits until those that share a consumer have given up and claimed what they will.
func (w *world) awaitSpread() {
	w.t.Helper()
	w.resume(time.Now().Add(time.Hour))
	w.awaitOwners("the shares to be spread", func(owners map[string]int) bool {
		return len(owners) == sharedCount && slices.Max(slices.Collect(maps.Values(owners))) <= fairCount
	})
}

// awaitOwners waits until somebody has each share of the shared consumer, and so as is wanted.
func (w *world) awaitOwners(what string, as func(owners map[string]int) bool) {
	w.t.Helper()
	await(w.t, what, func() bool {
		all := 0
		s, _ := w.status(shared)
		for _, n := range s.Owners {
			all += n
		}
		return all == shareCount && as(s.Owners)
	})
}

// stored tells that everything that there is has been handled by the consumer, and that is stored.
func (w *world) stored(consumer string) bool {
	s, known := w.status(consumer)
	return known && s.Waiting == 0 && s.Parked == 0
}

// status tells where a consumer stands, unless the session was cut. Whoever wants to know asks again.
func (w *world) status(consumer string) (s postgres.Status, known bool) {
	s, known, err := w.log.Status(w.t.Context(), postgres.Subscription{Consumer: consumer, Topic: topic})
	return s, known && err == nil
}

func (w *world) awaitSignal(what string, signal <-chan struct{}) {
	w.t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		w.t.Fatalf("waited for %s in vain", what)
	}
}

// cutSessions ends the sessions of readers or writers at the server.
func (w *world) cutSessions(random *rand.Rand) {
	from := time.Now()
	_, err := w.log.pool.Exec(w.t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND random() < 0.5 AND (application_name = $1) = $2`,
		readerName, random.IntN(3) > 0)
	if err != nil {
		w.t.Errorf("cut sessions: %v", err)
	}
	w.blame("sessions cut", "", from)
}

// crashPostgres stops the server at once and starts it again.
func (w *world) crashPostgres(*rand.Rand) {
	from := time.Now()
	w.server.Stop()
	w.server.Start()
	await(w.t, "Postgres", func() bool { return w.log.pool.Ping(w.t.Context()) == nil })
	w.blame("Postgres crashed", "", from)
}

// finish waits until all that was committed has been handled, or nothing moves any more, stops the readers and judges.
func (w *world) finish() map[string]*verdict {
	w.t.Helper()
	verdicts := make(map[string]*verdict)
	committed := w.writers.settle(w.t)
	w.awaitHandled(committed)
	for _, p := range slices.Clone(w.readers) {
		p.stop()
		w.remove(p)
	}
	w.readDeliveries()
	if len(committed) == 0 || w.writers.count.rolledBack == 0 {
		w.t.Errorf("%d events were committed, %d transactions rolled back; that proves nothing",
			len(committed), w.writers.count.rolledBack)
	}
	for consumer, deliveries := range w.deliveries() {
		v := check(committed, deliveries, w.allFaults())
		w.t.Logf("%s: %v", consumer, v)
		if v.wrong() {
			w.t.Errorf("%s: wrong, see above", consumer)
			w.tell(v)
		}
		verdicts[consumer] = v
	}
	w.t.Logf("%d events in %d commits, %d rollbacks, %d commits cut off; %d processes, %s",
		len(committed), w.writers.count.committed, w.writers.count.rolledBack, w.writers.count.cutOff,
		len(w.records), w.countFaults())
	return verdicts
}

// tell logs what was done to whom, and what the processes had to say that took part in what is wrong.
func (w *world) tell(v *verdict) {
	w.t.Helper()
	for _, f := range w.allFaults() {
		w.t.Logf("%s to %s: %s %s", f.from.Format("05.000"), f.to.Format("05.000"), cmp.Or(f.process, "all"), f.what)
	}
	wrong := v.String()
	for _, p := range w.ended {
		if strings.Contains(wrong, " "+p.name+" ") {
			w.t.Logf("%s:\n%s", p.name, p.output)
		}
	}
}

func (w *world) countFaults() string {
	count := make(map[string]int)
	for _, f := range w.allFaults() {
		count[f.what]++
	}
	s := ""
	for _, what := range slices.Sorted(maps.Keys(count)) {
		s += fmt.Sprint(count[what], " times ", what, ", ")
	}
	return s
}

// standstill is how long nothing has to happen until the test believes that nothing will.
const standstill = 10 * lease

func (w *world) awaitHandled(committed map[string]event) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
	defer cancel()
	last, moved := int64(-1), time.Now()
	for ctx.Err() == nil && time.Since(moved) < standstill {
		w.readDeliveries()
		all := true
		for _, deliveries := range w.deliveries() {
			handled := make(map[string]bool, len(committed))
			for _, d := range deliveries {
				if d.done() {
					handled[d.id] = true
				}
			}
			all = all && len(handled) >= len(committed)
		}
		if all || w.stored(shared) && w.stored(alone) {
			return
		}
		if size := w.recorded(); size != last {
			last, moved = size, time.Now()
		}
		wait(200 * time.Millisecond)
	}
}

func (w *world) recorded() (size int64) {
	for _, r := range w.records {
		size += r.offset
	}
	return size
}

func (w *world) readDeliveries() {
	w.t.Helper()
	for _, r := range w.records {
		if err := r.read(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// deliveries returns what was delivered to the processes of each consumer.
func (w *world) deliveries() map[string][]*delivery {
	all := map[string][]*delivery{}
	for _, r := range w.records {
		all[r.consumer] = append(all[r.consumer], r.all...)
	}
	return all
}
