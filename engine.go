package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/internal/cluster"
	"pzbridge/internal/config"
	"pzbridge/internal/metrics"
	"pzbridge/internal/pairing"
	"pzbridge/internal/repeat"
	"pzbridge/outbox"
	"pzbridge/outbox/bolt"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/store"
	"pzbridge/relay"
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
	ending, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(cfg.ShutdownGrace, end) })
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
			Ending:    ending,

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

// shareConnection makes a session one of those that several bridges have in turn, or two of them at
// a time, which store each event once.
func shareConnection(
	session *relay.Options, database *postgres.Engine, box *outbox.Outbox, events *sink, cfg config.Config,
) (slot *cluster.Slot) {
	opts := cluster.SlotOptions{
		Engine:     database,
		ClientGUID: box.ClientGUID,
		Listeners:  cfg.Listeners,
		Name:       cfg.BridgeName,
		Logger:     session.Logger,
	}
	if cfg.Listeners > 1 {
		paired := pairing.New(box, events, func() bool { return slot.IsFirst() })
		session.Sink, session.Twin, opts.Listener = paired, paired, paired
	}
	slot = cluster.NewSlot(opts)
	session.Slot = slot
	return slot
}

// backupOf returns what makes a copy of a file; nil for a database, which has tools of its own.
func backupOf(file *bolt.Engine) transferapi.Backup {
	if file == nil {
		return nil
	}
	return file
}
