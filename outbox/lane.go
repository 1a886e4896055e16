package outbox

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"pzbridge/internal/ratelimit"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

const (
	// maxSleep is the longest that a lane sleeps while something is to be retried: the wall clock
	// may have been set meanwhile.
	maxSleep = time.Minute
	// storeRetryWait is the wait after a write or a read of the engine that failed.
	storeRetryWait = time.Second
	// outcomeWait is how long an outcome may wait for others to be committed with, while attempts
	// are under way.
	outcomeWait = 2 * time.Millisecond
	// maxOutcomes is how many are enough for a commit, and how many may wait for it before no
	// attempt is started.
	maxOutcomes = 256
	// readAhead is how many due deliveries are read at once for each attempt that may be under way.
	readAhead = 4
	// minAhead is the least that is read of an endpoint with a rate: room for what has not been
	// tried, and for a retry.
	minAhead = 4
	// maxReady bounds what is claimed and waits for its call.
	maxReady = 512
)

// lane delivers to one endpoint. Each endpoint has its own, so that none waits for another.
//
// One goroutine, run, decides everything: which deliveries are claimed, which are to be tried, when
// outcomes are committed. Attempts are made by workers, as many as have been needed at once; they
// stay, since a new goroutine would grow its stack again for every attempt. A worker that is done
// finds its next order waiting, and run is woken only when there is something to decide: see
// handIn. What attempts have brought is then logged together. A commit runs in a goroutine of its
// own.
type lane struct {
	endpoint store.Endpoint
	queue    store.Lane
	sender   store.Sender
	publish  func([]telephony.Event) // stores events of the bridge itself
	wakeAll  func()                  // lets all lanes look for what is new
	opts     Options
	limit    *rate.Limiter // nil: none
	redial   func() bool   // mayRedial, made once
	logger   *slog.Logger
	reading  *repeat.Log // of the engine
	writing  *repeat.Log
	calls    calls
	minLife  time.Duration // the shortest life of a delivery that expires

	wake     chan struct{} // the engine holds something new
	orders   chan order    // to the workers; there is room for as many as may be given
	handed   chan struct{} // the workers have handed in something to decide upon
	soon     *time.Timer   // something was handed in outcomeWait ago
	recorded chan recorded

	// What follows is run's alone.
	ready       []store.Job // claimed, to be ordered next
	workers     int         // that have been started
	freeEnded   []attemptDone
	results     []store.Result // to be recorded
	freeResults []store.Result
	waiting     time.Time // since when results could have been recorded: the first was there, and no commit ran
	recording   bool      // a commit runs
	// recordAt is when to try again to record, zero if the last commit went well. Until then
	// nothing is sent that could not be recorded.
	recordAt  time.Time
	stale     bool      // the engine may hold something due that is not claimed
	readAt    time.Time // when it was looked into last
	nextDue   time.Time // when the engine holds something due, if nothing new comes; zero: never
	failing   bool      // the endpoint was, when it was looked at last
	linedUp   bool      // since then its deliveries have been lined up
	lastProbe uint64    // number of the delivery with which it was probed last
	expireAt  time.Time // when to look next for what has become too late; zero: when something new comes

	hungry   atomic.Bool // more waits to be ordered
	stopping atomic.Bool // nothing new is sent
	// succeeded says that an attempt has, since prune has looked.
	succeeded atomic.Bool
	freed     atomic.Bool // a question has ended, which may have held something that is too late

	mu     sync.Mutex
	health health
	turns  []healthChange // that have not been logged
	// stuck is why nothing can be delivered, whatever the endpoint does: the engine cannot be read
	// or written. Nil where it can.
	stuck      error
	stuckSince time.Time
	ended      []attemptDone // handed in by the workers
	// ordered counts attempts that are under way, wait for a worker or are handed in. They become
	// fewer under mu, together with ended.
	ordered atomic.Int64
}

// recorded is how a commit of results has ended.
type recorded struct {
	results []store.Result
	err     error
}

