// Package wire puts the programs together: what the app and the consumer share, once.
package wire

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"postbus/internal/account"
	"postbus/internal/broker/postgres"
	"postbus/internal/bus"
	"postbus/internal/config"
	"postbus/internal/job"
	"postbus/internal/mail"
	"postbus/internal/migrate"
	"postbus/internal/telemetry"
	"postbus/internal/uow"
)

// Backbone is everything that both programs have: database, log, use cases, consumers.
type Backbone struct {
	Accounts *account.Service
	// PublicURL is what links begin with.
	PublicURL string
	// Mail says in a few words where mail goes.
	Mail string
	// Mailbox is where mail goes without an SMTP_URL, MailboxDir its directory; nil with one.
	Mailbox    *mail.Mailbox
	MailboxDir string
	// Notes are what a person should know about how it was set up, a sentence each.
	Notes []string

	logger    *slog.Logger
	database  *database
	log       *postgres.Log
	broker    *brokerage // nil without a BROKER_URL
	codec     *bus.Codec
	consumers []*bus.Consumer
	ledger    *mail.Ledger
	jobs      *job.Table
	jobsApart *jobsApart // nil where jobs are in the application's database
	workers   *job.Workers
	scheduler *job.Scheduler
}

// jobTimeMax is how long a job may run; a kind of job may have less.
const jobTimeMax = time.Hour

// Open connects to the database, migrates it, makes sure of topics and consumers, and builds the rest. c.PublicURL is
// set. say is told in a sentence what takes long. The error is for a person to read.
func Open(ctx context.Context, c config.Config, logger *slog.Logger, say func(string)) (*Backbone, error) {
	b := &Backbone{PublicURL: c.PublicURL, logger: logger}
	secret := c.SecretKey
	if secret == nil {
		var err error
		if secret, err = config.LoadOrCreateSecret(c.DataDir); err != nil {
			return nil, err
		}
	}
	sender, err := b.sender(c)
	if err != nil {
		return nil, err
	}
	if err := b.agree(c); err != nil {
		return nil, err
	}
	if b.database, err = openDatabase(ctx, c, say); err != nil {
		return nil, err
	}
	if b.database.private != nil && b.database.private.Note() != "" {
		b.Notes = append(b.Notes, b.database.private.Note())
	}
	if err := b.build(ctx, c, account.NewTokens(secret), sender); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Backbone) sender(c config.Config) (mail.Sender, error) {
	if c.SMTPURL != "" {
		server, err := mail.ParseURL(c.SMTPURL)
		if err != nil {
			return nil, err
		}
		b.Mail = server.String()
		return mail.NewSMTP(c.SMTPURL)
	}
	dir := filepath.Join(c.DataDir, "mailbox")
	mailbox, err := mail.OpenMailbox(dir)
	if err != nil {
		return nil, config.ExplainDataDir(c.DataDir, err)
	}
	b.Mailbox, b.MailboxDir = mailbox, shorten(dir)
	b.Mail = "stays in " + b.MailboxDir + " (SMTP_URL is unset)"
	return mailbox, nil
}

// agree has the programs that share a data directory begin links alike: the app says how, and a consumer that was told
// nothing takes its word. Programs with a DATABASE_URL share no directory.
func (b *Backbone) agree(c config.Config) error {
	if c.DatabaseURL != "" {
		return nil
	}
	if c.Program == config.App {
		return config.KeepPublicURL(c.DataDir, c.PublicURL)
	}
	if err := config.MakeDataDir(c.DataDir); err != nil {
		return err
	}
	if kept := config.KeptPublicURL(c.DataDir); c.PublicURLGuessed && kept != "" {
		b.PublicURL = kept
	}
	return nil
}

