package outbox

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// order is an attempt for a worker to make.
type order struct {
	job   store.Job
	probe bool
}

// attemptDone is the result of an order.
type attemptDone struct {
	result  store.Result
	isBegun bool // an attempt of the call was begun
	unmade  bool // no attempt was made, or the shutdown has cut it off and its outcome is unknown

	verdict store.Verdict
	at      time.Time
	expires bool // the delivery expires before its next attempt
}

// healthChange is a change of an endpoint's health that is logged.
type healthChange struct {
	before, after health
	at            time.Time
	status        int // of the response; 0 if there was none
}

// work is a worker: it makes the attempts that run orders, under the context work. Once ctx has
// ended, it begins none.
func (l *lane) work(ctx, work context.Context) {
	for o := range l.orders {
		// Responses that have arrived are read before the next request is sent: in BenchmarkBridge
		// that is two or three percent faster.
		runtime.Gosched()
		call := o.job.Event.Call
		if ctx.Err() != nil || l.isOvertaken(&o) || !l.calls.enter(call) {
			l.handIn(attemptDone{result: store.Result{Job: o.job}, unmade: true})
			continue
		}
		done := l.attempt(work, o.job, o.probe)
		if done.isBegun = true; !l.withCall { // else once it is recorded
			l.calls.leave(call)
		}
		l.handIn(done)
	}
}

// isOvertaken reports whether an order is no longer to be carried out: while it waited for a
// worker, the endpoint has begun to fail or requested a pause, the delivery has expired, or the
// work may pass to another process.
func (l *lane) isOvertaken(o *order) bool {
	h := l.currentHealth()
	slots, _ := h.allows(time.Now(), 1)
	return slots == 0 || h.failing && !o.probe || l.isTooLate(&o.job) || l.isSuspended()
}

// handIn passes the result of an order to run. It wakes run in three cases: when the workers are
// about to run out of orders, when a full batch is ready to commit, and for the last order in
// flight, after which nothing else would wake run. Otherwise run may sleep until the first result
// has waited for outcomeWait. Without this, run and the workers would wait for one another once per
// attempt at full load.
func (l *lane) handIn(e attemptDone) {
	l.mu.Lock()
	l.ended = append(l.ended, e)
	n := len(l.ended)
	isLast := n == int(l.ordered.Load())
	l.mu.Unlock()
	switch {
	case isLast, n == maxOutcomes, l.hasMore.Load() && len(l.orders) <= max(1, l.endpoint.Concurrency/2):
		wake(l.handedIn)
	case n == 1:
		l.handInTimer.Reset(outcomeWait)
	}
}

// attempt makes one attempt and returns the delivery after it.
func (l *lane) attempt(work context.Context, j store.Job, probe bool) attemptDone {
	began := time.Now()
	j.MayRedial = l.redial
	if l.held != nil {
		var end context.CancelFunc
		work, end = whileHeld(work, l.held())
		defer end()
	}
	o := l.sender.Send(work, j)
	if o.Verdict == store.CutOff {
		message := "attempt cut off by the shutdown; it will be made again"
		if l.isSuspended() {
			message = "attempt cut off, since another bridge may take the work over; it will be made again"
		}
		l.logger.Warn(message, "event_id", j.EventID, "call_id", j.Event.Call)
		return attemptDone{result: store.Result{Job: j}, unmade: true}
	}
	now := time.Now()
	var next store.Delivery
	if probe {
		next = afterProbe(j.Delivery, o, now)
	} else {
		next = afterAttempt(j.Delivery, o, l.opts.RetrySchedule, now, rand.Float64())
	}
	if o.Verdict == store.Later && next.FailedAt == 0 && store.IsInner(l.endpoint.Name) {
		next.FailedAt = now.UnixNano() // the rest of the call waits no longer than for a failure
	}
	expires := false
	if j.Delivery.Expires != 0 && !probe && next.State == store.Pending {
		if end := l.expiry(&j); next.Due >= end.UnixNano() {
			next.Due, expires = end.UnixNano(), true // it expires then, without waiting for that attempt
		}
	}
	l.updateHealth(o, probe, now)
	result, err := store.NewResult(j, next, &o, began, now, l.opts.RoutingTimeout)
	if err != nil {
		l.logger.Error("a part of what a sender returned cannot be stored", "err", err)
	}
	return attemptDone{result: result, verdict: o.Verdict, at: now, expires: expires}
}

// whileHeld returns a context that ends with either of two.
func whileHeld(work, held context.Context) (both context.Context, end context.CancelFunc) {
	both, cancel := context.WithCancel(work)
	stop := context.AfterFunc(held, cancel)
	return both, func() {
		stop()
		cancel()
	}
}

