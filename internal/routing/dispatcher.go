package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// questionRetryWaits are the waits after the first, second and third attempt to ask that failed.
// After the next one the question is dead at that endpoint.
var questionRetryWaits = []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}

const (
	// transferRetryWait is the wait before a decision that could not be written is written once
	// more.
	transferRetryWait = 500 * time.Millisecond
	// storeRetryWait is the wait after a write or a read of the engine that failed.
	storeRetryWait = time.Second
	// callRetryWait is the wait before a question is tried again while another attempt of its call
	// is under way at the endpoint.
	callRetryWait = 20 * time.Millisecond
)

// Outbox is what an attempt at a question means for the endpoint's lane.
type Outbox interface {
	IsFailing(endpoint string) bool
	// EnterCall begins an attempt of a call; it is false while another one is under way at the
	// endpoint.
	EnterCall(endpoint, call string) bool
	LeaveCall(endpoint, call string)
	QuestionTried(endpoint string, r store.Result, o store.Outcome, at time.Time)
	QuestionExpired(endpoint string, j store.Job)
	// QuestionEnded lets the lane go on with what waits behind a question.
	QuestionEnded(endpoint string)
	// Work gives the context of attempts, which outlives ctx by the shutdown's grace.
	Work(ctx context.Context) (work context.Context, stop context.CancelFunc)
}

// Decider takes what comes of asking: the Router. Its methods return when what follows is done; a
// caller waits on the line.
type Decider interface {
	Settle(ctx context.Context, callID, eventID string, timeUp bool, notAsked []telephony.Reply)
	Answer(ctx context.Context, callID, eventID, by, to string) error
	NoAnswer(ctx context.Context, callID, eventID, endpoint, why string)
}

// Options says what a dispatcher stands on.
type Options struct {
	Questions store.Questions
	Routes    store.Routes
	Outbox    Outbox
	Router    Decider
	Endpoints []store.Endpoint
	Senders   map[string]store.Sender // by endpoint
	// Timeout is how long it is of use to ask where a call should go.
	Timeout time.Duration
	// Freshness is how long ago an event was read, for what is of use for a short time only.
	Freshness func(at time.Time) time.Duration
	Logger    *slog.Logger
}

func (o *Options) validate() error {
	if o.Questions == nil || o.Routes == nil || o.Outbox == nil || o.Router == nil || o.Timeout <= 0 ||
		o.Freshness == nil || o.Logger == nil {
		return errors.New("routing: every field of Options but Endpoints and Senders must be set")
	}
	return nil
}

// Dispatcher asks the endpoints where a call should go. A question goes ahead of everything: it
// stands in no lane, so it waits for no rate, pause, probe or earlier event.
type Dispatcher struct {
	opts      Options
	endpoints []*endpoint
	writing   *repeat.Log
	reading   *repeat.Log

	mu    sync.Mutex
	fresh []uint64        // numbers of questions that have been stored since run has looked
	known map[uint64]bool // numbers of those that are under way
	wake  chan struct{}   // there are fresh ones
}

// endpoint is one that can be asked.
type endpoint struct {
	name           string
	sender         store.Sender
	places         places
	canAnswerLater bool // it has a token
	logger         *slog.Logger
}

// NewDispatcher checks the options.
func NewDispatcher(opts Options) (*Dispatcher, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	d := &Dispatcher{
		opts:    opts,
		writing: repeat.New(opts.Logger),
		reading: repeat.New(opts.Logger),
		wake:    make(chan struct{}, 1),
		known:   map[uint64]bool{},
	}
	for i := range opts.Endpoints {
		e := &opts.Endpoints[i]
		d.endpoints = append(d.endpoints, &endpoint{
			name:           e.Name,
			sender:         opts.Senders[e.Name],
			canAnswerLater: len(e.Tokens) > 0,
			logger:         opts.Logger.With("endpoint", e.Name),
			places: places{limit: func() int {
				if opts.Outbox.IsFailing(e.Name) {
					return maxQuestionsFailing
				}
				return MaxQuestions
			}},
		})
	}
	return d, nil
}

// Ask takes the numbers of questions that were just stored.
func (d *Dispatcher) Ask(questions []uint64) {
	if len(questions) == 0 {
		return
	}
	d.mu.Lock()
	d.fresh = append(d.fresh, questions...)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// take gives those that are not under way yet, beside the old ones.
func (d *Dispatcher) take(old []uint64) (list []uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range append(old, d.fresh...) {
		if !d.known[n] {
			d.known[n] = true
			list = append(list, n)
		}
	}
	d.fresh = nil
	return list
}

func (d *Dispatcher) done(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.known, n)
}

