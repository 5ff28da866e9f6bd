package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"time"
)

// What is measured runs in processes of its own, so that each contender's memory and garbage collection are its own. They
// are this same program, started again with childArgument. The parent sends a request as one line of JSON on stdin, which
// keeps database URLs off the command line; the child answers with lines of JSON on stdout. The end of stdin tells it
// to stop, however the parent ends.
const childArgument = "child"

// request is what a child is to do.
type request struct {
	Role      string        `json:"role"`
	Kind      string        `json:"kind"` // which contender
	URL       string        `json:"url"`
	Broker    string        `json:"broker"` // the URL of the one that events go over
	Consumers []string      `json:"consumers"`
	Count     int           `json:"count"`    // of events to wait for, or to publish
	Limit     time.Duration `json:"limit"`    // when to end without them
	Lanes     int           `json:"lanes"`    // 0 is the default
	Wait      time.Duration `json:"wait"`     // in the handler
	From      int64         `json:"from"`     // window to count in, nanoseconds since 1970
	Until     int64         `json:"until"`    //
	Rounds    int           `json:"rounds"`   // repetitions in one process, or steps of simulated time
	Topics    int           `json:"topics"`   // how many topics exist
	Spread    bool          `json:"spread"`   // the events are in all of them, not in one
	Publish   bool          `json:"publish"`  // this process publishes
	Consume   bool          `json:"consume"`  // this process consumes
	Interval  time.Duration `json:"interval"` // between events; open loop
	Idle      bool          `json:"idle"`     // closed loop with random pauses instead
	Pause     time.Duration `json:"pause"`    // the shortest of those; 0 is the usual one
	Rest      time.Duration `json:"rest"`     // until a consumer rests; 0 is the default
	Age       time.Duration `json:"age"`      // that retention keeps events for; 0 is for ever
	History   int           `json:"-"`        // events that were there before the consumer
	Sleeper   time.Duration `json:"sleeper"`  // how long another consumer's handler sleeps at its first event
	BurnDown  bool          `json:"burn_down"`
	Profile   string        `json:"profile"`
}

// reply is one line of a child's answer. The last one has Done.
type reply struct {
	Ready bool   `json:"ready,omitempty"`
	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
	Skip  bool   `json:"skip,omitempty"`

	URL     string          `json:"url,omitempty"`
	Handled int64           `json:"handled,omitempty"`
	Elapsed time.Duration   `json:"elapsed,omitempty"` // from the start until all was handled and stored
	Flowing time.Duration   `json:"flowing,omitempty"` // from the first event to the last
	Peak    int64           `json:"peak,omitempty"`    // bytes of memory, at most
	Queries int64           `json:"queries,omitempty"`
	CPU     time.Duration   `json:"cpu,omitempty"`  // of the process, or of the time that the role is about
	Sent    map[int64]int64 `json:"sent,omitempty"` // event to nanoseconds since 1970
	Got     map[int64]int64 `json:"got,omitempty"`
	Ended   int64           `json:"ended,omitempty"` // when it stopped waiting for more, nanoseconds since 1970
	Late    float64         `json:"late,omitempty"`  // handled in a second, towards the end
	Blocks  int64           `json:"blocks,omitempty"`
	Sizes   []int64         `json:"sizes,omitempty"` // in bytes, after each step

	Relayed   int64         `json:"relayed,omitempty"`    // acknowledged by the broker
	RelayedIn time.Duration `json:"relayed_in,omitempty"` // from the start until the last of them
}

// role does what a request asks for. It says when it is ready, and ends when it is done, or soon after ctx.
type role func(ctx context.Context, r request, ready func(reply) error) (reply, error)

func roles() map[string]role {
	return map[string]role{
		"drain": drainRole, "window": windowRole, "bursts": burstsRole, "topics": topicsRole, "latency": latencyRole,
		"idle": idleRole, "steady": steadyRole, "retention": retentionRole, "nats": natsServerRole,
		"relay": relayRole, "rabbit": rabbitServerRole,
	}
}

