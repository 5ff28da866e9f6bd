package postgres

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"regexp"
	"runtime/debug"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// What the reason of a refusal may tell. A reason that says nothing of when to try again has the message come again in
// place, after a wait that doubles each time.
type (
	// policied knows when to try again after a failed attempt of that number, from 1 on, or not at all.
	policied interface {
		Next(attempt int) (wait time.Duration, again bool)
	}
	// holding knows whether a dead message holds its key.
	holding interface{ Hold() bool }
	// classed and stacked tell what happened, and where.
	classed interface{ Class() string }
	stacked interface{ Stack() string }
	// widespread knows whether the failure is of what is behind the handler rather than of this message.
	widespread interface{ Everybody() bool }
)

type flightKey struct{}

// Refuse says why the message will be refused. It is called before the Nack, by whoever handles the message, and does
// nothing for a message that is not of this log.
func (l *Log) Refuse(m *message.Message, reason error) {
	if e, ok := m.Context().Value(flightKey{}).(*entry); ok {
		e.reason = reason
	}
}

// verdict is what becomes of a message that was refused.
type verdict struct {
	failure
	state     string // stateRetry, stateHeld or stateDead
	wait      time.Duration
	everybody bool
}

// judge reads a reason. It reports false for one that leaves the message where it is.
func judge(reason error, attempt int) (v verdict, ok bool) {
	var policy policied
	if !errors.As(reason, &policy) {
		return verdict{}, false
	}
	v = verdict{state: stateRetry, failure: failure{
		At: time.Now().UTC(), Attempt: attempt, Class: classUnexplained, Error: cut(reason.Error(), errorBytesMax), Version: version(),
	}}
	var c classed
	if errors.As(reason, &c) {
		v.Class = c.Class()
	}
	var s stacked
	if errors.As(reason, &s) {
		v.Stack = cut(s.Stack(), stackBytesMax)
	}
	var e widespread
	v.everybody = errors.As(reason, &e) && e.Everybody()
	wait, again := policy.Next(attempt)
	if v.wait = wait; !again {
		var h holding
		v.state = stateDead
		if !errors.As(reason, &h) || h.Hold() {
			v.state = stateHeld
		}
	}
	return v, true
}

// version is this program's, as it was built.
var version = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return cut(v, errorBytesMax)
})

// varying is what differs between failures that are alike: numbers, ids, quoted words.
var varying = regexp.MustCompile(`[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|0x[0-9a-fA-F]+|\d+|"[^"]*"|'[^']*'`)

// fingerprintOf is the same for failures that look alike.
func fingerprintOf(eventType string, f *failure) string {
	sum := sha256.Sum256([]byte(eventType + "\n" + f.Class + "\n" + varying.ReplaceAllString(f.Error, "?")))
	return hex.EncodeToString(sum[:6])
}
