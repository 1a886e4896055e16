package outbox

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"time"

	"pzbridge/internal/telephony"
)

// order is an attempt that a worker is to make.
type order struct {
	job   job
	probe bool
}

// ended is what became of an order.
type ended struct {
	result result
	unmade bool // no attempt was made, or the shutdown has cut it off: how it would have ended is unknown

	outcome outcome
	at      time.Time
	expires bool // it will be too late before there is another attempt
}

// turnOfHealth is what an attempt has changed of the endpoint as a whole, as far as it is told.
type turnOfHealth struct {
	before, after health
	at            time.Time
	status        int // of the answer; 0 if there was none
}

// work makes attempts until run ends. They run under work; once ctx has ended, none begins.
func (l *lane) work(ctx, work context.Context) {
	for o := range l.orders {
		// The answers that have come are read before the next request goes out: measured with BenchmarkBridge, two or three in a hundred faster.
		runtime.Gosched()
		if ctx.Err() != nil || l.overtaken(o) {
			l.handIn(ended{result: result{job: o.job}, unmade: true})
		} else {
			l.handIn(l.attempt(work, o.job, o.probe))
		}
	}
}

// overtaken says whether an order is not to be carried out any more: while it waited for a worker, the endpoint has begun to fail or has asked for a
// pause, or it became too late.
func (l *lane) overtaken(o order) bool {
	now := time.Now()
	h := l.currentHealth()
	slots, _ := h.allows(now, 1)
	return slots == 0 || h.failing && !o.probe || l.tooLate(o.job, now)
}

// handIn tells run what became of an order. It wakes run when the workers are about to run out of orders, for as many as are committed at once, and for the
// last one that is out: nothing else comes with which it could be told and recorded. For the others run may sleep on until the first of them has waited for
// outcomeWait. At full load run and the workers would else wait for one another once for every attempt.
func (l *lane) handIn(e ended) {
	l.mu.Lock()
	l.ended = append(l.ended, e)
	n := len(l.ended)
	isLast := n == int(l.ordered.Load())
	l.mu.Unlock()
	switch {
	case isLast, n == mostOutcomes, l.hungry.Load() && len(l.orders) <= max(1, l.endpoint.Concurrency/2):
		signal(l.handed)
	case n == 1:
		l.soon.Reset(outcomeWait)
	}
}

// attempt makes one attempt and says how the delivery stands after it.
func (l *lane) attempt(work context.Context, j job, probe bool) ended {
	began := time.Now()
	o, err := l.sender.attempt(work, j)
	if err != nil {
		l.logger.Warn("attempt cut off by the shutdown; it will be made again", "event_id", j.eventID, "call_id", j.call)
		return ended{result: result{job: j}, unmade: true}
	}
	now := time.Now()
	var next delivery
	if probe {
		next = j.delivery.probed(o, now)
	} else {
		next = j.delivery.tried(o, l.opts.RetrySchedule, now, rand.Float64())
	}
	expires := false
	if end := l.expiry(j); !probe && !end.IsZero() && next.state == pending && next.due >= end.UnixNano() {
		next.due, expires = end.UnixNano(), true // it expires on time, not when its next attempt would be
	}
	e := l.note(j, next, o, probe, began, now)
	e.expires = expires
	return e
}

// note draws from an attempt what it says of the endpoint as a whole, and gives all that is to be told of it. Next is the delivery after it.
func (l *lane) note(j job, next delivery, o outcome, probe bool, began, now time.Time) ended {
	made := &Attempt{At: began, Took: now.Sub(began), Status: o.status, Response: o.response, Error: o.errText()}
	random := rand.Float64()
	if classify(o.status) == success {
		l.succeeded.Store(true)
	}
	l.mu.Lock()
	before := l.health
	l.health = before.after(o, probe, now, random)
	if l.health.failing != before.failing || l.health.pausedUntil.After(before.pausedUntil) {
		l.turns = append(l.turns, turnOfHealth{before, l.health, now, o.status})
	}
	l.mu.Unlock()
	return ended{result: result{job: j, now: next, attempt: made}, outcome: o, at: now}
}

