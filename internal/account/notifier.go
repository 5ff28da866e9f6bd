package account

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/uuid"

	"postbus/internal/domain"
	"postbus/internal/domain/user"
)

// Mails is what the handlers send through. eventID is the same whenever the same mail is sent again, and is to be what
// the receiving side can recognise it by.
type Mails interface {
	Verification(ctx context.Context, to, link, eventID string) error
	Welcome(ctx context.Context, to, eventID string) error
	AlreadyRegistered(ctx context.Context, to, eventID string) error
}

// Notifier has the handlers that send a mail for an event of a user. It is safe for concurrent use.
//
// A handler reads the address when it sends, since events carry none. It sends nothing and returns nil when the
// mail has lost its sense: the user is gone, or the link has expired or is not needed any more. So events of long ago
// do no harm. Delivery is at least once; a repeated mail has the same link and the same event id. A link that would lead
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

// SendVerification sends the first verification mail of a new user.
func (n *Notifier) SendVerification(ctx context.Context, e user.Registered) error {
	return n.verification(ctx, e.UserID, e.VerificationID)
}

// ResendVerification sends a further verification mail.
func (n *Notifier) ResendVerification(ctx context.Context, e user.VerificationRequested) error {
	return n.verification(ctx, e.UserID, e.VerificationID)
}

// SendAlreadyRegistered tells the owner of a verified address that somebody tried to register it.
func (n *Notifier) SendAlreadyRegistered(ctx context.Context, e user.RegistrationRepeated) error {
	return n.plain(ctx, e.UserID, n.mails.AlreadyRegistered)
}

// SendWelcome welcomes a user whose address has just been verified.
func (n *Notifier) SendWelcome(ctx context.Context, e user.EmailVerified) error {
	return n.plain(ctx, e.UserID, n.mails.Welcome)
}

func (n *Notifier) verification(ctx context.Context, userID, verificationID uuid.UUID) error {
	eventID, err := eventOf(ctx)
	if err != nil {
		return err
	}
	to, tokenHash, found, err := repository{n.db}.emailToVerify(ctx, userID, verificationID)
	if err != nil || !found {
		return err
	}
	token := n.tokens.For(verificationID)
	if !bytes.Equal(token.hash(), tokenHash) {
		return ErrSecretDiffers
	}
	link := n.publicURL + "/verify?token=" + token.Encode()
	if err := n.mails.Verification(ctx, to, link, eventID); err != nil {
		return fmt.Errorf("notify user: %w", err)
	}
	return nil
}

// plain sends a mail that needs nothing but an address.
func (n *Notifier) plain(
	ctx context.Context, userID uuid.UUID, send func(ctx context.Context, to, eventID string) error,
) error {
	eventID, err := eventOf(ctx)
	if err != nil {
		return err
	}
	to, found, err := repository{n.db}.emailOf(ctx, userID)
	if err != nil || !found {
		return err
	}
	if err := send(ctx, to, eventID); err != nil {
		return fmt.Errorf("notify user: %w", err)
	}
	return nil
}

// eventOf returns the id of the event that is being handled.
func eventOf(ctx context.Context) (string, error) {
	id := domain.CauseOf(ctx).EventID
	if id == uuid.Nil {
		return "", ErrNoEvent
	}
	return id.String(), nil
}
