package outbox

import (
	"time"

	"pzbridge/outbox/store"
)

const (
	// failingAfter is the number of failed attempts in a row after which an endpoint counts as
	// failing.
	failingAfter = 20
	// A failing endpoint is probed after waits that double from firstProbeWait to maxProbeWait.
	firstProbeWait = 5 * time.Second
	maxProbeWait   = 5 * time.Minute
)

// The states of an endpoint.
const (
	StateOK      = "ok"
	StateFailing = "failing"
	StatePaused  = "paused"
	StateReads   = "reads" // it has no URL, and reads its events
)

// health is the state of an endpoint as a whole, derived from the outcomes of attempts. It is a
// value: what to do follows from it and the time alone.
type health struct {
	failures    int       // attempts that failed in a row
	failing     bool      // it is only probed
	since       time.Time // when it began to fail
	probes      int       // the number of failed probes since then
	probeAt     time.Time // the time of the next probe
	pausedUntil time.Time // as the endpoint has requested
	lastError   error     // of the last failed attempt
}

// after returns the health after an attempt has ended; probe means that the attempt was one. Random
// is in [0, 1).
//
// A pause that the endpoint requests is kept, and does not count as a failure: an endpoint that
// responds so is healthy.
func (h health) after(o store.Outcome, probe bool, now time.Time, random float64) health {
	switch o.Verdict {
	case store.Done, store.Refused:
		return health{pausedUntil: h.pausedUntil, lastError: h.lastError} // a pause goes on, with its reason
	case store.Later:
		return h
	case store.More:
		h.probeAt = now // the same job comes again at once, also at an endpoint that is failing
		return h
	}
	h.lastError = o.Failure()
	switch {
	case o.Verdict == store.Pause:
		h.pausedUntil = later(h.pausedUntil, now.Add(o.RetryAfter))
		return h
	case o.Throttled:
		h.pausedUntil = later(h.pausedUntil, now.Add(o.RetryAfter))
	case o.Verdict == store.Misconfigured:
		h.failures = max(h.failures+1, failingAfter)
	default:
		h.failures++
	}
	switch {
	case h.failing && probe:
		h.probes++
		h.probeAt = now.Add(probeWait(h.probes, random))
	case !h.failing && h.failures >= failingAfter:
		h.failing, h.since, h.probeAt = true, now, now.Add(probeWait(0, random))
	}
	return h
}

// probeWait returns the wait before the next probe after a number of them have failed.
func probeWait(failed int, random float64) time.Duration {
	wait := maxProbeWait
	if failed < 6 { // 5 s × 2⁶ is past five minutes
		wait = firstProbeWait << failed
	}
	return min(spread(wait, random), maxProbeWait)
}

// allows returns how many attempts may be in flight now, and when that changes if it is none.
// Concurrency is the number for a healthy endpoint.
func (h health) allows(now time.Time, concurrency int) (n int, at time.Time) {
	switch {
	case now.Before(h.pausedUntil):
		return 0, h.pausedUntil
	case h.failing && now.Before(h.probeAt):
		return 0, h.probeAt
	case h.failing:
		return 1, time.Time{}
	}
	return concurrency, time.Time{}
}

// state returns the name of the health, and when the endpoint is tried again if not now.
func (h health) state(now time.Time) (string, time.Time) {
	_, at := h.allows(now, 1)
	switch {
	case h.failing:
		return StateFailing, at
	case now.Before(h.pausedUntil):
		return StatePaused, at
	}
	return StateOK, time.Time{}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
