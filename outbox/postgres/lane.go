package postgres

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// lane is an endpoint's queue: a store.Lane.
type lane struct {
	engine   *Engine
	lease    *Lease
	endpoint int16
	withCall bool // jobs come with what was kept for their call, and its later events

	// mu is held through each look in which something is claimed: a result is stored before its
	// claim is given up, so what such a look sees was either claimed still, or is recorded.
	mu       sync.Mutex
	claimed  map[uint64]bool
	front    front
	lastSeen time.Time // of the wall clock, in a claim
}

// Lane takes an endpoint's queue: see store.Lanes.
func (s *Engine) Lane(ctx context.Context, name string, withCall bool) (store.Lane, error) {
	id, known := s.endpoints.id(name)
	if !known {
		return nil, fmt.Errorf("%w: %q", store.ErrNoEndpoint, name)
	}
	lease, err := s.Take(ctx, lanePrefix+name)
	if err != nil {
		return nil, err
	}
	l := &lane{engine: s, lease: lease, endpoint: id, withCall: withCall, claimed: map[uint64]bool{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes[id] = l
	return l, nil
}

// Wanted returns a channel that is closed when another process is to have the queue.
func (l *lane) Wanted() <-chan struct{} { return l.lease.Wanted() }

// Close gives the queue up.
func (l *lane) Close(ctx context.Context) error {
	s := l.engine
	s.mu.Lock()
	if s.lanes[l.endpoint] == l {
		delete(s.lanes, l.endpoint)
	}
	s.mu.Unlock()
	return s.Release(ctx, l.lease)
}

// claimColumns are those of a delivery that may be claimed, p, with its event, e.
const claimColumns = `p.n, p.due, p.attempts, p.step, p.failed_at, p.next, p.redelivered, p.request, p.expires, ` +
	`p.put_off, e.id, e.at, e.type, e.call, e.sequence, e.body`

const (
	// dueBehind are the deliveries behind one that may be made at a time: those that have not been
	// tried in the order of events, and then those whose time has come, oldest first.
	dueBehind = `SELECT ` + claimColumns + ` FROM (SELECT * FROM pending WHERE endpoint = $1 AND due >= 0
		AND (due, n) > ($2, $3) AND due <= $4 ORDER BY due, n LIMIT $5) p` + itsEvent + ` ORDER BY p.due, p.n`
	// nextTimed is when the first one comes after a time.
	nextTimed = `SELECT due FROM pending WHERE endpoint = $1 AND due >= 0 AND due > $2 ORDER BY due LIMIT 1`
)

func scanJob(rows pgx.Rows) (j store.Job, err error) {
	d, e := &j.Delivery, &j.Event
	var at int64
	var kind string
	err = rows.Scan(&j.Number, &d.Due, &d.Attempts, &d.Step, &d.FailedAt, &d.Next, &d.Redelivered, &d.Request,
		&d.Expires, &d.PutOff, &e.ID, &at, &kind, &e.Call, &e.Sequence, &e.Body)
	e.At, e.Type = milliTime(at), eventType(kind)
	j.EventID = e.ID.String()
	return j, err
}

// Claim takes deliveries that may be tried: see store.Lane. Those that have not been tried come in
// the order of events, while a part of the room is for those whose time has come. Else a backlog of
// the former would keep the latter waiting for as long as it lasts.
func (l *lane) Claim(
	ctx context.Context, now time.Time, limit int, busy map[string]bool,
) (c store.Claimed, err error) {
	if err := l.followClock(ctx, now); err != nil {
		return store.Claimed{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	look := claimLook{lane: l, busy: busy}
	front := l.front.begin(l.engine.poll)
	err = l.engine.look(ctx, func(tx *txn) error {
		look.begin(tx, front, now)
		if err := look.readFirst(now, limit); err != nil {
			return err
		}
		for _, part := range []struct {
			of    *queue
			limit int
		}{{&look.timed, max(1, limit/4)}, {&look.untried, limit}, {&look.timed, limit}} {
			if err := look.take(part.of, part.limit); err != nil {
				return err
			}
		}
		return l.complete(tx, look.jobs)
	})
	if err != nil {
		return store.Claimed{}, err
	}
	l.claimAll(look.jobs)
	l.front.number = look.front
	if c.Jobs, c.More = look.jobs, len(look.jobs) == limit; !c.More {
		c.Next = look.next
	}
	return c, nil
}

// claimLook is a look for deliveries that may be claimed.
type claimLook struct {
	lane           *lane
	tx             *txn
	busy           map[string]bool // the calls whose deliveries are left out
	untried, timed queue
	jobs           []store.Job
	skipped        int       // deliveries of such calls, or that are claimed already
	front          uint64    // up to it, what has not been tried is claimed with the jobs
	passedBusy     bool      // front is before one that has not been tried, of such a call
	next           time.Time // when the next delivery is due
}

// queue is deliveries in an order, of which a look reads pages.
type queue struct {
	due, until int64 // until when they are due: 0 for those that have not been tried
	n          uint64
	page       []store.Job // what was read and not looked at yet, which ends with due and n
	isWhole    bool        // that is the end
}

// A look begins with small pages, and goes on with larger ones: those in front may all be claimed
// already. It passes over maxSkipped deliveries at most.
const minPage, maxPage, maxSkipped = 64, 512, 4096

func (f *claimLook) begin(tx *txn, front uint64, now time.Time) {
	*f = claimLook{lane: f.lane, tx: tx, busy: f.busy, front: front}
	f.untried = queue{n: front}
	f.timed = queue{n: math.MaxInt64, until: now.UnixNano()}
}

// readFirst reads the first page of each queue, and when the next delivery is due, together.
func (f *claimLook) readFirst(now time.Time, limit int) error {
	return f.tx.read(func(b *pgx.Batch) {
		f.timed.read(b, f.lane.endpoint, minPage)
		f.untried.read(b, f.lane.endpoint, limit)
		f.queueNext(b, now)
	})
}

// queueNext queues the reading of when the next delivery is due.
func (f *claimLook) queueNext(b *pgx.Batch, now time.Time) {
	each(b.Queue(nextTimed, f.lane.endpoint, now.UnixNano()), func(rows pgx.Rows) error {
		var due int64
		err := rows.Scan(&due)
		f.next = now.Add(time.Duration(due - now.UnixNano()))
		return err
	})
}

// read queues the reading of the next page.
func (q *queue) read(b *pgx.Batch, endpoint int16, size int) {
	q.isWhole = true
	left := size
	each(b.Queue(dueBehind, endpoint, q.due, int64(q.n), q.until, size), func(rows pgx.Rows) error {
		j, err := scanJob(rows)
		q.page, q.due, q.n = append(q.page, j), j.Delivery.Due, j.Number
		left--
		q.isWhole = left > 0
		return err
	})
}

// take takes jobs of a queue, unless they are claimed or their call is busy, up to a limit.
func (f *claimLook) take(q *queue, limit int) error {
	for size := minPage; len(f.jobs) < limit && f.skipped < maxSkipped; {
		if len(q.page) == 0 {
			if q.isWhole {
				return nil
			}
			size = min(2*size, maxPage)
			if err := f.tx.read(func(b *pgx.Batch) { q.read(b, f.lane.endpoint, size) }); err != nil {
				return err
			}
			continue
		}
		j := q.page[0]
		q.page = q.page[1:]
		isBusy := j.Event.Call != "" && f.busy[j.Event.Call]
		if q.until == 0 {
			if f.passedBusy = f.passedBusy || isBusy; !f.passedBusy {
				f.front = j.Number
			}
		}
		if isBusy || f.lane.claimed[j.Number] {
			f.skipped++
			continue
		}
		f.jobs = append(f.jobs, j)
	}
	return nil
}

// complete adds to jobs what their sender needs.
func (l *lane) complete(tx *txn, jobs []store.Job) error {
	if !l.withCall || len(jobs) == 0 {
		return nil
	}
	return tx.addCalls(l.endpoint, jobs)
}

func (l *lane) claimAll(jobs []store.Job) {
	for i := range jobs {
		l.claimed[jobs[i].Number] = true
	}
}

// Probe takes one delivery to try a failing endpoint with: see store.Lane.
func (l *lane) Probe(ctx context.Context, now time.Time, after uint64) (c store.Claimed, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	look := claimLook{lane: l}
	err = l.engine.look(ctx, func(tx *txn) error {
		look.begin(tx, after, now)
		for _, q := range []queue{{n: after}, {}, look.timed} {
			if err := look.probe(&q, now); err != nil {
				return err
			}
			if len(look.jobs) > 0 {
				return l.complete(tx, look.jobs)
			}
		}
		return tx.read(func(b *pgx.Batch) { look.queueNext(b, now) })
	})
	if err != nil {
		return store.Claimed{}, err
	}
	l.claimAll(look.jobs)
	return store.Claimed{Jobs: look.jobs, More: len(look.jobs) > 0, Next: look.next}, nil
}

// probe takes the first delivery of a queue that has not expired: Expire is about to end the
// others.
func (f *claimLook) probe(q *queue, now time.Time) error {
	for !q.isWhole {
		if err := f.tx.read(func(b *pgx.Batch) { q.read(b, f.lane.endpoint, minPage) }); err != nil {
			return err
		}
		for _, j := range q.page {
			if !f.lane.claimed[j.Number] && !f.lane.engine.isExpired(&j) {
				f.jobs = []store.Job{j}
				return nil
			}
		}
		q.page = nil
	}
	return nil
}

// isExpired reports whether a delivery is of no use any more.
func (s *Engine) isExpired(j *store.Job) bool {
	if j.Delivery.Expires == 0 {
		return false
	}
	expires := time.Unix(0, j.Delivery.Expires)
	return s.clock.Freshness(j.Event.At) >= expires.Sub(j.Event.At)
}

// Release gives claims back untried.
func (l *lane) Release(numbers []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range numbers {
		delete(l.claimed, n)
		l.front.lower(n)
	}
}

// Record stores results: see store.Lane.
func (l *lane) Record(ctx context.Context, results []store.Result) error {
	list, err := l.engine.recordPlain(ctx, l.endpoint, pointers(results))
	if err == nil && len(list) > 0 {
		err = l.engine.record(ctx, l.endpoint, list, false)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range results {
		r := &results[i]
		delete(l.claimed, r.Job.Number)
		if r.Overruled || r.Now.State != store.Delivered { // it may be due at once, and was passed over
			l.front.lower(r.Job.Number)
		}
	}
	return nil
}

// pendingAndNext reads pending deliveries, and those that come next in their calls.
const pendingAndNext = `SELECT d.* FROM unnest($1::bigint[], $2::smallint[]) AS k(event, receiver) CROSS JOIN LATERAL (
	SELECT ` + pendingColumns + ` FROM pending WHERE n = k.event AND endpoint = k.receiver OFFSET 0) p
	CROSS JOIN LATERAL (SELECT p.* UNION ALL
	SELECT ` + pendingColumns + ` FROM pending WHERE p.next > 0 AND n = p.next AND endpoint = k.receiver) d`

func pointers(results []store.Result) []*store.Result {
	list := make([]*store.Result, len(results))
	for i := range results {
		list[i] = &results[i]
	}
	return list
}

// record stores results, and what they mean for the next delivery of each call. Those of questions
// may be for a queue of another process.
func (s *Engine) record(ctx context.Context, endpoint int16, results []*store.Result, ofQuestion bool) error {
	var calls []string
	var events []*store.NewEvent
	keys, endpoints := make([]int64, len(results)), make([]int16, len(results))
	for i, r := range results {
		keys[i], endpoints[i] = int64(r.Job.Number), endpoint
		calls = append(calls, lockName(r.Job.Number, r.Job.Event.Call))
		for k := range r.Events {
			events = append(events, &r.Events[k])
			calls = append(calls, callName(r.Events[k].Call))
		}
	}
	err := s.change(ctx, func(tx *txn) error {
		locks, isAlive := s.lockKeys(calls), false
		err := tx.read(func(b *pgx.Batch) {
			queueLocks(b, locks)
			each(b.Queue(`SELECT FROM process WHERE id = $1`, s.id), func(pgx.Rows) error {
				isAlive = true
				return nil
			})
			each(b.Queue(pendingAndNext, keys, endpoints), tx.scanDelivery)
		})
		if err != nil {
			return err
		}
		switch {
		case ofQuestion:
			tx.touchForOthers()
		case !isAlive:
			tx.touch() // another process has the queue, and may not have noted what this makes due
		}
		kept := make([]bool, len(results))
		for i, r := range results {
			if r.Overruled = !isAlive && r.Now.State != store.Delivered; r.Overruled {
				continue // whoever has the queue now has made its own attempt, or will
			}
			if kept[i], err = s.recordOne(tx, endpoint, r); err != nil {
				return err
			}
		}
		return s.appendOf(tx, results, kept, events)
	})
	if err == nil && len(events) > 0 {
		s.notifyReaders()
	}
	return err
}

// recordOne stores a result. Counts is false for one that is not of the newest of what the sender
// has kept, and for one of a call that was forgotten meanwhile: its events are not stored either.
func (s *Engine) recordOne(tx *txn, endpoint int16, r *store.Result) (counts bool, err error) {
	e := &r.Job.Event
	isNewest := true
	if r.Keep != nil || r.Job.KeptVersion > 0 {
		if isNewest, err = tx.keep(e.Call, endpoint, r); err != nil {
			return false, err
		}
		if !isNewest && r.Now.State != store.Delivered {
			r.Overruled = true
			return false, nil
		}
	}
	rows := tx.rowsOf(endpoint, r.Job.Number, e)
	rows.attempt = r.Attempt
	_, exists := rows.Get(r.Job.Number)
	r.Overruled = store.Record(rows, r.Job.Number, r.Job.Delivery, r.Now, s.rules.Hold)
	return isNewest && exists, rows.Err()
}

// appendOf stores the events of results that count.
func (s *Engine) appendOf(tx *txn, results []*store.Result, counts []bool, events []*store.NewEvent) error {
	if len(events) == 0 {
		return nil
	}
	// Before the head is held, since nothing else may be waited for then.
	if _, numbers := tx.redelivered(); len(numbers) > 0 {
		if err := tx.loadRedeliveries(numbers...); err != nil {
			return err
		}
	}
	if _, err := tx.prepareAppend(events); err != nil {
		return err
	}
	for i := range results {
		for k := range results[i].Events {
			if !counts[i] {
				continue
			}
			if _, _, err := s.appendOne(tx, &results[i].Events[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

// lineBatch is how many deliveries one transaction puts in line, or gives another time.
const lineBatch = 256

// tried are the deliveries that wait for their time, behind one.
const tried = `SELECT p.n, p.due, e.call, e.sequence FROM (SELECT n, due FROM pending WHERE endpoint = $1 AND due >= 0
	AND (due, n) > ($2, $3) ORDER BY due, n LIMIT $4) p` + itsEvent + ` ORDER BY p.due, p.n`

// waiting is a delivery that waits for its time.
type waiting struct {
	n     uint64
	due   int64
	event store.Event // its call and sequence
}

// waitingAfter finds the deliveries that wait for their time, behind one, lineBatch at most.
func (tx *txn) waitingAfter(endpoint int16, due int64, n uint64) (list []waiting, err error) {
	err = tx.query(func(rows pgx.Rows) error {
		var w waiting
		err := rows.Scan(&w.n, &w.due, &w.event.Call, &w.event.Sequence)
		list = append(list, w)
		return err
	}, tried, endpoint, due, int64(n), lineBatch)
	return list, err
}

// lockWaiting locks the calls of deliveries and reads these again.
func (tx *txn) lockWaiting(endpoint int16, list []waiting) error {
	calls, keys := make([]string, len(list)), make([]deliveryKey, len(list))
	for i, w := range list {
		calls[i], keys[i] = lockName(w.n, w.event.Call), deliveryKey{w.n, endpoint}
	}
	if err := tx.lockCalls(calls...); err != nil {
		return err
	}
	return tx.load(keys...)
}

// LineUp makes all that waits for its time due at once: see store.Lane.
func (l *lane) LineUp(ctx context.Context, now time.Time) error {
	due, n := int64(0), uint64(math.MaxInt64)
	for done := false; !done; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var list []waiting
		err := l.engine.change(ctx, func(tx *txn) (err error) {
			if list, err = tx.waitingAfter(l.endpoint, due, n); err != nil || len(list) == 0 {
				return err
			}
			if err := tx.lockWaiting(l.endpoint, list); err != nil {
				return err
			}
			inOrder := slices.Clone(list)
			slices.SortFunc(inOrder, func(a, b waiting) int { return int(int64(a.n) - int64(b.n)) })
			for i := range inOrder {
				r := tx.rowsOf(l.endpoint, inOrder[i].n, &inOrder[i].event)
				if store.LineUp(r, inOrder[i].n, now); r.Err() != nil {
					return r.Err()
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		done = len(list) < lineBatch
		if len(list) > 0 {
			due, n = list[len(list)-1].due, list[len(list)-1].n
		}
	}
	return nil
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
	due, n := now.UnixNano(), uint64(math.MaxInt64)
	for {
		var list []waiting
		err := l.engine.change(ctx, func(tx *txn) (err error) {
			if list, err = tx.waitingAfter(l.endpoint, due, n); err != nil || len(list) == 0 {
				return err
			}
			if err := tx.lockWaiting(l.endpoint, list); err != nil {
				return err
			}
			for _, w := range list {
				k := deliveryKey{w.n, l.endpoint}
				r := tx.deliveries[k]
				if !r.exists || !r.IsDue() {
					continue
				}
				if d := l.engine.rules.SetBack(r.Delivery, store.LastTried(r.history), now); d != r.Delivery {
					tx.put(k, d, r.history)
				}
			}
			return nil
		})
		if err != nil || len(list) < lineBatch {
			return err
		}
		due, n = list[len(list)-1].due, list[len(list)-1].n
	}
}
