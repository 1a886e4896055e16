package routing

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// attempt asks one question at one endpoint, in one or more tries.
type attempt struct {
	dispatcher *Dispatcher
	question   *question
	endpoint   *endpoint
	ticket     *ticket // for the first try
	job        store.Job
}

// run asks until the endpoint has taken the question, or it is of no use any more. It begins with a
// slot, and holds one only while a request is in flight: not while another attempt of its call is,
// nor while the exchange carries out an answer, nor before the next try.
func (a *attempt) run(ctx, work context.Context) {
	for failed := 0; ; {
		isEntered := a.enterCall(ctx)
		isOpen, err := a.isOpen(ctx) // the wait before may have been long
		if !isEntered || !isOpen {
			if isEntered {
				a.leave()
			}
			if err != nil || ctx.Err() != nil {
				return // the delivery stays as it is stored
			}
			break
		}
		o := a.try(ctx, work, failed == len(questionRetryWaits))
		isCutOff := o.Verdict == store.CutOff
		if isCutOff && !a.isHeldAgain(ctx, work) || a.job.Delivery.State != store.Pending {
			return
		}
		wait := time.Duration(0) // after More the same job comes again at once
		if o.Verdict != store.More && !isCutOff {
			wait = questionRetryWaits[min(failed, len(questionRetryWaits)-1)]
			failed++
		}
		if !time.Now().Before(a.question.answerBy) {
			break
		}
		if !sleep.Until(ctx, sooner(time.Now().Add(wait), a.question.answerBy)) {
			return
		}
		if !a.endpoint.slots.acquire(ctx, a.question.answerBy) {
			if ctx.Err() != nil {
				return
			}
			break
		}
	}
	claimed := a.job
	a.job.Delivery = a.job.Delivery.Ended(store.Expired, time.Now())
	a.record(ctx, store.Result{Job: claimed, Now: a.job.Delivery})
	a.dispatcher.opts.Outbox.QuestionExpired(a.endpoint.name, a.job)
}

// isHeldAgain waits, after an attempt was cut off since another process might have taken the work
// over, until it is known that none has. It returns false in a shutdown, or if the time is up.
func (a *attempt) isHeldAgain(ctx, work context.Context) bool {
	for work.Err() == nil {
		held, end := a.dispatcher.opts.Outbox.WhileHeld(work)
		isHeld := held.Err() == nil
		end()
		if isHeld {
			return true
		}
		again := time.Now().Add(transferRetryWait)
		if !again.Before(a.question.answerBy) || !sleep.Until(ctx, again) {
			return false
		}
	}
	return false
}

// isOpen reports whether the question is undecided and there is still time for an answer. It fails
// as read does.
func (a *attempt) isOpen(ctx context.Context) (bool, error) {
	r, err := a.dispatcher.routeOf(ctx, &a.question.Question)
	return err == nil && r.Outcome == telephony.RouteOpen && time.Now().Before(a.question.answerBy), err
}

// enterCall begins an attempt of the call, with the slot that the attempt holds. While another
// attempt of the call is under way, it leaves the slot to other questions. It returns false, and
// holds no slot, if the time for answers is over before its turn, or ctx ends.
func (a *attempt) enterCall(ctx context.Context) bool {
	box, e, call := a.dispatcher.opts.Outbox, a.endpoint, a.job.Event.Call
	if box.EnterCall(e.name, call) {
		return true
	}
	e.slots.release()
	waiting, cancel := context.WithDeadline(ctx, a.question.answerBy)
	defer cancel()
	if !box.AwaitCall(waiting, e.name, call) {
		return false
	}
	if !e.slots.acquire(ctx, a.question.answerBy) || !a.readAgain(ctx) {
		box.LeaveCall(e.name, call)
		return false
	}
	return true
}

// readAgain reads the job again, since the attempt that it has waited for may have kept something.
// It returns false, and releases the slot, if that fails as read does, or the question is not asked
// any more.
func (a *attempt) readAgain(ctx context.Context) bool {
	var q store.Question
	err := a.dispatcher.read(ctx, func() (err error) {
		q, err = a.dispatcher.opts.Questions.Question(ctx, a.question.Number)
		return err
	})
	job, isAsked := q.Asked[a.endpoint.name]
	if err != nil || !isAsked {
		a.endpoint.slots.release()
		return false
	}
	job.MayRedial = a.job.MayRedial
	a.job = job
	return true
}

// leave ends the attempt of the call and releases the slot.
func (a *attempt) leave() {
	a.dispatcher.opts.Outbox.LeaveCall(a.endpoint.name, a.job.Event.Call)
	a.endpoint.slots.release()
}

// try makes one request, and records the delivery after it; last means that there will be no other.
// It releases the slot and the call.
func (a *attempt) try(ctx, work context.Context, last bool) store.Outcome {
	d, q, e := a.dispatcher, a.question, a.endpoint
	began := time.Now()
	o := a.send(work)
	e.slots.release()
	// After the attempt is recorded: the call's next one begins with what this one kept.
	defer d.opts.Outbox.LeaveCall(e.name, a.job.Event.Call)
	if o.Verdict == store.CutOff {
		return o // the stored question stays as it is
	}
	now := time.Now() // when the CRM answered; what follows takes as long as the exchange needs
	if o.Verdict == store.Done || o.Reply != nil {
		a.handleResponse(work, o)
	}
	isTimeUp := !time.Now().Before(q.answerBy) // cut off by the end of the time, it is no failure
	result := a.result(afterQuestion(a.job.Delivery, o, last && !isTimeUp, now), &o, began, now)
	d.opts.Outbox.QuestionTried(e.name, result, o, now)
	a.record(ctx, result)
	if a.job.Delivery.State == store.Dead {
		a.noAnswer(work, o.Failure())
	}
	return o
}

