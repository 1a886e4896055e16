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
	return &lane{engine: s, lease: lease, endpoint: id, withCall: withCall, claimed: map[uint64]bool{}}, nil
}

// Wanted returns a channel that is closed when another process is to have the queue.
func (l *lane) Wanted() <-chan struct{} { return l.lease.Wanted() }

// Close gives the queue up.
func (l *lane) Close(ctx context.Context) error { return l.engine.Release(ctx, l.lease) }

// claimColumns are those of a delivery that may be claimed, p, with its event, e.
const claimColumns = `p.n, p.due, p.attempts, p.step, p.failed_at, p.next, p.redelivered, p.request, p.expires, ` +
	`p.put_off, e.id, e.at, e.type, e.call, e.sequence, e.body`

const (
	// untried are the deliveries that may be made at once, in the order of events.
	untried = `SELECT ` + claimColumns + ` FROM (SELECT * FROM pending WHERE endpoint = $1 AND due >= 0
		AND (due, n) > (0, $2) AND due < 1 ORDER BY due, n LIMIT $3) p` + itsEvent + ` ORDER BY p.n`
	// timed are those whose time has come or comes, oldest first.
	timed = `SELECT ` + claimColumns + ` FROM (SELECT * FROM pending WHERE endpoint = $1 AND due >= 0
		AND (due, n) > ($2, $3) AND due <= $4 ORDER BY due, n LIMIT $5) p` + itsEvent + ` ORDER BY p.due, p.n`
	// nextTimed is when the first of them comes after a time.
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
	look := claimLook{lane: l, busy: busy, n: math.MaxInt64}
	err = l.engine.look(ctx, func(tx *txn) error {
		look.tx, look.jobs = tx, nil
		if err := look.takeTimed(now, max(1, limit/4)); err != nil {
			return err
		}
		if err := look.takeUntried(limit); err != nil {
			return err
		}
		if err := look.takeTimed(now, limit); err != nil {
			return err
		}
		if len(look.jobs) < limit {
			if err := look.findNext(now); err != nil {
				return err
			}
		}
		return l.complete(tx, look.jobs)
	})
	if err != nil {
		return store.Claimed{}, err
	}
	l.claimAll(look.jobs)
	return store.Claimed{Jobs: look.jobs, Next: look.next, More: len(look.jobs) == limit}, nil
}

// claimLook is a look for deliveries that may be claimed.
type claimLook struct {
	lane    *lane
	tx      *txn
	busy    map[string]bool // the calls whose deliveries are left out
	jobs    []store.Job
	skipped int // deliveries of such calls, or that are claimed already
	due     int64
	n       uint64 // with due: where takeTimed goes on
	timeUp  bool   // takeTimed has come to the end
	next    time.Time
}

// maxSkipped is how many deliveries a look passes over at most.
const maxSkipped = 4096

// take adds a job, unless it is claimed or its call is busy. It reports whether there is room for
// more.
func (f *claimLook) take(j store.Job, limit int) (hasRoom bool) {
	switch {
	case f.lane.claimed[j.Number] || f.busy[j.Event.Call] && j.Event.Call != "":
		f.skipped++
	default:
		f.jobs = append(f.jobs, j)
	}
	return len(f.jobs) < limit && f.skipped < maxSkipped
}

// A look begins with pages of minPage deliveries, and goes on with larger ones: those in front may
// all be claimed already.
const minPage, maxPage = 64, 512

// takeTimed takes those whose time has come, up to a limit.
func (f *claimLook) takeTimed(now time.Time, limit int) error {
	for size := minPage; !f.timeUp && len(f.jobs) < limit && f.skipped < maxSkipped; size = min(2*size, maxPage) {
		list, err := f.page(timed, f.lane.endpoint, f.due, int64(f.n), now.UnixNano(), size)
		if err != nil {
			return err
		}
		for _, j := range list {
			f.due, f.n = j.Delivery.Due, j.Number
			if !f.take(j, limit) {
				return nil
			}
		}
		f.timeUp = len(list) < size
	}
	return nil
}

// takeUntried takes those that have not been tried, up to a limit.
func (f *claimLook) takeUntried(limit int) error {
	after := uint64(0)
	for size := max(minPage, limit); len(f.jobs) < limit && f.skipped < maxSkipped; size = min(2*size, maxPage) {
		list, err := f.page(untried, f.lane.endpoint, int64(after), size)
		if err != nil {
			return err
		}
		for _, j := range list {
			after = j.Number
			if !f.take(j, limit) {
				return nil
			}
		}
		if len(list) < size {
			return nil
		}
	}
	return nil
}

