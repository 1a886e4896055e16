package outbox

import (
	"time"

	"pzbridge/outbox/store"
)

// A question where a call should go is asked by routing, past everything that waits in a lane:
// rate, pause, probe and earlier events. What it means for the lane comes in here.

// IsFailing reports whether an endpoint is only probed.
func (o *Outbox) IsFailing(endpoint string) bool { return o.lane(endpoint).currentHealth().failing }

// EnterCall begins an attempt at a question of a call; it is false while another attempt of the
// call is under way at the endpoint.
func (o *Outbox) EnterCall(endpoint, call string) bool { return o.lane(endpoint).calls.enter(call) }

// LeaveCall ends it.
func (o *Outbox) LeaveCall(endpoint, call string) {
	l := o.lane(endpoint)
	l.calls.leave(call)
	wake(l.wake)
}

// QuestionTried takes how an attempt at a question ended, and how its delivery stands after it: for
// the endpoint's health, the log, the metrics, and as news.
func (o *Outbox) QuestionTried(endpoint string, r store.Result, outcome store.Outcome, at time.Time) {
	l := o.lane(endpoint)
	l.updateHealth(outcome, false, at)
	o.appendOperational(l.logAttempt(&attemptDone{result: r, verdict: outcome.Verdict, at: at}))
	wake(l.wake)
}

// QuestionExpired takes that a question was not answered by an endpoint in time.
func (o *Outbox) QuestionExpired(endpoint string, j store.Job) { o.lane(endpoint).logExpired(&j) }

// QuestionEnded lets an endpoint's lane go on with what waits behind a question.
func (o *Outbox) QuestionEnded(endpoint string) {
	l := o.lane(endpoint)
	l.freed.Store(true)
	wake(l.wake)
}
