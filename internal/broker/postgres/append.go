package postgres

import (
	"context"
	stdsql "database/sql"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Append queues the INSERT of messages into a topic, in their order, on a batch that the caller sends within its
// transaction: one statement for all of them. It goes through watermill-sql's publisher with a schema of our own. Nothing
// is sent here, so no context is taken; the one of SendBatch holds.
func (l *Log) Append(batch *pgx.Batch, topic string, messages ...*message.Message) error {
	if len(messages) == 0 {
		return nil
	}
	publisher, err := sql.NewPublisher(executor{batch: batch}, sql.PublisherConfig{SchemaAdapter: schema{l}}, watermill.NopLogger{})
	if err != nil {
		return fmt.Errorf("make publisher: %w", err)
	}
	if err := publisher.Publish(topic, messages...); err != nil {
		return fmt.Errorf("append to topic %s: %w", topic, err)
	}
	return nil
}

// executor is what watermill-sql's publisher writes to. v3 calls nothing but ExecContext, with a background
// context; queueing lets the statement travel with the caller's COMMIT, under the caller's context.
type executor struct {
	sql.ContextExecutor // its other methods are never called
	batch               *pgx.Batch
}

// ExecContext implements sql.ContextExecutor.
func (e executor) ExecContext(_ context.Context, query string, args ...any) (stdsql.Result, error) {
	e.batch.Queue(query, args...)
	return stdsql.Result(nil), nil
}

// schema is the layout of a topic's table for watermill-sql. Only its publishing half is used; reading is ours.
type schema struct{ log *Log }

// valuesMax is how many rows are inserted with VALUES. A few are faster so; each number of rows is a statement of its own
// to plan and keep, so more of them go through unnest.
const valuesMax = 8

// InsertQuery implements sql.SchemaAdapter.
func (s schema) InsertQuery(topic string, messages message.Messages) (sql.Query, error) {
	if !topicPattern.MatchString(topic) {
		return sql.Query{}, fmt.Errorf("%w: %q", ErrTopicName, topic)
	}
	ids := make([]uuid.UUID, len(messages))
	metadata := make([]string, len(messages))
	payloads := make([][]byte, len(messages))
	slots := make([]int16, len(messages))
	for i, m := range messages {
		id, err := uuid.Parse(m.UUID)
		if err != nil {
			return sql.Query{}, fmt.Errorf("message id: %w", err)
		}
		encoded, err := json.Marshal(m.Metadata)
		if err != nil {
			return sql.Query{}, fmt.Errorf("encode metadata: %w", err)
		}
		ids[i], metadata[i], payloads[i] = id, string(encoded), m.Payload
		slots[i] = slotOf(keyOf(m))
	}
	insert := `INSERT INTO ` + s.log.topicTable(topic) + ` (slot, id, metadata, payload) `
	if len(messages) > valuesMax {
		return sql.Query{
			Query: insert + `SELECT slot, id, metadata, payload FROM unnest($1::smallint[], $2::uuid[], $3::text[], $4::bytea[])
				WITH ORDINALITY AS u (slot, id, metadata, payload, ordinality) ORDER BY ordinality`,
			Args: []any{slots, ids, metadata, payloads},
		}, nil
	}
	var rows []string
	var args []any
	for i := range messages {
		n := len(args)
		rows = append(rows, fmt.Sprintf("($%d, $%d, $%d, $%d)", n+1, n+2, n+3, n+4))
		args = append(args, slots[i], ids[i], metadata[i], payloads[i])
	}
	return sql.Query{Query: insert + `VALUES ` + strings.Join(rows, ", "), Args: args}, nil
}

// keyAttribute is the CloudEvents extension attribute that carries a message's key.
const keyAttribute = "partitionkey"

// typeAttribute is the CloudEvents attribute that carries an event's type.
const typeAttribute = "type"

// keyOf is what a message is ordered by. One without a key is ordered by its id, and so in nobody's way.
func keyOf(m *message.Message) string {
	if key := m.Metadata.Get(keyAttribute); key != "" {
		return key
	}
	return m.UUID
}

// SelectQuery implements sql.SchemaAdapter. Nothing calls it: the stock subscriber is not used.
func (schema) SelectQuery(string, string, sql.OffsetsAdapter) sql.Query { return sql.Query{} }

// UnmarshalMessage implements sql.SchemaAdapter. Nothing calls it.
func (schema) UnmarshalMessage(sql.Scanner) (sql.Row, error) { return sql.Row{}, nil }

// SchemaInitializingQueries implements sql.SchemaAdapter. Provision makes the tables.
func (schema) SchemaInitializingQueries(string) []sql.Query { return nil }

// SubscribeIsolationLevel implements sql.SchemaAdapter. Nothing calls it.
func (schema) SubscribeIsolationLevel() stdsql.IsolationLevel { return stdsql.LevelDefault }