// result returns the result of an attempt, and updates the job for the next one.
func (a *attempt) result(now store.Delivery, o *store.Outcome, began, ended time.Time) store.Result {
	r, err := store.NewResult(a.job, now, o, began, ended, a.dispatcher.opts.Timeout)
	if err != nil {
		a.endpoint.logger.Error("a part of what a sender returned cannot be stored", "err", err)
	}
	a.job.Delivery = now
	if r.Keep != nil { // as it is stored
		a.job.Kept, a.job.KeptVersion = r.Keep, a.job.KeptVersion+1
	}
	return r
}

// send asks once, and waits for a response only as long as an answer is of use.
func (a *attempt) send(work context.Context) store.Outcome {
	held, end := a.dispatcher.opts.Outbox.WhileHeld(work)
	defer end()
	limited, cancel := context.WithDeadline(held, a.question.answerBy)
	defer cancel()
	o := a.endpoint.sender.Send(limited, a.job)
	switch {
	case o.Verdict != store.CutOff:
		return o
	case work.Err() == nil && held.Err() != nil:
		a.endpoint.logger.Warn("question cut off, since another bridge may ask it",
			"event_id", a.job.EventID, "call_id", a.job.Event.Call)
		return o
	case work.Err() != nil:
		a.endpoint.logger.Warn("question cut off by the shutdown",
			"event_id", a.job.EventID, "call_id", a.job.Event.Call)
		return o
	}
	return store.Outcome{
		Verdict: store.Again,
		Err:     noReplyWithin(a.dispatcher.opts.Timeout),
	}
}

// noReplyWithin is the error of an endpoint that has not responded while its answer was of use.
func noReplyWithin(timeout time.Duration) error {
	return &telephony.Fault{
		Code: telephony.CodeNoReply,
		Args: []string{timeout.String()},
		Text: fmt.Sprintf("no answer within %s", timeout),
	}
}

// record stores the delivery after an attempt, and wakes the lane for the deliveries that it held.
func (a *attempt) record(ctx context.Context, r store.Result) {
	a.dispatcher.persist(ctx, func() error {
		return a.dispatcher.opts.Questions.RecordQuestion(context.WithoutCancel(ctx), a.endpoint.name, &r)
	})
	for _, e := range a.dispatcher.endpoints {
		if e == a.endpoint || len(r.Events) > 0 { // which may be for any of them
			a.dispatcher.opts.Outbox.QuestionEnded(e.name)
		}
	}
}

// handleResponse applies the reply in a response to the call. An endpoint without a token cannot
// answer later, so a call does not wait for it.
func (a *attempt) handleResponse(work context.Context, o store.Outcome) {
	log := a.endpoint.logger.With("event_id", a.job.EventID, "call_id", a.job.Event.Call)
	var err error
	var notAllowed *telephony.NotAllowedError
	switch {
	case o.Reply != nil && o.Reply.Err != nil:
		err = o.Reply.Err
		log.Warn("an answer to the question where a call goes does not count", "err", err)
	case o.Reply != nil:
		err = a.dispatcher.opts.Router.Answer(work, a.job.Event.Call, a.question.Opened, a.endpoint.name, o.Reply.To)
		if !errors.As(err, &notAllowed) { // the policy has logged that, and it counts as no answer
			if err != nil {
				log.Info("an endpoint answered where a call goes, to no effect",
					"err", telephony.MaskNumbers(err.Error()))
			}
			return
		}
	case strings.TrimSpace(o.Response) != "":
		log.Warn("an answer to the question where a call goes says nothing that is known",
			"response", telephony.BriefText(o.Response))
	}
	switch {
	case notAllowed != nil: // the page of the call shows why the answer has no effect
		a.noAnswer(work, fmt.Errorf("its answer is not allowed: %w", err))
	case a.endpoint.canAnswerLater:
	case err != nil:
		a.noAnswer(work, &telephony.Fault{
			Code: telephony.CodeBadReplyNoToken,
			Args: []string{err.Error()},
			Text: "its answer does not count, and it has no token to answer later",
			Err:  err,
		})
	default:
		a.noAnswer(work, errNoReplyNoToken)
	}
}

// errNoReplyNoToken means that an endpoint cannot answer any more.
var errNoReplyNoToken = &telephony.Fault{
	Code: telephony.CodeNoReplyNoToken,
	Text: "it took the question without an answer, and has no token to answer later",
}

func (a *attempt) noAnswer(work context.Context, why error) {
	if a.question.Opened == a.job.EventID { // otherwise it may still answer the first one
		a.dispatcher.opts.Router.NoAnswer(work, a.job.Event.Call, a.question.Opened, a.endpoint.name, why)
	}
}

// afterQuestion returns the delivery of a question after an attempt; last means that there will be
// no other.
func afterQuestion(d store.Delivery, o store.Outcome, last bool, now time.Time) store.Delivery {
	d.Attempts++
	switch {
	case o.Verdict == store.Done:
		return d.Ended(store.Delivered, now)
	case o.Reply != nil: // the failure is the answer
		return d.Ended(store.Expired, now)
	case o.Verdict == store.More, (o.Verdict == store.Later || o.Verdict == store.Pause) && !last:
		return d // it is neither a success nor a failure
	case o.Verdict == store.Gone, o.Verdict == store.Refused, last:
		return d.Ended(store.Dead, now)
	}
	if d.FailedAt == 0 {
		d.FailedAt = now.UnixNano()
	}
	return d
}
