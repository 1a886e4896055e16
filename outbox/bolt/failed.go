package bolt

import (
	"encoding/binary"

	"pzbridge/outbox/store"
)

// failedKey is a delivery's place in the index of those that are expired or dead.
func failedKey(state store.State, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{byte(state)}, n)
}

func isFailed(s store.State) bool { return s == store.Expired || s == store.Dead }

// putFailed changes the index of failed deliveries after a change of a state. Known means that the
// delivery was stored before by this layout, so that the index has it if it had failed.
func (q *queue) putFailed(n uint64, now, before store.State, known bool) error {
	if known && before != now && isFailed(before) {
		if err := q.failed.Delete(failedKey(before, n)); err != nil {
			return err
		}
	}
	if isFailed(now) && (!known || before != now) {
		return q.failed.Put(failedKey(now, n), present)
	}
	return nil
}

// maxPendingListed is up to how many pending deliveries are found through the due ones. Of more,
// the newest are found among the newest events.
const maxPendingListed = 4096

// maxFailedListed is how many failed deliveries an index gives at once: more than a page looks at,
// so that the page ends with a cursor and not with the list. That at which it begins may not count.
const maxFailedListed = store.MaxLooked + 2

// numbersIn returns the numbers up to one of an endpoint's deliveries in a state, the highest first
// or in no order: all, or more than a page may look at. It is false if no index has them.
func (s *Engine) numbersIn(tx *txn, endpoint, state string, upTo uint64) (list []uint64, ok bool) {
	q := tx.queue(endpoint)
	_, reads := s.reading(tx, endpoint)
	isFilled := decodeNumber(q.root.Get(keyFilled)) == filledWhole
	switch {
	case reads || !isFilled:
		return nil, false
	case state == store.Dead.String():
		return q.failedUpTo(store.Dead, upTo), true
	case state == store.Expired.String():
		return q.failedUpTo(store.Expired, upTo), true
	case state == store.Pending.String() && q.counts[store.Pending] <= maxPendingListed:
		return q.pendingUpTo(tx, upTo), true
	}
	return nil, false
}

func (q *queue) failedUpTo(state store.State, upTo uint64) (list []uint64) {
	c := q.failed.Cursor()
	k, _ := seekUpTo(c, failedKey(state, upTo))
	for ; len(k) == 9 && k[0] == byte(state) && len(list) < maxFailedListed; k, _ = c.Prev() {
		list = append(list, binary.BigEndian.Uint64(k[1:]))
	}
	return list
}

// pendingUpTo finds the pending deliveries: those that are due, those that endpoints are asked
// about, and what these hold.
func (q *queue) pendingUpTo(tx *txn, upTo uint64) (list []uint64) {
	seen := map[uint64]bool{}
	follow := func(n uint64) {
		for n != 0 && !seen[n] {
			d, _, ok := q.get(n)
			if !ok || d.State != store.Pending {
				return
			}
			seen[n] = true
			if n <= upTo {
				list = append(list, n)
			}
			n = d.Next
		}
	}
	due := q.due.Cursor()
	for k, _ := due.First(); k != nil; k, _ = due.Next() {
		_, n := readTimeKey(k)
		follow(n)
	}
	asked := tx.questions.Cursor()
	for k, _ := asked.First(); k != nil; k, _ = asked.Next() {
		follow(decodeNumber(k))
	}
	return list
}
