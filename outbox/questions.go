package outbox

import (
	"context"
	"time"

	"pzbridge/outbox/store"
)

// Routing asks questions where a call should go, ahead of everything that waits in a lane: they
// wait for no rate, pause, probe or earlier event. These methods bring their effect on a lane into
// it.

// IsFailing reports whether an endpoint is only probed.
func (o *Outbox) IsFailing(endpoint string) bool { return o.lane(endpoint).currentHealth().failing }

// EnterCall begins an attempt at a question of a call. It returns false while another attempt of
// the call is under way at the endpoint.
func (o *Outbox) EnterCall(endpoint, call string) bool {
	return o.lane(endpoint).calls.enterQuestion(call)
}

// AwaitCall begins the attempt once no other attempt of the call is under way, and meanwhile lets
// nothing else of the call begin. It returns false if ctx ends before.
func (o *Outbox) AwaitCall(ctx context.Context, endpoint, call string) bool {
	l := o.lane(endpoint)
	defer wake(l.wake) // if ctx has ended, the lane may go on
	return l.calls.awaitQuestion(ctx, call)
}

// LeaveCall ends that attempt.
func (o *Outbox) LeaveCall(endpoint, call string) {
	l := o.lane(endpoint)
	l.calls.leave(call)
	wake(l.wake)
}

// QuestionTried updates the health of an endpoint by an attempt at a question, logs and counts the
// attempt, and appends the operational events that follow from it. R holds the delivery after the
// attempt.
func (o *Outbox) QuestionTried(endpoint string, r store.Result, outcome store.Outcome, at time.Time) {
	l := o.lane(endpoint)
	l.updateHealth(outcome, false, at)
	o.appendOperational(l.logAttempt(&attemptDone{result: r, verdict: outcome.Verdict, at: at}))
	wake(l.wake)
}

// QuestionExpired logs and counts a question that an endpoint has not answered in time.
func (o *Outbox) QuestionExpired(endpoint string, j store.Job) { o.lane(endpoint).logExpired(&j) }

// QuestionEnded wakes the lane of an endpoint, since deliveries that a question has held may be
// due.
func (o *Outbox) QuestionEnded(endpoint string) {
	l := o.lane(endpoint)
	l.questionEnded.Store(true)
	wake(l.wake)
}
