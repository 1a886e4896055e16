package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// expiring are the deliveries that expire in a range of time, with the heads of their events.
const expiring = `SELECT p.n, p.expires, ` + eventColumns + ` FROM (SELECT n, expires FROM pending
	WHERE endpoint = $1 AND expires > 0 AND due >= 0 AND expires >= $2 AND (expires, n) > ($3, $4)
	ORDER BY expires, n LIMIT $5) p` + itsEvent + ` ORDER BY p.expires, p.n`

// Expire ends what is of no use any more: see store.Lane.
func (l *lane) Expire(
	ctx context.Context, now time.Time, limit int,
) (expired []store.Job, next time.Time, err error) {
	late, next, err := l.claimLate(ctx, now, limit)
	if err != nil || len(late) == 0 {
		return nil, next, err
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range late {
			delete(l.claimed, late[i].Number)
		}
	}()
	err = l.engine.change(ctx, func(tx *txn) (err error) {
		expired, err = l.endLate(tx, late, now)
		return err
	})
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case len(expired) == 0: // they are asked for again
		return nil, now.Add(time.Second), nil
	}
	return expired, now, nil // at once again: what they held may be late too
}

// claimLate looks for deliveries that are of no use at now, and claims them while they are being
// ended. Next is when to look again; zero if nothing expires.
func (l *lane) claimLate(ctx context.Context, now time.Time, limit int) (late []store.Job, next time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	look := lateLook{lane: l, limit: limit}
	err = l.engine.look(ctx, func(tx *txn) error {
		look.tx, look.late, look.next = tx, nil, time.Time{}
		return look.run(now)
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	l.claimAll(look.late)
	return look.late, look.next, nil
}

// lateLook is a look for deliveries that are of no use any more.
type lateLook struct {
	lane  *lane
	tx    *txn
	limit int
	late  []store.Job // without their bodies, which are not going to be sent
	next  time.Time
}

// run looks. While a step of the clock is not believed, what came before it expires later by the
// step: see clock.Freshness. These are two ranges, since a step is longer than any life, or the few
// of the second range that are younger are passed over.
func (f *lateLook) run(now time.Time) error {
	wall, doubt := now.UnixNano(), f.lane.engine.clock.Doubt()
	if doubt.By == 0 {
		return f.scan(lateRange{until: wall}, now)
	}
	by := int64(doubt.By)
	if err := f.scan(lateRange{until: wall - by, shift: by}, now); err != nil {
		return err
	}
	return f.scan(lateRange{from: doubt.From.UnixNano(), until: wall}, now)
}

// lateRange is a range of times of expiry, in Unix nanoseconds: what expires in it is late, and
// what expires after it will be late later by shift.
type lateRange struct{ from, until, shift int64 }

func (f *lateLook) scan(r lateRange, now time.Time) error {
	const size = 256
	expires, n := int64(0), uint64(0)
	for seen := 0; len(f.late) < f.limit && seen < maxSkipped; {
		count, isOver := 0, false
		err := f.tx.query(func(rows pgx.Rows) error {
			var at int64
			var kind string
			j := store.Job{}
			err := rows.Scan(&n, &expires, &j.Number, &j.Event.ID, &at, &kind, &j.Event.Call, &j.Event.Sequence)
			if err != nil {
				return err
			}
			count++
			if expires > r.until {
				if !isOver {
					f.next = sooner(f.next, time.Unix(0, expires+r.shift))
				}
				isOver = true
				return nil
			}
			j.Event.At, j.Event.Type = milliTime(at), eventType(kind)
			j.EventID, j.Delivery.Expires = j.Event.ID.String(), expires
			if len(f.late) < f.limit && !f.lane.claimed[n] && f.lane.engine.isExpired(&j) {
				f.late = append(f.late, j)
			}
			return nil
		}, expiring, f.lane.endpoint, r.from, expires, int64(n), size)
		if err != nil {
			return err
		}
		if isOver || count < size {
			return nil
		}
		seen += count
	}
	return nil
}

// endLate ends deliveries that are late, unless they have changed since the look.
func (l *lane) endLate(tx *txn, late []store.Job, now time.Time) (expired []store.Job, err error) {
	list := make([]waiting, len(late))
	for i := range late {
		list[i] = waiting{n: late[i].Number, event: late[i].Event}
	}
	if err := tx.lockWaiting(l.endpoint, list); err != nil {
		return nil, err
	}
	for i := range late {
		j := &late[i]
		d := tx.deliveries[deliveryKey{j.Number, l.endpoint}]
		if !d.exists || !d.IsDue() || d.Expires == 0 { // it was asked for again, or is held now
			continue
		}
		r := tx.rowsOf(l.endpoint, j.Number, &j.Event)
		j.Delivery = d.Delivery
		store.End(r, j.Number, d.Ended(store.Expired, now), l.engine.rules.Hold)
		if r.Err() != nil {
			return nil, r.Err()
		}
		expired = append(expired, *j)
	}
	return expired, nil
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
