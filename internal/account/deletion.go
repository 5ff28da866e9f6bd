package account

import (
	"context"
	"fmt"
	"time"

	"postbus/internal/job"
	"postbus/internal/uow"
)

const (
	// unverifiedLife is how long a user is kept who does not verify.
	unverifiedLife = 30 * 24 * time.Hour
	// deletionsPerJob bounds one transaction; when there are more, another job goes on.
	deletionsPerJob = 1000
)

// UnverifiedDeletion is the job that deletes users who never verified.
type UnverifiedDeletion struct{}

// Kind implements job.Args.
func (UnverifiedDeletion) Kind() string { return "unverified-deletion" }

// UnverifiedSchedule has users who never verified deleted every night, once however many processes have the schedule. A
// night at which none ran is made up for.
func UnverifiedSchedule() (job.Schedule, error) {
	when, err := job.Cron("17 3 * * *", "UTC")
	if err != nil {
		return job.Schedule{}, fmt.Errorf("schedule deletion: %w", err)
	}
	return job.Schedule{Name: "unverified-deletion", When: when, Args: UnverifiedDeletion{}}, nil
}

// DeleteUnverified is the handler of UnverifiedDeletion: it deletes users who registered 30 days ago and never verified,
// with their verifications. A user who holds a link that is still good is left for another night, and so is one whom a
// transaction has locked, perhaps to verify. It records no events. At most 1,000 are deleted, the oldest first; then another
// job for the rest is part of the transaction.
func (s *Service) DeleteUnverified(ctx context.Context, _ UnverifiedDeletion) error {
	err := s.work.Do(ctx, func(ctx context.Context, w *uow.Work) error {
		deleted, err := repository{w.DB()}.deleteUnverified(ctx, deletionsPerJob)
		if err == nil && deleted == deletionsPerJob {
			w.Enqueue(UnverifiedDeletion{})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete unverified users: %w", err)
	}
	return nil
}
