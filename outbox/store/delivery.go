package store

import "time"

// State is where a delivery stands.
type State byte

// The states. A delivery is pending until it is one of the others, for good or until it is asked
// for again.
const (
	Pending State = iota
	Delivered
	Expired // it came too late to be of use
	Dead
)

// StateNames are the states' names for people and for the API.
var StateNames = [...]string{Pending: "pending", Delivered: "delivered", Expired: "expired", Dead: "dead"}

func (s State) String() string { return StateNames[s] }

// Delivery is the duty to bring one event to one endpoint, as it is stored.
type Delivery struct {
	State    State
	Attempts int // made so far
	Step     int // waits of the schedule that are used up
	// Due is when a pending delivery may be tried, in Unix nanoseconds: 0 is at once, Held and
	// Asking have no time. Of any other delivery it is when its state began.
	Due int64
	// FailedAt is when the first attempt failed, in Unix nanoseconds; 0 if none has.
	FailedAt int64
	// Next is the number of the delivery that comes after this one in its call and may wait for
	// it; 0 if there is none.
	Next uint64
	// Redelivered counts how often somebody asked for the delivery again. It tells one such
	// request from the next; a delivery with one does not expire.
	Redelivered uint8
	// Expires is when a pending delivery is of no use any more, in Unix nanoseconds; 0 is never.
	Expires int64
}

const (
	// Held is the due time of a delivery that waits for an earlier event of its call.
	Held = -1
	// Asking is the due time of a question while endpoints are asked.
	Asking = -2
)

// IsAny is a filter of deliveries that lets all through.
func (d Delivery) IsAny() bool { return true }

// IsPending reports whether the delivery is still to be made.
func (d Delivery) IsPending() bool { return d.State == Pending }

// IsDue reports whether the delivery waits for its time alone, and so stands in the due index.
func (d Delivery) IsDue() bool { return d.State == Pending && d.Due != Held && d.Due != Asking }

// Ended gives the delivery in its last state.
func (d Delivery) Ended(s State, now time.Time) Delivery {
	d.State, d.Due = s, now.UnixNano()
	return d
}

// behind gives a new delivery its due time. The one before it in its call holds it while that is
// pending and has not failed; from then on until the hold is over. Before is nil if there is none.
//
// If the event just before is done with, whatever else of the call is pending has been overtaken
// already, or was asked for again: it holds nothing.
func behind(before *Delivery, hold time.Duration) Delivery {
	if before == nil || before.State != Pending {
		return Delivery{}
	}
	return Delivery{Due: before.releasesAt(hold)}
}

// releasesAt is the due time of the next delivery of the call while this one is pending.
func (d Delivery) releasesAt(hold time.Duration) int64 {
	if d.FailedAt == 0 {
		return Held
	}
	return d.FailedAt + int64(hold)
}

// dueAfter gives a pending delivery its due time once the one before it in its call has become
// before. One that has failed follows its own schedule.
func (d Delivery) dueAfter(before Delivery, hold time.Duration) Delivery {
	if d.FailedAt == 0 && d.Due != Asking {
		d.Due = behind(&before, hold).Due
		if d.Due == 0 && d.Redelivered > 0 {
			d.Due = before.Due // when that one ended: see asRedelivered
		}
	}
	return d
}

// backToQueue gives a pending delivery of an endpoint that has begun to fail: due at once, in the
// order of events, behind the one before it in its call as if neither had been tried. It keeps its
// place in the schedule, but a wait that is cut short does not count.
func (d Delivery) backToQueue(before *Delivery, now time.Time) Delivery {
	if d.FailedAt != 0 && d.Due > now.UnixNano() {
		d.Step = max(0, d.Step-1)
	}
	d.Due, d.FailedAt = 0, 0
	if before != nil && before.State == Pending {
		d.Due = Held
	}
	return d
}

// asRedelivered gives a delivery that was asked for again: from the beginning of the schedule,
// behind the one before it in its call, and behind what has not been tried yet, since that may
// belong to a call that goes on.
func (d Delivery) asRedelivered(before *Delivery, now time.Time, hold time.Duration) Delivery {
	d.State, d.Step, d.FailedAt, d.Expires = Pending, 0, 0, 0
	d.Redelivered = max(1, d.Redelivered+1)
	if d.Due = behind(before, hold).Due; d.Due == 0 {
		d.Due = now.UnixNano()
	}
	return d
}
