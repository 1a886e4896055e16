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
	// maxSleep is the longest sleep of a lane while something is to be retried, since the wall
	// clock may be set meanwhile.
	maxSleep = time.Minute
	// storeRetryWait is the wait after a failed read or write of the engine.
	storeRetryWait = time.Second
	// outcomeWait is how long an outcome may wait for others to be committed with it, while
	// attempts are in flight.
	outcomeWait = 2 * time.Millisecond
	// maxOutcomes is how many outcomes are committed at once, and how many may wait for a commit
	// before no more attempts are started.
	maxOutcomes = 256
	// readAhead is how many due deliveries are claimed at once for each attempt that may be in
	// flight.
	readAhead = 4
	// minAhead is the least that is claimed for an endpoint with a rate: some untried deliveries
	// and a retry.
	minAhead = 4
	// maxReady bounds the claimed deliveries that wait for an attempt of their call to end.
	maxReady = 512
)

// lane delivers to one endpoint. Each endpoint has its own, so that none waits for another.
//
// One goroutine, run, makes all decisions: which deliveries are claimed, which are tried, when
// outcomes are committed. Workers make the attempts. They are started as needed and stay, since a
// new goroutine would grow its stack again for every attempt. A worker that has finished an attempt
// finds its next order waiting, and wakes run only when there is something to decide: see handIn.
// Run then logs the results together. Each commit runs in a goroutine of its own.
//
// The queue may pass to another process and come back: see keep.
type lane struct {
	endpoint store.Endpoint
	engine   store.Engine
	sender   store.Sender
	publish  func([]telephony.Event) // appends operational events
	wakeAll  func()                  // makes all lanes look for new deliveries
	opts     Options
	limit    *rate.Limiter // nil: no limit
	withCall bool          // the sender keeps bytes for a call: see store.CallSender
	redial   func() bool   // mayRedial, made once
	// held is store.Shared.Held; nil if there is no other process.
	held    func() context.Context
	logger  *slog.Logger
	reading *repeat.Log // failures to read the engine
	writing *repeat.Log // failures to write it
	calls   calls
	minLife time.Duration // the shortest life of a delivery that expires

	wake        chan struct{} // the engine may hold new deliveries
	handedIn    chan struct{} // workers have handed in results to decide on
	handInTimer *time.Timer   // fires outcomeWait after the first result
	recorded    chan recorded

	// The fields below are used by run alone.
	queue       store.Lane      // while this process has it
	orders      chan order      // to the workers; the buffer holds as many as run may send
	ready       []store.Job     // claimed, and not yet ordered
	callsOut    map[string]bool // the calls with an order that is out
	workers     int             // the number started
	freeEnded   []attemptDone
	results     []store.Result // not yet recorded
	freeResults []store.Result
	waiting     time.Time // when results could first have been recorded: there was one, and no commit ran
	recording   bool      // a commit is running
	// recordAt is the time of the next attempt to record after a commit has failed, zero if the
	// last one succeeded. Until then no delivery is tried whose outcome could not be recorded.
	recordAt  time.Time
	stale     bool      // the engine may hold due deliveries that are not claimed
	readAt    time.Time // the time of the last claim
	nextDue   time.Time // when the next delivery is due, if nothing new comes; zero: never
	failing   bool      // the endpoint was failing at the last dispatch
	linedUp   bool      // its deliveries have been lined up since then
	lastProbe uint64    // the number of the delivery of the last probe
	expireAt  time.Time // when to look next for expired deliveries; zero: when something new comes

	hasMore  atomic.Bool // run has more deliveries to order
	stopping atomic.Bool // no new attempts are made
	isMine   atomic.Bool // this process has the queue
	// succeeded means that an attempt has succeeded since prune last looked.
	succeeded     atomic.Bool
	questionEnded atomic.Bool // a question has ended, and may have held a delivery that has expired

	mu            sync.Mutex
	health        health
	healthChanges []healthChange // not yet logged
	// stuck is the error because of which nothing can be delivered, independently of the endpoint:
	// the engine cannot be read or written. Nil if it can.
	stuck      error
	stuckSince time.Time
	ended      []attemptDone // handed in by the workers
	// ordered counts the attempts that are in flight, wait for a worker or are handed in. It
	// decreases only under mu, together with ended.
	ordered atomic.Int64
}

// recorded is the result of a commit.
type recorded struct {
	results []store.Result
	err     error
}

