package outbox

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
)

const (
	// lookAgain is the longest that a lane sleeps while something is to be retried: the wall clock may have been set meanwhile.
	lookAgain = time.Minute
	// storeAgain is the wait after a write or a read of the file that failed.
	storeAgain = time.Second
	// outcomeWait is how long an outcome may wait for others to be committed with, while attempts are under way.
	outcomeWait = 2 * time.Millisecond
	// mostOutcomes is how many are enough for a commit, and how many may wait for it before no attempt is started.
	mostOutcomes = 256
	// readAhead is how many due deliveries are read at once for each attempt that may be under way.
	readAhead = 4
	// leastAhead is the least that is read of an endpoint with a rate: room for what has not been tried, and for a retry.
	leastAhead = 4
)

// lane delivers to one endpoint. Each endpoint has its own, so that none waits for another.
//
// One goroutine, run, decides everything: which deliveries are claimed from the file, which are to be tried, when outcomes are committed. Attempts are
// made by workers, as many as have been needed at once; they stay, since a new goroutine would grow its stack anew for every attempt. A worker that is done
// finds its next order waiting, and run is woken only when there is something to decide: see handIn. What attempts have brought is then told together. A
// commit runs in a goroutine of its own.
type lane struct {
	endpoint Endpoint
	store    *store
	announce func([]telephony.Event) // tells of the bridge itself
	sender   *sender
	// questions makes the attempts of questions, which take no place of the lane: see asker.
	questions *sender
	places    places // for questions
	opts      Options
	longest   time.Duration // see longestWait
	limit     *rate.Limiter // nil: none
	logger    *slog.Logger
	reading   *repeat.Log // of the file
	writing   *repeat.Log

	wake     chan struct{} // the file holds something new
	orders   chan order    // to the workers; there is room for as many as may be given
	handed   chan struct{} // the workers have handed in something to decide upon
	soon     *time.Timer   // something was handed in outcomeWait ago
	recorded chan recorded

	// What follows is run's alone.
	claimed   map[uint64]bool // numbers of the deliveries that are ready, ordered, or not recorded yet
	ready     []job           // to be ordered next
	workers   int             // that have been started
	taken     []ended         // room for what was handed in, while it is not in use
	results   []result        // to be recorded
	spare     []result        // room for results, while it is not in use
	waiting   time.Time       // since when they could have been: the first of them was there, and no commit ran
	recording bool            // a commit runs
	recordAt  time.Time       // zero: the last commit went well; else when to try again. Meanwhile nothing is sent that could not be recorded
	stale     bool            // the file may hold something due that is not claimed
	readAt    time.Time       // when it was looked into last
	nextDue   time.Time       // when the file holds something due, if nothing new comes; zero: never
	failing   bool            // the endpoint was, when it was looked at last
	inLine    bool            // since then its deliveries have been lined up
	lastProbe uint64          // number of the delivery with which it was probed last
	sweepAt   time.Time       // when to look next for what has become too late
	swept     uint64          // of what has not been tried, nothing before this number can become too late

	hungry atomic.Bool // more waits to be ordered
	// succeeded says that an attempt has, since prune has looked.
	succeeded atomic.Bool
	freed     atomic.Bool // a question that has ended may have held something: swept says too much

	mu     sync.Mutex
	health health
	turns  []turnOfHealth // that have not been told
	// stuck is why nothing can be delivered, whatever the endpoint does: the file cannot be read or
	// written. Nil where it can.
	stuck      error
	stuckSince time.Time
	ended      []ended      // handed in by the workers
	ordered    atomic.Int64 // attempts that are under way, wait for a worker or are handed in. They become fewer under mu, together with ended
}

// recorded tells run that a commit of results has ended.
type recorded struct {
	results []result // that are recorded
	waiting []result // that could not be, for err, and are to be tried again
	lost    []result // that cannot be, since a page is damaged
	err     error
}