// serveChild is the child's side.
func serveChild(ctx context.Context, in io.Reader, out io.Writer) error {
	reader := bufio.NewReader(in)
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	do, ok := roles()[r.Role]
	if !ok {
		return fmt.Errorf("there is no role %q", r.Role)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = reader.ReadByte() // nothing more is sent; this is the end of stdin
		cancel()
	}()
	endProfile, err := profile(r)
	if err != nil {
		return err
	}
	answers := json.NewEncoder(out)
	last, err := do(ctx, r, func(a reply) error { a.Ready = true; return answers.Encode(a) })
	endProfile()
	last.Done = true
	if err != nil {
		last.Error = err.Error()
		last.Skip = errors.As(err, &skipped{})
	}
	last.Peak = peakMemory()
	if last.CPU == 0 {
		last.CPU = processTime()
	}
	return answers.Encode(last)
}

// profile begins a CPU profile where one is asked for.
func profile(r request) (end func(), err error) {
	if r.Profile == "" {
		return func() {}, nil
	}
	path := filepath.Join(r.Profile, r.Role+"-"+r.Kind+".pprof")
	f, err := os.Create(path) //nolint:gosec // the directory is the one that a flag names
	if err != nil {
		return nil, fmt.Errorf("make profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("start profile: %w", err), f.Close())
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}

// child is the parent's side.
type child struct {
	what    string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	replies chan reply
	stderr  strings.Builder
}

// start begins a process for r. It is killed when ctx ends.
func (b *bench) start(ctx context.Context, r request) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	r.Profile = b.profile
	c := &child{what: r.Role + " of " + r.Kind, replies: make(chan reply, 16)}
	c.cmd = exec.CommandContext(ctx, self, childArgument) //nolint:gosec // this program itself
	c.cmd.Stderr = &c.stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.what, err)
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.what, err)
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.what, err)
	}
	if err := json.NewEncoder(c.stdin).Encode(r); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", c.what, err), c.stop())
	}
	go func() {
		defer close(c.replies)
		for answers := json.NewDecoder(stdout); ; {
			var a reply
			if answers.Decode(&a) != nil {
				return
			}
			c.replies <- a
		}
	}()
	return c, nil
}

// next waits for the child's next answer.
func (c *child) next() (reply, error) {
	a, ok := <-c.replies
	switch {
	case !ok:
		_ = c.cmd.Wait() // what it wrote says more than its exit code
		return a, fmt.Errorf("%s ended without an answer: %s", c.what, lastLine(c.stderr.String()))
	case a.Skip:
		return a, skipped{a.Error}
	case a.Error != "":
		return a, fmt.Errorf("%s: %s", c.what, a.Error)
	}
	return a, nil
}

// last waits for the last answer, and for the process to end.
func (c *child) last() (reply, error) {
	for {
		a, err := c.next()
		if err != nil || a.Done {
			return a, errors.Join(err, c.stop())
		}
	}
}

// stop ends the process, if need be by force, and waits for it.
func (c *child) stop() error {
	_ = c.stdin.Close()
	late := time.AfterFunc(stopPatience, func() { _ = c.cmd.Process.Kill() })
	defer late.Stop()
	for range c.replies { // until stdout is closed
	}
	_ = c.cmd.Wait() // killed or not, it has said what there was to say
	return nil
}

const stopPatience = 20 * time.Second

// call runs a child from its start to its end.
func (b *bench) call(ctx context.Context, r request) (reply, error) {
	c, err := b.start(ctx, r)
	if err != nil {
		return reply{}, err
	}
	return c.last()
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, l := range lines {
		if strings.HasPrefix(l, "panic:") || strings.HasPrefix(l, "fatal error:") {
			return l
		}
	}
	return lines[len(lines)-1]
}
