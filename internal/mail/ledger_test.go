package mail

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/pgtest"
)

// ledgerOn returns a Ledger before a Sender, in a database of the test's own.
func ledgerOn(t *testing.T, next Sender) *Ledger {
	t.Helper()
	return NewLedger(pgtest.New(t, Migrations()), next, slog.New(slog.DiscardHandler))
}

// stateOf is what the ledger has of the one mail that it knows; "" for none.
func (l *Ledger) stateOf(t *testing.T) (state string) {
	t.Helper()
	err := l.pool.QueryRow(t.Context(), `select state from mail_ledger`).Scan(&state)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	return state
}

func (l *Ledger) expectState(t *testing.T, want string) {
	t.Helper()
	if got := l.stateOf(t); got != want {
		t.Errorf("the mail is %q, want %q", got, want)
	}
}

// TestMailKeepsItsMessageID: that of its first attempt, though PUBLIC_URL has changed since.
func TestMailKeepsItsMessageID(t *testing.T) {
	t.Parallel()
	var ids []string
	l := ledgerOn(t, scripted(func(_ context.Context, m Message, _ func(context.Context) error) error {
		if ids = append(ids, m.ID); len(ids) == 1 {
			return ErrTemporary
		}
		return nil
	}))
	for _, url := range []string{testURL, "https://elsewhere.example"} {
		post, err := NewPost(l, url)
		if err != nil {
			t.Fatal(err)
		}
		_ = post.Welcome(t.Context(), testTo, testEvent) // the first fails
	}
	if len(ids) != 2 || ids[0] != ids[1] || ids[0] != testEvent+".welcome@post.example.com" {
		t.Errorf("the attempts had the ids %q", ids)
	}
}

// scripted is a Sender that does as it is told.
type scripted func(ctx context.Context, m Message, last func(context.Context) error) error

func (s scripted) Send(ctx context.Context, m Message, last func(context.Context) error) error {
	return s(ctx, m, last)
}

// TestSentMailIsNotSentAgain: not by a redelivery, nor under another PUBLIC_URL; another kind of mail for the same event is.
func TestSentMailIsNotSentAgain(t *testing.T) {
	t.Parallel()
	b := &backend{}
	l := ledgerOn(t, newTestSMTP(t, "smtp://"+serve(t, b, listen(t), nil)))
	post := newTestPost(t, l)
	for range 3 {
		if err := post.Verification(t.Context(), testTo, testLink, testEvent); err != nil {
			t.Fatal(err)
		}
	}
	l.expectState(t, stateSent)
	b.received(t, 1)
	elsewhere, err := NewPost(l, "https://elsewhere.example")
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Verification(t.Context(), testTo, "https://elsewhere.example/verify", testEvent); err != nil {
		t.Fatal(err)
	}
	b.received(t, 1)
	if err := post.Welcome(t.Context(), testTo, testEvent); err != nil {
		t.Fatal(err)
	}
	b.received(t, 2)
}

// TestServerThatClosesAtAStep: at each step before the answer to the last byte in turn. Only there it is unknown whether the
// mail was taken; anywhere else it was not, and is sent by the next attempt. After it, it is sent by whoever decides so.
func TestServerThatClosesAtAStep(t *testing.T) {
	t.Parallel()
	until := func(command string) func(*conversation) {
		return func(c *conversation) {
			c.say("220 mail.test")
			for heard := c.hear(); heard != "" && !strings.HasPrefix(heard, command); heard = c.hear() {
				c.say("250 ok")
			}
		}
	}
	steps := map[string]struct {
		talk  func(*conversation)
		kind  error
		state string
	}{
		"before the greeting":       {func(*conversation) {}, ErrTemporary, "prepared"},
		"at EHLO":                   {until("EHLO"), ErrTemporary, "prepared"},
		"at MAIL":                   {until("MAIL"), ErrTemporary, "prepared"},
		"at RCPT":                   {until("RCPT"), ErrTemporary, "prepared"},
		"at DATA":                   {until("DATA"), ErrTemporary, "prepared"},
		"refused at RCPT":           {func(c *conversation) { until("RCPT")(c); c.say("550 5.1.1 no"); c.hearOut() }, ErrRefused, "prepared"},
		"refused at the last byte":  {func(c *conversation) { c.untilData(); c.hearMail(); c.say("554 5.6.0 no"); c.hearOut() }, ErrRefused, "prepared"},
		"not now, at the last byte": {func(c *conversation) { c.untilData(); c.hearMail(); c.say("452 4.3.1 full"); c.hearOut() }, ErrTemporary, "prepared"},
		"after the last byte":       {func(c *conversation) { c.untilData(); c.hearMail() }, ErrUnsure, "unknown"},
		"with nonsense after it":    {func(c *conversation) { c.untilData(); c.hearMail(); c.say("?"); c.hearOut() }, ErrUnsure, "unknown"},
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := ledgerOn(t, newTestSMTP(t, "smtp://"+script(t, step.talk)))
			m := testMessage(t)
			if err := l.Send(t.Context(), m, nil); !errors.Is(err, step.kind) {
				t.Fatalf("got %v, want %v", err, step.kind)
			}
			l.expectState(t, step.state)
			b := &backend{}
			l.next = newTestSMTP(t, "smtp://"+serve(t, b, listen(t), nil))
			for range 2 {
				if err := l.Send(t.Context(), m, nil); err != nil {
					t.Fatal(err)
				}
			}
			l.expectState(t, stateSent)
			if got := b.received(t, 1)[0]; !strings.Contains(got.data, "<"+m.ID+">") || !strings.Contains(got.data, "Confirm your email") {
				t.Errorf("another mail:\n%s", got.data)
			}
		})
	}
}