// updateHealth updates the health of the endpoint by the outcome of an attempt.
func (l *lane) updateHealth(o store.Outcome, probe bool, now time.Time) {
	random := rand.Float64()
	if o.Verdict == store.Done || o.Verdict == store.Refused {
		l.succeeded.Store(true)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.health
	l.health = before.after(o, probe, now, random)
	if l.health.failing != before.failing || l.health.pausedUntil.After(before.pausedUntil) {
		l.healthChanges = append(l.healthChanges, healthChange{before, l.health, now, o.Status})
	}
}

// logAttempt logs and counts an attempt, and returns the operational events that follow from it.
func (l *lane) logAttempt(e *attemptDone) (news []telephony.Event) {
	j, made := &e.result.Job, e.result.Attempt
	l.logLine(e)
	if isPostponed(e.verdict) && e.result.Now.State == store.Pending {
		return nil
	}
	l.opts.Observer.AttemptEnded(l.endpoint.Name, outcomeOf(e.result.Now), made.Took, e.at.Sub(j.Event.At))
	// A dead delivery of an operational event causes no other, or that would never end.
	if e.result.Now.State == store.Dead && !telephony.IsOperational(j.Event.Type) {
		news = append(news, telephony.Event{
			Type:       telephony.EventDeliveryDead,
			Endpoint:   l.endpoint.Name,
			DeliveryID: j.EventID + "." + l.endpoint.Name,
			Reason:     made.Text(),
		})
	}
	return news
}

// isPostponed reports whether an attempt only postponed its delivery, which is neither a success
// nor a failure.
func isPostponed(v store.Verdict) bool {
	return v == store.Later || v == store.Pause || v == store.More
}

// logHealthChange logs a change of the endpoint's health, and returns the operational events that
// follow from it. Only run calls it, so that changes are logged in the order in which they happen.
func (l *lane) logHealthChange(t *healthChange) (news []telephony.Event) {
	switch before, after := &t.before, &t.after; {
	case after.failing && !before.failing:
		l.logger.Warn("endpoint is failing: from now on it is only probed, and everything else waits",
			"failures", after.failures, "err", after.lastError,
			"next_probe_in", after.probeAt.Sub(t.at).Round(time.Millisecond).String())
		return []telephony.Event{{
			Type: telephony.EventEndpointFailing, Endpoint: l.endpoint.Name, Reason: after.lastError.Error(),
		}}
	case !after.failing && before.failing:
		l.logger.Info("endpoint has recovered: what has waited is delivered now",
			"failed_for", t.at.Sub(before.since).Round(time.Second).String())
		return []telephony.Event{{Type: telephony.EventEndpointRecovered, Endpoint: l.endpoint.Name}}
	}
	l.logger.Warn("endpoint has asked for a pause",
		"status", t.status, "until", t.after.pausedUntil.UTC().Format(time.RFC3339))
	return nil
}

// logLine writes the one log line of an attempt.
func (l *lane) logLine(e *attemptDone) {
	j, d, made := &e.result.Job, &e.result.Now, e.result.Attempt
	attrs := make([]slog.Attr, 0, 7)
	attrs = append(attrs,
		slog.String("event_id", j.EventID), slog.String("type", string(j.Event.Type)),
		slog.String("call_id", j.Event.Call), slog.Int("attempt", d.Attempts),
		slog.String("took", made.Took.Round(time.Microsecond).String()),
	)
	if made.Error != "" {
		attrs = append(attrs, slog.Any("err", made.Failure()))
	} else {
		attrs = append(attrs, slog.Int("status", made.Status))
	}
	level, message := slog.LevelInfo, "delivered"
	switch {
	case d.State == store.Delivered:
	case d.State == store.Dead:
		level, message = slog.LevelError, "delivery is dead: it will not be tried again"
	case isPostponed(e.verdict):
		message = "delivery goes on later"
	default:
		level, message = slog.LevelWarn, "attempt failed"
		next := "retry_in"
		if e.expires {
			next = "expires_in"
		}
		if d.Due > 0 {
			wait := max(0, time.Unix(0, d.Due).Sub(e.at)).Round(time.Millisecond)
			attrs = append(attrs, slog.String(next, wait.String()))
		}
	}
	logAt(l.logger, e.at, level, message, attrs)
}

// logAt logs a line with a given time. Unlike Logger.LogAttrs it does not determine the source
// position, which took a sixth of the time of a line, and which no handler shows.
func logAt(logger *slog.Logger, at time.Time, level slog.Level, message string, attrs []slog.Attr) {
	ctx, handler := context.Background(), logger.Handler()
	if handler.Enabled(ctx, level) {
		r := slog.NewRecord(at, level, message, 0)
		r.AddAttrs(attrs...)
		_ = handler.Handle(ctx, r) // a Logger ignores the error too
	}
}
