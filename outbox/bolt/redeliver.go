package bolt

import (
	"context"
	"encoding/binary"
	"time"

	"pzbridge/outbox/store"
)

// Redeliver makes one delivery pending again: see store.Archive.
func (s *Engine) Redeliver(_ context.Context, eventID, endpoint string, now time.Time) error {
	known := false
	err := s.commit(func(tx *txn) error {
		var n uint64
		if n, known = tx.numberOf(eventID); !known {
			return nil
		}
		return s.redeliver(tx.queue(endpoint), n, now, 0)
	})
	if err == nil && !known {
		return store.ErrNotFound
	}
	return err
}

// redeliverBatch is how many events one transaction makes again: few enough to stall no delivery.
const redeliverBatch = 256

// RedeliverSome makes the next few deliveries again that a selection is for: see store.Archive.
func (s *Engine) RedeliverSome(
	_ context.Context, r store.Redelivery, from, last uint64, now time.Time,
) (count int, next uint64, err error) {
	choose := func(tx *txn) []uint64 {
		var list []uint64
		list, next = s.matching(tx, r, from, last)
		count = len(list)
		return list
	}
	if r.DryRun {
		err = s.view(func(tx *txn) error {
			choose(tx)
			return nil
		})
		return count, next, err
	}
	err = s.commit(func(tx *txn) error {
		for _, n := range choose(tx) {
			if err := s.redeliver(tx.queue(r.Endpoint), n, now, r.Number); err != nil {
				return err
			}
		}
		if state := tx.redelivery(r.Number); state != nil {
			state.Chosen += count
			state.Whole = next > last
		}
		return nil
	})
	return count, next, err
}

// LastNumber is the number of the event that was appended last, also if it has been removed.
func (s *Engine) LastNumber(context.Context) (n uint64, err error) {
	err = s.view(func(tx *txn) error {
		n = tx.events.Sequence()
		return nil
	})
	return n, err
}

// matching gives, of the next events from a number to the last, those that a redelivery is for, and
// the number to go on from.
func (s *Engine) matching(tx *txn, r store.Redelivery, from, last uint64) (list []uint64, next uint64) {
	q := tx.queue(r.Endpoint)
	c := tx.events.Cursor()
	seen := 0
	for k, v := c.Seek(number(from)); k != nil; k, v = c.Next() {
		n := binary.BigEndian.Uint64(k)
		if n > last {
			break
		}
		if seen == maxRead || len(list) == redeliverBatch {
			return list, n
		}
		seen++
		e, _, err := decodeEventHead(v)
		if err == nil && r.Matches(e) && s.wants(r, q, n, &e) {
			list = append(list, n)
		}
	}
	return list, last + 1
}

// wants reports whether a delivery stands as the redelivery asks.
func (s *Engine) wants(r store.Redelivery, q *queue, n uint64, e *store.Event) bool {
	d, _, ok := q.get(n)
	return s.rules.Wants(&r, e, d, ok, (&storedEvent{q.tx, n, e}).Route)
}

// redeliver makes a delivery pending again, or for the first time.
func (s *Engine) redeliver(q *queue, n uint64, now time.Time, request uint32) error {
	r, err := q.rowsOf(n)
	if err != nil {
		return nil // its event is damaged, so it cannot be delivered, and the page of its call says so
	}
	if _, _, ok := q.get(n); !ok && q.record(n) != nil { // it is damaged; its place in the due index has to go first
		at, before := r.Neighbour(n, -1, store.Delivery.IsPending)
		if at != 0 && before.Next == n && before.FailedAt == 0 { // it was held
			q.pendingNoMore()
		}
		if err := q.giveUp(n, now, s.rules.Hold); err != nil {
			return err
		}
		if r, err = q.rowsOf(n); err != nil {
			return err
		}
	}
	store.Redeliver(r, n, now, s.rules.Hold, request)
	return r.finish(now, s.rules.Hold)
}
