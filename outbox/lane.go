package outbox

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"pzbridge/internal/repeat"
)

const (
	// lookAgain is the longest that a lane sleeps while something is to be retried: the wall clock may have been set meanwhile.
	lookAgain = time.Minute
	// storeAgain is the wait after a write of the file that failed.
	storeAgain = time.Second
)

// lane delivers to one endpoint. Each endpoint has its own, so that none waits for another.
type lane struct {
	endpoint Endpoint
	store    *store
	sender   *sender
	schedule []time.Duration
	routing  time.Duration // Options.RoutingTimeout
	horizon  time.Duration
	logger   *slog.Logger
	reading  *repeat.Log // of the file
	writing  *repeat.Log

	wake chan struct{} // something was appended
}

func newLane(e Endpoint, s *store, opts Options) *lane {
	logger := opts.Logger.With("endpoint", e.Name)
	return &lane{
		endpoint: e, store: s, sender: newSender(e, opts),
		schedule: opts.RetrySchedule, routing: opts.RoutingTimeout, horizon: longestWait(opts.RetrySchedule, opts.OrderHold),
		logger: logger, reading: repeat.New(logger), writing: repeat.New(logger), wake: make(chan struct{}, 1),
	}
}

func (l *lane) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run delivers what is due until ctx ends, and returns when the last attempt is recorded. Attempts run under work.
func (l *lane) run(ctx, work context.Context) {
	defer l.sender.client.HTTPClient.CloseIdleConnections()
	inFlight := map[uint64]bool{}
	finished := make(chan uint64)
	for ctx.Err() == nil {
		var timer <-chan time.Time
		if free := l.endpoint.Concurrency - len(inFlight); free > 0 {
			jobs, wait, err := l.store.due(l.endpoint.Name, free, inFlight, l.horizon)
			if err != nil {
				l.reading.Failed("a part of the outbox cannot be read", err)
				wait = cmp.Or(wait, lookAgain)
			}
			if wait > 0 {
				timer = time.After(min(wait, lookAgain))
			}
			for _, j := range jobs {
				inFlight[j.number] = true
				go func() {
					l.deliver(work, j)
					finished <- j.number
				}()
			}
		}
		select {
		case <-ctx.Done():
		case n := <-finished:
			delete(inFlight, n)
		case <-l.wake:
		case <-timer:
		}
	}
	for len(inFlight) > 0 {
		delete(inFlight, <-finished)
	}
}

// deliver makes one attempt, unless it is too late for it, and records how it ended.
func (l *lane) deliver(work context.Context, j job) {
	began := time.Now()
	end := j.expires(l.routing, l.endpoint.RingingTTL)
	if !end.IsZero() && !began.Before(end) {
		l.logger.Warn("delivery has expired: it is too late to be of use",
			"event_id", j.eventID, "type", string(j.kind), "call_id", j.call, "attempts", j.delivery.attempts)
		late := j.delivery
		late.state, late.due = expired, began.UnixNano()
		l.record(work, j, late)
		return
	}
	o, err := l.sender.attempt(work, j)
	if err != nil {
		l.logger.Warn("attempt cut off by the shutdown; it will be made again", "event_id", j.eventID, "call_id", j.call)
		return
	}
	now := time.Now()
	next := j.delivery.next(o, l.schedule, now, rand.Float64())
	l.log(j, next, o, now.Sub(began))
	if !end.IsZero() && next.state == pending {
		next.due = min(next.due, end.UnixNano()) // it expires on time, not when its next attempt would be
	}
	l.record(work, j, next)
}

// record stores how a delivery stands now, for as long as it takes.
func (l *lane) record(work context.Context, j job, next delivery) {
	for {
		// What happened is recorded also while shutting down: commit takes no context. Meanwhile the delivery stays in flight: made again at
		// once, it would reach a healthy CRM over and over while our disk is full.
		err := l.store.record(l.endpoint.Name, j, next)
		if err == nil {
			l.writing.Recovered("outcomes are recorded again")
			return
		}
		l.writing.Failed("the outcome of an attempt cannot be recorded", err, "event_id", j.eventID)
		select {
		case <-work.Done():
			return // it stays pending in the file, and is made again after the start
		case <-time.After(storeAgain):
		}
	}
}

// log is the one line of an attempt.
func (l *lane) log(j job, d delivery, o outcome, took time.Duration) {
	args := []any{
		"event_id", j.eventID, "type", string(j.kind), "call_id", j.call, "attempt", d.attempts,
		"took", took.Round(time.Microsecond).String(),
	}
	if o.err != nil {
		args = append(args, "err", o.err.Error())
	} else {
		args = append(args, "status", o.status)
	}
	switch d.state {
	case delivered:
		l.logger.Info("delivered", args...)
	case dead:
		l.logger.Error("delivery is dead: it will not be tried again", args...)
	default:
		retryIn := time.Until(time.Unix(0, d.due)).Round(time.Millisecond)
		l.logger.Warn("attempt failed", append(args, "retry_in", retryIn.String())...)
	}
}
