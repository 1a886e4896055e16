package postgres

import (
	"context"
	"encoding/hex"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/sleep"
)

// A process notifies the others when it has stored something that may be theirs to deliver. That
// only saves them the time until they look anyway: a notification may be lost with a connection,
// and there is none through a pooler in transaction mode. A process that is alone neither sends nor
// awaits any.

// channel is the name under which the processes of one schema notify each other.
func (s *Engine) channel() string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s.schema))
	return "pzbridge_" + hex.EncodeToString(h.Sum(nil))
}

// notifyOthers makes the transaction notify the other processes, if there are any.
func (tx *txn) notifyOthers() {
	if s := tx.engine; s.presence.hasOthers.Load() && s.pooled == "" {
		tx.write(`SELECT pg_notify($1, $2)`, s.channel(), s.id.String())
	}
}

// listenWait is how long a connection may be silent before it is tried: one whose other end is gone
// looks like one on which nothing happens.
const listenWait = 10 * time.Second

// listen wakes the lanes of this process when another one has stored something, until ctx ends.
func (s *Engine) listen(ctx context.Context) {
	for sleep.For(ctx, s.poll) {
		if s.presence.hasOthers.Load() && s.pooled == "" {
			_ = s.awaitNotifications(ctx) // then it is tried again, and follow looks meanwhile
		}
	}
}

// awaitNotifications listens on a connection of its own until that fails, or no other process
// lives. It takes the place of a view: see maxViews.
func (s *Engine) awaitNotifications(ctx context.Context) error {
	select {
	case s.viewers <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.viewers }()
	pooled, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Conn()
	defer func() { // it goes with its subscription
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
		pooled.Release()
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{s.channel()}.Sanitize()); err != nil {
		return err
	}
	s.followOthers() // of what came before
	for s.presence.hasOthers.Load() {
		if err := s.awaitNotification(ctx, conn); err != nil {
			return err
		}
	}
	return nil
}

// awaitNotification waits for one notification of another process, or tries the connection after
// listenWait.
func (s *Engine) awaitNotification(ctx context.Context, conn *pgx.Conn) error {
	waiting, cancel := context.WithTimeout(ctx, listenWait)
	defer cancel()
	n, err := conn.WaitForNotification(waiting)
	switch {
	case err == nil && n.Payload != s.id.String():
		s.followOthers()
	case err != nil && ctx.Err() == nil && waiting.Err() != nil:
		trying, cancel := context.WithTimeout(ctx, listenWait)
		defer cancel()
		return conn.Ping(trying)
	}
	return err
}
