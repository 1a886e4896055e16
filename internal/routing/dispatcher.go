package routing

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"pzbridge/internal/repeat"
	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// questionRetryWaits are the waits after the first, second and third failed attempt to ask. After
// the fourth the question is dead at that endpoint.
var questionRetryWaits = []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}

const (
	// transferRetryWait is the wait before a decision that could not be written is written again.
	transferRetryWait = 500 * time.Millisecond
	// storeRetryWait is the wait after a failed read or write of the engine.
	storeRetryWait = time.Second
)

// Outbox brings the effects of questions into the lanes of the endpoints.
type Outbox interface {
	IsFailing(endpoint string) bool
	// EnterCall begins an attempt of a call. It returns false while another one is under way at the
	// endpoint. AwaitCall begins it once that has ended; it returns false if ctx ends before.
	EnterCall(endpoint, call string) bool
	AwaitCall(ctx context.Context, endpoint, call string) bool
	LeaveCall(endpoint, call string)
	QuestionTried(endpoint string, r store.Result, o store.Outcome, at time.Time)
	QuestionExpired(endpoint string, j store.Job)
	// QuestionEnded wakes the lane, since deliveries that a question has held may be due.
	QuestionEnded(endpoint string)
	// Work returns the context of attempts, which outlives ctx by the grace of the shutdown.
	Work(ctx context.Context) (work context.Context, stop context.CancelFunc)
	// WhileHeld returns a context that ends with work, or when another process may have taken the
	// work of this one over.
	WhileHeld(work context.Context) (held context.Context, end context.CancelFunc)
}

// Decider decides questions: the Router. Its methods return when the Transfer that follows has
// ended, since a caller waits on the line.
type Decider interface {
	Settle(ctx context.Context, callID, eventID string, timeUp bool, notAsked []telephony.Reply)
	Answer(ctx context.Context, callID, eventID, by, to string) error
	NoAnswer(ctx context.Context, callID, eventID, endpoint string, why error)
}

// Options configures a Dispatcher.
type Options struct {
	Questions store.Questions
	Routes    store.Routes
	Outbox    Outbox
	Router    Decider
	Endpoints []store.Endpoint
	Senders   map[string]store.Sender // by endpoint
	// Timeout is how long the answer to a question is of use.
	Timeout time.Duration
	// Freshness returns how long ago an event was read, for events that are of use for a short time
	// only.
	Freshness func(at time.Time) time.Duration
	// TakeEvery is how often questions are looked for that other processes have left; 0 is only at
	// the start, where there is no other process.
	TakeEvery time.Duration
	Logger    *slog.Logger
}

func (o *Options) validate() error {
	if o.Questions == nil || o.Routes == nil || o.Outbox == nil || o.Router == nil || o.Timeout <= 0 ||
		o.Freshness == nil || o.Logger == nil {
		return errors.New("routing: every field of Options but Endpoints and Senders must be set")
	}
	return nil
}

// Dispatcher asks the endpoints where a call should go. Questions stand in no lane, so they wait
// for no rate, pause, probe or earlier event.
type Dispatcher struct {
	opts      Options
	endpoints []*endpoint
	writing   *repeat.Log // failures to write the engine
	reading   *repeat.Log // failures to read it

	mu     sync.Mutex
	stored []uint64        // the numbers of questions that Run has not yet taken
	asking map[uint64]bool // the numbers of the questions being asked
	wake   chan struct{}   // stored is not empty
}

// endpoint is an endpoint that can be asked.
type endpoint struct {
	name           string
	sender         store.Sender
	slots          slots
	canAnswerLater bool // it has a token
	logger         *slog.Logger
}

// NewDispatcher returns a dispatcher, or an error if options are missing.
func NewDispatcher(opts Options) (*Dispatcher, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	d := &Dispatcher{
		opts:    opts,
		writing: repeat.New(opts.Logger),
		reading: repeat.New(opts.Logger),
		wake:    make(chan struct{}, 1),
		asking:  map[uint64]bool{},
	}
	for i := range opts.Endpoints {
		e := &opts.Endpoints[i]
		d.endpoints = append(d.endpoints, &endpoint{
			name:           e.Name,
			sender:         opts.Senders[e.Name],
			canAnswerLater: len(e.Tokens) > 0,
			logger:         opts.Logger.With("endpoint", e.Name),
			slots: slots{limit: func() int {
				if opts.Outbox.IsFailing(e.Name) {
					return maxQuestionsFailing
				}
				return MaxQuestions
			}},
		})
	}
	return d, nil
}

// Ask starts asking questions that were just stored, by their numbers. It does not block.
func (d *Dispatcher) Ask(questions []uint64) {
	if len(questions) == 0 {
		return
	}
	d.mu.Lock()
	d.stored = append(d.stored, questions...)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// take returns the stored questions, and the old ones, that are not being asked yet, and marks them
// as being asked.
func (d *Dispatcher) take(old []uint64) (list []uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range append(old, d.stored...) {
		if !d.asking[n] {
			d.asking[n] = true
			list = append(list, n)
		}
	}
	d.stored = nil
	return list
}

func (d *Dispatcher) done(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.asking, n)
}

