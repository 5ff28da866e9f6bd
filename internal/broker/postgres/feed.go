package postgres

import (
	"context"
	"encoding/json"
	"fmt"

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
}

// feedPlace is a place as it is kept elsewhere.
type feedPlace struct {
	Snapshot  string `json:"snapshot"`
	Floor     int64  `json:"floor"`
	WindowEnd string `json:"window_end,omitempty"`
	Position  int64  `json:"position,omitempty"`
}

// Feed returns the topic from a place on that Next has returned, or from its beginning for "". It reports false for a place
// that the server has gone back behind, since it was restored or lost commits in a failover; then the feed begins at spot.
func (l *Log) Feed(ctx context.Context, topic, from string, spot Spot) (f *Feed, fits bool, err error) {
	f = &Feed{from: holder{log: l}, topic: topic}
	if err := l.pool.QueryRow(ctx, `SELECT pg_postmaster_start_time()`).Scan(&f.from.server); err != nil {
		return nil, false, fmt.Errorf("feed of topic %s: %w", topic, err)
	}
	if from == "" {
		spot, fits = Beginning(), true
	} else {
		var kept feedPlace
		if err := json.Unmarshal([]byte(from), &kept); err != nil {
			return nil, false, fmt.Errorf("read place in topic %s: %w", topic, err)
		}
		f.at = place{snapshot: kept.Snapshot, floor: kept.Floor, fence: unboundedFence, windowEnd: kept.WindowEnd, position: kept.Position}
		newest := kept.Snapshot
		if kept.WindowEnd != snapshotOfNobody {
			newest = kept.WindowEnd
		}
		err := l.pool.QueryRow(ctx, `SELECT pg_snapshot_xmax($1::text::pg_snapshot) <= pg_snapshot_xmax(pg_current_snapshot())`,
			newest).Scan(&fits)
		if err != nil {
			return nil, false, fmt.Errorf("check place in topic %s: %w", topic, err)
		}
	}
	if from == "" || !fits {
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
			kept, err := json.Marshal(feedPlace{f.at.snapshot, f.at.floor, f.at.windowEnd, f.at.position})
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
