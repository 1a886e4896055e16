package outbox

import (
	"time"

	"pzbridge/outbox/store"
)

// maxRetryAfter is the longest wait that an endpoint can request with a Retry-After.
const maxRetryAfter = time.Hour

// afterAttempt returns a delivery as it is after an attempt. Random is in [0, 1) and varies the
// wait by up to a fifth either way. A Retry-After can make the wait longer, up to maxRetryAfter,
// but not shorter.
func afterAttempt(
	d store.Delivery, o store.Outcome, schedule []time.Duration, now time.Time, random float64,
) store.Delivery {
	d.Attempts++
	switch o.Verdict {
	case store.Done:
		return d.Ended(store.Delivered, now)
	case store.Gone, store.Refused:
		return d.Ended(store.Dead, now)
	case store.Later:
		return putOff(d, o, now)
	case store.Pause, store.Misconfigured, store.More:
		return d
	}
	d.PutOff = false
	wait := min(o.RetryAfter, maxRetryAfter)
	if d.FailedAt == 0 || d.FailedAt > now.UnixNano() { // or the clock was set back
		d.FailedAt = now.UnixNano()
		if o.Throttled { // the endpoint gets nothing until then, so overtaking would gain nothing
			d.FailedAt += int64(wait)
		}
	}
	if d.Step >= len(schedule) {
		return d.Ended(store.Dead, now)
	}
	wait = max(wait, spread(schedule[d.Step], random))
	d.Step++
	d.Due = now.Add(wait).UnixNano()
	return d
}

// afterProbe returns a delivery as it is after an attempt that probed a failing endpoint. A failure
// is a property of the endpoint, not of this event: it uses up no wait of the schedule, and does
// not make the delivery dead.
func afterProbe(d store.Delivery, o store.Outcome, now time.Time) store.Delivery {
	d.Attempts++
	switch o.Verdict {
	case store.Done:
		return d.Ended(store.Delivered, now)
	case store.Refused:
		return d.Ended(store.Dead, now)
	case store.Later:
		return putOff(d, o, now)
	}
	return d
}

// putOff returns a delivery that its sender wants to try later.
func putOff(d store.Delivery, o store.Outcome, now time.Time) store.Delivery {
	d.PutOff, d.Due = true, now.Add(min(o.RetryAfter, store.MaxPutOff)).UnixNano()
	return d
}

// spread varies a wait by up to a fifth either way; random is in [0, 1).
func spread(wait time.Duration, random float64) time.Duration {
	return time.Duration(float64(wait) * (0.8 + 0.4*random))
}
