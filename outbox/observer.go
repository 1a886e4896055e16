package outbox

import (
	"time"
)

// Observer is told what happens, to count it. Its methods return at once and may be called at the same time.
type Observer interface {
	// AttemptEnded tells of an attempt that took so long, at an event that was read so long ago, and what came of it: one of the outcomes below.
	AttemptEnded(endpoint, outcome string, took, age time.Duration)
	Expired(endpoint string)        // a delivery is made no more, since it is too late
	GivenUp(endpoint string, n int) // so many are dead without another attempt: they are damaged, or were waited for too long
	Committed(took time.Duration)   // to the file
}

// The outcomes of attempts, and of what was too late for one.
const (
	OutcomeDelivered = "delivered"
	OutcomeFailed    = "failed" // it will be tried again
	OutcomeDead      = "dead"
	OutcomeExpired   = "expired"
)

// outcomeOf names how a delivery stands after an attempt.
func outcomeOf(d delivery) string {
	if d.state == pending {
		return OutcomeFailed
	}
	return d.state.String()
}

// unobserved is the observer of an outbox that has none.
type unobserved struct{}

// AttemptEnded does nothing.
func (unobserved) AttemptEnded(string, string, time.Duration, time.Duration) {}

// Expired does nothing.
func (unobserved) Expired(string) {}

// GivenUp does nothing.
func (unobserved) GivenUp(string, int) {}

// Committed does nothing.
func (unobserved) Committed(time.Duration) {}

// InUse is how many bytes of the file hold something.
func (o *Outbox) InUse() (n int64) {
	_ = o.store.view(func(tx *txn) error {
		n = o.store.inUse(tx.Tx)
		return nil
	})
	return n
}

// OldestPending is when the oldest event was read that waits for an endpoint; zero if none does. A question that is being asked does not count, nor what waits
// behind it, nor what is delivered again, which has not waited since it was read. Of those that are retried at a later time only the next few thousand are looked at.
func (o *Outbox) OldestPending(endpoint string) (at time.Time, err error) {
	err = o.store.view(func(tx *txn) error {
		q := tx.queue(endpoint)
		if q == nil {
			return nil
		}
		oldest := uint64(0)
		if last, reads := o.store.reading(tx, endpoint); reads {
			_, oldest = tx.unread(q, last)
		}
		c := q.due.Cursor()
		k, _ := c.First()
		for seen := 0; k != nil && seen < readAtOnce; seen++ {
			due, n := readDueKey(k)
			d, _ := q.get(n)
			counts := d != nil && d.redelivered == 0
			if counts && (oldest == 0 || n < oldest) {
				oldest = n
			}
			if counts && due == 0 { // those that have not been tried are in the order of the events
				k, _ = c.Seek(dueKey(1, 0))
			} else {
				k, _ = c.Next()
			}
		}
		if e, _, err := decodeEventHead(tx.events.Get(number(oldest))); err == nil {
			at = e.at
		}
		return nil
	})
	return at, err
}
