// Package ratelimit takes a token from a rate limiter, or says how long it takes to get one, so
// that a caller can wait, or say so to whom it refuses.
package ratelimit

import (
	"time"

	"golang.org/x/time/rate"
)

// Take takes a token at now and returns 0, or takes none and returns the wait until there is one.
func Take(l *rate.Limiter, now time.Time) (wait time.Duration) {
	r := l.ReserveN(now, 1)
	wait = r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}