func newLane(e store.Endpoint, queue store.Lane, opts Options, publish func([]telephony.Event), wakeAll func()) *lane {
	logger := opts.Logger.With("endpoint", e.Name)
	l := &lane{
		endpoint: e,
		queue:    queue,
		sender:   opts.Senders[e.Name],
		publish:  publish,
		wakeAll:  wakeAll,
		opts:     opts,
		logger:   logger,
		reading:  repeat.New(logger),
		writing:  repeat.New(logger),
		calls:    calls{underWay: map[string]bool{}},
		minLife:  min(opts.RoutingTimeout, e.RingingTTL),
		wake:     make(chan struct{}, 1),
		orders:   make(chan order, 2*e.Concurrency),
		handed:   make(chan struct{}, 1),
		soon:     time.NewTimer(maxSleep),
		recorded: make(chan recorded),
		stale:    true,
	}
	l.redial = l.mayRedial
	l.soon.Stop()
	l.expireAt = time.Now()
	if e.Rate > 0 {
		l.limit = rate.NewLimiter(rate.Limit(e.Rate), 1)
	}
	return l
}

// run delivers what is due until ctx ends, and returns when the last attempt is recorded. Attempts
// run under work.
func (l *lane) run(ctx, work context.Context) {
	alarm := time.NewTimer(maxSleep)
	defer alarm.Stop()
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(l.orders)
	stopping, done := false, ctx.Done() // a context that never ends has no Done
	for {
		var at time.Time     // when to look again even if nothing happens; zero: never
		l.hungry.Store(true) // a worker that is done while orders are given may be the last one
		if !stopping && work.Err() == nil {
			at = l.dispatch(ctx, func() { workers.Go(func() { l.work(ctx, work) }) })
		}
		at = sooner(at, l.flush(work))
		if stopping && !l.busy() { // flush may have dropped what cannot be recorded, and nothing else would wake this
			return
		}
		l.hungry.Store(l.stale || len(l.ready) > 0)
		if !at.IsZero() {
			alarm.Reset(max(0, min(time.Until(at), maxSleep)))
		} else {
			alarm.Stop()
		}
		select {
		case <-done:
			stopping, done = true, nil
			l.stopping.Store(true)
			l.release()
		case <-l.handed:
		case <-l.soon.C:
		case r := <-l.recorded:
			l.commitEnded(r)
		case <-l.wake:
			l.lookForNew(time.Now())
		case <-alarm.C:
		}
		l.collect()
	}
}

