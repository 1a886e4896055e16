package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/internal/config"
	"pzbridge/internal/metrics"
	"pzbridge/internal/repeat"
	"pzbridge/outbox/bolt"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/store"
	"pzbridge/transferapi"
)

// openEngine opens what keeps the outbox: a file, or a database that several bridges share.
func openEngine(
	ctx context.Context, cfg config.Config, ages *clock.Clock, counters *metrics.Metrics, logger *slog.Logger,
) (store.Engine, error) {
	if cfg.OutboxURL == "" {
		return bolt.Open(bolt.Options{
			Path:      cfg.OutboxPath,
			MaxBytes:  cfg.OutboxMaxBytes,
			Rules:     rules(cfg),
			Logger:    logger,
			Clock:     ages,
			Committed: counters.Committed,
			Migrating: beforeMigration(cfg, logger),
		})
	}
	var own []store.Subscription
	for i := range cfg.Endpoints {
		own = append(own, cfg.Endpoints[i].Subscription())
	}
	failures := repeat.New(logger)
	for {
		engine, err := postgres.Open(ctx, postgres.Options{
			URL:       cfg.OutboxURL,
			Name:      cfg.BridgeName,
			Schema:    cfg.OutboxSchema,
			MaxBytes:  cfg.OutboxMaxBytes,
			Rules:     rules(cfg),
			Logger:    logger,
			Clock:     ages,
			Committed: counters.Committed,

			Subscriptions: own,
			Extend:        func(others []store.Subscription) store.Rules { return rulesBeside(cfg, others) },
		})
		if err == nil {
			failures.Recovered("the database of the outbox is there")
			return engine, nil
		}
		if !errors.Is(err, postgres.ErrUnavailable) {
			return nil, err
		}
		failures.Failed("the bridge waits for the database of the outbox", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(databaseWait):
		}
	}
}

// databaseWait is how long to wait before the database is looked for again at the start.
const databaseWait = time.Second

// backupOf returns what makes a copy of a file; nil for a database, which has tools of its own.
func backupOf(file *bolt.Engine) transferapi.Backup {
	if file == nil {
		return nil
	}
	return file
}