func newLane(e store.Endpoint, opts Options, publish func([]telephony.Event), wakeAll func()) *lane {
	logger := opts.Logger.With("endpoint", e.Name)
	l := &lane{
		endpoint:    e,
		engine:      opts.Engine,
		sender:      opts.Senders[e.Name],
		publish:     publish,
		wakeAll:     wakeAll,
		opts:        opts,
		logger:      logger,
		reading:     repeat.New(logger),
		writing:     repeat.New(logger),
		calls:       newCalls(),
		callsOut:    map[string]bool{},
		minLife:     min(opts.RoutingTimeout, e.RingingTTL),
		wake:        make(chan struct{}, 1),
		handedIn:    make(chan struct{}, 1),
		handInTimer: time.NewTimer(maxSleep),
		recorded:    make(chan recorded),
	}
	_, l.withCall = l.sender.(store.CallSender)
	l.redial = l.mayRedial
	if shared, isShared := opts.Engine.(store.Shared); isShared {
		l.held = shared.Held
	}
	l.handInTimer.Stop()
	if e.Rate > 0 {
		l.limit = rate.NewLimiter(rate.Limit(e.Rate), 1)
	}
	return l
}

// keep takes the queue and delivers what is due until ctx ends, and returns when the last attempt
// is recorded. Attempts run under work. If another process is to have the queue, it is given up as
// in a shutdown, and keep waits until it comes back.
func (l *lane) keep(ctx, work context.Context) {
	for ctx.Err() == nil {
		queue, err := l.engine.Lane(ctx, l.endpoint.Name, l.withCall)
		if err != nil {
			if ctx.Err() == nil {
				l.logger.Error("nothing is delivered to this endpoint: its queue cannot be taken", "err", err)
			}
			return
		}
		l.begin(queue)
		l.runWhileUnwanted(ctx, work)
		l.isMine.Store(false)
		if err := queue.Close(context.WithoutCancel(ctx)); err != nil {
			l.logger.Debug("the queue could not be given up, and passes on once this bridge has ended", "err", err)
		}
	}
}

// runWhileUnwanted is run until another process is to have the queue, or ctx ends.
func (l *lane) runWhileUnwanted(ctx, work context.Context) {
	ctx, end := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer end()
	waiting.Go(func() {
		select {
		case <-l.queue.Wanted():
			end()
		case <-ctx.Done():
		}
	})
	l.run(ctx, work)
}

// begin prepares run for a queue whose deliveries another process may have changed meanwhile.
func (l *lane) begin(queue store.Lane) {
	l.queue, l.orders = queue, make(chan order, 2*l.endpoint.Concurrency)
	l.ready, l.workers, l.lastProbe, l.recordAt = nil, 0, 0, time.Time{}
	l.stale, l.nextDue, l.expireAt = true, time.Time{}, time.Now()
	l.failing, l.linedUp = false, false
	l.stopping.Store(false)
	l.isMine.Store(true)
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
		var at time.Time      // when to look again if nothing happens; zero: never
		l.hasMore.Store(true) // a worker that finishes during dispatch may be the last one
		if !stopping && work.Err() == nil {
			at = l.dispatch(ctx, func() { workers.Go(func() { l.work(ctx, work) }) })
		}
		at = sooner(at, l.flush(work))
		if stopping && !l.busy() { // flush may have dropped results, and nothing else would wake run
			return
		}
		l.hasMore.Store(l.stale || len(l.ready) > 0)
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
		case <-l.handedIn:
		case <-l.handInTimer.C:
		case r := <-l.recorded:
			l.commitEnded(r)
		case <-l.wake:
			l.lookForNew(time.Now())
		case <-alarm.C:
		}
		l.collect()
	}
}