// TestLastByteIsNoted: the note stands before the last byte is sent, and where it cannot be written the mail is not sent.
func TestLastByteIsNoted(t *testing.T) {
	t.Parallel()
	var l *Ledger
	heard := make(chan string, 1)
	l = ledgerOn(t, newTestSMTP(t, "smtp://"+script(t, func(c *conversation) {
		c.untilData()
		heard <- c.hearOut()
	})))
	rows := l.pool
	broken := pgtest.Open(t, rows.Config().ConnString())
	l.pool = broken
	l.next = withLast(l.next, func() error { broken.Close(); return nil }, nil)
	err := l.Send(t.Context(), testMessage(t), nil)
	expect(t, err, ErrTemporary, StepContent, 0, "")
	if !strings.Contains(err.Error(), "held back: note mail") {
		t.Errorf("it is not said why: %v", err)
	}
	if content := <-heard; strings.HasSuffix(content, "\r\n.\r\n") || strings.Contains(content, "QUIT") {
		t.Error("the last byte was sent")
	}
	l.pool = rows
	l.expectState(t, "prepared")

	l.next = scripted(func(ctx context.Context, _ Message, last func(context.Context) error) error {
		l.expectState(t, "prepared")
		err := last(ctx)
		l.expectState(t, stateUnknown)
		return err
	})
	if err := l.Send(t.Context(), testMessage(t), nil); err != nil {
		t.Fatal(err)
	}
	l.expectState(t, stateSent)
}

// withLast is a Sender that has something done around the note of the last byte.
func withLast(next Sender, before, after func() error) Sender {
	return scripted(func(ctx context.Context, m Message, last func(context.Context) error) error {
		return next.Send(ctx, m, func(ctx context.Context) error {
			if before != nil {
				if err := before(); err != nil {
					return err
				}
			}
			if err := last(ctx); err != nil || after == nil {
				return err
			}
			return after()
		})
	})
}

// TestOnlyTheLastToPrepareSendsTheLastByte: a process that stood still at a mail, and was taken for dead, wakes up when
// another is at it, and when another has sent it.
func TestOnlyTheLastToPrepareSendsTheLastByte(t *testing.T) {
	t.Parallel()
	b := &backend{}
	smtp := newTestSMTP(t, "smtp://"+serve(t, b, listen(t), nil))
	l := ledgerOn(t, smtp)
	paused := func() (goOn chan<- struct{}, ended <-chan error) {
		resume, out, at := make(chan struct{}), make(chan error, 1), make(chan struct{})
		sleeper := NewLedger(l.pool, withLast(smtp, func() error { close(at); <-resume; return nil }, nil), l.logger)
		go func() { out <- sleeper.Send(t.Context(), testMessage(t), nil) }()
		<-at
		return resume, out
	}
	firstGoOn, first := paused()
	secondGoOn, second := paused()
	close(firstGoOn)
	if err := <-first; !errors.Is(err, ErrTemporary) || !strings.Contains(err.Error(), "another process is at this mail") {
		t.Errorf("while another is at it: %v", err)
	}
	b.received(t, 0)
	if err := l.Send(t.Context(), testMessage(t), nil); err != nil {
		t.Fatal(err)
	}
	close(secondGoOn)
	if err := <-second; !errors.Is(err, ErrTemporary) {
		t.Errorf("when another has sent it: %v", err)
	}
	l.expectState(t, stateSent)
	b.received(t, 1)
	if err := l.Send(t.Context(), testMessage(t), nil); err != nil {
		t.Fatal(err)
	}
	b.received(t, 1)
}

