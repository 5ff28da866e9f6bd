package wire

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain"
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
func consumers(n *account.Notifier) ([]*bus.Consumer, error) {
	// A mail that cannot be sent holds up no other mail to the same person.
	policy := bus.WithPolicy(bus.Policy{AfterDeath: bus.PassKey})
	verification, err1 := bus.NewConsumer("verification-email", policy)
	welcome, err2 := bus.NewConsumer("welcome-email", policy)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	err := errors.Join(
		bus.Handle(verification, sending(n.SendVerification)),
		bus.Handle(verification, sending(n.ResendVerification)),
		bus.Handle(verification, sending(n.SendAlreadyRegistered)),
		bus.Handle(welcome, sending(n.SendWelcome)),
	)
	return []*bus.Consumer{verification, welcome}, err
}

// sending tells the bus which failures to send a mail no repetition will mend.
func sending[E domain.Event](h func(context.Context, E) error) func(context.Context, E) error {
	return func(ctx context.Context, e E) error {
		err := h(ctx, e)
		if errors.Is(err, mail.ErrRefused) {
			return bus.Permanent(err)
		}
		return err
	}
}

// workers lists the handlers of every kind of job of the application.
func workers(accounts *account.Service) (*job.Workers, error) {
	w := job.NewWorkers()
	return w, job.Handle(w, accounts.DeleteUnverified, job.Policy{Timeout: 10 * time.Minute})
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
