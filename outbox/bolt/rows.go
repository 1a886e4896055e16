package bolt

import (
	"bytes"
	"encoding/binary"
	"time"

	"pzbridge/outbox/store"
)

// rows is what the rules of order see of one endpoint's deliveries in a transaction: a store.Rows.
// A rule is about one delivery, that with number n.
type rows struct {
	q *queue
	n uint64
	// The place of the event in its call.
	call     string
	sequence uint64
	last     uint64         // the number of the event just before it in its call, 0 where that is not known
	attempt  *store.Attempt // to be added to the delivery's record; nil if none was made
	damaged  []uint64       // deliveries that are held and cannot be read
	err      error

	// The record that was looked up last, since a rule reads a delivery before it changes it.
	recordOf uint64 // 0: none
	record   []byte
}

// rowsOf gives the rows for a rule about a delivery. It fails where its event cannot be read.
func (q *queue) rowsOf(n uint64) (*rows, error) {
	e, _, err := decodeEventHead(q.tx.events.Get(number(n)))
	if err != nil {
		return nil, err
	}
	return q.rowsAt(n, e.Call, e.Sequence, 0), nil
}

// rowsAt gives the rows for a rule about a delivery of which the place in its call is known, and
// maybe the event before it.
func (q *queue) rowsAt(n uint64, call string, sequence, last uint64) *rows {
	q.rows = rows{q: q, n: n, call: call, sequence: sequence, last: last}
	return &q.rows
}

// isNew says that there is no delivery yet, so that it is not looked up.
func (r *rows) isNew() { r.recordOf, r.record = r.n, nil }

// lookUp gives the record of a delivery.
func (r *rows) lookUp(n uint64) []byte {
	if r.recordOf != n {
		r.recordOf, r.record = n, r.q.record(n)
	}
	return r.record
}

// Get gives a delivery. One that another holds and that is damaged is noted: it stands in no index,
// so nothing else would find it, and it would hold the rest of its call for ever.
func (r *rows) Get(n uint64) (store.Delivery, bool) {
	record := r.lookUp(n)
	d, _, ok := r.q.decode(n, record)
	if !ok && n != r.n && record != nil {
		r.damaged = append(r.damaged, n)
	}
	return d, ok
}

// Put stores a delivery, with its last attempts.
func (r *rows) Put(n uint64, d store.Delivery) {
	if r.err != nil {
		return
	}
	record := r.lookUp(n)
	_, history, _ := r.q.decode(n, record)
	if n == r.n && r.attempt != nil {
		r.q.buf = store.AppendAttempt(r.q.buf, history, *r.attempt)
		history, r.attempt = r.q.buf, nil
	}
	r.recordOf = 0
	r.err = r.q.replace(n, record, d, history)
}

// Err is the error of the first write that failed.
func (r *rows) Err() error { return r.err }

// Neighbour gives the nearest delivery of the same call. A record that is damaged is passed over.
func (r *rows) Neighbour(_ uint64, step int, want func(store.Delivery) bool) (uint64, store.Delivery) {
	// Behind so many events that the endpoint does not get, order is of no use; a scan without a
	// bound would hold up every other delivery.
	const farthest = 1000
	if r.call == "" {
		return 0, store.Delivery{}
	}
	if step < 0 && r.last != 0 {
		if d, _, ok := r.q.get(r.last); ok && want(d) {
			return r.last, d
		}
	}
	prefix := callKey(r.call)
	c := r.q.tx.calls.Cursor()
	k, _ := c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(prefix), r.sequence))
	for range farthest {
		var v []byte
		if step < 0 {
			k, v = prev(c, k)
		} else {
			k, v = c.Next()
		}
		if !bytes.HasPrefix(k, prefix) {
			break
		}
		n := numberAt(v)
		if d, _, ok := r.q.get(n); ok && want(d) {
			return n, d
		}
	}
	return 0, store.Delivery{}
}

// finish gives up what the rule has found damaged, and gives the first error.
func (r *rows) finish(now time.Time, hold time.Duration) error {
	damaged, err := r.damaged, r.err
	for _, n := range damaged {
		if err == nil {
			r.q.pendingNoMore() // it was held
			err = r.q.giveUp(n, now, hold)
		}
	}
	return err
}

// giveUp makes a delivery dead that cannot be made, since its record or its event's is damaged. One
// that is whole again is left alone: it was asked for again since it was found.
func (q *queue) giveUp(n uint64, now time.Time, hold time.Duration) error {
	e, _, eventErr := decodeEventHead(q.tx.events.Get(number(n)))
	d, _, ok := q.get(n)
	if ok && eventErr == nil {
		return nil
	}
	if !ok {
		if err := q.dropDamaged(n); err != nil {
			return err
		}
		if q.tx.events.Get(number(n)) == nil {
			return q.forget(n)
		}
	}
	r := q.rowsAt(n, e.Call, e.Sequence, 0)
	if !ok && eventErr == nil {
		d.Next, _ = r.Neighbour(n, +1, store.Delivery.IsPending)
	}
	r.attempt = &store.Attempt{At: now, Error: store.ErrBadRecord.Error(), Cause: store.ErrBadRecord.Cause()}
	store.End(r, n, d.Ended(store.Dead, now), hold)
	return r.finish(now, hold)
}

// dropDamaged takes a delivery out of the due index, where its place cannot be known from its
// record.
func (q *queue) dropDamaged(n uint64) error {
	c := q.due.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if _, other := readTimeKey(k); other != n {
			continue
		}
		if q.record(n) != nil { // it was pending, or it would not have stood there
			q.pendingNoMore()
		}
		return c.Delete()
	}
	return nil
}
