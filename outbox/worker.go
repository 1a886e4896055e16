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

// ended tells run what became of an order.
type ended struct {
	result result
	unmade bool // no attempt was made, or the shutdown has cut it off: how it would have ended is unknown
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
	slots, _ := l.currentHealth().allows(now, 1)
	return slots == 0 || l.tooLate(o.job, now)
}

// handIn tells run what became of an order. It wakes run for the first, with which the time for a commit begins, for as many as are committed at once,
// and when the workers are about to run out of orders.
func (l *lane) handIn(e ended) {
	l.mu.Lock()
	l.ended = append(l.ended, e)
	n := len(l.ended)
	l.mu.Unlock()
	if n == 1 || n == mostOutcomes || len(l.orders) <= l.endpoint.Concurrency/2 {
		signal(l.handed)
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
	made := l.tell(j, next, o, probe, began, now)
	if end := j.expires(l.opts.RoutingTimeout, l.endpoint.RingingTTL); !probe && !end.IsZero() && next.state == pending {
		next.due = min(next.due, end.UnixNano()) // it expires on time, not when its next attempt would be
	}
	return ended{result: result{job: j, now: next, attempt: &made}}
}

// tell lets everybody know how an attempt ended, and what the delivery is after it, and gives it as it is to be kept.
func (l *lane) tell(j job, next delivery, o outcome, probe bool, began, now time.Time) Attempt {
	took := now.Sub(began)
	l.log(j, next, o, took)
	l.opts.Observer.AttemptEnded(l.endpoint.Name, outcomeOf(next), took, now.Sub(j.at))
	l.note(o, probe, now)
	l.mourn(j, next, o)
	return Attempt{At: began, Took: took, Status: o.status, Response: o.response, Error: o.errText()}
}

// note draws from an attempt what it says of the endpoint as a whole.
func (l *lane) note(o outcome, probe bool, now time.Time) {
	l.mu.Lock()
	before := l.health
	l.health = before.after(o, probe, now, rand.Float64())
	after := l.health
	l.mu.Unlock()
	switch {
	case after.failing && !before.failing:
		l.logger.Warn("endpoint is failing: from now on it is only probed, and everything else waits",
			"failures", after.failures, "err", after.lastError, "next_probe_in", time.Until(after.probeAt).Round(time.Millisecond).String())
		l.announce(telephony.Event{Type: telephony.EventEndpointFailing, Endpoint: l.endpoint.Name, Reason: after.lastError})
	case !after.failing && before.failing:
		l.logger.Info("endpoint has recovered: what has waited is delivered now", "failed_for", now.Sub(before.since).Round(time.Second).String())
		l.announce(telephony.Event{Type: telephony.EventEndpointRecovered, Endpoint: l.endpoint.Name})
	case after.pausedUntil.After(before.pausedUntil):
		l.logger.Warn("endpoint has asked for a pause", "status", o.status, "until", after.pausedUntil.UTC().Format(time.RFC3339))
	}
}

// mourn tells of a delivery that is dead. That of such news itself is no news, or they would never end.
func (l *lane) mourn(j job, d delivery, o outcome) {
	if d.state == dead && !telephony.IsOperational(j.kind) {
		l.announce(telephony.Event{Type: telephony.EventDeliveryDead, Endpoint: l.endpoint.Name, DeliveryID: j.eventID + "." + l.endpoint.Name, Reason: o.text()})
	}
}

// log is the one line of an attempt.
func (l *lane) log(j job, d delivery, o outcome, took time.Duration) {
	attrs := make([]slog.Attr, 0, 7)
	attrs = append(attrs,
		slog.String("event_id", j.eventID), slog.String("type", string(j.kind)), slog.String("call_id", j.call), slog.Int("attempt", d.attempts),
		slog.String("took", took.Round(time.Microsecond).String()),
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
		if d.due > 0 {
			attrs = append(attrs, slog.String("retry_in", time.Until(time.Unix(0, d.due)).Round(time.Millisecond).String()))
		}
	}
	logLine(l.logger, level, message, attrs)
}

// logLine is Logger.LogAttrs but for where in the code the line comes from: nobody is told, and to find out took a sixth of the time of a line.
func logLine(logger *slog.Logger, level slog.Level, message string, attrs []slog.Attr) {
	ctx, handler := context.Background(), logger.Handler()
	if handler.Enabled(ctx, level) {
		r := slog.NewRecord(time.Now(), level, message, 0)
		r.AddAttrs(attrs...)
		_ = handler.Handle(ctx, r) // as a Logger does
	}
}