// tell lets everybody know how an attempt ended, and gives what the endpoints are to be told of it.
func (l *lane) tell(e *ended) (news []telephony.Event) {
	j, made := &e.result.job, e.result.attempt
	l.log(e)
	l.opts.Observer.AttemptEnded(l.endpoint.Name, outcomeOf(e.result.now), made.Took, e.at.Sub(j.at))
	// Of a delivery of such news itself nothing is told, or they would never end.
	if e.result.now.state == dead && !telephony.IsOperational(j.kind) {
		news = append(news, telephony.Event{
			Type: telephony.EventDeliveryDead, Endpoint: l.endpoint.Name, DeliveryID: j.eventID + "." + l.endpoint.Name, Reason: e.outcome.text(),
		})
	}
	return news
}

// tellTurn does the same for what has changed of the endpoint. Only run calls it: turns are told in their order, whoever's attempt has brought them.
func (l *lane) tellTurn(t *turnOfHealth) (news []telephony.Event) {
	switch before, after := &t.before, &t.after; {
	case after.failing && !before.failing:
		l.logger.Warn("endpoint is failing: from now on it is only probed, and everything else waits",
			"failures", after.failures, "err", after.lastError, "next_probe_in", after.probeAt.Sub(t.at).Round(time.Millisecond).String())
		return []telephony.Event{{Type: telephony.EventEndpointFailing, Endpoint: l.endpoint.Name, Reason: after.lastError}}
	case !after.failing && before.failing:
		l.logger.Info("endpoint has recovered: what has waited is delivered now", "failed_for", t.at.Sub(before.since).Round(time.Second).String())
		return []telephony.Event{{Type: telephony.EventEndpointRecovered, Endpoint: l.endpoint.Name}}
	}
	l.logger.Warn("endpoint has asked for a pause", "status", t.status, "until", t.after.pausedUntil.UTC().Format(time.RFC3339))
	return nil
}

// log is the one line of an attempt.
func (l *lane) log(e *ended) {
	j, d, o := &e.result.job, e.result.now, &e.outcome
	attrs := make([]slog.Attr, 0, 7)
	attrs = append(attrs,
		slog.String("event_id", j.eventID), slog.String("type", string(j.kind)), slog.String("call_id", j.call), slog.Int("attempt", d.attempts),
		slog.String("took", e.result.attempt.Took.Round(time.Microsecond).String()),
	)
	if o.err != nil {
		attrs = append(attrs, slog.String("err", o.err.Error()))
	} else {
		attrs = append(attrs, slog.Int("status", o.status))
	}
	level, message := slog.LevelInfo, "delivered"
	switch d.state {
	case delivered:
	case dead:
		level, message = slog.LevelError, "delivery is dead: it will not be tried again"
	default:
		level, message = slog.LevelWarn, "attempt failed"
		next := "retry_in"
		if e.expires {
			next = "expires_in"
		}
		if d.due > 0 {
			attrs = append(attrs, slog.String(next, max(0, time.Unix(0, d.due).Sub(e.at)).Round(time.Millisecond).String()))
		}
	}
	logLine(l.logger, e.at, level, message, attrs)
}

// logLine is Logger.LogAttrs but for the time, and for where in the code the line comes from: nobody is told, and to find out took a sixth of the time of a line.
func logLine(logger *slog.Logger, at time.Time, level slog.Level, message string, attrs []slog.Attr) {
	ctx, handler := context.Background(), logger.Handler()
	if handler.Enabled(ctx, level) {
		r := slog.NewRecord(at, level, message, 0)
		r.AddAttrs(attrs...)
		_ = handler.Handle(ctx, r) // as a Logger does
	}
}
