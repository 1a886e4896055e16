package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pzbridge/outbox/store"
)

// lane is an endpoint's queue: a store.Lane.
type lane struct {
	engine   *Engine
	endpoint string
	withCall bool // jobs come with what was kept for their call, and its later events

	// mu is held through each look at the file in which something is claimed: a result is stored
	// before its claim is given up, so what such a look sees was either claimed still, or is
	// recorded.
	mu       sync.Mutex
	claimed  map[uint64]bool
	lastSeen time.Time // of the wall clock, in a claim
}

// Lane takes an endpoint's queue. A file has one process, so it never waits.
func (s *Engine) Lane(_ context.Context, endpoint string, withCall bool) (store.Lane, error) {
	known := false
	err := s.view(func(tx *txn) error {
		known = tx.queue(endpoint) != nil
		return nil
	})
	if err == nil && !known {
		err = fmt.Errorf("%w: %q", store.ErrNoEndpoint, endpoint)
	}
	if err != nil {
		return nil, err
	}
	return &lane{engine: s, endpoint: endpoint, withCall: withCall, claimed: map[uint64]bool{}}, nil
}

// dueBatch is what a look into the due index has brought.
type dueBatch struct {
	jobs    []store.Job
	next    time.Time // when the next one is due; zero if there is none, or if the limit was reached
	damaged []uint64  // deliveries that stand in the index and cannot be read
	// unreadable are deliveries on a page which is damaged. Nothing can be done about them but to
	// go on with the others.
	unreadable []uint64
	met        error // what was met there
	withCall   bool
	busy       map[string]bool // the calls whose deliveries are left out
	skipped    int             // deliveries of such calls
}

// add adds a delivery.
func (f *dueBatch) add(tx *txn, q *queue, n uint64) {
	err := guarded(func() error {
		f.read(tx, q, n)
		return nil
	})
	if err != nil {
		f.unreadable, f.met = append(f.unreadable, n), err
	}
}

func (f *dueBatch) read(tx *txn, q *queue, n uint64) {
	d, _, ok := q.get(n)
	e, err := decodeEvent(tx.events.Get(number(n)))
	if !ok || err != nil {
		f.damaged = append(f.damaged, n)
		return
	}
	if f.busy[e.Call] {
		f.skipped++
		return
	}
	j := store.Job{Number: n, Delivery: d, Event: e, EventID: e.ID.String()}
	if f.withCall {
		q.addCall(&j)
	}
	f.jobs = append(f.jobs, j)
}

// Claim takes deliveries that may be tried: see store.Lane.
func (l *lane) Claim(
	ctx context.Context, now time.Time, limit int, busy map[string]bool,
) (store.Claimed, error) {
	if err := l.followClock(ctx, now); err != nil {
		return store.Claimed{}, err
	}
	return l.claim(now, func() (f dueBatch, err error) {
		err = l.engine.view(func(tx *txn) error {
			f = l.dueAt(tx, now, limit, busy)
			return nil
		})
		return f, err
	}, limit)
}

// dueAt looks for deliveries that may be tried: those that have not been tried in the order of
// events, while a part of the room is for those whose time has come, oldest first. Else a backlog
// of the former would keep the latter waiting for as long as it lasts.
func (l *lane) dueAt(tx *txn, now time.Time, limit int, busy map[string]bool) (f dueBatch) {
	q := tx.queue(l.endpoint)
	f.withCall, f.busy = l.withCall, busy
	f.jobs = make([]store.Job, 0, min(uint64(limit), q.counts[store.Pending]))
	c := q.due.Cursor()
	take := func(k []byte, until int64, limit int) []byte {
		for ; k != nil && len(f.jobs) < limit && f.skipped < maxRead; k, _ = c.Next() {
			at, n := readTimeKey(k)
			if at > until {
				break
			}
			if !l.claimed[n] {
				f.add(tx, q, n)
			}
		}
		return bytes.Clone(k)
	}
	timed, _ := c.Seek(timeKey(1, 0))
	timed = take(timed, now.UnixNano(), max(1, limit/4))
	untried, _ := c.First()
	take(untried, 0, limit)
	if timed == nil || len(f.jobs) == limit {
		return f
	}
	c.Seek(timed)
	if timed = take(timed, now.UnixNano(), limit); timed != nil && len(f.jobs) < limit {
		at, _ := readTimeKey(timed)
		f.next = now.Add(time.Duration(at - now.UnixNano()))
	}
	return f
}

