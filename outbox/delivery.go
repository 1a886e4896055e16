package outbox

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"pzbridge/internal/telephony"
)

// state is where a delivery stands.
type state byte

const (
	pending state = iota
	delivered
	expired // to know of it was of use for a while only
	dead
)

// delivery is the duty to bring one event to one endpoint.
type delivery struct {
	state    state
	attempts int   // made so far
	due      int64 // unix nanoseconds; 0 is at once, held is not yet. Once it is not pending any more: when that came to be
	status   int   // of the last answer; 0 if there was none
	failedAt int64 // unix nanoseconds of the first attempt that failed; 0 if none has
}

// held is the due time of a delivery that waits for an earlier event of its call, and of none that is in the due index.
const held = -1

// behind gives a new delivery its due time. Before is the delivery of the event just before it in its call, nil if there is none: while
// that is pending the new one is held, but once it has failed for no longer than hold.
//
// It is enough to look at the one before. If that is done with, whatever is pending before it has been overtaken already.
func behind(before *delivery, hold time.Duration) delivery {
	if before == nil || before.state != pending {
		return delivery{}
	}
	return delivery{due: before.freesAt(hold)}
}

// freesAt is when a pending delivery no longer holds the next one of its call, as a due time.
func (d delivery) freesAt(hold time.Duration) int64 {
	if d.failedAt == 0 {
		return held
	}
	return d.failedAt + int64(hold)
}

// after gives a delivery that is pending its due time once the one before it in its call has become before. One that has been tried follows
// its own schedule.
func (d delivery) after(before delivery, hold time.Duration) delivery {
	if d.attempts == 0 {
		d.due = behind(&before, hold).due
	}
	return d
}

// outcome is how an attempt ended.
type outcome struct {
	status     int           // the HTTP status; 0 when there was no answer
	err        error         // why there was none; holds no secret
	retryAfter time.Duration // what the answer asked for; 0 if nothing
}

// verdict is what a status means for the delivery.
type verdict int

const (
	success  verdict = iota
	again            // follow the schedule
	hopeless         // the endpoint says itself that it is gone
)

// classify is the one table of what an answer means. Apart from 410 nothing is final: a CRM that is being mended answers 404 for an hour,
// and one that has moved answers 301 until somebody reads the log.
func classify(status int) verdict {
	switch {
	case status >= 200 && status <= 299:
		return success
	case status == http.StatusGone:
		return hopeless
	}
	return again
}

// maxRetryAfter bounds what a Retry-After can ask for.
const maxRetryAfter = time.Hour

// next gives the delivery as it is after an attempt. Random is in [0, 1) and spreads the wait by a fifth either way. A Retry-After
// can make the wait longer, to maxRetryAfter at most, never shorter.
func (d delivery) next(o outcome, schedule []time.Duration, now time.Time, random float64) delivery {
	d.attempts++
	d.status = o.status
	d.due = now.UnixNano()
	switch classify(o.status) {
	case success:
		d.state = delivered
		return d
	case hopeless:
		d.state = dead
		return d
	}
	if d.failedAt == 0 {
		d.failedAt = now.UnixNano()
	}
	if d.attempts > len(schedule) {
		d.state = dead
		return d
	}
	wait := time.Duration(float64(schedule[d.attempts-1]) * (0.8 + 0.4*random))
	wait = max(wait, min(o.retryAfter, maxRetryAfter))
	d.due = now.Add(wait).UnixNano()
	return d
}

// lifetime is how long it is of use to know of an event; 0 is for ever. A question about a live call, and the news that it rings or was answered,
// come too late after a while; that it is over never does.
func lifetime(kind telephony.EventType, routing, ringing time.Duration) time.Duration {
	switch kind {
	case telephony.EventTransferRequested:
		return routing
	case telephony.EventIncoming, telephony.EventIncomingAnswered, telephony.EventOutgoing, telephony.EventOutgoingAnswered:
		return ringing
	}
	return 0
}

// longestWait is past any wait that there can be: a due time further ahead means that the clock has been set back.
func longestWait(schedule []time.Duration, hold time.Duration) time.Duration {
	longest := max(maxRetryAfter, hold)
	for _, wait := range schedule {
		longest = max(longest, wait+wait/5)
	}
	return longest + time.Minute
}

// parseRetryAfter reads the header: seconds, or a date (RFC 9110, 10.2.3). It is 0 for none, and for what cannot be read.
func parseRetryAfter(header string, now time.Time) time.Duration {
	seconds, err := strconv.ParseUint(header, 10, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return maxRetryAfter
	case err == nil:
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if date, err := http.ParseTime(header); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}
