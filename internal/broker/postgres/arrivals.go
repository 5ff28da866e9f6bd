package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postbus/internal/broker"
)

// What arrives from another broker is stored in batches, each in one statement with the place in the broker's topic that
// follows it. So a place is never ahead of what was stored, nor behind it, and a process that is killed repeats nothing. An
// event that the broker brings twice, since it was published twice, is known by its id; the first time counts.
//
// One process reads a topic, so that its events are stored in the order in which they were read. Whoever stores a batch
// has the topic for as long as a lease from then on; nobody else may, and whoever read an older version of the row may not
// either. So an idle topic is nobody's and costs nothing. It is the version that keeps two processes apart, not the clock.
// A server that takes another's place may give a version out again, so Store names the server too (server.go), and where the
// partition was to be read on: what was read from elsewhere than the stored place leaves a gap.

// Intake is a process's part in what arrives of one topic. It is for one goroutine.
type Intake struct {
	log     *Log
	topic   string
	owner   string
	broker  string
	version int64
	server  time.Time         // that the version was read on
	stored  map[string]string // how far each partition is stored there
	// Places are where the topic's partitions are to be read on, as Store was told.
	Places map[string]string
	// Taken tells that another process is storing what arrives.
	Taken bool
}

// NewIntakeOwner names this process among those that store what arrives.
func NewIntakeOwner() string { return ownerName() }

// Intake returns where a topic is to be read on; owner names this process, and identity the broker that it reads from. Where
// consumers were handed over (HandOver) only what comes from their broker is stored, and for any other one the topic is taken. It
// only reads, unless it is the first to ask.
func (l *Log) Intake(ctx context.Context, topic, owner, identity string) (*Intake, error) {
	i := &Intake{log: l, topic: topic, owner: owner, broker: identity}
	var places []byte
	read := func() error {
		return l.pool.QueryRow(ctx, `SELECT `+l.lifeSQL()+`, version, places,
				broker <> $3 OR coalesce(owner <> $2 AND lease_until > clock_timestamp(), false)
			FROM `+l.table("intakes")+` WHERE topic = $1`, topic, owner, identity).Scan(&i.server, &i.version, &places, &i.Taken)
	}
	if err := l.beginLife(ctx); err != nil {
		return nil, err
	}
	err := read()
	if errors.Is(err, pgx.ErrNoRows) {
		_, err = l.pool.Exec(ctx, `INSERT INTO `+l.table("intakes")+` (topic) VALUES ($1) ON CONFLICT DO NOTHING`, topic)
		if err == nil {
			err = read()
		}
	}
	if err == nil {
		err = json.Unmarshal(places, &i.Places)
	}
	if err != nil {
		return nil, fmt.Errorf("read intake of topic %s: %w", topic, err)
	}
	i.stored = maps.Clone(i.Places)
	return i, nil
}

// Store appends the messages that are new to the topic, in their order, and notes that the partition is to be read on at
// place, in one transaction. It returns how many were new, and ErrIntakeTaken, having stored nothing, when another process
// is at it, or has been. It fails when the server was started anew or replaced since the intake was read. After any error the
// intake is of no use.
func (i *Intake) Store(ctx context.Context, partition, place string, messages []*message.Message) (fresh int, err error) {
	a, err := arrived(messages)
	if err != nil {
		return 0, fmt.Errorf("store arrivals of topic %s: %w", i.topic, err)
	}
	moved := false
	l := i.log
	var before *string // nil for a partition that nothing was read of
	if stored, ok := i.stored[partition]; ok {
		before = &stored
	}
	// The topic's rows are written last: their transaction has its id by then, and whoever has the row of intakes goes first.
	err = l.pool.QueryRow(ctx, `WITH
		moved AS (
			UPDATE `+l.table("intakes")+` SET version = version + 1, owner = $3, lease_until = clock_timestamp() + $4,
				places = places || jsonb_build_object($5::text, $6::text), moved_at = clock_timestamp()
			WHERE topic = $1 AND version = $2 AND broker = $11 AND (owner IS NULL OR owner = $3 OR lease_until < clock_timestamp())
				AND places ->> $5 IS NOT DISTINCT FROM $12::text AND `+l.sameServer("$13", "NULL")+`
			RETURNING topic),
		incoming AS (
			SELECT * FROM unnest($7::smallint[], $8::uuid[], $9::text[], $10::bytea[])
				WITH ORDINALITY AS u (slot, id, metadata, payload, ordinality)
			WHERE EXISTS (SELECT FROM moved)),
		fresh AS (
			INSERT INTO `+l.table("arrivals")+` (event_id, topic) SELECT id, $1 FROM incoming ORDER BY ordinality
			ON CONFLICT DO NOTHING RETURNING event_id),
		stored AS (
			INSERT INTO `+l.topicTable(i.topic)+` (slot, id, metadata, payload)
			SELECT slot, id, metadata, payload FROM incoming JOIN fresh ON event_id = id ORDER BY ordinality
			RETURNING 1)
		SELECT EXISTS (SELECT FROM moved), (SELECT count(*) FROM stored)`,
		i.topic, i.version, i.owner, l.config.Lease, partition, place, a.slots, a.ids, a.metadata, a.payloads,
		i.broker, before, i.server).Scan(&moved, &fresh)
	switch {
	case err != nil:
		return 0, fmt.Errorf("store arrivals of topic %s: %w", i.topic, err)
	case !moved:
		return 0, ErrIntakeTaken
	}
	i.version++
	i.stored[partition] = place
	if fresh > 0 {
		l.Wake(i.topic)
	}
	return fresh, nil
}

