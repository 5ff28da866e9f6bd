package e2e_test

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"

	"postbus/internal/localpg"
)

// connect opens the site's database, which may be starting again. The caller closes the connection.
func (s *site) connect() (conn *pgx.Conn) {
	s.t.Helper()
	until(s.t, "the database is open", func() bool {
		var err error
		conn, err = pgx.Connect(context.Background(), s.databaseURL())
		return err == nil
	})
	return conn
}

func (s *site) close(conn *pgx.Conn) {
	s.t.Helper()
	if err := conn.Close(context.Background()); err != nil {
		s.t.Errorf("close the database: %v", err)
	}
}

// texts returns the first column of a query, which is text.
func (s *site) texts(query string) []string {
	s.t.Helper()
	conn := s.connect()
	defer s.close(conn)
	return s.textsOf(conn, query)
}

func (s *site) textsOf(conn *pgx.Conn, query string) []string {
	s.t.Helper()
	rows, err := conn.Query(context.Background(), query)
	if err != nil {
		s.t.Fatalf("query the database: %v", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Fatalf("query the database: %v", err)
	}
	return all
}

// textsAlone is texts when no program runs, and so no private Postgres either.
func (s *site) textsAlone(query string) []string {
	s.t.Helper()
	server, err := localpg.Start(context.Background(), localpg.Options{Dir: s.dir + "/postgres"})
	if err != nil {
		s.t.Fatalf("start the private Postgres: %v", err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			s.t.Errorf("stop the private Postgres: %v", err)
		}
	}()
	return s.texts(query)
}

// dump returns every row of every table as text, each behind its table's name. What is binary is in hexadecimal digits.
func (s *site) dump() string {
	s.t.Helper()
	conn := s.connect()
	defer s.close(conn)
	var out strings.Builder
	for _, table := range s.textsOf(conn, `SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
		WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1`) {
		for _, row := range s.textsOf(conn, fmt.Sprintf(`SELECT r::text FROM %s r`, table)) {
			fmt.Fprintf(&out, "%s %s\n", table, row)
		}
	}
	return out.String()
}

// wantEmptyDir makes sure that nothing has been made in the data directory.
func (s *site) wantEmptyDir() {
	s.t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) > 0 {
		s.t.Errorf("the data directory has %v (%v), want nothing", entries, err)
	}
}
