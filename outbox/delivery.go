package outbox

import (
	"errors"
	"fmt"
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

// stateNames are the states' names for people and for the API.
var stateNames = [...]string{pending: "pending", delivered: "delivered", expired: "expired", dead: "dead"}

func (s state) String() string { return stateNames[s] }

// delivery is the duty to bring one event to one endpoint.
type delivery struct {
	state       state
	attempts    int    // made so far
	step        int    // waits of the schedule that are used up
	due         int64  // unix nanoseconds; 0 is at once, held is not yet. Once it is not pending any more: when that came to be
	failedAt    int64  // unix nanoseconds of the first attempt that failed; 0 if none has
	next        uint64 // the number of the delivery that comes after this one in its call and may wait for it; 0 if there is none
	redelivered uint8  // how often somebody asked for it again, by which one such wish is told from the next; if so, it does not expire
}

func (d delivery) isAny() bool { return true }

func (d delivery) isPending() bool { return d.state == pending }

// isDue says whether the delivery stands in the due index.
func (d delivery) isDue() bool { return d.state == pending && d.due != held && d.due != asking }

// held is the due time of a delivery that waits for an earlier event of its call. Such a delivery is not in the due index.
const held = -1

// asking is the due time of a question while the asker has it.
const asking = -2

// behind gives a delivery its due time. Before is the one that it has to wait for in its call, nil if there is none. While that is pending it is held; once
// that has failed, until hold after its first failure.
//
// For a new one, that is the delivery of the event just before it. If that is done with, whatever is pending before it has been overtaken already, or somebody
// asked for it again.
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

// after gives a delivery that is pending its due time once the one before it in its call has become before. One that has failed follows
// its own schedule.
func (d delivery) after(before delivery, hold time.Duration) delivery {
	if d.failedAt == 0 && d.due != asking {
		d.due = behind(&before, hold).due
		if d.due == 0 && d.redelivered > 0 {
			d.due = before.due // when that one ended: see again
		}
	}
	return d
}

// inLine is a pending delivery of an endpoint that is failing: it is due at once, in the order of the events, behind the one before it in its call as
// if neither had been tried. It keeps its place in the schedule, where a wait that is cut short does not count.
func (d delivery) inLine(before *delivery, now time.Time) delivery {
	if d.failedAt != 0 && d.due > now.UnixNano() {
		d.step = max(0, d.step-1)
	}
	d.due, d.failedAt = 0, 0
	if before != nil && before.state == pending {
		d.due = held
	}
	return d
}

// again is a delivery that somebody asked for again: from the beginning of the schedule, behind the one before it in its call, and behind what has not been
// tried yet, to which a call may be going on.
func (d delivery) again(before *delivery, now time.Time, hold time.Duration) delivery {
	d.state, d.step, d.failedAt, d.redelivered = pending, 0, 0, max(1, d.redelivered+1)
	if d.due = behind(before, hold).due; d.due == 0 {
		d.due = now.UnixNano()
	}
	return d
}

// outcome is how an attempt ended.
type outcome struct {
	status     int           // the HTTP status; 0 when there was no answer
	response   string        // the beginning of its body, what is secret taken out
	body       []byte        // all of it that was read, as it came
	err        error         // why there was no answer; holds no secret
	retryAfter time.Duration // what the answer asked for; 0 if nothing
}

// errText is why there was no answer, empty if there was one.
func (o outcome) errText() string {
	if o.err != nil {
		return o.err.Error()
	}
	return ""
}

// text says how the attempt ended in a few words.
func (o outcome) text() string {
	if o.err != nil {
		return o.err.Error()
	}
	return fmt.Sprintf("HTTP %d", o.status)
}

// verdict is what a status means for the delivery.
type verdict int

const (
	success  verdict = iota
	retry            // follow the schedule
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
	return retry
}

// maxRetryAfter bounds what a Retry-After can ask for.
const maxRetryAfter = time.Hour

// tried gives the delivery as it is after an attempt. Random is in [0, 1) and spreads the wait by a fifth either way. A Retry-After
// can make the wait longer, to maxRetryAfter at most, never shorter.
func (d delivery) tried(o outcome, schedule []time.Duration, now time.Time, random float64) delivery {
	d.attempts++
	switch classify(o.status) {
	case success:
		return d.ended(delivered, now)
	case hopeless:
		return d.ended(dead, now)
	}
	if d.failedAt == 0 || d.failedAt > now.UnixNano() { // the clock was set back
		d.failedAt = now.UnixNano()
		if o.status == http.StatusTooManyRequests { // nothing goes to the endpoint before that: to overtake would gain nothing
			d.failedAt += int64(min(o.retryAfter, maxRetryAfter))
		}
	}
	if d.step >= len(schedule) {
		return d.ended(dead, now)
	}
	wait := spread(schedule[d.step], random)
	wait = max(wait, min(o.retryAfter, maxRetryAfter))
	d.step++
	d.due = now.Add(wait).UnixNano()
	return d
}

// probed gives the delivery as it is after an attempt with which a failing endpoint was probed. That
// it has failed, also with a 410, is about the endpoint and says nothing about this event: it costs
// nothing of the schedule, and gives nothing up.
func (d delivery) probed(o outcome, now time.Time) delivery {
	if classify(o.status) == success {
		return d.tried(o, nil, now, 0)
	}
	d.attempts++
	return d
}

// setBack gives a pending delivery that is to be tried later the time that it should have once the clock has been set back to now. What was tried at a time
// that is still to come has waited long enough, and what waits behind such a one waits no longer than hold. Longest is past any wait that there can be: a due
// time that is further ahead is a mistake too.
func (d delivery) setBack(lastTried, now time.Time, hold, longest time.Duration) delivery {
	ahead := time.Duration(d.due - now.UnixNano())
	switch {
	case d.failedAt == 0 && ahead > hold: // it waits for the one before it in its call
		d.due = now.Add(hold).UnixNano()
	case d.failedAt != 0 && (ahead > longest || lastTried.After(now)):
		d.due, d.failedAt = now.UnixNano(), min(d.failedAt, now.UnixNano())
	}
	return d
}

func (d delivery) ended(s state, now time.Time) delivery {
	d.state, d.due = s, now.UnixNano()
	return d
}

// spread makes a wait a fifth longer or shorter; random is in [0, 1).
func spread(wait time.Duration, random float64) time.Duration {
	return time.Duration(float64(wait) * (0.8 + 0.4*random))
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

// lifespan is how long a delivery can be on its way when it is tried by its schedule.
func lifespan(schedule []time.Duration) (sum time.Duration) {
	for _, wait := range schedule {
		sum += wait
	}
	return sum
}

// longestWait is past any wait that there can be: a due time further ahead means that the clock has been set back.
func longestWait(schedule []time.Duration, hold time.Duration) time.Duration {
	longest := max(maxRetryAfter, hold)
	for _, wait := range schedule {
		longest = max(longest, wait+wait/5)
	}
	return longest + time.Minute
}

// parseRetryAfter reads the header: seconds, or a date (RFC 9110, 10.2.3), maxRetryAfter at most: a date may be of a clock that goes wrong. It is 0 for
// none, and for what cannot be read.
func parseRetryAfter(header string, now time.Time) time.Duration {
	if header == "" {
		return 0
	}
	seconds, err := strconv.ParseUint(header, 10, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return maxRetryAfter
	case err == nil:
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if date, err := http.ParseTime(header); err == nil {
		return min(max(0, date.Sub(now)), maxRetryAfter)
	}
	return 0
}
