package bolt

import (
	"bytes"
	"context"
	"time"

	"pzbridge/outbox/store"
)

// The index by expiry is coarse: an entry stands for a second and a block of deliveries, and says
// that some of the block may expire in that second. So storing a delivery seldom adds an entry, and
// recording its outcome removes none: an entry is removed some time after its second, once nothing
// in its block expires then.

// expiryBlock is the number of deliveries in a block: so few that reading one is cheap.
const expiryBlock = 64

// expiryEntry is a key of the index by expiry.
type expiryEntry struct {
	second int64 // in Unix seconds
	block  uint64
}

func entryOf(expires int64, n uint64) expiryEntry {
	return expiryEntry{second: expires / int64(time.Second), block: n / expiryBlock}
}

func (e expiryEntry) key() []byte { return timeKey(e.second, e.block) }

// readExpiryEntry is the second 0, in which nothing expires, for a key that is damaged.
func readExpiryEntry(k []byte) (e expiryEntry) {
	e.second, e.block = readTimeKey(k)
	return e
}

// addExpiry adds the entry of a delivery to the index by expiry, unless it is there. Deliveries
// that are stored together mostly have the same.
func (q *queue) addExpiry(expires int64, n uint64) error {
	e := entryOf(expires, n)
	if e == q.lastExpiry {
		return nil
	}
	q.lastExpiry = e
	key := e.key()
	if q.expiry.Get(key) != nil {
		return nil
	}
	return q.expiry.Put(key, present)
}

// present is the value of an entry. It is not empty, since bbolt may return nil for an empty value,
// as it does for a missing key.
var present = []byte{1}

// expiringIn calls visit for each delivery of an entry that expires in its second, until visit
// returns false. It reports whether there was none.
func (q *queue) expiringIn(e expiryEntry, visit func(n uint64, d store.Delivery) bool) (none bool) {
	none = true
	c := q.deliveries.Cursor()
	for k, v := c.Seek(number(e.block * expiryBlock)); k != nil; k, v = c.Next() {
		n := decodeNumber(k)
		if n/expiryBlock != e.block {
			break
		}
		d, _, ok := q.decode(n, v)
		if !ok || !d.IsDue() || d.Expires == 0 || entryOf(d.Expires, n) != e {
			continue
		}
		none = false
		if !visit(n, d) {
			break
		}
	}
	return none
}

// expiredBatch is what a look into the index by expiry has found.
type expiredBatch struct {
	late  []store.Job // without their bodies, which are not going to be sent
	empty [][]byte    // keys of past entries in which nothing expires any more
	next  time.Time   // when to look again; zero if nothing expires
}

const (
	// maxEmpty is how many entries without deliveries may stay in the index: each look reads their
	// blocks again, and removing them takes a commit.
	maxEmpty = 16
	// emptyBatch is how many such entries one look passes over, and one transaction removes. After
	// a busy hour or a standstill there are many thousands.
	emptyBatch = 256
)

// Expire ends what is of no use any more: see store.Lane.
func (l *lane) Expire(_ context.Context, now time.Time, limit int) (expired []store.Job, next time.Time, err error) {
	f, err := l.claimLate(now, limit)
	if err != nil || len(f.late) == 0 && len(f.empty) < maxEmpty {
		return nil, f.next, err
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range f.late {
			delete(l.claimed, f.late[i].Number)
		}
	}()
	err = l.engine.commit(func(tx *txn) (err error) {
		expired, err = l.endLate(tx, f, now)
		return err
	})
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case len(f.late) == 0:
		return nil, f.next, nil
	case len(expired) == 0: // they are asked for again, or damaged
		return nil, now.Add(time.Second), nil
	}
	return expired, now, nil // at once again: what they held may be late too
}

