package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
)

// Feed reads a topic for somebody who keeps his place himself, elsewhere. It is for one goroutine. The log knows nothing of
// it: retention does not wait for it.
type Feed struct {
	from  holder // of nothing; it names the server
	topic string
	at    place
	stop  func()

	began  time.Time // by the server's clock
	opened time.Time // the same moment, by this process's
}

// rereadAge is how far before a place a feed begins on another start of the server. It covers what differs between the clocks
// of two servers, and the time that a transaction takes.
const rereadAge = time.Hour

// feedPlace is a place as it is kept elsewhere.
type feedPlace struct {
	Snapshot  string `json:"snapshot"`
	Floor     int64  `json:"floor"`
	WindowEnd string `json:"window_end,omitempty"`
	Position  int64  `json:"position,omitempty"`

	Server time.Time `json:"server"` // its life
	At     time.Time `json:"at"`     // when the place was reached, by the server's clock
}

// Feed returns the topic from a place on that Next has returned, or from its beginning for "".
//
// On another start of the server the place says too little: a standby that was promoted without the last commits may have gone
// past it with other events. So there the feed begins rereadAge before the place was reached, and what comes twice has to be
// known by its id. It reports false for a place that the server has certainly gone back behind; then the feed begins at spot.
func (l *Log) Feed(ctx context.Context, topic, from string, spot Spot) (f *Feed, fits bool, err error) {
	f = &Feed{from: holder{log: l}, topic: topic}
	if err := l.beginLife(ctx); err != nil {
		return nil, false, err
	}
	err = l.pool.QueryRow(ctx, `SELECT `+l.lifeSQL()+`, clock_timestamp()`).Scan(&f.from.server, &f.began)
	if err != nil {
		return nil, false, fmt.Errorf("feed of topic %s: %w", topic, err)
	}
	f.opened = time.Now()
	goesOn := false
	if from == "" {
		spot, fits = Beginning(), true
	} else {
		var kept feedPlace
		if kept, fits, err = l.keptPlace(ctx, topic, from); err != nil {
			return nil, false, err
		}
		goesOn = fits && kept.Server.Equal(f.from.server)
		if fits && !goesOn && !kept.At.IsZero() {
			spot = At(kept.At.Add(-rereadAge))
		}
		f.at = place{snapshot: kept.Snapshot, floor: kept.Floor, fence: unboundedFence, windowEnd: kept.WindowEnd, position: kept.Position}
	}
	if !goesOn {
		err := l.change(ctx, func(tx pgx.Tx) (err error) {
			f.at, err = l.place(ctx, tx, topic, spot)
			return err
		})
		if err != nil {
			return nil, false, err
		}
	}
	f.stop = l.watch(topic)
	return f, fits, nil
}

// keptPlace reads a place, and reports whether the server has come as far.
func (l *Log) keptPlace(ctx context.Context, topic, from string) (kept feedPlace, fits bool, err error) {
	if err := json.Unmarshal([]byte(from), &kept); err != nil {
		return kept, false, fmt.Errorf("read place in topic %s: %w", topic, err)
	}
	newest := kept.Snapshot
	if kept.WindowEnd != snapshotOfNobody {
		newest = kept.WindowEnd
	}
	err = l.pool.QueryRow(ctx, `SELECT pg_snapshot_xmax($1::text::pg_snapshot) <= pg_snapshot_xmax(pg_current_snapshot())`,
		newest).Scan(&fits)
	if err != nil {
		return kept, false, fmt.Errorf("check place in topic %s: %w", topic, err)
	}
	return kept, fits, nil
}

// Next waits for events and returns them in the order of each key's commits, with the place behind them. It fails when the
// server was started anew meanwhile; another feed goes on from the place.
func (f *Feed) Next(ctx context.Context) (messages []*message.Message, next string, err error) {
	for {
		woken := f.from.log.wakeup.next(f.topic)
		found, err := f.from.read(ctx, f.topic, f.at, nil)
		if err != nil {
			return nil, "", err
		}
		f.at = found.next
		if len(found.rows) > 0 {
			for i := range found.rows {
				r := &found.rows[i]
				m := message.NewMessage(r.id.String(), r.payload)
				m.Metadata = r.metadata
				messages = append(messages, m)
			}
			kept, err := json.Marshal(feedPlace{
				Snapshot: f.at.snapshot, Floor: f.at.floor, WindowEnd: f.at.windowEnd, Position: f.at.position,
				Server: f.from.server, At: f.began.Add(time.Since(f.opened)),
			})
			if err != nil {
				return nil, "", fmt.Errorf("write place in topic %s: %w", f.topic, err)
			}
			return messages, string(kept), nil
		}
		select {
		case <-woken:
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
}

// Close ends the feed.
func (f *Feed) Close() { f.stop() }