// Release lets another process go on at once.
func (i *Intake) Release(ctx context.Context) error {
	_, err := i.log.pool.Exec(ctx, `UPDATE `+i.log.table("intakes")+` SET owner = NULL, lease_until = NULL
		WHERE topic = $1 AND owner = $2`, i.topic, i.owner)
	if err != nil {
		return fmt.Errorf("release intake of topic %s: %w", i.topic, err)
	}
	return nil
}

// columnsOf are messages as the columns of a topic's table.
type columnsOf struct {
	slots    []int16
	ids      []uuid.UUID
	metadata []string
	payloads [][]byte
}

// foreignIDs is the name space of ids that are no UUIDs.
var foreignIDs = uuid.MustParse("6e5c7f0a-52a6-4b8c-9f0d-6c1d5a0e7b11")

// arrived puts messages into columns, without those that come twice. Anybody may publish to a broker: an id that is no UUID
// becomes one, made of the source and the id, which name an event (CloudEvents has it so).
func arrived(messages []*message.Message) (c columnsOf, err error) {
	seen := make(map[uuid.UUID]bool, len(messages))
	for _, m := range messages {
		id, err := uuid.Parse(m.UUID)
		if err != nil {
			id = uuid.NewSHA1(foreignIDs, []byte(m.Metadata.Get(sourceAttribute)+"\n"+m.UUID))
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		metadata := withoutNUL(m.Metadata)
		encoded, err := json.Marshal(metadata)
		if err != nil {
			return columnsOf{}, fmt.Errorf("encode metadata: %w", err)
		}
		key := metadata.Get(keyAttribute)
		if key == "" {
			key = id.String()
		}
		c.slots = append(c.slots, slotOf(key))
		c.ids = append(c.ids, id)
		c.metadata = append(c.metadata, string(encoded))
		payload := []byte(m.Payload)
		if payload == nil {
			payload = []byte{}
		}
		c.payloads = append(c.payloads, payload)
	}
	return c, nil
}

// withoutNUL is metadata that can be parked: Postgres has no NUL in its text.
func withoutNUL(metadata message.Metadata) message.Metadata {
	clean := make(message.Metadata, len(metadata))
	for name, value := range metadata {
		clean[strings.ReplaceAll(name, "\x00", "\uFFFD")] = strings.ReplaceAll(value, "\x00", "\uFFFD")
	}
	return clean
}

// sourceAttribute is the CloudEvents attribute that tells where an event was made.
const sourceAttribute = "source"

// sweepArrivals forgets events that were made, and arrived, long ago; it goes about it like sweepInbox.
func (l *Log) sweepArrivals(ctx context.Context) (int64, error) {
	n, err := l.arrivalsSweep.run(ctx, l.pool, sweepSQL{
		slice: sliceSQL(l.table("arrivals"), "topic", `WHERE arrived_at < now() - $4::interval`),
		rest: restSQL(l.table("arrivals"), "arrived_at",
			`substr(event_id::text, 15, 1) <> '7' AND arrived_at < now() - $2::interval`),
		sliceAges: []any{broker.Remembered}, restAge: broker.Remembered,
	})
	if err != nil {
		return n, fmt.Errorf("sweep arrivals: %w", err)
	}
	return n, nil
}
