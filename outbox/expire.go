package outbox

import (
	"context"
	"slices"
	"time"

	"pzbridge/outbox/store"
)

// isTooLate reports whether a delivery has expired.
func (l *lane) isTooLate(j *store.Job) bool {
	return j.Delivery.Expires != 0 && !time.Now().Before(l.expiry(j))
}

// expiry returns when a delivery expires on the present clock. It adds the remaining life to the
// present time, and does not use the time of the event, which comes from the wall clock and may lie
// in the future after that is set back.
func (l *lane) expiry(j *store.Job) time.Time {
	life := time.Unix(0, j.Delivery.Expires).Sub(j.Event.At)
	return time.Now().Add(life - l.opts.Clock.Freshness(j.Event.At))
}

// addExpired adds the result that a claimed delivery has expired.
func (l *lane) addExpired(j store.Job, now time.Time) {
	l.add(store.Result{Job: j, Now: j.Delivery.Ended(store.Expired, now)}, now)
}

// logExpired logs and counts an expired delivery.
func (l *lane) logExpired(j *store.Job) {
	l.logger.Warn("delivery has expired: it is too late to be of use",
		"event_id", j.EventID, "type", string(j.Event.Type), "call_id", j.Event.Call, "attempts", j.Delivery.Attempts)
	l.opts.Observer.Expired(l.endpoint.Name)
}

// expire ends the deliveries that have expired while they wait for the end of a pause, for the next
// probe or behind others, and returns when to look again.
func (l *lane) expire(ctx context.Context, now time.Time) (at time.Time) {
	if len(l.results) >= maxOutcomes || !l.recordAt.IsZero() {
		return time.Time{} // run comes back once they are recorded
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
	if err != nil && ctx.Err() != nil {
		return time.Time{} // the lane is to end
	}
	if err != nil {
		l.reading.Failed("the outbox cannot be read", err)
		l.expireAt = now.Add(storeRetryWait)
		return l.expireAt
	}
	for i := range expired {
		l.logExpired(&expired[i])
	}
	if len(expired) > 0 {
		l.stale = true // they may have held other deliveries
	}
	if !later.IsZero() {
		// By the monotonic clock: the engine returns a time of the wall clock, which may be set
		// back.
		later = now.Add(later.Sub(now))
	}
	// At least now and then: what an engine adds to its index later wakes no lane.
	l.expireAt = sooner(sooner(next, later), now.Add(maxSleep))
	return l.expireAt
}

// minExpireGap is how long a delivery that was released after its expiry may stay pending.
const minExpireGap = 100 * time.Millisecond