// Probe takes one delivery to try a failing endpoint with: see store.Lane.
func (l *lane) Probe(_ context.Context, now time.Time, after uint64) (store.Claimed, error) {
	return l.claim(now, func() (f dueBatch, err error) {
		err = l.engine.view(func(tx *txn) error {
			f = l.nextInLine(tx, now, after)
			return nil
		})
		return f, err
	}, 1)
}

func (l *lane) nextInLine(tx *txn, now time.Time, after uint64) (f dueBatch) {
	q := tx.queue(l.endpoint)
	f.withCall = l.withCall
	c := q.due.Cursor()
	first, _ := c.Seek(timeKey(0, after+1))
	if first == nil {
		first, _ = c.First()
	}
	first = bytes.Clone(first)
	for k := first; k != nil && len(f.damaged)+len(f.unreadable) < maxRead; {
		switch at, n := readTimeKey(k); {
		case at > now.UnixNano(): // its sender has put it off
			f.next = sooner(f.next, now.Add(time.Duration(at-now.UnixNano())))
		case !l.claimed[n]:
			f.add(tx, q, n)
		}
		if len(f.jobs) == 1 && !l.engine.isExpired(&f.jobs[0], now) {
			return f
		}
		f.jobs = f.jobs[:0] // Expire is about to end it
		if k, _ = c.Next(); k == nil {
			k, _ = c.First()
		}
		if bytes.Equal(k, first) {
			return f
		}
	}
	return f
}

// isExpired reports whether a delivery is of no use any more.
func (s *Engine) isExpired(j *store.Job, now time.Time) bool {
	if j.Delivery.Expires == 0 {
		return false
	}
	expires := time.Unix(0, j.Delivery.Expires)
	return s.clock.Freshness(j.Event.At) >= expires.Sub(j.Event.At)
}

// claim looks for deliveries and claims what the look has brought. What cannot be read is made
// dead.
func (l *lane) claim(now time.Time, look func() (dueBatch, error), limit int) (store.Claimed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := look()
	_ = l.engine.danger.keepDamage(f.met)
	if err != nil {
		return store.Claimed{}, err
	}
	if len(f.damaged) > 0 {
		if err := l.giveUp(f.damaged, now); err != nil {
			return store.Claimed{}, err
		}
	}
	for _, n := range f.unreadable {
		l.claimed[n] = true // or each look would meet them again
	}
	for i := range f.jobs {
		l.claimed[f.jobs[i].Number] = true
	}
	return store.Claimed{
		Jobs: f.jobs, Next: f.next, More: len(f.jobs) == limit || len(f.damaged)+len(f.unreadable) > 0,
		Dead: len(f.damaged), Unreadable: len(f.unreadable),
	}, nil
}

// giveUp makes deliveries dead that cannot be made, since their record or their event's is damaged.
func (l *lane) giveUp(numbers []uint64, now time.Time) error {
	return l.engine.commit(func(tx *txn) error {
		q := tx.queue(l.endpoint)
		for _, n := range numbers {
			if err := q.giveUp(n, now, l.engine.rules.Hold); err != nil {
				return err
			}
		}
		return nil
	})
}

// Wanted returns nil: no other process uses the file.
func (l *lane) Wanted() <-chan struct{} { return nil }

// Close gives the queue up: there is nothing to do.
func (l *lane) Close(context.Context) error { return nil }

// Release gives claims back untried.
func (l *lane) Release(numbers []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range numbers {
		delete(l.claimed, n)
	}
}