// lookForNew makes the next dispatch look for deliveries that may have been appended or released.
func (l *lane) lookForNew(now time.Time) {
	l.stale = true
	if l.questionEnded.Swap(false) {
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

// dispatch orders the attempts that may start now or as soon as a worker is free, and returns when
// to dispatch again. Hire starts a worker.
func (l *lane) dispatch(ctx context.Context, hire func()) (at time.Time) {
	now := time.Now()
	if l.isSuspended() {
		return now.Add(storeRetryWait)
	}
	h := l.currentHealth()
	if h.failing != l.failing {
		l.failing, l.linedUp = h.failing, false
		l.release() // the order of attempts changes with the health
	}
	if h.failing && !l.linedUp {
		if l.busy() {
			return time.Time{} // deliveries in flight change, and cannot be lined up
		}
		if err := l.queue.LineUp(ctx, now); ctx.Err() != nil {
			return time.Time{}
		} else if err != nil {
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

// isSuspended reports whether no attempt may begin, since the work may pass to another process.
func (l *lane) isSuspended() bool { return l.held != nil && l.held().Err() != nil }

// giveOrders orders attempts until slots of them are in flight and each worker has one more
// waiting, and returns when to go on.
func (l *lane) giveOrders(ctx context.Context, now time.Time, failing bool, slots int, hire func()) (at time.Time) {
	if failing && (l.recording || len(l.results) > 0) {
		return time.Time{} // the next probe may be a delivery that is not recorded yet
	}
	limit := slots
	// A probe runs alone, and with a rate, orders that wait for a worker would run late or at once.
	if !failing && l.limit == nil {
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
			return now.Add(wait)
		}
		j := l.takeReady(i)
		if j.Event.Call != "" {
			l.callsOut[j.Event.Call] = true
		}
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

// nextReady finds the first delivery that may be tried now: no order of its call is out, and no
// question of it is asked or waits. It expires those that are too late on the way. It returns -1 if
// there is none.
func (l *lane) nextReady(now time.Time) int {
	for i := 0; i < len(l.ready); {
		j := &l.ready[i]
		switch {
		case l.isTooLate(j):
			l.addExpired(l.takeReady(i), now)
		case !l.callsOut[j.Event.Call] && l.calls.isFree(j.Event.Call):
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

// rateWait takes a token of the rate limit for one attempt, or returns the wait for it.
func (l *lane) rateWait(now time.Time) time.Duration {
	if l.limit == nil {
		return 0
	}
	return ratelimit.Take(l.limit, now)
}

// mayRedial reports whether the sender may send once more within an attempt.
func (l *lane) mayRedial() bool { return !l.stopping.Load() && (l.limit == nil || l.limit.Allow()) }

// claim claims due deliveries, and returns when to look again if there are none.
func (l *lane) claim(ctx context.Context, now time.Time, failing bool) (at time.Time) {
	if !l.stale && (l.nextDue.IsZero() || now.Before(l.nextDue) && now.Before(l.readAt.Add(maxSleep))) {
		return l.nextDue
	}
	l.readAt = now
	limit := readAhead * l.endpoint.Concurrency
	if l.limit != nil { // new deliveries may have to precede those claimed
		limit = max(minAhead, min(limit, int(math.Ceil(l.endpoint.Rate))))
	}
	var c store.Claimed
	var err error
	if failing {
		c, err = l.queue.Probe(ctx, now, l.lastProbe)
	} else {
		c, err = l.queue.Claim(ctx, now, limit, l.callsOut)
	}
	if err != nil && ctx.Err() != nil {
		return time.Time{} // a shutdown has broken it off
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
	if c.Dead > 0 { // what they have held is due, but on damaged pages there may be no end of them
		return now.Add(storeRetryWait)
	}
	return l.nextDue
}

// release returns the claimed deliveries that were not ordered to the engine.
func (l *lane) release() {
	numbers := make([]uint64, len(l.ready))
	for i := range l.ready {
		numbers[i] = l.ready[i].Number
	}
	l.queue.Release(numbers)
	l.ready, l.stale = nil, true
}

// setStuck records why the lane can deliver nothing, which is no fault of its endpoint; nil means
// that it can.
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

// status returns the status of the endpoint without its counts. An endpoint whose lane is stuck is
// failing, since nothing reaches it.
func (l *lane) status(now time.Time) EndpointStatus {
	l.mu.Lock()
	h, stuck, since := l.health, l.stuck, l.stuckSince
	l.mu.Unlock()
	s := EndpointStatus{Name: l.endpoint.Name}
	s.State, s.NextAttempt = h.state(now)
	s.Failures = h.failures
	var last error
	if s.State != StateOK || h.failures > 0 {
		last = h.lastError
	}
	if h.failing {
		s.Since = h.since
	}
	if stuck != nil {
		s.State, s.Since, last = StateFailing, since, stuck
	}
	if last != nil {
		s.LastError, s.LastCause = last.Error(), telephony.CauseOf(last)
	}
	return s
}
