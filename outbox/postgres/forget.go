package postgres

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

const (
	// forgetBatch is how many events one transaction forgets: few enough to stall no delivery.
	forgetBatch = 256
	// forgetEntries is at how many events with the number one transaction looks for calls.
	forgetEntries = 64
)

// Forget removes the next calls with a number: see store.Upkeep.
func (s *Engine) Forget(ctx context.Context, key string, dryRun bool) (f store.Forgotten, err error) {
	if dryRun {
		err = s.view(ctx, func(tx *txn) error {
			if err := tx.refuseUntilWhole(); err != nil {
				return err
			}
			_, err := tx.queryRow([]any{&f.Calls, &f.Events, &f.Routes, &f.Pending, &f.Deliveries}, countToForget, key)
			f.Deliveries += f.Pending // until now those that have ended
			return err
		})
		return f, err
	}
	err = s.change(ctx, func(tx *txn) (err error) {
		if err := tx.refuseUntilWhole(); err != nil {
			return err // calls with the number may be among what is copied later
		}
		f, err = tx.forgetSome(key)
		return err
	})
	if err == nil {
		s.notifyReaders()
	}
	return f, err
}

// countToForget counts the calls with a number and what belongs to them. Arrays and the offset take
// the place of joins that the planner may change: how it joins depends on how many rows it takes
// the tables to have.
const countToForget = `WITH calls AS (
		SELECT call FROM event WHERE from_key = $1 AND from_key <> ''
		UNION SELECT call FROM event WHERE to_key = $1 AND to_key <> ''
	), events AS (
		SELECT n FROM event WHERE call = ANY (ARRAY(SELECT call FROM calls)) AND call <> ''
	) SELECT
		(SELECT count(*) FROM calls),
		(SELECT count(*) FROM events),
		(SELECT count(*) FROM route WHERE call = ANY (ARRAY(SELECT call FROM calls))),
		(SELECT count(*) FROM pending WHERE n = ANY (ARRAY(SELECT n FROM events))),
		(SELECT count(*) FROM events CROSS JOIN (SELECT id FROM endpoint) p CROSS JOIN LATERAL (
			SELECT FROM ended WHERE ended.endpoint = p.id AND ended.n = events.n OFFSET 0) d)`

// forgetSome removes the next calls with a number, of the last one maybe only a part.
func (tx *txn) forgetSome(key string) (f store.Forgotten, err error) {
	calls, hasMore, err := tx.callsOfNumber(key)
	if err != nil || len(calls) == 0 {
		return f, err
	}
	if err := tx.lockCalls(calls...); err != nil {
		return f, err
	}
	events, err := tx.nextToForget(key, calls)
	if err != nil {
		return f, err
	}
	f.More = hasMore
	var gone []*storedEvent
	var whole []string
	for _, call := range calls {
		of := events[call]
		if room := forgetBatch - len(gone); len(of) > room {
			gone = append(gone, of[:room]...)
			f.More = true
			break
		}
		if len(of) == 0 { // another process was faster
			continue
		}
		gone, whole = append(gone, of...), append(whole, call)
		if f.Calls++; tx.routes[call].route != nil {
			f.Routes++
		}
	}
	if len(gone) == 0 {
		return f, nil
	}
	if err := tx.countForgotten(&f, gone); err != nil {
		return f, err
	}
	tx.write(deleteRoutes, whole)
	return f, tx.removeEvents(gone)
}

// countForgotten counts events and their deliveries, which it reads.
func (tx *txn) countForgotten(f *store.Forgotten, list []*storedEvent) error {
	deliveries, err := tx.deliveriesOf(list)
	f.Events = len(list)
	for _, keys := range deliveries {
		f.Deliveries += len(keys)
		for _, k := range keys {
			if tx.deliveries[k].State == store.Pending {
				f.Pending++
			}
		}
	}
	return err
}

// entriesFrom and entriesTo read the latest events with a number. Rows are compared, and sorted by
// the key as well, since no other index has them in that order: else the planner, where it takes
// the number for a frequent one, would go through all events until it has found enough.
const (
	entriesFrom = `SELECT n, call FROM event WHERE (from_key, n) BETWEEN ($1, 0) AND ($1, $2) AND from_key <> ''
		ORDER BY from_key DESC, n DESC LIMIT $3`
	entriesTo = `SELECT n, call FROM event WHERE (to_key, n) BETWEEN ($1, 0) AND ($1, $2) AND to_key <> ''
		ORDER BY to_key DESC, n DESC LIMIT $3`
)

// callsOfNumber finds the latest calls with a number, the latest first. HasMore is true if there
// may be others.
func (tx *txn) callsOfNumber(key string) (calls []string, hasMore bool, err error) {
	type entry struct {
		n    uint64
		call string
	}
	var entries []entry
	err = tx.read(func(b *pgx.Batch) {
		for _, sql := range []string{entriesFrom, entriesTo} {
			found := 0
			each(b.Queue(sql, key, int64(math.MaxInt64), forgetEntries), func(rows pgx.Rows) error {
				var e entry
				err := rows.Scan(&e.n, &e.call)
				entries = append(entries, e)
				found++
				hasMore = hasMore || found == forgetEntries
				return err
			})
		}
	})
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(b.n, a.n) })
	for _, e := range entries {
		if !slices.Contains(calls, e.call) {
			calls = append(calls, e.call)
		}
	}
	return calls, hasMore, err
}

// eventsToForget reads events of calls, of each the latest first, and last of all those by which
// the call is found by a number: the number may have joined the call late, and what is left of it
// must be found by the next transaction.
const eventsToForget = `SELECT ` + eventColumns + `, e.size FROM unnest($1::text[]) AS c(call) CROSS JOIN LATERAL (
	SELECT n, id, at, type, call, sequence, size FROM event WHERE event.call = c.call AND event.call <> ''
	ORDER BY from_key = $2 OR to_key = $2, sequence DESC LIMIT $3) e`

// nextToForget gives the events of calls in the order in which they are removed, of each call so
// many that it is seen whether all go into one transaction, and reads the calls' routes.
func (tx *txn) nextToForget(key string, calls []string) (map[string][]*storedEvent, error) {
	events := map[string][]*storedEvent{}
	err := tx.read(func(b *pgx.Batch) {
		each(b.Queue(eventsToForget, calls, key, forgetBatch+1), func(rows pgx.Rows) error {
			e := &storedEvent{engine: tx.engine}
			var err error
			e.tailEvent, err = scanEvent(rows, &e.size)
			events[e.Call] = append(events[e.Call], e)
			return err
		})
		tx.queueRoutes(b, calls)
	})
	return events, err
}
