package account

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"postbus/internal/domain/user"
	"postbus/internal/uow"
)

// linkLife is how long a link may be confirmed, by the database's clock.
const linkLife = 24 * time.Hour

// The limits on what one address is sent, however often and from wherever it is asked for. They are counted in the
// database over sliding windows; what is beyond them is passed over in silence.
const (
	verificationsPerMinute = 1
	verificationsPerHour   = 5
	verificationsPerDay    = 20

	// repeatInterval is the time between two mails that say "you already have an account".
	repeatInterval = time.Hour
)

// Service has the use cases. It is safe for concurrent use.
//
// Errors are those of the database and of the Unit of Work. An error that is a *uow.DispatchError means that the change
// stands and an in-process handler failed after it; uow.ErrOutcomeUnknown means that it may stand. Any use case
// may simply be called again.
type Service struct {
	work   *uow.Manager
	db     querier
	tokens Tokens
}

// New returns a Service that writes through work and reads from db, which are of one database: the one that Migrations
// were applied to. It returns ErrSecretShort when tokens have no sufficient key.
func New(work *uow.Manager, db querier, tokens Tokens) (*Service, error) {
	if err := tokens.validate(); err != nil {
		return nil, fmt.Errorf("configure account: %w", err)
	}
	return &Service{work: work, db: db, tokens: tokens}, nil
}

// Register makes a user of an address and asks for a verification mail. It returns nil whether or not the address is
// known. The owner of a known one is written to as well: with another link while unverified, else with the
// news that there is an account already; both within the limits.
//
// The statements and the event are the same in number in all three cases, one transaction, so that their times differ
// by little. Two calls at once with one address make one user.
func (s *Service) Register(ctx context.Context, a user.Address) error {
	err := s.work.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		return s.register(ctx, w, a)
	})
	if err != nil {
		return fmt.Errorf("register user: %w", err)
	}
	return nil
}

func (s *Service) register(ctx context.Context, w *uow.Work, a user.Address) error {
	db := repository{w.DB()}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make id of user: %w", err)
	}
	stored, err := db.claim(ctx, id, a)
	if err != nil {
		return err
	}
	if stored.ID == id {
		verificationID, _, err := s.openVerification(ctx, db, id)
		if err != nil {
			return err
		}
		w.Track(user.Register(id, a, verificationID, stored.RegisteredAt))
		return nil
	}
	u := user.Restore(stored)
	w.Track(u)
	if !u.Verified() {
		return s.requestVerification(ctx, db, u)
	}
	if due, err := db.noteRepeat(ctx, u.ID()); err != nil || !due {
		return err
	}
	return u.RegisterAgain()
}

// Resend asks for another verification mail for the address of an unverified user, within the limits. For any other
// address it does nothing. It returns nil in either case.
func (s *Service) Resend(ctx context.Context, a user.Address) error {
	err := s.work.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		db := repository{w.DB()}
		stored, found, err := db.lockByAddress(ctx, a)
		if err != nil || !found {
			return err
		}
		u := user.Restore(stored)
		if u.Verified() {
			return nil
		}
		w.Track(u)
		return s.requestVerification(ctx, db, u)
	})
	if err != nil {
		return fmt.Errorf("resend verification: %w", err)
	}
	return nil
}

// requestVerification opens one more verification for an unverified user whose row is locked, if the limits allow.
func (s *Service) requestVerification(ctx context.Context, db repository, u *user.User) error {
	id, allowed, err := s.openVerification(ctx, db, u.ID())
	if err != nil || !allowed {
		return err
	}
	return u.RequestVerification(id)
}

// openVerification stores a new verification under a new id; not allowed is beyond the limits, and nothing is stored.
func (s *Service) openVerification(
	ctx context.Context, db repository, userID uuid.UUID,
) (id uuid.UUID, allowed bool, err error) {
	id, err = uuid.NewV7()
	if err != nil {
		return uuid.Nil, false, fmt.Errorf("make id of verification: %w", err)
	}
	allowed, err = db.openVerification(ctx, id, userID, s.tokens.For(id))
	return id, allowed, err
}

// Inspect tells what a link is worth, and changes nothing: programs that look for viruses follow links as well.
func (s *Service) Inspect(ctx context.Context, t Token) (LinkState, error) {
	state, err := repository{s.db}.link(ctx, t)
	if err != nil {
		return LinkUnknown, fmt.Errorf("inspect link: %w", err)
	}
	return state, nil
}

// Verify confirms the address that the link was sent to. Of any number of calls with one token, at once or one after
// another, exactly one returns LinkVerified; it records user.email_verified. It never returns LinkOpen.
//
// With a *uow.DispatchError the state is valid: the change stands. With any other error it is LinkUnknown.
func (s *Service) Verify(ctx context.Context, t Token) (LinkState, error) {
	var state LinkState
	err := s.work.Do(ctx, func(ctx context.Context, w *uow.Work) (err error) {
		state, err = verify(ctx, w, t)
		return err
	})
	if err == nil {
		return state, nil
	}
	var dispatch *uow.DispatchError
	if !errors.As(err, &dispatch) {
		state = LinkUnknown
	}
	return state, fmt.Errorf("verify email: %w", err)
}

func verify(ctx context.Context, w *uow.Work, t Token) (LinkState, error) {
	db := repository{w.DB()}
	stored, now, found, err := db.lockByToken(ctx, t)
	if err != nil || !found {
		return LinkUnknown, err
	}
	// One conditional UPDATE decides, not the reading before it.
	consumed, err := db.consume(ctx, t)
	if err != nil {
		return LinkUnknown, err
	}
	if !consumed {
		return db.link(ctx, t)
	}
	u := user.Restore(stored)
	w.Track(u)
	switch err := u.VerifyEmail(now); {
	case errors.Is(err, user.ErrAlreadyVerified):
		return LinkUsed, nil
	case err != nil:
		return LinkUnknown, err
	}
	if err := db.storeVerified(ctx, u); err != nil {
		return LinkUnknown, err
	}
	return LinkVerified, nil
}
