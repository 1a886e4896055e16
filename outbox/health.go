package outbox

import (
	"time"

	"pzbridge/outbox/store"
)

const (
	// failingAfter is after how many failed attempts in a row an endpoint counts as failing.
	failingAfter = 20
	// A failing endpoint is probed after waits that double from firstProbeWait to maxProbeWait.
	firstProbeWait = 5 * time.Second
	maxProbeWait   = 5 * time.Minute
)

// The states of an endpoint.
const (
	stateOK      = "ok"
	stateFailing = "failing"
	statePaused  = "paused"
	stateReads   = "reads" // it has no URL, and reads its events
)

// health is how an endpoint as a whole does, by how the attempts at it end. It is a value: what to
// do follows from it and the time alone.
type health struct {
	failures    int       // attempts that failed in a row
	failing     bool      // it is only probed
	since       time.Time // since when it is failing
	probes      int       // that have failed since then
	probeAt     time.Time // when the next one is
	pausedUntil time.Time // the endpoint has asked for it
	lastError   string    // how the last attempt that failed ended
}

// after gives the health as it is once an attempt has ended; probe says whether it was one. Random
// is in [0, 1).
//
// A pause that the endpoint asks for is kept and not counted: an endpoint that does so is well.
func (h health) after(o store.Outcome, probe bool, now time.Time, random float64) health {
	switch o.Verdict {
	case store.Done, store.Refused:
		return health{pausedUntil: h.pausedUntil, lastError: h.lastError} // a pause goes on, and has its reason
	case store.Later:
		return h
	case store.More:
		h.probeAt = now // the same job comes again at once, also at an endpoint that is failing
		return h
	}
	h.lastError = o.Text()
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

// probeWait is how long to wait for the next probe after a number of them have failed.
func probeWait(failed int, random float64) time.Duration {
	wait := maxProbeWait
	if failed < 6 { // 5 s × 2⁶ is past five minutes
		wait = firstProbeWait << failed
	}
	return min(spread(wait, random), maxProbeWait)
}

// allows says how many attempts may be under way now, and when that changes if it is none;
// concurrency is how many the endpoint takes when it is well.
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

// state gives the health's name, and when the endpoint is tried again if it is not now.
func (h health) state(now time.Time) (string, time.Time) {
	_, at := h.allows(now, 1)
	switch {
	case h.failing:
		return stateFailing, at
	case now.Before(h.pausedUntil):
		return statePaused, at
	}
	return stateOK, time.Time{}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
