package wire

import (
	"context"
	"errors"
	"log/slog"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/domain/user"
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
	verification, err1 := bus.NewConsumer("verification-email")
	welcome, err2 := bus.NewConsumer("welcome-email")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	err := errors.Join(
		bus.Handle(verification, n.SendVerification),
		bus.Handle(verification, n.ResendVerification),
		bus.Handle(verification, n.SendAlreadyRegistered),
		bus.Handle(welcome, n.SendWelcome),
	)
	return []*bus.Consumer{verification, welcome}, err
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