// Run asks until ctx ends, and returns when the last attempt is recorded. What is stored from
// before comes first.
func (d *Dispatcher) Run(ctx context.Context) error {
	work, stop := d.opts.Outbox.Work(ctx)
	defer stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	var old []uint64
	_ = d.read(ctx, func() (err error) { // where ctx has ended, the next start reads them
		old, err = d.opts.Questions.TakeQuestions(ctx)
		return err
	})
	for {
		for _, n := range d.take(old) {
			asking.Go(func() {
				defer d.done(n)
				d.ask(ctx, work, n)
			})
		}
		old = nil
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		}
	}
}

// read reads from the engine until that has succeeded: a question is not ended because it cannot be
// read for a moment. It fails with ctx's error, or with store.ErrBadRecord.
func (d *Dispatcher) read(ctx context.Context, read func() error) error {
	for err := read(); err != nil; err = read() {
		if errors.Is(err, store.ErrBadRecord) {
			d.opts.Logger.Error("a question where a call should go cannot be read, and is given up", "err", err.Error())
			return err
		}
		d.reading.Failed("a question where a call should go cannot be read", err)
		if !sleepUntil(ctx, time.Now().Add(storeRetryWait)) {
			return ctx.Err()
		}
	}
	d.reading.Recovered("questions are read again")
	return nil
}

// routeOf gives the route of a question's call, without an outcome if the call has asked again
// since. It fails as read does.
func (d *Dispatcher) routeOf(ctx context.Context, q *store.Question) (r telephony.Route, err error) {
	err = d.read(ctx, func() error {
		kept, err := d.opts.Routes.Route(ctx, q.Event.Call)
		if err == nil && kept != nil && kept.EventID == q.Opened {
			r = *kept
		}
		return err
	})
	return r, err
}

// question is a question that is being asked.
type question struct {
	store.Question
	answerBy time.Time
}

// ask takes a question to its end. Where a shutdown comes before, the next start goes on with it.
func (d *Dispatcher) ask(ctx, work context.Context, n uint64) {
	var q question
	err := d.read(ctx, func() (err error) {
		q.Question, err = d.opts.Questions.Question(ctx, n)
		return err
	})
	var notAsked []telephony.Reply
	if err == nil {
		if !q.Open { // it was done with before it was taken
			return
		}
		notAsked, err = d.waitForDecision(ctx, work, &q)
	}
	if err == nil || errors.Is(err, store.ErrBadRecord) {
		d.end(ctx, n, notAsked)
	}
}

// waitForDecision asks a question, and waits until it is decided and the exchange has it, or cannot
// get it any more. It fails as read does.
func (d *Dispatcher) waitForDecision(ctx, work context.Context, q *question) (notAsked []telephony.Reply, err error) {
	router := d.opts.Router
	// Counted from now on, since the clock may have been set back since the question came. What it
	// does from now on changes nothing.
	now := time.Now()
	q.answerBy = now.Add(d.opts.Timeout - max(0, d.opts.Freshness(q.Event.At)))
	if timeUp := !now.Before(q.answerBy); timeUp || len(q.Asked) == 0 {
		router.Settle(work, q.Event.Call, q.Opened, timeUp, nil)
	}
	notAsked = d.askAll(ctx, work, q)
	for isUp := false; ; {
		r, err := d.routeOf(ctx, &q.Question)
		if err != nil {
			return notAsked, err
		}
		now := time.Now()
		wait := now.Add(transferRetryWait)
		switch {
		case r.Outcome == telephony.RouteOpen && now.Before(q.answerBy): // an answer may come with POST /v1/transfers
			wait = sooner(q.answerBy, wait)
		case r.Outcome == telephony.RouteOpen && !isUp:
			isUp = true
			router.Settle(work, q.Event.Call, q.Opened, true, nil)
			continue
		case !r.Unsent(now):
			return notAsked, nil
		}
		if !sleepUntil(ctx, wait) {
			return notAsked, ctx.Err()
		}
		if r.Outcome != telephony.RouteOpen {
			router.Settle(work, q.Event.Call, q.Opened, false, nil)
		}
	}
}

