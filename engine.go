package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/internal/config"
	"pzbridge/internal/metrics"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
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
	failures := repeat.New(logger)
	for {
		engine, err := postgres.Open(ctx, postgres.Options{
			URL:       cfg.OutboxURL,
			Schema:    cfg.OutboxSchema,
			MaxBytes:  cfg.OutboxMaxBytes,
			Rules:     rules(cfg),
			Logger:    logger,
			Clock:     ages,
			Committed: counters.Committed,
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

// watch is the work that one of several bridges does at a time: it is connected to the exchange and
// delivers, while the others wait to take the watch over. A bridge with a file of its own always
// has it.
type watch struct {
	engine *postgres.Engine // nil: the outbox is a file
	logger *slog.Logger
	taken  chan struct{}   // closed once this bridge has the watch
	lease  *postgres.Lease // set before that
}

// watchLease is the name of the lease of the watch.
const watchLease = "watch"

// errWatchLost means that another bridge may have the watch. The process ends, and its next start
// waits for the watch again: so nothing of what it had in memory is carried on.
var errWatchLost = &telephony.Fault{
	Code: telephony.CodeWatchLost,
	Text: "this bridge could not renew its claim to the work in time, so another one may have taken over",
}

func newWatch(engine store.Engine, logger *slog.Logger) *watch {
	w := &watch{logger: logger, taken: make(chan struct{})}
	if w.engine, _ = engine.(*postgres.Engine); w.engine == nil {
		close(w.taken)
	}
	return w
}

// during returns a part that runs another one once this bridge has the watch.
func (w *watch) during(part func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-w.taken:
		case <-ctx.Done():
			return nil
		}
		return part(ctx)
	}
}

// errSpare is why a bridge that waits for the watch is not connected.
var errSpare = &telephony.Fault{
	Code: telephony.CodeSpare,
	Text: "another bridge is at work, and this one waits as its spare",
}

// held returns a function for outbox.Options.Held: while this bridge has the watch, attempts may be
// made under the context that it returns. Nil if no other bridge can take the watch.
func (w *watch) held() func() context.Context {
	if w.engine == nil {
		return nil
	}
	return func() context.Context { return w.lease.Held() }
}

// isHeld reports whether this bridge has the watch.
func (w *watch) isHeld() bool {
	select {
	case <-w.taken:
		return w.engine == nil || w.lease.Held().Err() == nil
	default:
		return false
	}
}

// waiting is why the session does not connect yet; nil if it does.
func (w *watch) waiting() error {
	if w.engine == nil {
		return nil
	}
	return errSpare
}

// runAsStored runs the session, switched on or off as it was left by the bridge that had the watch.
func runAsStored(ctx context.Context, box *outbox.Outbox, session *relay.Session) error {
	enabled, err := box.IsToConnect(ctx)
	if err != nil {
		return err
	}
	session.Enable(enabled)
	return session.Run(ctx)
}

// backupOf returns what makes a copy of a file; nil for a database, which has tools of its own.
func backupOf(file *bolt.Engine) transferapi.Backup {
	if file == nil {
		return nil
	}
	return file
}

// run takes the watch, and holds it until ctx ends. It fails when the watch is lost.
func (w *watch) run(ctx context.Context) error {
	if w.engine == nil {
		<-ctx.Done()
		return nil
	}
	w.logger.Info("this bridge waits as a spare until it can take the work over")
	lease, err := w.engine.Take(ctx, watchLease)
	if err != nil {
		return nil // ctx has ended
	}
	w.lease = lease
	w.logger.Info("this bridge is at work now")
	close(w.taken)
	select {
	case <-ctx.Done():
	case <-lease.Lost():
		return errWatchLost
	}
	if err := lease.Release(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("hand the work over: %w", err)
	}
	return nil
}

// announceEvery is how often a bridge says how it stands.
const announceEvery = 5 * time.Second

// bridgeList is how the bridges stand that share the outbox.
type bridgeList struct {
	me      store.Bridge
	engine  store.Bridges // nil: the outbox is a file, and there is no other
	watch   *watch
	session *relay.Session
	logger  *slog.Logger
}

func newBridgeList(cfg config.Config, engine store.Engine, w *watch, session *relay.Session) *bridgeList {
	b := &bridgeList{watch: w, session: session, logger: w.logger, me: store.Bridge{
		Name:      cfg.BridgeName,
		Version:   version,
		Started:   time.Now().UTC(),
		Endpoints: map[string]string{},
	}}
	b.engine, _ = engine.(store.Bridges)
	for i := range cfg.Endpoints {
		b.me.Endpoints[cfg.Endpoints[i].Name] = fingerprint(&cfg.Endpoints[i])
	}
	return b
}

// fingerprint is a hash of what must be the same of an endpoint at every bridge.
func fingerprint(e *store.Endpoint) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []any{e.URL, e.Events, e.Secrets, e.Format}))
	return hex.EncodeToString(sum[:8])
}

// now is how this bridge stands.
func (b *bridgeList) now() store.Bridge {
	me := b.me
	me.Seen = time.Now().UTC()
	me.Working = b.watch.isHeld()
	me.Connected = b.session.Connection().State == telephony.Connected
	return me
}

// run announces this bridge again and again, until ctx ends.
func (b *bridgeList) run(ctx context.Context) error {
	if b.engine == nil {
		<-ctx.Done()
		return nil
	}
	failures := repeat.New(b.logger)
	for {
		if err := b.engine.Announce(ctx, b.now()); err != nil && ctx.Err() == nil {
			failures.Failed("this bridge cannot be announced to the others", err)
		} else if err == nil {
			failures.Recovered("this bridge is announced to the others again")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(announceEvery):
		}
	}
}

// Bridges returns the bridges that were seen within an hour.
func (b *bridgeList) Bridges(ctx context.Context) ([]store.Bridge, error) {
	if b.engine == nil {
		return []store.Bridge{b.now()}, nil
	}
	return b.engine.Bridges(ctx, time.Now().Add(-time.Hour))
}