func (f *claimLook) page(sql string, args ...any) (list []store.Job, err error) {
	err = f.tx.query(func(rows pgx.Rows) error {
		j, err := scanJob(rows)
		list = append(list, j)
		return err
	}, sql, args...)
	return list, err
}

// findNext finds when the next delivery is due.
func (f *claimLook) findNext(now time.Time) error {
	var due int64
	found, err := f.tx.queryRow([]any{&due}, nextTimed, f.lane.endpoint, now.UnixNano())
	if found {
		f.next = now.Add(time.Duration(due - now.UnixNano()))
	}
	return err
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
	err = l.engine.look(ctx, func(tx *txn) error {
		c = store.Claimed{}
		look := claimLook{lane: l, tx: tx}
		for _, from := range []uint64{after, 0} {
			if found, err := look.probe(now, from); err != nil || found {
				c.Jobs, c.More = look.jobs, found
				return errorOr(err, func() error { return l.complete(tx, c.Jobs) })
			}
		}
		if err := look.probeTimed(now); err != nil {
			return err
		}
		c.Jobs, c.More = look.jobs, len(look.jobs) > 0
		if len(look.jobs) > 0 {
			return l.complete(tx, c.Jobs)
		}
		if err := look.findNext(now); err != nil {
			return err
		}
		c.Next = look.next
		return nil
	})
	if err != nil {
		return store.Claimed{}, err
	}
	l.claimAll(c.Jobs)
	return c, nil
}

// probe takes the first delivery behind a number that has not expired: Expire is about to end the
// others.
func (f *claimLook) probe(now time.Time, from uint64) (found bool, err error) {
	const size = 64
	for {
		list, err := f.page(untried, f.lane.endpoint, int64(from), size)
		if err != nil {
			return false, err
		}
		if f.takeProbe(list, now) {
			return true, nil
		}
		if len(list) < size {
			return false, nil
		}
		from = list[len(list)-1].Number
	}
}

// probeTimed takes the first delivery that its sender had put off until a time which has come.
func (f *claimLook) probeTimed(now time.Time) error {
	const size = 64
	list, err := f.page(timed, f.lane.endpoint, int64(0), int64(math.MaxInt64), now.UnixNano(), size)
	if err == nil {
		f.takeProbe(list, now)
	}
	return err
}

func (f *claimLook) takeProbe(list []store.Job, now time.Time) (found bool) {
	for i := range list {
		if j := &list[i]; !f.lane.claimed[j.Number] && !f.lane.engine.isExpired(j) {
			f.jobs = []store.Job{*j}
			return true
		}
	}
	return false
}

func errorOr(err error, then func() error) error {
	if err != nil {
		return err
	}
	return then()
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
	}
}

// Record stores results: see store.Lane.
func (l *lane) Record(ctx context.Context, results []store.Result) error {
	if err := l.engine.record(ctx, l.endpoint, results, false); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range results {
		delete(l.claimed, results[i].Job.Number)
	}
	return nil
}

// nextOfKeys reads the pending deliveries that come next in their calls after some.
const nextOfKeys = `SELECT ` + deliveryColumns + `, 0, put_off
	FROM unnest($1::bigint[], $2::smallint[]) AS k(event, receiver) CROSS JOIN LATERAL (
	SELECT next AS following FROM pending WHERE n = k.event AND endpoint = k.receiver OFFSET 0) p CROSS JOIN LATERAL (
	SELECT * FROM pending WHERE n = p.following AND endpoint = k.receiver OFFSET 0) d`

// record stores results, and what they mean for the next delivery of each call. Those of questions
// may be for a queue of another process.
func (s *Engine) record(ctx context.Context, endpoint int16, results []store.Result, ofQuestion bool) error {
	var calls []string
	var events []*store.NewEvent
	keys, endpoints := make([]int64, len(results)), make([]int16, len(results))
	for i := range results {
		r := &results[i]
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
			each(b.Queue(pendingOfKeys, keys, endpoints), tx.scanDelivery)
			each(b.Queue(nextOfKeys, keys, endpoints), tx.scanDelivery)
		})
		if err != nil {
			return err
		}
		if ofQuestion {
			tx.touchForOthers()
		}
		kept := make([]bool, len(results))
		for i := range results {
			r := &results[i]
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
// has kept: its events are not stored either.
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
	r.Overruled = store.Record(rows, r.Job.Number, r.Job.Delivery, r.Now, s.rules.Hold)
	return isNewest, rows.Err()
}

// appendOf stores the events of results that count.
func (s *Engine) appendOf(tx *txn, results []store.Result, counts []bool, events []*store.NewEvent) error {
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
