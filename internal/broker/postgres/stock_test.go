package postgres

import (
	"context"
	stdsql "database/sql"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the stock subscriber reads through database/sql

	"postbus/internal/servertest"
)

// stockReader reads as the subscriber of watermill-sql v3 does, with its own queries, in the transactions in which it
// runs them; a subscriber itself cannot be stopped between two steps.
type stockReader struct{ db *stdsql.DB }

const stockTopic, stockGroup = "stock", "reader"

// The adapters are the stock ones. Only the payload's type is not the default, since JSON is not what is looked at
// here.
var (
	stockSchema = sql.DefaultPostgreSQLSchema{GeneratePayloadType: func(string) string { return "BYTEA" }}
	stockOffset = sql.DefaultPostgreSQLOffsetsAdapter{}
)

// read does what the subscriber's loop does once; the last read goes on until there is nothing for it.
func (r *stockReader) read(ctx context.Context, last bool) (seen []string, err error) {
	for {
		found, err := r.query(ctx)
		if err != nil {
			return nil, err
		}
		seen = append(seen, found...)
		if !last || len(found) == 0 {
			return seen, nil
		}
	}
}

func (r *stockReader) query(ctx context.Context) (seen []string, err error) {
	tx, err := r.db.BeginTx(ctx, &stdsql.TxOptions{Isolation: stockSchema.SubscribeIsolationLevel()})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	query := stockSchema.SelectQuery(stockTopic, stockGroup, stockOffset)
	rows, err := tx.QueryContext(ctx, query.Query, query.Args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var last sql.Row
	for rows.Next() {
		if last, err = stockSchema.UnmarshalMessage(rows); err != nil {
			return nil, err
		}
		seen = append(seen, string(last.Msg.Payload))
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if len(seen) > 0 {
		ack := stockOffset.AckMessageQuery(stockTopic, last, stockGroup)
		if _, err := tx.ExecContext(ctx, ack.Query, ack.Args...); err != nil {
			return nil, err
		}
	}
	return seen, tx.Commit()
}

// TestInterleavingsCatchTheStockSubscriber is the test of TestEveryInterleavingOfTwoWritersAndAReader: what that asks
// for is not granted by itself. The stock subscriber sorts by transaction id, so it turns two commits of one aggregate
// round when the later one has the older id.
func TestInterleavingsCatchTheStockSubscriber(t *testing.T) {
	t.Parallel()
	servertest.Thorough(t)
	plans := played()
	var disordered, lost, extra int
	var first string
	playAll(t, setUpStock, plans, func(plan schedule, o outcome) {
		if o.lost() {
			lost++
		}
		if o.extra() {
			extra++
		}
		if !o.disordered() {
			return
		}
		if disordered++; first == "" && !o.lost() {
			first = plan.String()
		}
	})
	t.Logf("%d schedules: %d in the wrong order, %d with losses, %d with extras; the first in the wrong order is %s",
		len(plans), disordered, lost, extra, first)
	if first == "" {
		t.Error("no schedule makes the stock subscriber deliver a key's events in the wrong order, so the schedules are too tame")
	}
}

func setUpStock(t *testing.T, s *stage) {
	t.Helper()
	db, err := stdsql.Open("pgx", s.log.pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	queries := append(stockSchema.SchemaInitializingQueries(stockTopic), stockOffset.SchemaInitializingQueries(stockTopic)...)
	for _, q := range append(queries, stockOffset.BeforeSubscribingQueries(stockTopic, stockGroup)...) {
		if _, err := db.ExecContext(t.Context(), q.Query, q.Args...); err != nil {
			t.Fatal(err)
		}
	}
	s.table = stockSchema.MessagesTable(stockTopic)
	s.reader = &stockReader{db: db}
	s.insert = func(ctx context.Context, conn *pgx.Conn, messages []*message.Message) error {
		q, err := stockSchema.InsertQuery(stockTopic, messages)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, q.Query, q.Args...)
		return err
	}
}
