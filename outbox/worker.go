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

// order is an attempt that a worker is to make.
type order struct {
	job   store.Job
	probe bool
}

// attemptDone is what became of an order.
type attemptDone struct {
	result store.Result
	unmade bool // no attempt was made, or the shutdown has cut it off: how it would have ended is unknown

	verdict store.Verdict
	at      time.Time
	expires bool // it will be too late before there is another attempt
}

// healthChange is what an attempt has changed of the endpoint as a whole, as far as it is logged.
type healthChange struct {
	before, after health
	at            time.Time
	status        int // of the answer; 0 if there was none
}

// work makes attempts until run ends. They run under work; once ctx has ended, none begins.
func (l *lane) work(ctx, work context.Context) {
	for o := range l.orders {
		// The answers that have come are read before the next request goes out: measured with
		// BenchmarkBridge, two or three in a hundred faster.
		runtime.Gosched()
		if ctx.Err() != nil || l.isOvertaken(&o) {
			l.handIn(attemptDone{result: store.Result{Job: o.job}, unmade: true})
		} else {
			l.handIn(l.attempt(work, o.job, o.probe))
		}
	}
}

// isOvertaken reports whether an order is not to be carried out any more: while it waited for a
// worker, the endpoint has begun to fail or has asked for a pause, or it became too late.
func (l *lane) isOvertaken(o *order) bool {
	h := l.currentHealth()
	slots, _ := h.allows(time.Now(), 1)
	return slots == 0 || h.failing && !o.probe || l.isTooLate(&o.job)
}

// handIn gives run what became of an order. It wakes run when the workers are about to run out of
// orders, for as many as are committed at once, and for the last one that is out: nothing else
// comes with which it could be logged and recorded. For the others run may sleep on until the first
// of them has waited for outcomeWait. At full load run and the workers would else wait for one
// another once for every attempt.
func (l *lane) handIn(e attemptDone) {
	l.mu.Lock()
	l.ended = append(l.ended, e)
	n := len(l.ended)
	isLast := n == int(l.ordered.Load())
	l.mu.Unlock()
	switch {
	case isLast, n == maxOutcomes, l.hungry.Load() && len(l.orders) <= max(1, l.endpoint.Concurrency/2):
		wake(l.handed)
	case n == 1:
		l.soon.Reset(outcomeWait)
	}
}

// attempt makes one attempt and says how the delivery stands after it.
func (l *lane) attempt(work context.Context, j store.Job, probe bool) attemptDone {
	began := time.Now()
	j.MayRedial = l.redial
	o := l.sender.Send(work, j)
	if o.Verdict == store.CutOff {
		l.logger.Warn("attempt cut off by the shutdown; it will be made again",
			"event_id", j.EventID, "call_id", j.Event.Call)
		return attemptDone{result: store.Result{Job: j}, unmade: true}
	}
	now := time.Now()
	var next store.Delivery
	if probe {
		next = afterProbe(j.Delivery, o, now)
	} else {
		next = afterAttempt(j.Delivery, o, l.opts.RetrySchedule, now, rand.Float64())
	}
	expires := false
	if j.Delivery.Expires != 0 && !probe && next.State == store.Pending {
		if end := l.expiry(&j); next.Due >= end.UnixNano() {
			next.Due, expires = end.UnixNano(), true // it expires on time, not when its next attempt would be
		}
	}
	l.updateHealth(o, probe, now)
	result, err := store.NewResult(j, next, &o, began, now, l.opts.RoutingTimeout)
	if err != nil {
		l.logger.Error("an event of a sender cannot be stored", "err", err.Error())
	}
	return attemptDone{result: result, verdict: o.Verdict, at: now, expires: expires}
}

// updateHealth draws from an attempt what it says of the endpoint as a whole.
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
		l.turns = append(l.turns, healthChange{before, l.health, now, o.Status})
	}
}

// logAttempt logs and counts how an attempt ended, and gives the news that endpoints get of it.
func (l *lane) logAttempt(e *attemptDone) (news []telephony.Event) {
	j, made := &e.result.Job, e.result.Attempt
	l.logLine(e)
	if isPostponed(e.verdict) {
		return nil
	}
	l.opts.Observer.AttemptEnded(l.endpoint.Name, outcomeOf(e.result.Now), made.Took, e.at.Sub(j.Event.At))
	// Of a delivery of such news itself there is no news, or it would never end.
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

// isPostponed reports whether a delivery merely waits after an attempt, which was neither a success
// nor a failure.
func isPostponed(v store.Verdict) bool {
	return v == store.Later || v == store.Pause || v == store.More
}

// logHealthChange does the same for what has changed of the endpoint. Only run calls it, so that
// changes are logged in their order, whichever attempt has brought them.
func (l *lane) logHealthChange(t *healthChange) (news []telephony.Event) {
	switch before, after := &t.before, &t.after; {
	case after.failing && !before.failing:
		l.logger.Warn("endpoint is failing: from now on it is only probed, and everything else waits",
			"failures", after.failures, "err", after.lastError,
			"next_probe_in", after.probeAt.Sub(t.at).Round(time.Millisecond).String())
		return []telephony.Event{{
			Type: telephony.EventEndpointFailing, Endpoint: l.endpoint.Name, Reason: after.lastError,
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

// logLine writes the one line of an attempt.
func (l *lane) logLine(e *attemptDone) {
	j, d, made := &e.result.Job, &e.result.Now, e.result.Attempt
	attrs := make([]slog.Attr, 0, 7)
	attrs = append(attrs,
		slog.String("event_id", j.EventID), slog.String("type", string(j.Event.Type)),
		slog.String("call_id", j.Event.Call), slog.Int("attempt", d.Attempts),
		slog.String("took", made.Took.Round(time.Microsecond).String()),
	)
	if made.Error != "" {
		attrs = append(attrs, slog.String("err", made.Error))
	} else {
		attrs = append(attrs, slog.Int("status", made.Status))
	}
	level, message := slog.LevelInfo, "delivered"
	switch {
	case d.State == store.Delivered:
	case isPostponed(e.verdict):
		message = "delivery goes on later"
	case d.State == store.Dead:
		level, message = slog.LevelError, "delivery is dead: it will not be tried again"
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

// logAt is Logger.LogAttrs but for the time, and without the place in the code: to find that out
// took a sixth of the time of a line, and no handler shows it.
func logAt(logger *slog.Logger, at time.Time, level slog.Level, message string, attrs []slog.Attr) {
	ctx, handler := context.Background(), logger.Handler()
	if handler.Enabled(ctx, level) {
		r := slog.NewRecord(at, level, message, 0)
		r.AddAttrs(attrs...)
		_ = handler.Handle(ctx, r) // as a Logger does
	}
}