func (b *Backbone) build(ctx context.Context, c config.Config, tokens account.Tokens, sender mail.Sender) error {
	pool := b.database.pool
	for _, set := range migrations(c) {
		if err := migrate.Up(ctx, pool, set); err != nil {
			return b.database.explainSetUp(set.Schema, err)
		}
	}
	types, err := catalogue()
	if err != nil {
		return err
	}
	b.codec = bus.NewCodec(types, source)
	if b.log, err = postgres.Open(pool, postgres.Config{Retention: retention(c)}, b.logger); err != nil {
		return err
	}
	if b.broker, err = b.openBroker(ctx, c, types.Topics()); err != nil {
		return err
	}
	after := bus.New(b.logger)
	if err := inProcess(after, b.logger); err != nil {
		return err
	}
	jobs, err := b.openJobs(ctx, c)
	if err != nil {
		return err
	}
	work := uow.NewManager(pool, b.log, b.codec, after).WithJobs(jobs)
	if b.Accounts, err = account.New(work, pool, tokens); err != nil {
		return err
	}
	b.ledger = mail.NewLedger(pool, sender, b.logger)
	post, err := mail.NewPost(b.ledger, b.PublicURL, mail.WithFrom(c.MailFrom))
	if err != nil {
		return err
	}
	notifier, err := account.NewNotifier(pool, post, tokens, b.PublicURL)
	if err != nil {
		return err
	}
	if err := b.buildJobs(notifier); err != nil {
		return err
	}
	if b.consumers, err = consumers(b.Accounts); err != nil {
		return err
	}
	if err := b.provision(ctx, types.Topics()); err != nil {
		return err
	}
	return b.noteLeftBehind(ctx)
}

// retention is when events go from the logs that programs keep in shape.
func retention(c config.Config) postgres.Retention { return postgres.Retention{Age: c.EventRetention} }

// migrations are the schemas that are made in the application's database.
func migrations(c config.Config) []migrate.Set {
	sets := []migrate.Set{account.Migrations(), mail.Migrations(), postgres.Migrations(postgres.DefaultSchema)}
	if c.JobsDatabaseURL == "" {
		sets = append(sets, job.Migrations(job.DefaultSchema))
	}
	return sets
}

func (b *Backbone) buildJobs(notifier *account.Notifier) (err error) {
	if b.workers, err = workers(b.Accounts, notifier); err != nil {
		return err
	}
	all, err := schedules()
	if err != nil {
		return err
	}
	b.scheduler, err = b.jobs.Scheduler(all...)
	return err
}

// Close gives up broker and databases. Nothing may be running.
func (b *Backbone) Close() error {
	err := b.broker.close()
	if b.jobsApart != nil {
		err = errors.Join(err, b.jobsApart.close())
	}
	return errors.Join(err, b.database.close())
}

// Ready reports whether the database answers.
func (b *Backbone) Ready(ctx context.Context) error { return b.database.pool.Ping(ctx) }

// Postgres says in a few words which Postgres is used.
func (b *Backbone) Postgres() string { return b.database.describe() }

// Consume runs what was selected until ctx ends, and lets what is being handled finish. With queues of jobs it also makes the
// jobs of the schedules.
func (b *Backbone) Consume(ctx context.Context, s Selection) error {
	router, err := bus.NewRouter(b.codec, b.reading(), b.logger, telemetry.NewWatermill(b.logger))
	if err != nil {
		return err
	}
	if err := router.Add(s.consumers...); err != nil {
		return err
	}
	for _, q := range s.queues {
		subscriber, err := b.jobs.Subscriber(q.name, q.atOnce)
		if err != nil {
			return err
		}
		policy := bus.Policy{Deadline: jobTimeMax}
		if err := router.AddQueue(q.name, subscriber, b.workers.Handler(), b.jobs, policy); err != nil {
			return err
		}
	}
	parts := append([]func(context.Context) error{router.Run}, b.broker.parts()...)
	if len(s.queues) > 0 {
		parts = append(parts, b.scheduler.Run, b.cross)
	}
	return Together(ctx, parts...)
}

// Supervise keeps a private Postgres running, and the log, the work table and the mail ledger in shape, until ctx ends.
func (b *Backbone) Supervise(ctx context.Context) {
	_ = Together(ctx, // neither part has an error
		func(ctx context.Context) error { b.database.supervise(ctx, b.logger); return nil },
		func(ctx context.Context) error { b.log.Maintain(ctx); return nil },
		func(ctx context.Context) error { b.broker.maintain(ctx); return nil },
		b.jobs.Maintain,
		b.keepJobsApart,
		b.ledger.Maintain,
	)
}
