package main

import (
	"context"
	"errors"
)

// prepared is a contender's store with what it was loaded with.
type prepared struct {
	url    string
	broker string    // the URL of the one that events go over, if they do
	db     *database // nil for those that do not use Postgres
	ends   []func() error
}

func (p *prepared) close(ctx context.Context) error {
	var err error
	for i := len(p.ends) - 1; i >= 0; i-- {
		err = errors.Join(err, p.ends[i]())
	}
	if p.db != nil {
		err = errors.Join(err, p.db.close(ctx))
	}
	return err
}

// prepare makes a store for a contender, with its consumers and count events that they have not read.
func (b *bench) prepare(ctx context.Context, kind string, consumers []string, count int) (p *prepared, err error) {
	p = &prepared{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(ctx))
		}
	}()
	switch kind {
	case kindMemory, kindGoChannel:
		return p, nil
	case kindNATS, kindRedis:
		return p, b.prepareBroker(ctx, p, kind, count)
	}
	if _, _, ok := wayOf(kind); ok {
		return p, b.prepareWay(ctx, p, kind, consumers, count)
	}
	if p.db, err = b.database(ctx); err != nil {
		return p, err
	}
	p.url = p.db.url
	if err := load(ctx, p.db, kind, consumers, count); err != nil {
		return p, err
	}
	return p, p.db.settle(ctx)
}

func load(ctx context.Context, db *database, kind string, consumers []string, count int) error {
	switch kind {
	case kindPostbus:
		log, err := provisionPostbus(ctx, db.pool, []string{topicName}, consumers)
		if err != nil {
			return err
		}
		return loadPostbus(ctx, db.pool, log, topicName, count)
	case kindStock:
		if err := provisionStock(ctx, db.pool, topicName); err != nil {
			return err
		}
		return loadStock(ctx, db.pool, count)
	case kindRiver:
		if err := provisionRiver(ctx, db.pool); err != nil {
			return err
		}
		return loadRiver(ctx, db.pool, count, nil)
	case kindJobs:
		if err := provisionJobs(ctx, db.pool); err != nil {
			return err
		}
		return loadJobs(ctx, db.pool, count)
	default:
		return errors.New(kind + " does not use Postgres")
	}
}

func (b *bench) prepareBroker(ctx context.Context, p *prepared, kind string, count int) (err error) {
	if kind == kindRedis {
		if p.url, err = startRedis(ctx, b, p, "everysec"); err != nil {
			return err
		}
		return loadRedis(ctx, p.url, count)
	}
	if p.url, err = startNATS(ctx, b, p, kind); err != nil {
		return err
	}
	return loadNATS(ctx, p.url, count)
}
