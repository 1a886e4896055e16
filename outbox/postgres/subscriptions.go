package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// sharedRules are the rules with the endpoints of all bridges, by which events are stored. The head
// has the number of their last change, which each append reads: so no event is stored by old ones.
type sharedRules struct {
	own    []store.Subscription
	extend func(others []store.Subscription) store.Rules
	now    atomic.Pointer[numberedRules]
}

type numberedRules struct {
	store.Rules
	change int64 // head.subscribed
}

// errOutdated means that the rules of a transaction are older than the last change.
var errOutdated = errors.New("the endpoints of a bridge have changed")

// livingSince is since when a bridge must have been seen for events to be stored for its endpoints:
// one that restarts, or whose machine does, is to miss nothing.
const livingSince = time.Hour

// subscribe makes the endpoints of this bridge known to all, and reads those of the others.
func (s *Engine) subscribe(ctx context.Context) error {
	err := s.change(ctx, func(tx *txn) error {
		before := map[string]string{}
		err := tx.query(func(rows pgx.Rows) error {
			var name, value string
			err := rows.Scan(&name, &value)
			before[name] = value
			return err
		}, `SELECT endpoint, value::text FROM subscription WHERE bridge = $1`, s.name)
		if err != nil {
			return err
		}
		hasChanged := len(before) != len(s.shared.own)
		names, values := []string{}, []string{}
		for _, own := range s.shared.own {
			value, err := json.Marshal(own)
			if err != nil {
				return err
			}
			var known store.Subscription
			if err := json.Unmarshal([]byte(before[own.Name]), &known); err != nil || !known.IsEqual(own) {
				hasChanged = true
			}
			names, values = append(names, own.Name), append(values, string(value))
		}
		if !hasChanged {
			return nil
		}
		tx.write(`DELETE FROM subscription WHERE bridge = $1 AND endpoint <> ALL($2)`, s.name, names)
		tx.write(`INSERT INTO subscription (bridge, endpoint, value)
			SELECT $1, * FROM unnest($2::text[], $3::jsonb[]) ON CONFLICT (bridge, endpoint)
			DO UPDATE SET value = excluded.value`, s.name, names, values)
		tx.write(`UPDATE head SET subscribed = subscribed + 1`)
		return nil
	})
	if err != nil {
		return err
	}
	return s.readSubscriptions(ctx)
}

// readSubscriptions reads the endpoints of all bridges.
func (s *Engine) readSubscriptions(ctx context.Context) error {
	var others []store.Subscription
	var change int64
	byName := map[string]int16{}
	err := s.look(ctx, func(tx *txn) error {
		others = nil
		return tx.read(func(b *pgx.Batch) {
			each(b.Queue(`SELECT subscribed FROM head`), func(rows pgx.Rows) error { return rows.Scan(&change) })
			each(b.Queue(`SELECT name, id FROM endpoint`), func(rows pgx.Rows) error {
				var name string
				var id int16
				err := rows.Scan(&name, &id)
				byName[name] = id
				return err
			})
			each(b.Queue(`SELECT value FROM subscription WHERE bridge <> $1`, s.name), func(rows pgx.Rows) error {
				var other store.Subscription
				err := rows.Scan(&other)
				others = append(others, other)
				return err
			})
		})
	})
	if err != nil {
		return err
	}
	s.endpoints.set(byName)
	rules := s.rules
	if s.shared.extend != nil {
		rules = s.shared.extend(others)
	}
	s.shared.now.Store(&numberedRules{rules, change})
	return nil
}

// AllRules are the rules with the endpoints of all bridges: see store.Shared.
func (s *Engine) AllRules() store.Rules { return s.shared.now.Load().Rules }

// endSubscriptions removes those of bridges that nobody has seen for an hour.
func (s *Engine) endSubscriptions(ctx context.Context) error {
	return s.change(ctx, func(tx *txn) error {
		gone, err := tx.queryRow(nil, `SELECT FROM subscription s WHERE `+isGone+` LIMIT 1`,
			time.Now().Add(-livingSince).UnixMilli())
		if err != nil || !gone {
			return err
		}
		tx.write(`DELETE FROM subscription s WHERE `+isGone, time.Now().Add(-livingSince).UnixMilli())
		tx.write(`UPDATE head SET subscribed = subscribed + 1`)
		return nil
	})
}

// isGone is the condition that the bridge of a subscription does not live.
const isGone = `NOT EXISTS (SELECT FROM process WHERE process.bridge = s.bridge)
	AND NOT EXISTS (SELECT FROM bridge WHERE bridge.name = s.bridge AND bridge.seen >= $1)`
