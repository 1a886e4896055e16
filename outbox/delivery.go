package outbox

import (
	"errors"
	"net/http"
	"strconv"
	"time"
)

// state is where a delivery stands.
type state byte

const (
	pending state = iota
	delivered
	dead
)

// delivery is the duty to bring one event to one endpoint.
type delivery struct {
	state    state
	attempts int   // made so far
	due      int64 // unix nanoseconds; 0 is at once. Once it is not pending any more: when that came to be
	status   int   // of the last answer; 0 if there was none
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
	if d.attempts > len(schedule) {
		d.state = dead
		return d
	}
	wait := time.Duration(float64(schedule[d.attempts-1]) * (0.8 + 0.4*random))
	wait = max(wait, min(o.retryAfter, maxRetryAfter))
	d.due = now.Add(wait).UnixNano()
	return d
}

// longestWait is past any wait that next can give: a due time further ahead means that the clock has been set back.
func longestWait(schedule []time.Duration) time.Duration {
	longest := maxRetryAfter
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
