package outbox

import (
	"time"

	"pzbridge/outbox/store"
)

// maxRetryAfter bounds what an endpoint can ask for with a Retry-After.
const maxRetryAfter = time.Hour

// afterAttempt gives a delivery as it is after an attempt. Random is in [0, 1) and spreads the wait
// by a fifth either way. A Retry-After can make the wait longer, to maxRetryAfter at most, never
// shorter.
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
		d.Due = now.Add(o.RetryAfter).UnixNano()
		return d
	case store.Pause, store.Misconfigured, store.More:
		return d
	}
	wait := min(o.RetryAfter, maxRetryAfter)
	if d.FailedAt == 0 || d.FailedAt > now.UnixNano() { // the clock was set back
		d.FailedAt = now.UnixNano()
		if o.Throttled { // nothing goes to the endpoint before that: to overtake would gain nothing
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

// afterProbe gives a delivery as it is after an attempt with which a failing endpoint was probed. A
// failure is about the endpoint and says nothing of this event: it costs nothing of the schedule,
// and gives nothing up.
func afterProbe(d store.Delivery, o store.Outcome, now time.Time) store.Delivery {
	d.Attempts++
	switch o.Verdict {
	case store.Done:
		return d.Ended(store.Delivered, now)
	case store.Refused:
		return d.Ended(store.Dead, now)
	case store.Later:
		d.Due = now.Add(o.RetryAfter).UnixNano()
	}
	return d
}

// spread makes a wait a fifth longer or shorter; random is in [0, 1).
func spread(wait time.Duration, random float64) time.Duration {
	return time.Duration(float64(wait) * (0.8 + 0.4*random))
}