// Record stores results: see store.Lane. Where a page is damaged it does so one by one, so that
// only what stands there is lost: such a result stays claimed until the next start, since its
// delivery, made again, would reach the endpoint over and over.
func (l *lane) Record(_ context.Context, results []store.Result) error {
	err := l.engine.record(l.endpoint, results)
	if errors.Is(err, store.ErrDamaged) && !l.engine.isBroken() {
		err = l.recordSingly(results)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(results, func(r store.Result) bool { return len(r.Events) > 0 }) {
		l.engine.notifyReaders()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range results {
		if !results[i].Lost {
			delete(l.claimed, results[i].Job.Number)
		}
	}
	return nil
}

func (l *lane) recordSingly(results []store.Result) error {
	for i := range results {
		err := l.engine.record(l.endpoint, results[i:i+1])
		results[i].Lost = errors.Is(err, store.ErrDamaged) && !l.engine.isBroken()
		if err != nil && !results[i].Lost {
			return err
		}
	}
	return nil
}

// record stores results, and what they mean for the next delivery of each call.
func (s *Engine) record(endpoint string, results []store.Result) error {
	return s.commit(func(tx *txn) error {
		q := tx.queue(endpoint)
		for i := range results {
			if err := s.recordOne(q, &results[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Engine) recordOne(q *queue, r *store.Result) error {
	e := &r.Job.Event
	isNewest := true
	if r.Keep != nil || r.Job.KeptVersion > 0 {
		var err error
		if isNewest, err = q.keep(e.Call, r); err != nil {
			return err
		}
		if !isNewest && r.Now.State != store.Delivered {
			r.Overruled = true
			return nil
		}
	}
	rows := q.rowsAt(r.Job.Number, e.Call, e.Sequence, 0)
	rows.attempt = r.Attempt
	_, exists := rows.Get(r.Job.Number)
	r.Overruled = store.Record(rows, r.Job.Number, r.Job.Delivery, r.Now, s.rules.Hold)
	if err := rows.finish(r.EndedAt(), s.rules.Hold); err != nil || !isNewest || !exists {
		return err // of a call that was forgotten meanwhile, nothing is stored
	}
	for i := range r.Events {
		if _, _, err := s.appendOne(q.tx, &r.Events[i]); err != nil {
			return err
		}
	}
	return nil
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// lineBatch is how many deliveries one transaction puts in line, or gives another time.
const lineBatch = 256

// LineUp makes all that waits for its time due at once: see store.Lane.
func (l *lane) LineUp(ctx context.Context, now time.Time) error {
	from := timeKey(1, 0)
	for done := false; !done; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var keys [][]byte
		err := l.engine.commit(func(tx *txn) error {
			q := tx.queue(l.endpoint)
			var tried []uint64
			keys = nil
			c := q.due.Cursor()
			for k, _ := c.Seek(from); k != nil && len(keys) < lineBatch; k, _ = c.Next() {
				_, n := readTimeKey(k)
				tried, keys = append(tried, n), append(keys, bytes.Clone(k))
			}
			done = len(keys) < lineBatch
			slices.Sort(tried)
			for _, n := range tried {
				if err := l.lineUp(q, n, now); err != nil {
					return err
				}
			}
			for _, k := range keys {
				at, n := readTimeKey(k)
				if d, _, ok := q.get(n); ok && d.IsDue() && d.Due == at { // its sender has put it off
					continue
				}
				if err := q.due.Delete(k); err != nil { // if it is still there, it belongs to no delivery
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			from = append(keys[len(keys)-1], 0) // behind the last
		}
	}
	return nil
}

func (l *lane) lineUp(q *queue, n uint64, now time.Time) error {
	r, err := q.rowsOf(n)
	if _, _, ok := q.get(n); !ok || err != nil {
		return q.giveUp(n, now, 0)
	}
	store.LineUp(r, n, now)
	return r.finish(now, 0)
}

// followClock gives the deliveries that are to be tried later the time that they should have, where
// the wall clock was set back since the last claim. What it was before the start is not known.
func (l *lane) followClock(ctx context.Context, now time.Time) error {
	l.mu.Lock()
	wasSetBack := l.lastSeen.IsZero() || now.Round(0).Before(l.lastSeen)
	l.mu.Unlock()
	if wasSetBack {
		if err := l.setBack(ctx, now); err != nil {
			return fmt.Errorf("give what waits the time of a clock that was set back: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastSeen = now.Round(0)
	return nil
}

func (l *lane) setBack(ctx context.Context, now time.Time) error {
	for from := timeKey(now.UnixNano()+1, 0); from != nil; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var wrong []uint64
		err := l.engine.view(func(tx *txn) error {
			q := tx.queue(l.endpoint)
			c := q.due.Cursor()
			k, _ := c.Seek(from)
			for ; k != nil && len(wrong) < lineBatch; k, _ = c.Next() {
				_, n := readTimeKey(k)
				if d, history, ok := q.get(n); !ok || d != l.engine.rules.SetBack(d, store.LastTried(history), now) {
					wrong = append(wrong, n)
				}
			}
			from = bytes.Clone(k)
			return nil
		})
		if err != nil || len(wrong) == 0 {
			return err
		}
		err = l.engine.commit(func(tx *txn) error {
			q := tx.queue(l.endpoint)
			for _, n := range wrong {
				d, history, ok := q.get(n)
				var err error
				switch {
				case !ok:
					err = q.giveUp(n, now, l.engine.rules.Hold)
				case d.IsDue(): // else it has ended meanwhile
					err = q.put(n, l.engine.rules.SetBack(d, store.LastTried(history), now), history)
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
