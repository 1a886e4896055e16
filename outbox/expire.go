package outbox

import (
	"slices"
	"time"
)

const (
	// sweepGap is the shortest time from one sweep to the next, and sweepCost is added for each delivery that was looked at, which takes a small part of that.
	sweepGap  = time.Second
	sweepCost = 100 * time.Microsecond
	// sweepMost is how many deliveries one sweep looks at. The oldest come first, and most live as long as one another.
	sweepMost = 1 << 16
)

// expiry is when it becomes too late for a delivery; zero is never.
func (l *lane) expiry(j job) time.Time {
	return j.expires(l.opts.Clock, l.opts.RoutingTimeout, l.endpoint.RingingTTL)
}

func (l *lane) tooLate(j job, now time.Time) bool {
	end := l.expiry(j)
	return !end.IsZero() && !now.Before(end)
}

func (l *lane) expire(j job, now time.Time) {
	l.add(result{job: j, now: j.delivery.ended(expired, now)}, now)
}

// tellExpired lets everybody know that it was too late for a delivery.
func (l *lane) tellExpired(j job) {
	l.logger.Warn("delivery has expired: it is too late to be of use",
		"event_id", j.eventID, "type", string(j.kind), "call_id", j.call, "attempts", j.delivery.attempts)
	l.opts.Observer.Expired(l.endpoint.Name)
}

// sweep expires what has become too late while it waits: for the end of a pause, for the next probe, or behind others. It says when to sweep again.
func (l *lane) sweep(now time.Time) (at time.Time) {
	if len(l.results) >= mostOutcomes || !l.recordAt.IsZero() {
		return time.Time{} // run goes on when they are recorded
	}
	if now.Before(l.sweepAt) {
		return l.sweepAt
	}
	if l.freed.Swap(false) {
		l.swept = 0
	}
	l.ready = slices.DeleteFunc(l.ready, func(j job) bool {
		isLate := l.tooLate(j, now)
		if isLate {
			l.expire(j, now)
		}
		return isLate
	})
	f, err := l.store.late(l.endpoint, l.swept, mostOutcomes, l.claimed, now)
	if err != nil {
		l.reading.Failed("the outbox cannot be read", err)
		return now.Add(storeAgain)
	}
	for _, j := range f.jobs {
		l.claimed[j.number] = true
		l.expire(j, now)
		f.next = now // for those that it has held
	}
	for i := range l.ready {
		if end := l.expiry(l.ready[i]); !end.IsZero() {
			f.next = sooner(f.next, end)
		}
	}
	l.swept = f.from
	// From now on, not at the time of an event: that goes by the wall clock, which may be set back.
	l.sweepAt = now.Add(max(f.next.Sub(now), sweepGap+time.Duration(f.looked)*sweepCost))
	return l.sweepAt
}

// late is what a sweep has found.
type late struct {
	jobs   []job     // without their bodies, which nobody is going to send
	from   uint64    // of what has not been tried, nothing before this number can become too late
	next   time.Time // nothing else becomes too late before
	looked int       // deliveries looked at
}

// late gives up to limit deliveries of an endpoint that are too late, but for those that are claimed: of those that have not been tried from a number on, and
// of those whose time has come. What cannot be read is passed over; claim finds it.
func (s *store) late(e Endpoint, from uint64, limit int, claimed map[uint64]bool, now time.Time) (f late, err error) {
	shortest := min(s.routing, e.RingingTTL)
	f = late{from: from, next: now.Add(shortest)}
	err = s.view(func(tx *txn) error {
		q := tx.queue(e.Name)
		c := q.due.Cursor()
		fixed := false // from stands before the first that may become too late
		for k, _ := c.Seek(dueKey(0, from)); k != nil && f.looked < sweepMost && len(f.jobs) < limit; k, _ = c.Next() {
			at, n := readDueKey(k)
			if at > 0 {
				break
			}
			f.looked++
			j, end := s.expiring(tx, q, e, n)
			if !fixed && end.IsZero() {
				f.from = n + 1
			} else if !fixed {
				f.from, fixed = n, true
			}
			if age := s.clock.Freshness(j.at); !end.IsZero() && age >= 0 && age < shortest { // and so is all that comes after it
				f.next = sooner(f.next, now.Add(shortest-age))
				break
			}
			f.add(j, end, now, claimed)
		}
		for k, _ := c.Seek(dueKey(1, 0)); k != nil && f.looked < sweepMost && len(f.jobs) < limit; k, _ = c.Next() {
			at, n := readDueKey(k)
			if at > now.UnixNano() {
				f.next = sooner(f.next, time.Unix(0, at)) // it may be due when it becomes too late
				break
			}
			f.looked++
			j, end := s.expiring(tx, q, e, n)
			f.add(j, end, now, claimed)
		}
		return nil
	})
	return f, err
}

// expiring gives a delivery, without its body, and when it becomes too late for it: zero is never.
func (s *store) expiring(tx *txn, q *queue, e Endpoint, n uint64) (j job, end time.Time) {
	event, _, err := decodeEventHead(tx.events.Get(number(n)))
	if err != nil || lifetime(event.kind, s.routing, e.RingingTTL) == 0 {
		return job{}, time.Time{}
	}
	d, err := decodeDelivery(q.deliveries.Get(number(n)))
	if err != nil {
		return job{}, time.Time{}
	}
	j = job{number: n, delivery: d, stored: event, eventID: event.id.String()}
	return j, j.expires(s.clock, s.routing, e.RingingTTL)
}

// add takes a delivery that is too late, or notes when it will be.
func (f *late) add(j job, end, now time.Time, claimed map[uint64]bool) {
	switch {
	case end.IsZero() || claimed[j.number]:
	case now.Before(end):
		f.next = sooner(f.next, end)
	default:
		f.jobs = append(f.jobs, j)
	}
}
