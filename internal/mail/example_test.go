package mail_test

import (
	"context"
	"fmt"

	"postbus/internal/mail"
)

// printer is a Sender that shows what it is given.
type printer struct{}

func (printer) Send(_ context.Context, m mail.Message) error {
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
