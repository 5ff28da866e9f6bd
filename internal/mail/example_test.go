package mail_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbus/internal/mail"
	"postbus/internal/migrate"
)

var (
	ctx    = context.Background()
	pool   *pgxpool.Pool
	logger = slog.New(slog.DiscardHandler)
)

// printer is a Sender that shows what it is given.
type printer struct{}

func (printer) Send(_ context.Context, m mail.Message, _ func(context.Context) error) error {
	fmt.Println(m.To)
	fmt.Println(m.Subject)
	fmt.Println("<" + m.ID + ">")
	return nil
}

func ExamplePost_Verification() {
	post, err := mail.NewPost(printer{}, "https://post.example.com")
	if err != nil {
		fmt.Println(err)
		return
	}
	link := "https://post.example.com/verify?token=abc"
	if err := post.Verification(context.Background(), "ada@example.org", link, "event-1"); err != nil {
		fmt.Println(err)
	}
	// Output:
	// ada@example.org
	// Confirm your email address
	// <event-1.verification@post.example.com>
}

func ExampleParseURL() {
	server, err := mail.ParseURL("smtps://postbus:not%20printed@mail.example.com")
	fmt.Println(server, err)
	_, err = mail.ParseURL("smtps://postbus@mail.example.com")
	fmt.Println(err)
	// Output:
	// implicit TLS to mail.example.com:465 <nil>
	// the SMTP URL must have both user and password, without control characters, or neither
}

// With a ledger before the server each mail is sent once.
func ExampleNewLedger() {
	if err := migrate.Up(ctx, pool, mail.Migrations()); err != nil {
		return
	}
	server, err := mail.NewSMTP("smtps://postbus:secret@mail.example.com")
	if err != nil {
		return
	}
	post, err := mail.NewPost(mail.NewLedger(pool, server, logger), "https://post.example.com")
	if err != nil {
		return
	}
	err = post.Welcome(ctx, "ada@example.org", "event-1")
	if err == nil {
		err = post.Welcome(ctx, "ada@example.org", "event-1") // is not sent again
	}
	if errors.Is(err, mail.ErrUnsure) {
		return // the server may have it: a person decides
	}
}
