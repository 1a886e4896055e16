package postgres

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/repeat"
	"pzbridge/outbox/store"
)

// SetRead notes how far an endpoint has read: see store.Archive.
func (s *Engine) SetRead(ctx context.Context, q store.EventQuery, p store.EventPage, newest uint64, at time.Time) {
	var last store.Reading
	if q.Backwards { // only then it counts how far the endpoint had read before
		id, _ := s.endpoints.id(q.Endpoint)
		if s.view(ctx, func(tx *txn) error {
			known, err := tx.readings()
			last = known[id]
			return err
		}) != nil {
			return
		}
	}
	s.readers.Set(q.Endpoint, last.After(q, p, newest, at))
}

// keepReads records how far endpoints have read, until ctx ends and what there is then is recorded.
func (s *Engine) keepReads(ctx context.Context) {
	failures := repeat.New(s.logger)
	write := func(list map[string]store.Reading) error {
		return s.writeReads(context.WithoutCancel(ctx), list) // also what was read just before the end
	}
	s.readers.Keep(ctx, write, func(err error) {
		if err != nil {
			failures.Failed("how far endpoints have read cannot be recorded", err)
		} else {
			failures.Recovered("how far endpoints have read is recorded again")
		}
	})
}

// writeReads records reads. An endpoint may read from several processes, and the latest read
// counts.
func (s *Engine) writeReads(ctx context.Context, list map[string]store.Reading) error {
	return s.change(ctx, func(tx *txn) error {
		for _, name := range slices.Sorted(maps.Keys(list)) { // in one order, so that no two wait for each other
			tx.write(`UPDATE endpoint SET read_up_to = $2, read_at = $3 WHERE name = $1 AND read_at <= $3`,
				name, list[name].UpTo, list[name].At.UnixNano())
		}
		return nil
	})
}

// readings returns how far the endpoints that read their events have read, by their IDs: by the
// last read of this process or, if that is later, of another.
func (tx *txn) readings() (map[int16]store.Reading, error) {
	list := map[int16]store.Reading{}
	var names []string
	for _, name := range tx.engine.rules.Endpoints {
		if tx.engine.rules.Reads(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return list, nil
	}
	err := tx.query(func(rows pgx.Rows) error {
		var name string
		var id int16
		var r store.Reading
		var at int64
		if err := rows.Scan(&name, &id, &r.UpTo, &at); err != nil {
			return err
		}
		if at != 0 {
			r.At = time.Unix(0, at)
		}
		if own, known := tx.engine.readers.Get(name); known && !own.At.Before(r.At) {
			r = own
		}
		list[id] = r
		return nil
	}, `SELECT name, id, read_up_to, read_at FROM endpoint WHERE name = ANY($1)`, names)
	return list, err
}

// countUnread counts the events that an endpoint has not read, store.MaxUnread at most, and gives
// the number of the first; NULL if there is none.
const countUnread = `SELECT count(*), min(n) FROM (SELECT n, state, attempts FROM ended
	WHERE endpoint = $1 AND n > $2 ORDER BY n LIMIT $3) e WHERE state = 1 AND attempts = 0`

// queueUnread queues countUnread.
func queueUnread(b *pgx.Batch, endpoint int16, last store.Reading, got func(count, first uint64)) {
	each(b.Queue(countUnread, endpoint, last.UpTo, store.MaxUnread), func(rows pgx.Rows) error {
		var count uint64
		var first *uint64
		if err := rows.Scan(&count, &first); err != nil {
			return err
		}
		if first == nil {
			first = new(uint64)
		}
		got(count, *first)
		return nil
	})
}

// closeReaders ends what is pending for endpoints that read their events and had an address before:
// it is there to be read, and there is nowhere to send it.
func (s *Engine) closeReaders(ctx context.Context) error {
	for _, name := range s.rules.Endpoints {
		if !s.rules.Reads(name) {
			continue
		}
		endpoint, _ := s.endpoints.id(name)
		pending := false
		err := s.view(ctx, func(tx *txn) (err error) {
			pending, err = tx.hasPending(endpoint)
			return err
		})
		for after := uint64(0); err == nil && pending; {
			after, pending, err = s.closeSome(ctx, endpoint, after, time.Now())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hasPending reports whether deliveries to an endpoint are pending, by their count.
func (tx *txn) hasPending(endpoint int16) (has bool, err error) {
	_, err = tx.queryRow([]any{&has},
		`SELECT coalesce(sum(number), 0) > 0 FROM tally WHERE endpoint = $1 AND state = 0`, endpoint)
	return has, err
}

// closeSome ends the next of an endpoint's pending deliveries after a number, and says up to which
// number, and whether more may follow.
func (s *Engine) closeSome(
	ctx context.Context, endpoint int16, after uint64, now time.Time,
) (last uint64, more bool, err error) {
	const batch = 256
	err = s.change(ctx, func(tx *txn) error {
		last = after
		var keys []deliveryKey
		var calls []string
		err := tx.query(func(rows pgx.Rows) error {
			var call string
			err := rows.Scan(&last, &call)
			keys, calls = append(keys, deliveryKey{last, endpoint}), append(calls, lockName(last, call))
			return err
		}, `SELECT p.n, e.call FROM (SELECT n FROM pending WHERE endpoint = $1 AND n > $2 ORDER BY n LIMIT $3) p
			JOIN event e USING (n) ORDER BY p.n`, endpoint, after, batch)
		if err != nil {
			return err
		}
		more = len(keys) == batch
		if err := tx.lockCalls(calls...); err != nil {
			return err
		}
		if err := tx.load(keys...); err != nil {
			return err
		}
		for _, k := range keys {
			if r := tx.deliveries[k]; r.exists && r.State == store.Pending {
				d := r.Ended(store.Delivered, now)
				d.Attempts = 0 // by which it differs from what was sent: see store.Reading
				tx.put(k, d, r.history)
			}
		}
		return nil
	})
	return last, more, err
}
