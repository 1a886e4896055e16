package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/clock"
)

// job is a delivery that is due, with what an attempt needs. Nothing in it belongs to bbolt.
type job struct {
	number   uint64
	delivery delivery
	stored
	eventID string // the event's ID as text
}

// expires is when it is no longer of use to deliver the event, by the clock as it stands now; zero is
// never.
func (j job) expires(c *clock.Clock, routing, ringing time.Duration) time.Time {
	if life := lifetime(j.kind, routing, ringing); life > 0 && j.delivery.redelivered == 0 {
		return time.Now().Add(life - c.Freshness(j.at))
	}
	return time.Time{}
}

// found is what a look into the due index has brought.
type found struct {
	jobs    []job
	wait    time.Duration // until the next one is due; 0 if there is none, or if the limit was reached
	damaged []uint64      // numbers of deliveries that stand in the index and cannot be read
	// unreadable are numbers of deliveries that stand on a page which is damaged. Nothing can be done
	// about them but to go on with the others.
	unreadable []uint64
	met        error // what was met there
}

// take adds a delivery.
func (f *found) take(tx *txn, q *queue, n uint64) {
	err := guarded(func() error {
		f.read(tx, q, n)
		return nil
	})
	if err != nil {
		f.unreadable, f.met = append(f.unreadable, n), err
		q.byNumber, tx.byNumber = finder{}, finder{} // who knows where they stand
	}
}

func (f *found) read(tx *txn, q *queue, n uint64) {
	v, _ := q.byNumber.next(q.deliveries, n)
	d, damaged := decodeDelivery(v)
	v, _ = tx.byNumber.next(tx.events, n)
	e, err := decodeEvent(v)
	if damaged != nil || err != nil {
		f.damaged = append(f.damaged, n)
		return
	}
	f.jobs = append(f.jobs, job{number: n, delivery: d, stored: e, eventID: e.id.String()})
}

// due gives up to limit deliveries of an endpoint that are due, but for those that are claimed: those that have not been tried in the order of the events, and
// a part of the room is for those whose time has come, oldest first. Else a backlog of the first would keep the others waiting for as long as it lasts.
func (s *store) due(endpoint string, limit int, claimed map[uint64]bool, now time.Time) (f found, err error) {
	err = s.view(func(tx *txn) error {
		q := tx.queue(endpoint)
		f.jobs = make([]job, 0, min(uint64(limit), q.counts[pending]))
		c := q.due.Cursor()
		take := func(k []byte, until int64, limit int) []byte {
			for ; k != nil && len(f.jobs) < limit; k, _ = c.Next() {
				at, n := readDueKey(k)
				if at > until {
					break
				}
				if !claimed[n] {
					f.take(tx, q, n)
				}
			}
			return bytes.Clone(k)
		}
		timed, _ := c.Seek(dueKey(1, 0))
		timed = take(timed, now.UnixNano(), max(1, limit/4))
		untried, _ := c.First()
		take(untried, 0, limit)
		if timed == nil || len(f.jobs) == limit {
			return nil
		}
		c.Seek(timed)
		if timed = take(timed, now.UnixNano(), limit); timed != nil && len(f.jobs) < limit {
			at, _ := readDueKey(timed)
			f.wait = time.Duration(at - now.UnixNano())
		}
		return nil
	})
	_ = s.danger.note(f.met)
	return f, err
}

// lineBatch is how many deliveries one transaction puts in line, or gives another time.
const lineBatch = 256