func newLane(e Endpoint, s *store, opts Options, announce func([]telephony.Event)) *lane {
	logger := opts.Logger.With("endpoint", e.Name)
	l := &lane{
		endpoint: e, store: s, announce: announce, sender: newSender(e, e.Concurrency, opts), questions: newSender(e, maxQuestions+1, opts), opts: opts, longest: longestWait(opts.RetrySchedule, opts.OrderHold),
		logger: logger, reading: repeat.New(logger), writing: repeat.New(logger),
		wake: make(chan struct{}, 1), orders: make(chan order, 2*e.Concurrency), handed: make(chan struct{}, 1), soon: time.NewTimer(lookAgain), recorded: make(chan recorded),
		claimed: map[uint64]bool{}, stale: true,
	}
	l.soon.Stop()
	l.questions.asks = true
	l.places.limit = func() int {
		if l.currentHealth().failing {
			return maxQuestionsFailing
		}
		return maxQuestions
	}
	if e.Rate > 0 {
		l.limit = rate.NewLimiter(rate.Limit(e.Rate), 1)
		l.sender.limit = l.limit
	}
	return l
}

func (l *lane) wakeUp() { signal(l.wake) }

// signal wakes whoever waits on a channel with room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run delivers what is due until ctx ends, and returns when the last attempt is recorded. Attempts run under work.
func (l *lane) run(ctx, work context.Context) {
	defer l.sender.client.HTTPClient.CloseIdleConnections()
	defer l.questions.client.HTTPClient.CloseIdleConnections()
	alarm := time.NewTimer(lookAgain)
	defer alarm.Stop()
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(l.orders)
	stopping, done := false, ctx.Done() // a context that never ends has no Done
	for {
		var at time.Time     // when to look again even if nothing happens; zero: never
		l.hungry.Store(true) // who is done while orders are given may be the last to say so
		if !stopping && work.Err() == nil {
			at = l.dispatch(func() { workers.Go(func() { l.work(ctx, work) }) })
		}
		at = sooner(at, l.flush(work))
		if stopping && !l.busy() { // flush may have given up what cannot be recorded, and nothing else would wake this
			return
		}
		l.hungry.Store(l.stale || len(l.ready) > 0)
		if !at.IsZero() {
			alarm.Reset(max(0, min(time.Until(at), lookAgain)))
		} else {
			alarm.Stop()
		}
		select {
		case <-done:
			stopping, done = true, nil
			l.sender.stopping.Store(true)
			l.questions.stopping.Store(true)
			l.drop()
		case <-l.handed:
		case <-l.soon.C:
		case r := <-l.recorded:
			l.commitEnded(r)
		case <-l.wake:
			l.stale = true
		case <-alarm.C:
		}
		l.collect()
	}
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (l *lane) busy() bool { return l.ordered.Load() > 0 || l.recording || len(l.results) > 0 }

// dispatch orders the attempts that may start now or as soon as a worker is free, and says when the next one may. Hire starts a worker.
func (l *lane) dispatch(hire func()) (at time.Time) {
	now := time.Now()
	h := l.currentHealth()
	if h.failing != l.failing {
		l.failing, l.inLine = h.failing, false
		l.drop() // what was read before the change is not what is to be tried now
	}
	if h.failing && !l.inLine {
		if l.busy() {
			return time.Time{} // what is under way moves, and cannot be lined up
		}
		if err := l.store.lineUp(l.endpoint.Name); err != nil {
			l.isStuck(err)
			l.reading.Failed("what waits for a failing endpoint cannot be lined up", err)
			return now.Add(storeAgain)
		}
		l.inLine, l.swept = true, 0
	}
	slots, at := h.allows(now, l.endpoint.Concurrency)
	if slots > 0 {
		at = l.giveOrders(now, h.failing, slots, hire)
	}
	if l.stale || len(l.ready) > 0 { // something waits
		at = sooner(at, l.sweep(now))
	}
	return at
}

// giveOrders orders attempts until so many are under way and each worker has one more waiting, and says when to go on.
func (l *lane) giveOrders(now time.Time, failing bool, slots int, hire func()) (at time.Time) {
	most := slots
	if !failing && l.limit == nil { // else what waits for a worker would have its turn too late, or all at once
		most = 2 * slots
	}
	for int(l.ordered.Load()) < most && len(l.results) < mostOutcomes && l.recordAt.IsZero() {
		if len(l.ready) == 0 {
			if at = l.claim(now, failing); len(l.ready) == 0 {
				break
			}
		}
		j := l.ready[0]
		if l.tooLate(j, now) {
			l.ready = l.ready[1:]
			l.expire(j, now)
			continue
		}
		if wait := l.rateWait(now); wait > 0 {
			return now.Add(wait)
		}
		l.ready = l.ready[1:]
		ordered := int(l.ordered.Add(1))
		if failing {
			l.lastProbe = j.number
		}
		if l.workers < min(ordered, slots) {
			l.workers++
			hire()
		}
		l.orders <- order{j, failing}
	}
	return at
}

// rateWait takes the right to one attempt, or says how long it takes to get it.
func (l *lane) rateWait(now time.Time) time.Duration {
	if l.limit == nil {
		return 0
	}
	r := l.limit.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// claim reads deliveries that are due, and says when to look again if there are none.
func (l *lane) claim(now time.Time, failing bool) (at time.Time) {
	if !l.stale && (l.nextDue.IsZero() || now.Before(l.nextDue) && now.Before(l.readAt.Add(lookAgain))) {
		return l.nextDue
	}
	if now.Round(0).Before(l.readAt.Round(0)) || l.readAt.IsZero() { // by the wall clock; who knows what it was before the start
		if err := l.store.clockSetBack(l.endpoint.Name, now, l.longest); err != nil {
			l.isStuck(err)
			l.reading.Failed("what waits cannot be given the time of a clock that was set back", err)
			return now.Add(storeAgain)
		}
	}
	l.readAt = now
	limit := readAhead * l.endpoint.Concurrency
	if l.limit != nil { // what comes meanwhile may have to go before it
		limit = max(leastAhead, min(limit, int(math.Ceil(l.endpoint.Rate))))
	}
	var f found
	var err error
	if failing {
		limit = mostOutcomes
		f, err = l.store.probe(l.endpoint.Name, l.lastProbe, limit, l.claimed, func(j job) bool { return !l.tooLate(j, now) })
	} else {
		f, err = l.store.due(l.endpoint.Name, limit, l.claimed, now)
	}
	if err == nil && len(f.damaged) > 0 {
		l.logger.Error("deliveries are dead: their records in the outbox are damaged", "deliveries", len(f.damaged))
		if err = l.store.giveUp(l.endpoint.Name, f.damaged); err == nil {
			l.opts.Observer.GivenUp(l.endpoint.Name, len(f.damaged))
		}
	}
	if err != nil {
		l.isStuck(err)
		l.reading.Failed("the outbox cannot be read", err)
		return now.Add(storeAgain)
	}
	l.isStuck(nil)
	l.reading.Recovered("the outbox is read again")
	if len(f.unreadable) > 0 {
		l.logger.Error("deliveries stand on a damaged page of the outbox, and wait until a backup is restored", "deliveries", len(f.unreadable))
	}
	for _, n := range f.unreadable {
		l.claimed[n] = true // or each look would meet them again
	}
	for _, j := range f.jobs {
		l.claimed[j.number] = true
	}
	l.ready = f.jobs
	l.stale, l.nextDue = len(f.jobs) == limit || failing || len(f.damaged)+len(f.unreadable) > 0, time.Time{}
	if f.wait > 0 {
		l.nextDue = now.Add(f.wait)
	}
	if len(f.damaged) > 0 { // what they have held is due now. Where pages are damaged there may be no end of them
		return now.Add(storeAgain)
	}
	return l.nextDue
}

// drop gives back what is claimed and was not tried.
func (l *lane) drop() {
	for _, j := range l.ready {
		delete(l.claimed, j.number)
	}
	l.ready, l.stale = nil, true
}

// collect takes what the workers have handed in, and tells of it.
func (l *lane) collect() {
	l.mu.Lock()
	list, turns := l.ended, l.turns
	l.ended, l.turns = l.taken, nil
	l.ordered.Add(-int64(len(list)))
	l.mu.Unlock()
	var news []telephony.Event
	for i := range list {
		e := &list[i]
		if e.unmade {
			delete(l.claimed, e.result.job.number)
			l.stale = true
			continue
		}
		news = append(news, l.tell(e)...)
		l.add(e.result, e.at)
	}
	for i := range turns {
		news = append(news, l.tellTurn(&turns[i])...)
	}
	l.announce(news)
	clear(list) // so that what was sent can be forgotten
	l.taken = list[:0]
}

// add puts a result to those that are to be recorded. It was there at a time that the caller gives.
func (l *lane) add(r result, at time.Time) {
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
		// The shutdown's time is up. They stay pending in the file, and are made again after the start.
		l.results = nil
		return time.Time{}
	case now.Before(l.recordAt):
		return sooner(l.recordAt, now.Add(storeAgain))
	case l.ordered.Load() > 0 && len(l.results) < mostOutcomes && now.Before(l.waiting.Add(outcomeWait)):
		return l.waiting.Add(outcomeWait)
	}
	batch := l.results
	l.results, l.spare, l.recording = l.spare, nil, true
	// What happened is recorded also while shutting down: commit takes no context.
	go func() { l.recorded <- l.record(batch) }()
	return time.Time{}
}

// record records a batch. Where a page is damaged it does so one by one, so that only what stands
// there is lost.
func (l *lane) record(batch []result) recorded {
	err := l.store.record(l.endpoint.Name, batch)
	switch {
	case err == nil:
		return recorded{results: batch}
	case !errors.Is(err, ErrDamaged) || l.store.isBroken():
		return recorded{waiting: batch, err: err}
	}
	var r recorded
	for i := range batch {
		switch err := l.store.record(l.endpoint.Name, batch[i:i+1]); {
		case err == nil:
			r.results = append(r.results, batch[i])
		case errors.Is(err, ErrDamaged) && !l.store.isBroken():
			r.lost = append(r.lost, batch[i])
		default:
			r.waiting, r.err = append(r.waiting, batch[i]), err
		}
	}
	return r
}

func (l *lane) commitEnded(r recorded) {
	l.recording, l.waiting = false, time.Now()
	if len(r.lost) > 0 {
		// They stay claimed until the next start: made again, they would reach the CRM over and over.
		l.logger.Error("the outcomes of attempts are lost, since a page of the outbox is damaged; they are made again after the next start",
			"attempts", len(r.lost), "event_id", r.lost[0].job.eventID)
	}
	if r.err != nil {
		// They stay claimed: made again at once, they would reach a healthy CRM over and over while our disk is full.
		l.isStuck(r.err)
		l.writing.Failed("the outcomes of attempts cannot be recorded", r.err, "attempts", len(r.waiting))
		l.results = append(r.waiting, l.results...)
		l.recordAt = time.Now().Add(storeAgain)
	} else {
		l.isStuck(nil)
		l.writing.Recovered("outcomes are recorded again")
		l.recordAt = time.Time{}
	}
	l.stale = true
	for i := range r.results {
		result := &r.results[i]
		delete(l.claimed, result.job.number)
		if result.now.next != 0 {
			l.swept = min(l.swept, result.now.next) // it may have held that
		}
		if result.attempt == nil && !result.overruled {
			l.tellExpired(result.job)
		}
	}
	clear(r.results) // so that what was sent can be forgotten
	l.spare = r.results[:0]
}

// isStuck notes why the lane can deliver nothing, which is no fault of its endpoint; nil where it can.
func (l *lane) isStuck(err error) {
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

// status is how the endpoint stands. One whose lane is stuck is failing: nothing reaches it.
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