func sooner(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// askAll asks a question at each of its endpoints, and returns when no attempt at it is under way
// or will be. Those where it found no place in time are given up together, with the decision that
// this leads to, before anything else is written: ten thousand callers may be waiting for that.
func (d *Dispatcher) askAll(ctx, work context.Context, q *question) (notAsked []telephony.Reply) {
	var waiting []*attempt
	ended := make(chan struct{}, len(d.endpoints))
	for _, e := range d.endpoints {
		job, ok := q.Asked[e.name]
		if !ok {
			continue
		}
		job.MayRedial = func() bool { return ctx.Err() == nil }
		a := &attempt{dispatcher: d, question: q, endpoint: e, job: job}
		a.place = &ticket{until: q.answerBy, begin: func() {
			go func() {
				a.run(ctx, work)
				ended <- struct{}{}
			}()
		}}
		waiting = append(waiting, a)
		e.places.put(a.place)
	}
	left := len(waiting)
	withdraw := func() (out []telephony.Reply) {
		for _, a := range waiting {
			if why, isWithdrawn := a.endpoint.places.withdraw(a.place); isWithdrawn {
				left--
				out = append(out, telephony.Reply{By: a.endpoint.name, Kind: telephony.ReplyNone, Why: why})
			}
		}
		return out
	}
	timeUp := time.NewTimer(time.Until(q.answerBy))
	defer timeUp.Stop()
	stopping := ctx.Done()
	for left > 0 {
		select {
		case <-ended:
			left--
		case <-timeUp.C:
			if notAsked = withdraw(); len(notAsked) > 0 {
				d.opts.Router.Settle(work, q.Event.Call, q.Opened, true, notAsked)
			}
		case <-stopping:
			stopping = nil
			withdraw() // they stay as they are stored
		}
	}
	return notAsked
}

// end takes a question from the list of those that are asked. While the engine cannot be written it
// tries again: what comes behind it in its call waits for that.
func (d *Dispatcher) end(ctx context.Context, n uint64, notAsked []telephony.Reply) {
	var ended []store.EndedJob
	d.persist(ctx, func() (err error) {
		ended, err = d.opts.Questions.EndQuestion(context.WithoutCancel(ctx), n, notAsked, time.Now())
		return err
	})
	for _, j := range ended {
		if d.isConfigured(j.Endpoint) {
			d.opts.Outbox.QuestionExpired(j.Endpoint, j.Job)
		}
	}
	for _, e := range d.endpoints {
		d.opts.Outbox.QuestionEnded(e.name)
	}
}

func (d *Dispatcher) isConfigured(name string) bool {
	for _, e := range d.endpoints {
		if e.name == name {
			return true
		}
	}
	return false
}

// persist writes until it has succeeded, or ctx ends.
func (d *Dispatcher) persist(ctx context.Context, write func() error) {
	for err := write(); err != nil; err = write() {
		d.writing.Failed("what became of a question cannot be recorded", err)
		if !sleepUntil(ctx, time.Now().Add(storeRetryWait)) {
			return
		}
	}
	d.writing.Recovered("what became of questions is recorded again")
}

// sleepUntil is false if ctx ended before.
func sleepUntil(ctx context.Context, at time.Time) bool {
	alarm := time.NewTimer(time.Until(at))
	defer alarm.Stop()
	select {
	case <-alarm.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// attempt is a question at one endpoint.
type attempt struct {
	dispatcher *Dispatcher
	question   *question
	endpoint   *endpoint
	place      *ticket // for the first try
	job        store.Job
}

// run asks until the endpoint has taken the question, or it is of no use any more. It begins with a
// place, and has one while a request is under way only: not while another attempt of its call is, nor
// while the exchange does what was answered, nor before it is asked again.
func (a *attempt) run(ctx, work context.Context) {
	d, q, e := a.dispatcher, a.question, a.endpoint
	for failed := 0; ; {
		r, err := d.routeOf(ctx, &q.Question)
		if err != nil {
			e.places.leave()
			return // it stays as it is stored
		}
		if r.Outcome != telephony.RouteOpen || !time.Now().Before(q.answerBy) {
			e.places.leave()
			break
		}
		wait := callRetryWait
		if d.opts.Outbox.EnterCall(e.name, a.job.Event.Call) {
			o := a.try(ctx, work, failed == len(questionRetryWaits))
			if o.Verdict == store.CutOff || a.job.Delivery.State != store.Pending {
				return
			}
			if wait = 0; o.Verdict != store.More { // else the same job comes again at once
				wait = questionRetryWaits[min(failed, len(questionRetryWaits)-1)]
				failed++
			}
		} else {
			e.places.leave()
		}
		if !time.Now().Before(q.answerBy) {
			break
		}
		if !sleepUntil(ctx, sooner(time.Now().Add(wait), q.answerBy)) {
			return
		}
		if !e.places.enter(ctx, q.answerBy) {
			if ctx.Err() != nil {
				return
			}
			break
		}
	}
	claimed := a.job
	a.job.Delivery = a.job.Delivery.Ended(store.Expired, time.Now())
	a.record(ctx, store.Result{Job: claimed, Now: a.job.Delivery})
	d.opts.Outbox.QuestionExpired(e.name, a.job)
}

// try makes one request, and records how the delivery stands after it; last says that there will be
// no other. It gives the place and the call back.
func (a *attempt) try(ctx, work context.Context, last bool) store.Outcome {
	d, q, e := a.dispatcher, a.question, a.endpoint
	began := time.Now()
	o := a.send(work)
	d.opts.Outbox.LeaveCall(e.name, a.job.Event.Call)
	e.places.leave()
	if o.Verdict == store.CutOff {
		return o // it stays as it is stored
	}
	now := time.Now() // the CRM has answered; what follows takes as long as the exchange does
	if o.Verdict == store.Done {
		a.handleResponse(work, o)
	}
	isTimeUp := !time.Now().Before(q.answerBy) // what this has cut off says nothing against the endpoint
	result := a.result(afterQuestion(a.job.Delivery, o, last && !isTimeUp, now), &o, began, now)
	d.opts.Outbox.QuestionTried(e.name, result, o, now)
	a.record(ctx, result)
	if a.job.Delivery.State == store.Dead {
		a.noAnswer(work, o.Text())
	}
	return o
}

// result gives how the delivery stands after an attempt, for the next one to begin with.
func (a *attempt) result(now store.Delivery, o *store.Outcome, began, ended time.Time) store.Result {
	r, err := store.NewResult(a.job, now, o, began, ended, a.dispatcher.opts.Timeout)
	if err != nil {
		a.endpoint.logger.Error("an event of a sender cannot be stored", "err", err.Error())
	}
	a.job.Delivery = now
	if o.Keep != nil {
		a.job.Kept, a.job.KeptVersion = o.Keep, a.job.KeptVersion+1
	}
	return r
}

// send asks once, for no longer than an answer is of use.
func (a *attempt) send(work context.Context) store.Outcome {
	limited, cancel := context.WithDeadline(work, a.question.answerBy)
	defer cancel()
	o := a.endpoint.sender.Send(limited, a.job)
	switch {
	case o.Verdict != store.CutOff:
		return o
	case work.Err() != nil:
		a.endpoint.logger.Warn("question cut off by the shutdown",
			"event_id", a.job.EventID, "call_id", a.job.Event.Call)
		return o
	}
	return store.Outcome{
		Verdict: store.Again,
		Err:     fmt.Errorf("no answer within ROUTING_TIMEOUT (%s)", a.dispatcher.opts.Timeout),
	}
}

// record stores how the delivery stands, and lets the lane go on with what waits behind it.
func (a *attempt) record(ctx context.Context, r store.Result) {
	a.dispatcher.persist(ctx, func() error {
		return a.dispatcher.opts.Questions.RecordQuestion(context.WithoutCancel(ctx), a.endpoint.name, &r)
	})
	a.dispatcher.opts.Outbox.QuestionEnded(a.endpoint.name)
}

// handleResponse draws from a response what it says about the call. An endpoint without a token
// cannot answer later, so a call does not wait for it.
func (a *attempt) handleResponse(work context.Context, o store.Outcome) {
	log := a.endpoint.logger.With("event_id", a.job.EventID, "call_id", a.job.Event.Call)
	var err error
	var notAllowed *telephony.NotAllowedError
	switch {
	case o.Reply != nil && o.Reply.Err != nil:
		err = o.Reply.Err
		log.Warn("an answer to the question where a call goes does not count", "err", err.Error())
	case o.Reply != nil:
		err = a.dispatcher.opts.Router.Answer(work, a.job.Event.Call, a.question.Opened, a.endpoint.name, o.Reply.To)
		if !errors.As(err, &notAllowed) { // which is logged already, and is no answer
			if err != nil {
				log.Info("an endpoint answered where a call goes, to no effect", "err", err.Error())
			}
			return
		}
	case strings.TrimSpace(o.Response) != "":
		log.Warn("an answer to the question where a call goes says nothing that is known",
			"response", telephony.BriefText(o.Response))
	}
	switch {
	case notAllowed != nil: // it has answered, and the call's page is to say why that leads nowhere
		a.noAnswer(work, "its answer is not allowed: "+err.Error())
	case a.endpoint.canAnswerLater:
	case err != nil:
		a.noAnswer(work, "its answer does not count, and it has no token to answer later: "+err.Error())
	default:
		a.noAnswer(work, "it took the question without an answer, and has no token to answer later")
	}
}

func (a *attempt) noAnswer(work context.Context, why string) {
	if a.question.Opened == a.job.EventID { // else it may answer the first one still
		a.dispatcher.opts.Router.NoAnswer(work, a.job.Event.Call, a.question.Opened, a.endpoint.name, why)
	}
}

// afterQuestion gives the delivery of a question after an attempt; last says that there will be no
// other.
func afterQuestion(d store.Delivery, o store.Outcome, last bool, now time.Time) store.Delivery {
	d.Attempts++
	switch {
	case o.Verdict == store.Done:
		return d.Ended(store.Delivered, now)
	case o.Verdict == store.More:
		return d
	case o.Verdict == store.Gone, o.Verdict == store.Refused, last:
		return d.Ended(store.Dead, now)
	}
	if d.FailedAt == 0 {
		d.FailedAt = now.UnixNano()
	}
	return d
}