// clockSetBack gives the deliveries of an endpoint that are to be tried later the time that they should have by a clock that was set back to now: see
// delivery.setBack.
func (s *store) clockSetBack(endpoint string, now time.Time, longest time.Duration) error {
	for from := dueKey(now.UnixNano()+1, 0); from != nil; {
		var wrong []uint64
		err := s.view(func(tx *txn) error {
			q := tx.queue(endpoint)
			c := q.due.Cursor()
			k, _ := c.Seek(from)
			for ; k != nil && len(wrong) < lineBatch; k, _ = c.Next() {
				_, n := readDueKey(k)
				if d, history := q.get(n); d == nil || *d != d.setBack(lastTried(history), now, s.hold, longest) {
					wrong = append(wrong, n)
				}
			}
			from = bytes.Clone(k)
			return nil
		})
		if err != nil || len(wrong) == 0 {
			return err
		}
		err = s.commit(func(tx *txn) error {
			q := tx.queue(endpoint)
			for _, n := range wrong {
				d, history := q.get(n)
				var err error
				switch {
				case d == nil:
					err = tx.giveUp(q, n, s.hold)
				case d.isDue(): // else it has ended meanwhile
					err = q.put(n, d, d.setBack(lastTried(history), now, s.hold, longest), history)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lineUp makes everything that waits for an endpoint due at once, in the order of the events: what has been tried loses its own time, and holds
// the later events of its call again. Nothing of it may be under way.
func (s *store) lineUp(endpoint string) error {
	for done := false; !done; {
		err := s.commit(func(tx *txn) error {
			q := tx.queue(endpoint)
			var tried []uint64
			var keys [][]byte
			c := q.due.Cursor()
			for k, _ := c.Seek(dueKey(1, 0)); k != nil && len(keys) < lineBatch; k, _ = c.Next() {
				_, n := readDueKey(k)
				tried, keys = append(tried, n), append(keys, bytes.Clone(k))
			}
			done = len(keys) < lineBatch
			slices.Sort(tried)
			for _, n := range tried {
				if err := tx.lineUp(q, n); err != nil {
					return err
				}
			}
			for _, k := range keys { // what is still there belongs to no delivery
				if err := q.due.Delete(k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (tx *txn) lineUp(q *queue, n uint64) error {
	d, history := q.get(n)
	e, _, err := decodeEventHead(tx.events.Get(number(n)))
	if d == nil || err != nil {
		return tx.giveUp(q, n, 0)
	}
	if d.due <= 0 {
		return nil // the one before it has put it in line already
	}
	at, before, beforeHistory := tx.neighbour(q, e.call, e.sequence, (*bolt.Cursor).Prev, delivery.isPending)
	inLine := d.inLine(before, time.Now())
	if err := q.put(n, d, inLine, history); err != nil {
		return err
	}
	if err := q.follow(at, before, beforeHistory, n); err != nil {
		return err
	}
	return tx.release(q, inLine, 0)
}

// probe gives deliveries with which a failing endpoint can be probed: those in line after a number, then from the beginning, but for those that
// are claimed. They end with the first that stop says yes to.
func (s *store) probe(endpoint string, after uint64, limit int, claimed map[uint64]bool, stop func(job) bool) (f found, err error) {
	err = s.view(func(tx *txn) error {
		q := tx.queue(endpoint)
		c := q.due.Cursor()
		first, _ := c.Seek(dueKey(0, after+1))
		if first == nil {
			first, _ = c.First()
		}
		first = bytes.Clone(first)
		for k := first; k != nil; {
			before := len(f.jobs)
			if _, n := readDueKey(k); !claimed[n] {
				f.take(tx, q, n)
			}
			if len(f.jobs) == limit || len(f.jobs) > before && stop(f.jobs[before]) {
				return nil
			}
			if k, _ = c.Next(); k == nil {
				k, _ = c.First()
			}
			if bytes.Equal(k, first) {
				return nil
			}
		}
		return nil
	})
	_ = s.danger.note(f.met)
	return f, err
}

// result is how a delivery stands after an attempt, or after it was found to be too late.
type result struct {
	job     job
	now     delivery
	attempt *Attempt // nil if none was made

	overruled bool // by what is in the file: see recordOne
}

// record stores results, and what they mean for the next delivery of each call.
func (s *store) record(endpoint string, results []result) error {
	return s.commit(func(tx *txn) error {
		q := tx.queue(endpoint)
		numbers := make([]uint64, len(results))
		for i := range results {
			numbers[i] = results[i].job.number
		}
		q.readTogether(numbers)
		for i := range results {
			if err := s.recordOne(tx, q, &results[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *store) recordOne(tx *txn, q *queue, r *result) error {
	n := r.job.number
	before, history := q.get(n)
	if before == nil {
		r.overruled = true
		return nil // pruned, or damaged meanwhile: the lane that claims it finds out
	}
	r.now.next = before.next
	now := r.now
	if r.overruled = before.redelivered != r.job.delivery.redelivered && now.state != delivered; r.overruled {
		now = *before // it was asked for again while the attempt was under way: that counts
		if r.attempt != nil {
			now.attempts++
		}
	}
	if r.attempt != nil {
		q.room = addAttempt(q.room, history, *r.attempt)
		history = q.room
	}
	if err := q.put(n, before, now, history); err != nil {
		return err
	}
	return tx.release(q, now, s.hold)
}

// giveUp makes deliveries dead that cannot be made, since their record or their event's is damaged.
func (s *store) giveUp(endpoint string, numbers []uint64) error {
	return s.commit(func(tx *txn) error {
		q := tx.queue(endpoint)
		for _, n := range numbers {
			if err := tx.giveUp(q, n, s.hold); err != nil {
				return err
			}
		}
		return nil
	})
}

// giveUp makes a delivery dead that cannot be made. One that is whole again is left alone: somebody has asked for it anew since it was found.
func (tx *txn) giveUp(q *queue, n uint64, hold time.Duration) error {
	e, _, err := decodeEventHead(tx.events.Get(number(n)))
	before, history := q.get(n)
	if before != nil && err == nil {
		return nil
	}
	if before != nil {
		now := before.ended(dead, time.Now())
		history = addAttempt(nil, history, Attempt{At: time.Now(), Error: errDamaged.Error()})
		return errors.Join(q.put(n, before, now, history), tx.release(q, now, hold))
	}
	// Its place in the index cannot be known from its record.
	c := q.due.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if _, other := readDueKey(k); other == n {
			if err := c.Delete(); err != nil {
				return err
			}
			if q.deliveries.Get(number(n)) != nil { // it was pending, or it would not have stood there
				q.pendingNoMore()
			}
			break
		}
	}
	if tx.events.Get(number(n)) == nil {
		return q.forget(n)
	}
	now := delivery{}.ended(dead, time.Now())
	if err == nil {
		now.next, _, _ = tx.neighbour(q, e.call, e.sequence, (*bolt.Cursor).Next, delivery.isPending)
	}
	return errors.Join(
		q.put(n, nil, now, addAttempt(nil, nil, Attempt{At: time.Now(), Error: errDamaged.Error()})),
		tx.release(q, now, hold),
	)
}

// numberOf gives the number of the event with an ID.
func (tx *txn) numberOf(eventID string) (uint64, bool) {
	id, err := uuid.Parse(eventID)
	if err != nil {
		return 0, false
	}
	v := tx.ids.Get(id[:])
	if v == nil {
		return 0, false
	}
	return binary.BigEndian.Uint64(v), true
}