// lookForNew is called when something may have been appended or released.
func (l *lane) lookForNew(now time.Time) {
	l.stale = true
	if l.freed.Swap(false) {
		l.expireAt = now
	}
	l.expireAt = sooner(l.expireAt, now.Add(l.minLife))
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (l *lane) busy() bool { return l.ordered.Load() > 0 || l.recording || len(l.results) > 0 }

// dispatch orders the attempts that may start now or as soon as a worker is free, and says when the
// next one may. Hire starts a worker.
func (l *lane) dispatch(ctx context.Context, hire func()) (at time.Time) {
	now := time.Now()
	h := l.currentHealth()
	if h.failing != l.failing {
		l.failing, l.linedUp = h.failing, false
		l.release() // what was claimed before the change is not what is to be tried now
	}
	if h.failing && !l.linedUp {
		if l.busy() {
			return time.Time{} // what is under way moves, and cannot be lined up
		}
		if err := l.queue.LineUp(ctx, now); err != nil {
			l.setStuck(err)
			l.reading.Failed("what waits for a failing endpoint cannot be lined up", err)
			return now.Add(storeRetryWait)
		}
		l.linedUp, l.expireAt = true, now
	}
	slots, at := h.allows(now, l.endpoint.Concurrency)
	if slots > 0 {
		at = l.giveOrders(ctx, now, h.failing, slots, hire)
	}
	return sooner(at, l.expire(ctx, now))
}

// giveOrders orders attempts until so many are under way and each worker has one more waiting, and
// says when to go on.
func (l *lane) giveOrders(ctx context.Context, now time.Time, failing bool, slots int, hire func()) (at time.Time) {
	if failing && (l.recording || len(l.results) > 0) {
		return time.Time{} // the next probe may be the same delivery
	}
	limit := slots
	if !failing && l.limit == nil { // else what waits for a worker would have its turn too late, or all at once
		limit = 2 * slots
	}
	for int(l.ordered.Load()) < limit && len(l.results) < maxOutcomes && l.recordAt.IsZero() {
		i := l.nextReady(now)
		if i < 0 {
			claimed := len(l.ready)
			if claimed >= maxReady {
				break
			}
			if at = l.claim(ctx, now, failing); len(l.ready) == claimed {
				break
			}
			continue
		}
		if wait := l.rateWait(now); wait > 0 {
			l.calls.leave(l.ready[i].Event.Call)
			return now.Add(wait)
		}
		j := l.takeReady(i)
		ordered := int(l.ordered.Add(1))
		if failing {
			l.lastProbe = j.Number
		}
		if l.workers < min(ordered, slots) {
			l.workers++
			hire()
		}
		l.orders <- order{j, failing}
	}
	return at
}

// nextReady finds the first delivery that may be tried now, and begins an attempt of its call: of
// the call nothing is under way. What has come too late is ended on the way. It is -1 if there is
// none.
func (l *lane) nextReady(now time.Time) int {
	for i := 0; i < len(l.ready); {
		j := &l.ready[i]
		switch {
		case l.isTooLate(j):
			l.addExpired(l.takeReady(i), now)
		case l.calls.enter(j.Event.Call):
			return i
		default:
			i++
		}
	}
	return -1
}

func (l *lane) takeReady(i int) store.Job {
	j := l.ready[i]
	if i == 0 {
		l.ready = l.ready[1:]
	} else {
		l.ready = slices.Delete(l.ready, i, i+1)
	}
	return j
}

// rateWait takes the right to one attempt, or says how long it takes to get it.
func (l *lane) rateWait(now time.Time) time.Duration {
	if l.limit == nil {
		return 0
	}
	return ratelimit.Take(l.limit, now)
}

// mayRedial says whether the sender may send once more within an attempt.
func (l *lane) mayRedial() bool { return !l.stopping.Load() && (l.limit == nil || l.limit.Allow()) }

// claim claims deliveries that are due, and says when to look again if there are none.
func (l *lane) claim(ctx context.Context, now time.Time, failing bool) (at time.Time) {
	if !l.stale && (l.nextDue.IsZero() || now.Before(l.nextDue) && now.Before(l.readAt.Add(maxSleep))) {
		return l.nextDue
	}
	l.readAt = now
	limit := readAhead * l.endpoint.Concurrency
	if l.limit != nil { // what comes meanwhile may have to go before it
		limit = max(minAhead, min(limit, int(math.Ceil(l.endpoint.Rate))))
	}
	var c store.Claimed
	var err error
	if failing {
		c, err = l.queue.Probe(ctx, now, l.lastProbe)
	} else {
		c, err = l.queue.Claim(ctx, now, limit)
	}
	if err != nil {
		l.setStuck(err)
		l.reading.Failed("the outbox cannot be read", err)
		return now.Add(storeRetryWait)
	}
	l.setStuck(nil)
	l.reading.Recovered("the outbox is read again")
	if c.Dead > 0 {
		l.logger.Error("deliveries are dead: their records in the outbox are damaged", "deliveries", c.Dead)
		l.opts.Observer.GivenUp(l.endpoint.Name, c.Dead)
	}
	if c.Unreadable > 0 {
		l.logger.Error("deliveries stand on a damaged page of the outbox, and wait until a backup is restored",
			"deliveries", c.Unreadable)
	}
	if len(l.ready) == 0 {
		l.ready = c.Jobs
	} else {
		l.ready = append(l.ready, c.Jobs...)
	}
	l.stale, l.nextDue = c.More || failing, c.Next
	if c.Dead > 0 { // what they have held is due now. Where pages are damaged there may be no end of them
		return now.Add(storeRetryWait)
	}
	return l.nextDue
}

// release gives back what is claimed and was not tried.
func (l *lane) release() {
	numbers := make([]uint64, len(l.ready))
	for i := range l.ready {
		numbers[i] = l.ready[i].Number
	}
	l.queue.Release(numbers)
	l.ready, l.stale = nil, true
}

// isTooLate reports whether a delivery is of no use any more.
func (l *lane) isTooLate(j *store.Job) bool {
	return j.Delivery.Expires != 0 && !time.Now().Before(l.expiry(j))
}

// expiry is when a delivery becomes of no use, by the clock as it stands now. It is counted from
// now on and not from the event, whose time is of the wall clock, which may be set back.
func (l *lane) expiry(j *store.Job) time.Time {
	life := time.Unix(0, j.Delivery.Expires).Sub(j.Event.At)
	return time.Now().Add(life - l.opts.Clock.Freshness(j.Event.At))
}

// addExpired records that a claimed delivery is of no use any more.
func (l *lane) addExpired(j store.Job, now time.Time) {
	l.add(store.Result{Job: j, Now: j.Delivery.Ended(store.Expired, now)}, now)
}

// logExpired reports that it was too late for a delivery.
func (l *lane) logExpired(j *store.Job) {
	l.logger.Warn("delivery has expired: it is too late to be of use",
		"event_id", j.EventID, "type", string(j.Event.Type), "call_id", j.Event.Call, "attempts", j.Delivery.Attempts)
	l.opts.Observer.Expired(l.endpoint.Name)
}

// expire ends what has become too late while it waits: for the end of a pause, for the next probe,
// or behind others. It says when to look again.
func (l *lane) expire(ctx context.Context, now time.Time) (at time.Time) {
	if len(l.results) >= maxOutcomes || !l.recordAt.IsZero() {
		return time.Time{} // run goes on when they are recorded
	}
	if l.expireAt.IsZero() || now.Before(l.expireAt) {
		return l.expireAt
	}
	var next time.Time
	l.ready = slices.DeleteFunc(l.ready, func(j store.Job) bool {
		if j.Delivery.Expires == 0 {
			return false
		}
		if l.isTooLate(&j) {
			l.addExpired(j, now)
			return true
		}
		next = sooner(next, l.expiry(&j))
		return false
	})
	expired, later, err := l.queue.Expire(ctx, now, maxOutcomes)
	if err != nil {
		l.reading.Failed("the outbox cannot be read", err)
		l.expireAt = now.Add(storeRetryWait)
		return l.expireAt
	}
	for i := range expired {
		l.logExpired(&expired[i])
	}
	if len(expired) > 0 {
		l.stale = true // they may have held something
	}
	if !later.IsZero() {
		// By the monotonic clock: the engine's time is of the wall clock, which may be set back.
		later = now.Add(later.Sub(now))
	}
	l.expireAt = sooner(next, later)
	return l.expireAt
}

// collect takes what the workers have handed in, and logs it.
func (l *lane) collect() {
	l.mu.Lock()
	list, turns := l.ended, l.turns
	l.ended, l.turns = l.freeEnded, nil
	l.ordered.Add(-int64(len(list)))
	l.mu.Unlock()
	var news []telephony.Event
	for i := range list {
		e := &list[i]
		l.calls.leave(e.result.Job.Event.Call)
		if e.unmade {
			l.queue.Release([]uint64{e.result.Job.Number})
			l.stale = true
			continue
		}
		if e.verdict == store.More && l.failing {
			l.lastProbe = e.result.Job.Number - 1 // the same job is the next probe
		}
		news = append(news, l.logAttempt(e)...)
		l.add(e.result, e.at)
	}
	for i := range turns {
		news = append(news, l.logHealthChange(&turns[i])...)
	}
	l.publish(news)
	clear(list) // so that what was sent can be collected
	l.freeEnded = list[:0]
}

// add puts a result to those that are to be recorded. It was there at a time that the caller gives.
func (l *lane) add(r store.Result, at time.Time) {
	if len(l.results) == 0 {
		l.waiting = at
	}
	l.results = append(l.results, r)
}

// flush starts a commit of the results if it is time, and says when it will be.
func (l *lane) flush(work context.Context) (at time.Time) {
	if l.recording || len(l.results) == 0 {
		return time.Time{}
	}
	now := time.Now()
	switch {
	case now.Before(l.recordAt) && work.Err() != nil:
		// The shutdown's time is up. They stay pending in the engine, and are made again after the
		// start.
		l.results = nil
		return time.Time{}
	case now.Before(l.recordAt):
		return sooner(l.recordAt, now.Add(storeRetryWait))
	case l.ordered.Load() > 0 && len(l.results) < maxOutcomes && now.Before(l.waiting.Add(outcomeWait)):
		return l.waiting.Add(outcomeWait)
	}
	batch := l.results
	l.results, l.freeResults, l.recording = l.freeResults, nil, true
	// What happened is recorded also while shutting down.
	go func() { l.recorded <- recorded{batch, l.queue.Record(context.WithoutCancel(work), batch)} }()
	return time.Time{}
}

func (l *lane) commitEnded(r recorded) {
	now := time.Now()
	l.recording, l.waiting, l.stale = false, now, true
	if r.err != nil {
		// They stay claimed: made again at once, they would reach a healthy CRM over and over while
		// our disk is full.
		l.setStuck(r.err)
		l.writing.Failed("the outcomes of attempts cannot be recorded", r.err, "attempts", len(r.results))
		l.results = append(r.results, l.results...)
		l.recordAt = now.Add(storeRetryWait)
		return
	}
	l.setStuck(nil)
	l.writing.Recovered("outcomes are recorded again")
	l.recordAt = time.Time{}
	lost, firstLost := 0, ""
	hasEvents := false
	for i := range r.results {
		result := &r.results[i]
		hasEvents = hasEvents || len(result.Events) > 0
		if result.Lost {
			if lost++; lost == 1 {
				firstLost = result.Job.EventID
			}
			continue
		}
		if result.Job.Delivery.Next != 0 || result.Now.State != store.Pending {
			l.expireAt = sooner(l.expireAt, now.Add(minExpireGap)) // it may have held something that is too late
		}
		if result.Attempt == nil && !result.Overruled {
			l.logExpired(&result.Job)
		}
	}
	if lost > 0 {
		// They stay claimed until the next start: made again, they would reach the CRM over and
		// over.
		l.logger.Error("the outcomes of attempts are lost, since a page of the outbox is damaged; "+
			"they are made again after the next start", "attempts", lost, "event_id", firstLost)
	}
	if hasEvents {
		l.wakeAll()
	}
	clear(r.results) // so that what was sent can be collected
	l.freeResults = r.results[:0]
}

// minExpireGap is how long what a recorded delivery has released may be too late before it is
// ended.
const minExpireGap = 100 * time.Millisecond

// setStuck notes why the lane can deliver nothing, which is no fault of its endpoint; nil where it
// can.
func (l *lane) setStuck(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if (err == nil) != (l.stuck == nil) {
		l.stuckSince = time.Now()
	}
	l.stuck = err
}

func (l *lane) currentHealth() health {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.health
}

// status is how the endpoint stands, without its counts. One whose lane is stuck is failing:
// nothing reaches it.
func (l *lane) status(now time.Time) EndpointStatus {
	l.mu.Lock()
	h, stuck, since := l.health, l.stuck, l.stuckSince
	l.mu.Unlock()
	s := EndpointStatus{Name: l.endpoint.Name}
	s.State, s.NextAttempt = h.state(now)
	if s.State != stateOK {
		s.LastError = h.lastError
	}
	if h.failing {
		s.Since = h.since
	}
	if stuck != nil {
		s.State, s.Since, s.LastError = stateFailing, since, stuck.Error()
	}
	return s
}