// Run asks questions until ctx ends, and returns when the last attempt is recorded. It begins with
// those that were stored before the start.
func (d *Dispatcher) Run(ctx context.Context) error {
	work, stop := d.opts.Outbox.Work(ctx)
	defer stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	var again <-chan time.Time // nil: never
	if d.opts.TakeEvery > 0 {
		tick := time.NewTicker(d.opts.TakeEvery)
		defer tick.Stop()
		again = tick.C
	}
	old := d.takeOld(ctx)
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
		case <-again:
			old = d.takeOld(ctx)
		}
	}
}

// takeOld takes the questions that nobody asks, and returns all that this process is to ask.
func (d *Dispatcher) takeOld(ctx context.Context) (old []uint64) {
	_ = d.read(ctx, func() (err error) { // if ctx has ended, the next start reads them
		old, err = d.opts.Questions.TakeQuestions(ctx)
		return err
	})
	return old
}

// read repeats a read of the engine until it succeeds, so that a short failure does not end a
// question. Fails with the error of ctx, or with store.ErrBadRecord.
func (d *Dispatcher) read(ctx context.Context, read func() error) error {
	for err := read(); err != nil; err = read() {
		if errors.Is(err, store.ErrBadRecord) {
			d.opts.Logger.Error("a question where a call should go cannot be read, and is given up", "err", err)
			return err
		}
		d.reading.Failed("a question where a call should go cannot be read", err)
		if !sleep.For(ctx, storeRetryWait) {
			return ctx.Err()
		}
	}
	d.reading.Recovered("questions are read again")
	return nil
}

// routeOf returns the route of a question's call, or a zero Route if the call has asked again
// since. Fails as read does.
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

// ask handles a question from the first attempt to its end. If a shutdown comes before that, the
// next start continues it.
func (d *Dispatcher) ask(ctx, work context.Context, n uint64) {
	var q question
	err := d.read(ctx, func() (err error) {
		q.Question, err = d.opts.Questions.Question(ctx, n)
		return err
	})
	var notAsked []telephony.Reply
	if err == nil {
		if !q.Open { // it ended before it was taken
			return
		}
		notAsked, err = d.waitForDecision(ctx, work, &q)
	}
	if err == nil || errors.Is(err, store.ErrBadRecord) {
		d.end(ctx, n, notAsked)
	}
}

// waitForDecision asks a question, and waits until it is decided and the exchange has the decision,
// or can no longer get it. Fails as read does.
func (d *Dispatcher) waitForDecision(ctx, work context.Context, q *question) (notAsked []telephony.Reply, err error) {
	router := d.opts.Router
	// Counted from now, by the monotonic clock, since the wall clock may have been set back since
	// the question came, or may be set later.
	now := time.Now()
	q.answerBy = now.Add(d.opts.Timeout - max(0, d.opts.Freshness(q.Event.At)))
	if timeUp := !now.Before(q.answerBy); timeUp || len(q.Asked) == 0 {
		router.Settle(work, q.Event.Call, q.Opened, timeUp, nil)
	}
	notAsked = d.askAll(ctx, work, q)
	for isTimeUp := false; ; {
		r, err := d.routeOf(ctx, &q.Question)
		if err != nil {
			return notAsked, err
		}
		now := time.Now()
		wait := now.Add(transferRetryWait)
		switch {
		case r.Outcome == telephony.RouteOpen && now.Before(q.answerBy): // an answer may come with POST /v1/transfers
			wait = sooner(q.answerBy, wait)
		case r.Outcome == telephony.RouteOpen && !isTimeUp:
			isTimeUp = true
			router.Settle(work, q.Event.Call, q.Opened, true, nil)
			continue
		case !r.Unsent(now):
			return notAsked, nil
		}
		if !sleep.Until(ctx, wait) {
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

// askAll asks a question at each of its endpoints, and returns when no attempt is in flight or to
// come. The endpoints at which it found no slot in time are given up together, in one Settle with
// the decision that follows, before anything else is written: ten thousand callers may be waiting
// for that.
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
		a.ticket = &ticket{until: q.answerBy, begin: func() {
			go func() {
				a.run(ctx, work)
				ended <- struct{}{}
			}()
		}}
		waiting = append(waiting, a)
		e.slots.enqueue(a.ticket)
	}
	left := len(waiting)
	withdraw := func() (out []telephony.Reply) {
		for _, a := range waiting {
			if why, isWithdrawn := a.endpoint.slots.withdraw(a.ticket); isWithdrawn {
				left--
				out = append(out, telephony.NoReply(a.endpoint.name, why))
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
			withdraw() // the stored question stays as it is
		}
	}
	return notAsked
}

// end removes a question from those that are being asked. While the engine cannot be written it
// tries again, since later deliveries of the call wait for that.
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

// persist repeats a write until it succeeds or ctx ends.
func (d *Dispatcher) persist(ctx context.Context, write func() error) {
	for err := write(); err != nil; err = write() {
		d.writing.Failed("what became of a question cannot be recorded", err)
		if !sleep.For(ctx, storeRetryWait) {
			return
		}
	}
	d.writing.Recovered("what became of questions is recorded again")
}
