package outbox

import (
	"time"

	"pzbridge/outbox/store"
)

// Observer counts what happens. Its methods return at once and may be called concurrently.
type Observer interface {
	// AttemptEnded counts an attempt by its outcome, one of those below; took is its length, age
	// the time since its event was read.
	AttemptEnded(endpoint, outcome string, took, age time.Duration)
	Expired(endpoint string)        // a delivery is made no more, since it is too late
	GivenUp(endpoint string, n int) // so many are dead without another attempt: damaged, or too old
}

// The outcomes of attempts, and of what was too late for one.
const (
	OutcomeDelivered = "delivered"
	OutcomeFailed    = "failed" // it will be tried again
	OutcomeDead      = "dead"
	OutcomeExpired   = "expired"
)

// outcomeOf names how a delivery stands after an attempt.
func outcomeOf(d store.Delivery) string {
	if d.State == store.Pending {
		return OutcomeFailed
	}
	return d.State.String()
}

// unobserved is the observer of an outbox that has none.
type unobserved struct{}

// AttemptEnded does nothing.
func (unobserved) AttemptEnded(string, string, time.Duration, time.Duration) {}

// Expired does nothing.
func (unobserved) Expired(string) {}

// GivenUp does nothing.
func (unobserved) GivenUp(string, int) {}
