package outbox

import (
	"time"

	"pzbridge/outbox/store"
)

// Observer counts what happens. Its methods return at once and may be called concurrently.
type Observer interface {
	// AttemptEnded counts an attempt by its outcome, one of the constants below. Took is its
	// duration, age the time since its event was read.
	AttemptEnded(endpoint, outcome string, took, age time.Duration)
	Expired(endpoint string)        // a delivery has become too late to be of use
	GivenUp(endpoint string, n int) // n deliveries are dead without another attempt: damaged, or too old
}

// The outcomes of attempts, and of deliveries that were too late for one.
const (
	OutcomeDelivered = "delivered"
	OutcomeFailed    = "failed" // it will be tried again
	OutcomeDead      = "dead"
	OutcomeExpired   = "expired"
)

// outcomeOf returns the outcome of an attempt by the delivery after it.
func outcomeOf(d store.Delivery) string {
	if d.State == store.Pending {
		return OutcomeFailed
	}
	return d.State.String()
}

// unobserved is the default Observer, which does nothing.
type unobserved struct{}

// AttemptEnded does nothing.
func (unobserved) AttemptEnded(string, string, time.Duration, time.Duration) {}

// Expired does nothing.
func (unobserved) Expired(string) {}

// GivenUp does nothing.
func (unobserved) GivenUp(string, int) {}
