// Package wire puts the programs together: what the app and the consumer share, once.
package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
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
	jobs      *job.Table
	jobsApart *jobsApart // nil where jobs are in the application's database
	workers   *job.Workers
	scheduler *job.Scheduler
}

const (
	// jobsAtOnce is how many jobs a process runs at a time.
	jobsAtOnce = 4
	// jobTimeMax is how long a job may run; a kind of job may have less.
	jobTimeMax = time.Hour
)

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
	if b.log, err = postgres.Open(pool, postgres.Config{}, b.logger); err != nil {
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
	work := uow.NewManager(pool, b.log, b.codec, after).WithJobs(jobs).WithInbox(b.read())
	if b.Accounts, err = account.New(work, pool, tokens); err != nil {
		return err
	}
	if err := b.buildJobs(); err != nil {
		return err
	}
	post, err := mail.NewPost(sender, b.PublicURL, mail.WithFrom(c.MailFrom))
	if err != nil {
		return err
	}
	notifier, err := account.NewNotifier(pool, post, tokens, b.PublicURL)
	if err != nil {
		return err
	}
	if b.consumers, err = consumers(notifier); err != nil {
		return err
	}
	if err := b.provision(ctx, types.Topics()); err != nil {
		return err
	}
	return b.noteLeftBehind(ctx)
}

// migrations are the schemas that are made in the application's database.
func migrations(c config.Config) []migrate.Set {
	sets := []migrate.Set{account.Migrations(), postgres.Migrations(postgres.DefaultSchema)}
	if c.JobsDatabaseURL == "" {
		sets = append(sets, job.Migrations(job.DefaultSchema))
	}
	return sets
}

func (b *Backbone) buildJobs() (err error) {
	if b.workers, err = workers(b.Accounts); err != nil {
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

// Consumers are all consumers of the application.
func (b *Backbone) Consumers() []*bus.Consumer { return b.consumers }

// CheckNames checks the names of consumers in the settings, before anything is made.
func CheckNames(c config.Config) error {
	all, err := consumers(new(account.Notifier)) // which handles nothing here
	if err != nil {
		return err
	}
	for _, names := range [][]string{c.Only, {c.Move}, {c.RenameTo}, {c.WhichConsumer}} {
		if len(names) == 1 && (names[0] == "" || isOwnRelay(c, names[0])) {
			continue
		}
		if _, err := choose(all, names); err != nil {
			return err
		}
	}
	return nil
}

// Select checks names of consumers and returns those; all for none.
func (b *Backbone) Select(names []string) ([]*bus.Consumer, error) { return choose(b.consumers, names) }

func choose(all []*bus.Consumer, names []string) ([]*bus.Consumer, error) {
	if len(names) == 0 {
		return all, nil
	}
	var selected []*bus.Consumer
	for _, name := range names {
		i := slices.IndexFunc(all, func(c *bus.Consumer) bool { return c.Name() == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no consumer %q; there are %s", name, Names(all))
		}
		if !slices.Contains(selected, all[i]) {
			selected = append(selected, all[i])
		}
	}
	return selected, nil
}

// Names lists the consumers' names for a person.
func Names(consumers []*bus.Consumer) string {
	names := make([]string, len(consumers))
	for i, c := range consumers {
		names[i] = c.Name()
	}
	return strings.Join(names, ", ")
}

// Consume runs consumers until ctx ends, and lets what is being handled finish; with jobs it also runs jobs and makes those
// of the schedules.
func (b *Backbone) Consume(ctx context.Context, consumers []*bus.Consumer, jobs bool) error {
	router, err := bus.NewRouter(b.codec, b.read(), b.logger, telemetry.NewWatermill(b.logger))
	if err != nil {
		return err
	}
	if err := router.Add(consumers...); err != nil {
		return err
	}
	parts := append([]func(context.Context) error{router.Run}, b.broker.parts()...)
	if !jobs {
		return Together(ctx, parts...)
	}
	queue, err := b.jobs.Subscriber(job.DefaultQueue, jobsAtOnce)
	if err != nil {
		return err
	}
	policy := bus.Policy{Deadline: jobTimeMax}
	if err := router.AddQueue(job.DefaultQueue, queue, b.workers.Handler(), b.jobs, policy); err != nil {
		return err
	}
	return Together(ctx, append(parts, b.scheduler.Run, b.cross)...)
}

// Supervise keeps a private Postgres running, and the log and the work table in shape, until ctx ends.
func (b *Backbone) Supervise(ctx context.Context) {
	_ = Together(ctx, // neither part has an error
		func(ctx context.Context) error { b.database.supervise(ctx, b.logger); return nil },
		func(ctx context.Context) error { b.log.Maintain(ctx); return nil },
		func(ctx context.Context) error { b.broker.maintain(ctx); return nil },
		b.jobs.Maintain,
		b.keepJobsApart,
	)
}
