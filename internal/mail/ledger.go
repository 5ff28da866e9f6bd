package mail

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/migrate"
)

const (
	// ledgerKeep is how long a mail is known, from when it was first prepared. A job that is dead can be tried again for
	// thirty days.
	ledgerKeep       = 90 * 24 * time.Hour
	ledgerSweepEvery = time.Hour
	ledgerSweepMax   = 1000 // rows that one statement deletes

	// notePatience is how long the note that a mail was sent is tried when the database does not answer, and noteRetry how
	// often.
	notePatience = 10 * time.Second
	noteRetry    = 100 * time.Millisecond
)

var errTakenOver = errors.New("another process is at this mail")

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the ledger's table for migrate.Up.
func Migrations() migrate.Set {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return migrate.Set{Name: "mail", Schema: "public", FS: files}
}

// Ledger is a Sender that lets each mail through to another Sender once. The package's documentation has its states, and the
// one way to a second mail. It may be used from many goroutines and processes.
type Ledger struct {
	pool     *pgxpool.Pool
	next     Sender
	logger   *slog.Logger
	patience time.Duration
}

var _ Sender = (*Ledger)(nil)

// NewLedger returns the ledger in pool's database, before next. The database is the application's, to which Migrations were
// applied.
func NewLedger(pool *pgxpool.Pool, next Sender, logger *slog.Logger) *Ledger {
	return &Ledger{pool: pool, next: next, logger: logger, patience: notePatience}
}

// Send sends the mail unless it was sent before; then it returns nil at once. It is known by its ID without the host, and
// goes out with the ID that it was first prepared with. The errors are those of the next Sender, and ErrTemporary when the
// ledger cannot be written before the mail's last byte, or another process has prepared the mail meanwhile.
//
// After ErrUnsure the mail is unknown. It is sent again by whoever calls again.
func (l *Ledger) Send(ctx context.Context, m Message, last func(context.Context) error) error {
	e, err := l.prepare(ctx, m)
	switch {
	case err != nil:
		return fmt.Errorf("%w: prepare: %w", ErrTemporary, err)
	case e.state == stateSent:
		return nil
	case e.state == stateUnknown:
		l.logger.WarnContext(ctx, "whether a mail was sent is not known, it is sent again", slog.String("message_id", e.messageID))
	}
	m.ID = e.messageID
	begun := false
	err = l.next.Send(ctx, m, func(ctx context.Context) error {
		if err := l.begin(ctx, e); err != nil {
			return err
		}
		begun = true
		if last == nil {
			return nil
		}
		return last(ctx)
	})
	switch {
	case err == nil:
		l.note(ctx, e, `UPDATE public.mail_ledger SET state = 'sent', sent_at = clock_timestamp()
			WHERE mail = $1 AND state <> 'sent'`, e.mail)
	case begun && !errors.Is(err, ErrUnsure):
		l.note(ctx, e, `UPDATE public.mail_ledger SET state = 'prepared'
			WHERE mail = $1 AND epoch = $2 AND state = 'unknown'`, e.mail, e.epoch)
	}
	return err
}

const (
	stateUnknown = "unknown"
	stateSent    = "sent"
)

// entry is a mail as it was prepared.
type entry struct {
	mail      string
	messageID string
	state     string // before; a new one is prepared
	epoch     int64
}

func (l *Ledger) prepare(ctx context.Context, m Message) (entry, error) {
	e := entry{messageID: m.ID}
	e.mail, _, _ = strings.Cut(m.ID, "@")
	err := l.pool.QueryRow(ctx, `INSERT INTO public.mail_ledger AS l (mail, message_id) VALUES ($1, $2)
		ON CONFLICT (mail) DO UPDATE SET epoch = l.epoch + 1 WHERE l.state <> 'sent'
		RETURNING message_id, state, epoch`, e.mail, e.messageID).Scan(&e.messageID, &e.state, &e.epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		e.state, err = stateSent, nil
	}
	return e, err
}

// begin notes, before the last byte, that from here on the mail may be sent.
func (l *Ledger) begin(ctx context.Context, e entry) error {
	tag, err := l.pool.Exec(ctx, `UPDATE public.mail_ledger SET state = 'unknown'
		WHERE mail = $1 AND epoch = $2 AND state <> 'sent'`, e.mail, e.epoch)
	switch {
	case err != nil:
		return fmt.Errorf("note mail: %w", err)
	case tag.RowsAffected() == 0:
		return errTakenOver
	}
	return nil
}

// note stores what became of the mail. It is not cut short with ctx: the mail is out. When it does not succeed the mail stays
// unknown, which is no reason to call a mail that was sent a failure.
func (l *Ledger) note(ctx context.Context, e entry, sql string, args ...any) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.patience)
	defer cancel()
	for {
		_, err := l.pool.Exec(ctx, sql, args...)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			l.logger.WarnContext(ctx, "what became of a mail could not be noted", slog.String("message_id", e.messageID),
				slog.Any("error", err))
			return
		case <-time.After(noteRetry):
		}
	}
}

// Maintain deletes mails that were known for long enough, again and again, until ctx ends. Any number of processes may do so.
func (l *Ledger) Maintain(ctx context.Context) error {
	tick := time.NewTicker(ledgerSweepEvery)
	defer tick.Stop()
	for {
		if _, err := l.Sweep(ctx); err != nil && ctx.Err() == nil {
			l.logger.WarnContext(ctx, "mail ledger is not swept, will go on by itself", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep deletes mails that were first prepared 90 days ago, and returns how many. It looks at no younger ones.
func (l *Ledger) Sweep(ctx context.Context) (n int64, err error) {
	for deleted := int64(ledgerSweepMax); deleted == ledgerSweepMax; n += deleted {
		tag, err := l.pool.Exec(ctx, sweepSQL, ledgerKeep, ledgerSweepMax)
		if err != nil {
			return n, fmt.Errorf("sweep mail ledger: %w", err)
		}
		deleted = tag.RowsAffected()
	}
	return n, nil
}

const sweepSQL = `DELETE FROM public.mail_ledger WHERE mail = ANY (ARRAY(
	SELECT mail FROM public.mail_ledger WHERE prepared_at < now() - $1::interval
	ORDER BY prepared_at LIMIT $2 FOR UPDATE SKIP LOCKED))`
