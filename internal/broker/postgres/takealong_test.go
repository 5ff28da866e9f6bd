package postgres

import (
	"errors"
	"fmt"
	"testing"
)

// TestTakenBytesAreLimited, also when the events are few; then nothing has changed.
func TestTakenBytesAreLimited(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	execute(t, l.app, `insert into postbus.topic_user (slot, id, metadata, payload)
		select 0, gen_random_uuid(), '{}', convert_to(repeat('x', 1 << 20), 'UTF8') from generate_series(1, `+fmt.Sprint(takenBytesMax>>20)+`)`)
	var unfinished *UnfinishedError
	if _, err := l.app.HandOver(t.Context(), l.inbound, relayOfUsers, "one"); !errors.As(err, &unfinished) || unfinished.Bytes != takenBytesMax {
		t.Errorf("with too much left: %v", err)
	}
	if identity, over, err := l.app.ReadsOver(t.Context()); err != nil || over {
		t.Errorf("the consumers read over %q, %v", identity, err)
	}
	execute(t, l.app, `delete from postbus.topic_user where position = 1`)
	if c := l.handOver(); c.Taken[0].Events != takenBytesMax>>20-1 {
		t.Errorf("it did %+v", c)
	}
}

// TestAnyMetadataAreTakenAlong, also what Postgres has no text for.
func TestAnyMetadataAreTakenAlong(t *testing.T) {
	t.Parallel()
	l := newTwoLogs(t)
	const key = `a\u0000` // which is no NUL
	all := eventsOf(key, 1, 2)
	all[0].Metadata.Set("note", "\x00")
	publish(t, l.app, all...)
	l.handOver()
	var lines int
	err := l.app.pool.QueryRow(t.Context(), `select count(*) from inbound.parked where key = $1`, key).Scan(&lines)
	if err != nil || lines != len(all) {
		t.Errorf("%d are in the line of their key, %v", lines, err)
	}
	l.want(l.reads(nil), all...)
}
