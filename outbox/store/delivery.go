package store

import "time"

// State is the state of a delivery.
type State byte

// The states. A delivery is pending until it gets one of the others, which is final unless a
// redelivery is requested.
const (
	Pending State = iota
	Delivered
	Expired // too late to be of use
	Dead
)

// StateNames are the names of the states for people and the API.
var StateNames = [...]string{Pending: "pending", Delivered: "delivered", Expired: "expired", Dead: "dead"}

func (s State) String() string { return StateNames[s] }

// Delivery is the duty to bring one event to one endpoint, as it is stored.
type Delivery struct {
	State    State
	Attempts int // so far
	Step     int // the number of waits of the schedule that are used up
	// Due is when a pending delivery may be tried, in Unix nanoseconds: 0 means at once; Held and
	// Asking are no times. Of any other delivery it is when its state began.
	Due int64
	// FailedAt is when the first attempt failed, in Unix nanoseconds; 0 if none has.
	FailedAt int64
	// Next is the number of the next delivery of the call, which may wait for this one; 0 if there
	// is none.
	Next uint64
	// Redelivered counts the redeliveries that were requested, and so distinguishes one request
	// from the next. Above 0, the delivery does not expire.
	Redelivered uint8
	// Request is the number of the redelivery of many that requested this one last; 0 if none did.
	Request uint32
	// Expires is when a pending delivery becomes useless, in Unix nanoseconds; 0 means never.
	Expires int64
	// PutOff means that the sender has put the delivery off until Due: see Later.
	PutOff bool
}

// MaxPutOff is the longest that a sender can put a delivery off at once.
const MaxPutOff = 24 * time.Hour

const (
	// Held is the due time of a delivery that waits for an earlier event of its call.
	Held = -1
	// Asking is the due time of a question while endpoints are asked.
	Asking = -2
)

// IsAny is the filter that accepts every delivery.
func (d Delivery) IsAny() bool { return true }

// IsPending reports whether the delivery is still to be made.
func (d Delivery) IsPending() bool { return d.State == Pending }

// IsDue reports whether the delivery waits for its time alone, and so stands in the due index.
func (d Delivery) IsDue() bool { return d.State == Pending && d.Due != Held && d.Due != Asking }

// Ended returns the delivery in a final state.
func (d Delivery) Ended(s State, now time.Time) Delivery {
	d.State, d.Due, d.PutOff = s, now.UnixNano(), false
	return d
}

// behind returns a new delivery with its due time. While the one before it in its call is pending,
// it is held: without a limit if that one has not failed, otherwise until the hold is over. Before
// is nil if there is none.
//
// If the one just before it has ended, earlier deliveries of the call that are still pending have
// been overtaken already, or are redeliveries: they hold nothing.
func behind(before *Delivery, hold time.Duration) Delivery {
	if before == nil || before.State != Pending {
		return Delivery{}
	}
	return Delivery{Due: before.releasesAt(hold)}
}

// releasesAt returns the due time of the next delivery of the call while this one is pending.
func (d Delivery) releasesAt(hold time.Duration) int64 {
	if d.FailedAt == 0 {
		return Held
	}
	return d.FailedAt + int64(hold)
}

// dueAfter returns a pending delivery with its due time after the one before it in its call has
// changed to before. A delivery that has failed itself follows its own schedule, and one that its
// sender has put off keeps its time, unless it is held: that takes the place of the time.
func (d Delivery) dueAfter(before Delivery, hold time.Duration) Delivery {
	if d.FailedAt == 0 && d.Due != Asking {
		due := behind(&before, hold).Due
		if d.PutOff && due != Held {
			return d
		}
		d.Due, d.PutOff = due, false
		if d.Due == 0 && d.Redelivered > 0 {
			d.Due = before.Due // when before ended: see asRedelivered
		}
	}
	return d
}

// backToQueue returns a pending delivery of an endpoint that has begun to fail: due at once, in the
// order of events, behind the one before it in its call as if neither had been tried. It keeps its
// place in the schedule, except that an unfinished wait is not used up.
func (d Delivery) backToQueue(before *Delivery, now time.Time) Delivery {
	if d.FailedAt != 0 && d.Due > now.UnixNano() {
		d.Step = max(0, d.Step-1)
	}
	d.Due, d.FailedAt, d.PutOff = 0, 0, false
	if before != nil && before.State == Pending {
		d.Due = Held
	}
	return d
}

// asRedelivered returns a delivery after a redelivery was requested: from the start of the
// schedule, and behind the one before it in its call. Its due time is now, and therefore behind
// untried deliveries of any call, since those may belong to calls that are still going on.
func (d Delivery) asRedelivered(before *Delivery, now time.Time, hold time.Duration, request uint32) Delivery {
	d.State, d.Step, d.FailedAt, d.Expires, d.PutOff = Pending, 0, 0, 0, false
	d.Request = request
	d.Redelivered = max(1, d.Redelivered+1)
	if d.Due = behind(before, hold).Due; d.Due == 0 {
		d.Due = now.UnixNano()
	}
	return d
}

// SetBack returns a pending delivery that is to be tried later, with the time that it should have
// once the clock has been set back to now. What was tried at a time that is still to come has
// waited long enough, and what waits behind such a one waits no longer than the hold. A due time
// that is further ahead than any wait is a mistake too.
func (r *Rules) SetBack(d Delivery, lastTried, now time.Time) Delivery {
	ahead := time.Duration(d.Due - now.UnixNano())
	switch {
	case d.PutOff && d.FailedAt == 0:
		if ahead > MaxPutOff {
			d.Due = now.UnixNano()
		}
	case d.FailedAt == 0 && ahead > r.Hold: // it waits for the one before it in its call
		d.Due = now.Add(r.Hold).UnixNano()
	case d.FailedAt != 0 && (ahead > r.LongestWait || lastTried.After(now)):
		d.Due, d.FailedAt = now.UnixNano(), min(d.FailedAt, now.UnixNano())
	}
	return d
}