// TestSentMailWhoseNoteIsLost is a success all the same: what failed is the note. It stays unknown.
func TestSentMailWhoseNoteIsLost(t *testing.T) {
	t.Parallel()
	b := &backend{}
	l := ledgerOn(t, newTestSMTP(t, "smtp://"+serve(t, b, listen(t), nil)))
	rows := l.pool
	broken := pgtest.Open(t, rows.Config().ConnString())
	l.pool, l.patience = broken, time.Millisecond
	l.next = withLast(l.next, nil, func() error { broken.Close(); return nil })
	if err := l.Send(t.Context(), testMessage(t), nil); err != nil {
		t.Errorf("got %v", err)
	}
	b.received(t, 1)
	l.pool = rows
	l.expectState(t, stateUnknown)
}

// TestNoteWaitsForTheDatabase: it is written when the database is back, though the caller's time is over.
func TestNoteWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	l := ledgerOn(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	l.next = scripted(func(ctx context.Context, _ Message, last func(context.Context) error) error {
		err := last(ctx)
		// The sessions are cut when the mail is out, and so is the caller's patience.
		l.cutSessions(t)
		cancel()
		return err
	})
	if err := l.Send(ctx, testMessage(t), nil); err != nil {
		t.Fatal(err)
	}
	l.expectState(t, stateSent)
}

func (l *Ledger) cutSessions(t *testing.T) {
	t.Helper()
	config := l.pool.Config().ConnConfig
	other, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(t.Context())
	if _, err := other.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
		where datname = current_database() and pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
}

// TestLedgerAndMailbox: the local mailbox goes through the same states.
func TestLedgerAndMailbox(t *testing.T) {
	t.Parallel()
	mailbox, err := OpenMailbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := ledgerOn(t, mailbox)
	refusal := errors.New("no")
	l.next = withLast(mailbox, nil, func() error { return refusal })
	if err := l.Send(t.Context(), testMessage(t), nil); !errors.Is(err, refusal) {
		t.Errorf("got %v", err)
	}
	l.expectState(t, "prepared")
	l.next = mailbox
	for range 2 {
		if err := l.Send(t.Context(), testMessage(t), nil); err != nil {
			t.Fatal(err)
		}
	}
	l.expectState(t, stateSent)
	if entries, err := mailbox.List(); err != nil || len(entries) != 1 {
		t.Errorf("the mailbox has %+v, %v", entries, err)
	}
}

// fill stores mails that were prepared so long ago.
func fill(t *testing.T, pool *pgxpool.Pool, n int, prefix, age string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `insert into mail_ledger (mail, message_id, state, prepared_at, sent_at)
		select $2::text || i, 'x@y', (array['prepared', 'unknown', 'sent'])[i % 3 + 1], now() - $3::interval,
			case when i % 3 = 2 then now() end
		from generate_series(1, $1) as i`, n, prefix, age); err != nil {
		t.Fatal(err)
	}
}

// TestLedgerIsSwept: of what is 90 days old, whatever its state, and of nothing else.
func TestLedgerIsSwept(t *testing.T) {
	t.Parallel()
	l := ledgerOn(t, nil)
	fill(t, l.pool, 2*ledgerSweepMax+5, "old", "90 days 1 minute")
	fill(t, l.pool, 30, "young", "89 days")
	if n, err := l.Sweep(t.Context()); n != 2*ledgerSweepMax+5 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	var left int
	if err := l.pool.QueryRow(t.Context(), `select count(*) from mail_ledger where mail like 'young%'`).Scan(&left); err != nil || left != 30 {
		t.Errorf("%d are left, %v", left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Maintain(ctx); err != nil {
		t.Error(err)
	}
}

// TestSweepingTheLedgerLooksAtOldRowsOnly: 20,000 live ones are not read.
func TestSweepingTheLedgerLooksAtOldRowsOnly(t *testing.T) {
	t.Parallel()
	l := ledgerOn(t, nil)
	fill(t, l.pool, 20_000, "live", "1 day")
	fill(t, l.pool, 20, "old", "100 days")
	if _, err := l.pool.Exec(t.Context(), `vacuum analyze mail_ledger`); err != nil {
		t.Fatal(err)
	}
	rows, err := l.pool.Query(t.Context(), `explain (analyze, costs off, timing off, summary off) `+sweepSQL, ledgerKeep, ledgerSweepMax)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	if !strings.Contains(plan, "using mail_ledger_prepared_at") || strings.Contains(plan, "Seq Scan") {
		t.Errorf("the plan is\n%s", plan)
	}
}
