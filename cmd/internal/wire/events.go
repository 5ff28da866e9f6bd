package wire

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain/user"
	"postbus/internal/job"
	"postbus/internal/mail"
)

// source is the CloudEvents source of the application's events.
const source = "/postbus/app"

// catalogue lists every event type of the application.
func catalogue() (*bus.Catalogue, error) {
	return bus.NewCatalogue(
		bus.Define[user.Registered](1),
		bus.Define[user.VerificationRequested](1),
		bus.Define[user.RegistrationRepeated](1),
		bus.Define[user.EmailVerified](1),
	)
}

// consumers lists every consumer of the application with its handlers, whether or not this process runs them.
func consumers(accounts *account.Service) ([]*bus.Consumer, error) {
	verification, err1 := bus.NewConsumer("verification-email")
	welcome, err2 := bus.NewConsumer("welcome-email")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	err := errors.Join(
		bus.Handle(verification, accounts.MailVerification),
		bus.Handle(verification, accounts.MailFurtherVerification),
		bus.Handle(verification, accounts.MailRepeatedRegistration),
		bus.Handle(welcome, accounts.MailWelcome),
	)
	return []*bus.Consumer{verification, welcome}, err
}

// queue is a queue of jobs, with how many of them a process runs at a time.
type queue struct {
	name   string
	atOnce int
}

// queues lists every queue of the application, whether or not this process runs it. Mail has one of its own: a mail server that
// is slow holds up nothing but mail.
func queues() []queue { return []queue{{job.DefaultQueue, 4}, {account.MailQueue, 8}} }

// workers lists the handlers of every kind of job of the application.
func workers(accounts *account.Service, n *account.Notifier) (*job.Workers, error) {
	// Somebody waits for the mail, so not for long at a time; and for two and a half days, as a mail server may be away over a
	// weekend.
	outgoing := job.Policy{Attempts: 500, WaitMax: 10 * time.Minute, Timeout: 4 * time.Minute}
	w := job.NewWorkers()
	return w, errors.Join(
		job.Handle(w, accounts.DeleteUnverified, job.Policy{Timeout: 10 * time.Minute}),
		job.Handle(w, sending(n.SendVerification), outgoing),
		job.Handle(w, sending(n.SendRepeatedRegistration), outgoing),
		job.Handle(w, sending(n.SendWelcome), outgoing),
	)
}

// sending gives a mail up, for somebody to look at, that was refused, and one of which nobody knows whether it was taken: sent
// again, it might come a second time.
func sending[A job.Args](h func(context.Context, A) error) func(context.Context, A) error {
	return func(ctx context.Context, args A) error {
		err := h(ctx, args)
		if errors.Is(err, mail.ErrRefused) || errors.Is(err, mail.ErrUnsure) {
			return job.Permanent(err)
		}
		return err
	}
}

// schedules lists what happens by the clock.
func schedules() ([]job.Schedule, error) {
	deletion, err := account.UnverifiedSchedule()
	return []job.Schedule{deletion}, err
}

// inProcess lists what happens in the process that committed, right after the commit. What must not be missed is a
// consumer's.
func inProcess(b *bus.Bus, logger *slog.Logger) error {
	return errors.Join(
		bus.Register(b, "log-registration", func(ctx context.Context, e user.Registered) error {
			logger.InfoContext(ctx, "user registered", slog.String("user_id", e.UserID.String()))
			return nil
		}),
		bus.Register(b, "log-verification", func(ctx context.Context, e user.EmailVerified) error {
			logger.InfoContext(ctx, "email verified", slog.String("user_id", e.UserID.String()))
			return nil
		}),
	)
}

// subscriptions names each consumer's topic, for the log.
func subscriptions(consumers []*bus.Consumer) []postgres.Subscription {
	all := make([]postgres.Subscription, len(consumers))
	for i, c := range consumers {
		all[i] = postgres.Subscription{Consumer: c.Name(), Topic: c.Topic()}
	}
	return all
}
