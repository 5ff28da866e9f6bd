package account

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"postbus/internal/domain"
	"postbus/internal/domain/user"
	"postbus/internal/job"
	"postbus/internal/uow"
)

// MailQueue is the queue of the jobs that send a mail.
const MailQueue = "outgoing-mail"

// The jobs that send a mail. They hold ids and nothing else: the address is read, and the link made, when the mail is sent.
// EventID is the event that the mail is for. It is what makes it this mail and no other, whichever job sends it.
type (
	// VerificationEmail sends a verification mail.
	VerificationEmail struct {
		EventID        uuid.UUID `json:"event_id"`
		UserID         uuid.UUID `json:"user_id"`
		VerificationID uuid.UUID `json:"verification_id"`
	}
	// RepeatedRegistrationEmail tells the owner of a verified address that somebody tried to register it.
	RepeatedRegistrationEmail struct {
		EventID uuid.UUID `json:"event_id"`
		UserID  uuid.UUID `json:"user_id"`
	}
	// WelcomeEmail welcomes a user whose address has been verified.
	WelcomeEmail struct {
		EventID uuid.UUID `json:"event_id"`
		UserID  uuid.UUID `json:"user_id"`
	}
)

// Kind implements job.Args.
func (VerificationEmail) Kind() string { return "verification-email" }

// Kind implements job.Args.
func (RepeatedRegistrationEmail) Kind() string { return "repeated-registration-email" }

// Kind implements job.Args.
func (WelcomeEmail) Kind() string { return "welcome-email" }

// MailVerification is a consumer's handler. It enqueues the first verification mail of a new user. Like the others here it
// does so exactly once for an event, and returns ErrNoEvent outside of a consumer.
func (s *Service) MailVerification(ctx context.Context, e user.Registered) error {
	return s.enqueueMail(ctx, func(event uuid.UUID) job.Args {
		return VerificationEmail{EventID: event, UserID: e.UserID, VerificationID: e.VerificationID}
	})
}

// MailFurtherVerification is a consumer's handler. It enqueues a further verification mail.
func (s *Service) MailFurtherVerification(ctx context.Context, e user.VerificationRequested) error {
	return s.enqueueMail(ctx, func(event uuid.UUID) job.Args {
		return VerificationEmail{EventID: event, UserID: e.UserID, VerificationID: e.VerificationID}
	})
}

// MailRepeatedRegistration is a consumer's handler. It enqueues the mail that tells of a repeated registration.
func (s *Service) MailRepeatedRegistration(ctx context.Context, e user.RegistrationRepeated) error {
	return s.enqueueMail(ctx, func(event uuid.UUID) job.Args {
		return RepeatedRegistrationEmail{EventID: event, UserID: e.UserID}
	})
}

// MailWelcome is a consumer's handler. It enqueues the welcome mail.
func (s *Service) MailWelcome(ctx context.Context, e user.EmailVerified) error {
	return s.enqueueMail(ctx, func(event uuid.UUID) job.Args {
		return WelcomeEmail{EventID: event, UserID: e.UserID}
	})
}

// enqueueMail enqueues the job of a mail. The unique key keeps a second job from the same mail while there is one, when the
// consumer was moved back; later the ledger knows that it was sent.
func (s *Service) enqueueMail(ctx context.Context, mail func(event uuid.UUID) job.Args) error {
	event, ok := domain.IdempotencyKey(ctx)
	if !ok {
		return ErrNoEvent
	}
	err := s.work.Do(ctx, func(_ context.Context, w *uow.Work) error {
		w.Enqueue(mail(event), job.Queue(MailQueue), job.UniqueKey(event.String()))
		return nil
	})
	if err != nil {
		return fmt.Errorf("enqueue mail: %w", err)
	}
	return nil
}
