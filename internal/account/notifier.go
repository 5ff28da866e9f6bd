package account

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/uuid"
)

// Mails is what the handlers send through. key is the same whenever the same mail is sent again, and is to be what a second
// attempt, and the receiving side, can recognise it by.
type Mails interface {
	Verification(ctx context.Context, to, link, key string) error
	Welcome(ctx context.Context, to, key string) error
	AlreadyRegistered(ctx context.Context, to, key string) error
}

// Notifier has the handlers of the jobs that send a mail. It is safe for concurrent use.
//
// A handler reads the address when it sends, since neither events nor jobs carry one. It sends nothing and returns nil when
// the mail has lost its sense: the user is gone, or the link has expired or is not needed any more. So jobs of long ago
// do no harm. A job may run more than once; the mail has the same link and the same key then. A link that would lead
// nowhere, because another program made it with another secret key, is not sent either: that is ErrSecretDiffers.
type Notifier struct {
	db        querier
	mails     Mails
	tokens    Tokens
	publicURL string
}

// NewNotifier returns the handlers. Links begin with publicURL, such as "https://example.com", and with nothing that a
// request contained. It returns ErrSecretShort or ErrPublicURL when it cannot make links.
func NewNotifier(db querier, mails Mails, tokens Tokens, publicURL string) (*Notifier, error) {
	if err := tokens.validate(); err != nil {
		return nil, fmt.Errorf("configure notifier: %w", err)
	}
	u, err := url.Parse(publicURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		strings.ContainsAny(publicURL, "?#") {
		return nil, fmt.Errorf("configure notifier: %w", ErrPublicURL)
	}
	return &Notifier{db: db, mails: mails, tokens: tokens, publicURL: strings.TrimRight(publicURL, "/")}, nil
}

// SendVerification is the handler of VerificationEmail.
func (n *Notifier) SendVerification(ctx context.Context, j VerificationEmail) error {
	if j.EventID == uuid.Nil {
		return ErrNoEvent
	}
	to, tokenHash, found, err := repository{n.db}.emailToVerify(ctx, j.UserID, j.VerificationID)
	if err != nil || !found {
		return err
	}
	token := n.tokens.For(j.VerificationID)
	if !bytes.Equal(token.hash(), tokenHash) {
		return ErrSecretDiffers
	}
	link := n.publicURL + "/verify?token=" + token.Encode()
	if err := n.mails.Verification(ctx, to, link, j.EventID.String()); err != nil {
		return fmt.Errorf("notify user: %w", err)
	}
	return nil
}

// SendRepeatedRegistration is the handler of RepeatedRegistrationEmail.
func (n *Notifier) SendRepeatedRegistration(ctx context.Context, j RepeatedRegistrationEmail) error {
	return n.plain(ctx, j.UserID, j.EventID, n.mails.AlreadyRegistered)
}

// SendWelcome is the handler of WelcomeEmail.
func (n *Notifier) SendWelcome(ctx context.Context, j WelcomeEmail) error {
	return n.plain(ctx, j.UserID, j.EventID, n.mails.Welcome)
}

// plain sends a mail that needs nothing but an address.
func (n *Notifier) plain(
	ctx context.Context, userID, event uuid.UUID, send func(ctx context.Context, to, key string) error,
) error {
	if event == uuid.Nil {
		return ErrNoEvent
	}
	to, found, err := repository{n.db}.emailOf(ctx, userID)
	if err != nil || !found {
		return err
	}
	if err := send(ctx, to, event.String()); err != nil {
		return fmt.Errorf("notify user: %w", err)
	}
	return nil
}