// claimLate looks for deliveries that are of no use at now, and claims them while they are being
// ended.
func (l *lane) claimLate(now time.Time, limit int) (f expiredBatch, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err = l.engine.view(func(tx *txn) error {
		f = l.lateAt(tx, now, limit)
		return nil
	})
	if err != nil {
		return expiredBatch{}, err
	}
	for i := range f.late {
		l.claimed[f.late[i].Number] = true
	}
	return f, nil
}

// endLate ends deliveries that are late, unless they have changed since the look, and removes the
// entries that are empty still.
func (l *lane) endLate(tx *txn, f expiredBatch, now time.Time) (expired []store.Job, err error) {
	q := tx.queue(l.endpoint)
	for i := range f.late {
		j := &f.late[i]
		d, _, ok := q.get(j.Number)
		if !ok || !d.IsDue() || d.Expires == 0 { // it was asked for again, or is held now
			continue
		}
		r := q.rowsAt(j.Number, j.Event.Call, j.Event.Sequence, 0)
		store.End(r, j.Number, d.Ended(store.Expired, now), l.engine.rules.Hold)
		if err := r.finish(now, l.engine.rules.Hold); err != nil {
			return nil, err
		}
		expired = append(expired, *j)
	}
	for _, k := range f.empty {
		if !q.expiringIn(readExpiryEntry(k), func(uint64, store.Delivery) bool { return false }) {
			continue
		}
		if err := q.expiry.Delete(k); err != nil {
			return nil, err
		}
		q.lastExpiry = expiryEntry{}
	}
	return expired, nil
}

// lateAt looks for deliveries that are of no use at now. While a step of the clock is not believed,
// what came before it expires later by the step: see clock.Freshness. Of the index by expiry these
// are two ranges, since a step is longer than any life, or the few of the second range that are
// younger are passed over.
func (l *lane) lateAt(tx *txn, now time.Time, limit int) (f expiredBatch) {
	wall, doubt := now.UnixNano(), l.engine.clock.Doubt()
	if doubt.By == 0 {
		l.scanLate(tx, &f, lateRange{until: wall}, now, limit)
		return f
	}
	by := int64(doubt.By)
	l.scanLate(tx, &f, lateRange{until: wall - by, shift: by}, now, limit)
	l.scanLate(tx, &f, lateRange{from: doubt.From.UnixNano(), until: wall}, now, limit)
	return f
}

// lateRange is a range of the index by expiry, in Unix nanoseconds: what expires in it is late, and
// what expires after it will be late later by shift.
type lateRange struct{ from, until, shift int64 }

func (l *lane) scanLate(tx *txn, f *expiredBatch, r lateRange, now time.Time, limit int) {
	q := tx.queue(l.endpoint)
	last := r.until / int64(time.Second)
	c := q.expiry.Cursor()
	k, _ := c.Seek(timeKey(r.from/int64(time.Second), 0))
	for ; k != nil && len(f.late) < limit; k, _ = c.Next() {
		e := readExpiryEntry(k)
		if e.second > last {
			f.next = sooner(f.next, time.Unix(e.second, r.shift))
			return
		}
		if len(f.empty) == emptyBatch {
			f.next = now // at once again, without these
			return
		}
		none := q.expiringIn(e, func(n uint64, d store.Delivery) bool {
			if d.Expires > r.until {
				f.next = sooner(f.next, time.Unix(0, d.Expires+r.shift))
				return true
			}
			if j, ok := lateJob(tx, n, d); ok && !l.claimed[n] && l.engine.isExpired(&j, now) {
				f.late = append(f.late, j)
			}
			return len(f.late) < limit
		})
		if none && e.second < last {
			f.empty = append(f.empty, bytes.Clone(k))
		}
	}
}

// lateJob reads a delivery without the body of its event.
func lateJob(tx *txn, n uint64, d store.Delivery) (store.Job, bool) {
	e, _, err := decodeEventHead(tx.events.Get(number(n)))
	return store.Job{Number: n, Delivery: d, Event: e, EventID: e.ID.String()}, err == nil
}
