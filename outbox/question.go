package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
)

// Router decides where a call goes, by what the endpoints answer. Its methods return when what follows from what they were told is done; a caller
// waits on the line.
type Router interface {
	// Settle does what the call's route asks for: it decides if no endpoint is to be asked or the time
	// is up, and has a decision written that is not yet. The event is the one that has opened the
	// question. Not asked are the endpoints for which the time was too short.
	Settle(ctx context.Context, callID, eventID string, timeUp bool, notAsked []telephony.Reply)
	// Answer takes an endpoint's answer; an empty number declines. An error says why the answer does not count.
	Answer(ctx context.Context, callID, eventID, endpoint, to string) error
	// Out says that no answer to that question is to be expected of an endpoint any more.
	Out(ctx context.Context, callID, eventID, endpoint, why string)
}

// askAgain are the waits after the first, second and third attempt to ask that failed. After the next one the question is dead at that endpoint.
var askAgain = []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}

// sayAgain is the wait before a decision that could not be written is written once more.
const sayAgain = 500 * time.Millisecond

// asker asks the endpoints where a call should go. A question goes ahead of everything: it is in no lane, so it waits for no rate, pause, probe
// or earlier event. While it is being asked its deliveries are out of the due index, and its number is in the bucket of questions.
type asker struct {
	box     *Outbox
	trouble *repeat.Log // with recording
	reading *repeat.Log

	mu    sync.Mutex
	fresh []uint64        // numbers of events that ask, stored since the asker has looked
	known map[uint64]bool // numbers of those that it has taken up, until they are done with
	wake  chan struct{}   // there are some
}

// put tells the asker of events that were just stored.
func (a *asker) put(numbers []uint64) {
	if len(numbers) == 0 {
		return
	}
	a.mu.Lock()
	a.fresh = append(a.fresh, numbers...)
	a.mu.Unlock()
	signal(a.wake)
}

// take gives those that have not been taken up yet, beside the old ones.
func (a *asker) take(old []uint64) (list []uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range append(old, a.fresh...) {
		if !a.known[n] {
			a.known[n] = true
			list = append(list, n)
		}
	}
	a.fresh = nil
	return list
}

func (a *asker) done(n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.known, n)
}

// run asks until ctx ends, and returns when the last attempt is recorded. Attempts run under work. What the file holds from before comes first.
func (a *asker) run(ctx, work context.Context, router Router) {
	var asking sync.WaitGroup
	defer asking.Wait()
	var old []uint64
	_ = a.read(ctx, func() (err error) { // where ctx has ended, the next start reads them
		old, err = a.box.store.questions()
		return err
	})
	for {
		for _, n := range a.take(old) {
			asking.Go(func() {
				defer a.done(n)
				a.ask(ctx, work, router, n)
			})
		}
		old = nil
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
	}
}

// read reads from the file until that has succeeded: a question is not ended because the file cannot
// be read for a moment. It fails with ctx's error, or with errDamaged if the record itself is.
func (a *asker) read(ctx context.Context, read func() error) error {
	for err := read(); err != nil; err = read() {
		if errors.Is(err, errDamaged) {
			a.box.opts.Logger.Error("a question where a call should go cannot be read, and is given up", "err", err.Error())
			return err
		}
		a.reading.Failed("a question where a call should go cannot be read", err)
		if !sleepUntil(ctx, time.Now().Add(storeAgain)) {
			return ctx.Err()
		}
	}
	a.reading.Recovered("questions are read again")
	return nil
}

// route gives how the question where a call goes stands; its outcome is empty if the call has asked
// anew since. It fails as read does.
func (a *asker) route(ctx context.Context, q question) (r telephony.Route, err error) {
	err = a.read(ctx, func() (err error) {
		r, err = a.box.store.routeOf(q)
		return err
	})
	return r, err
}

// ask sees a question to its end. Where a shutdown comes before, the next start goes on with it.
func (a *asker) ask(ctx, work context.Context, router Router, n uint64) {
	var q question
	err := a.read(ctx, func() (err error) {
		q, err = a.box.store.question(n)
		return err
	})
	var notAsked []telephony.Reply
	if err == nil {
		if !q.stands { // it was done with before it was taken up again
			return
		}
		notAsked, err = a.see(ctx, work, router, n, q)
	}
	if err == nil || errors.Is(err, errDamaged) {
		a.end(ctx, n, notAsked)
	}
}

// see asks a question, and waits until it is decided and the exchange has heard of it, or cannot any
// more. It fails as read does.
func (a *asker) see(ctx, work context.Context, router Router, n uint64, q question) (notAsked []telephony.Reply, err error) {
	// Not longer than from now on: the clock may have been set back since it came. To what the clock does from now on it does not listen.
	now := time.Now()
	q.answerBy = now.Add(a.box.opts.RoutingTimeout - max(0, a.box.opts.Clock.Freshness(q.event.at)))
	if timeUp := !now.Before(q.answerBy); timeUp || len(q.asked) == 0 {
		router.Settle(work, q.event.call, q.opened, timeUp, nil)
	}
	notAsked = a.askAll(ctx, work, router, n, q)
	for isUp := false; ; {
		r, err := a.route(ctx, q)
		if err != nil {
			return notAsked, err
		}
		now := time.Now()
		wait := now.Add(sayAgain)
		switch {
		case r.Outcome == telephony.RouteOpen && now.Before(q.answerBy): // somebody may answer with POST /v1/transfers
			wait = sooner(q.answerBy, wait)
		case r.Outcome == telephony.RouteOpen && !isUp:
			isUp = true
			router.Settle(work, q.event.call, q.opened, true, nil)
			continue
		case !r.Unsent(now):
			return notAsked, nil
		}
		if !sleepUntil(ctx, wait) {
			return notAsked, ctx.Err()
		}
		if r.Outcome != telephony.RouteOpen {
			router.Settle(work, q.event.call, q.opened, false, nil)
		}
	}
}

// askAll asks a question at each of its endpoints, and returns when no attempt at it is under way or
// will be. Those where it found no place in time are given up together, with the decision that this
// leads to, before anything else is written: ten thousand callers may be waiting for that.
func (a *asker) askAll(ctx, work context.Context, router Router, n uint64, q question) (notAsked []telephony.Reply) {
	var waiting []*inquiry
	ended := make(chan struct{}, len(a.box.lanes))
	for _, l := range a.box.lanes {
		if d, ok := q.asked[l.endpoint.Name]; ok {
			i := &inquiry{
				question: q, box: a.box, router: router, lane: l,
				job: job{number: n, delivery: d, stored: q.event, eventID: q.event.id.String()},
			}
			i.place = &ticket{until: q.answerBy, begin: func() {
				go func() {
					i.run(ctx, work)
					ended <- struct{}{}
				}()
			}}
			waiting = append(waiting, i)
			l.places.put(i.place)
		}
	}
	left := len(waiting)
	withdraw := func() (out []telephony.Reply) {
		for _, i := range waiting {
			if why, withdrawn := i.lane.places.withdraw(i.place); withdrawn {
				left--
				out = append(out, telephony.Reply{By: i.lane.endpoint.Name, Kind: telephony.ReplyOut, Why: why})
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
				router.Settle(work, q.event.call, q.opened, true, notAsked)
			}
		case <-stopping:
			stopping = nil
			withdraw() // they stay as they are in the file
		}
	}
	return notAsked
}

// end takes a question from the file's list. While the file cannot be written it tries again: what comes behind it in its call waits for that.
func (a *asker) end(ctx context.Context, n uint64, notAsked []telephony.Reply) {
	var late []lateJob
	a.persist(ctx, func() (err error) {
		late, err = a.box.store.endQuestion(n, notAsked, a.box.opts.OrderHold)
		return err
	})
	for _, l := range a.box.lanes {
		for _, j := range late {
			if j.endpoint == l.endpoint.Name {
				l.tellExpired(j.job)
			}
		}
		l.freed.Store(true)
	}
	a.box.wakeUp()
}

// persist writes until it has succeeded, or ctx ends.
func (a *asker) persist(ctx context.Context, write func() error) {
	for err := write(); err != nil; err = write() {
		a.trouble.Failed("what became of a question cannot be recorded", err)
		if !sleepUntil(ctx, time.Now().Add(storeAgain)) {
			return
		}
	}
	a.trouble.Recovered("what became of questions is recorded again")
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

// inquiry is a question at one endpoint.
type inquiry struct {
	question
	place  *ticket // for the first attempt
	box    *Outbox
	router Router
	lane   *lane
	job    job
}

// run asks until the endpoint has taken the question, or it is of no use any more. It begins with a
// place, and has one while an attempt is under way only: not while the exchange does what was answered,
// nor before it is asked again.
func (i *inquiry) run(ctx, work context.Context) {
	for try := 0; ; try++ {
		r, err := i.box.asker.route(ctx, i.question)
		began := time.Now()
		if err != nil || r.Outcome != telephony.RouteOpen || !began.Before(i.answerBy) {
			i.lane.places.leave()
			if err != nil {
				return // it stays as it is in the file
			}
			break
		}
		o, cutOff := i.attempt(work)
		i.lane.places.leave()
		if cutOff {
			return // likewise
		}
		now := time.Now() // the CRM has answered; what follows takes as long as the exchange does
		if classify(o.status) == success {
			i.heard(work, o)
		}
		timeUp := !time.Now().Before(i.answerBy) // an attempt that this has cut off says nothing against the endpoint
		i.job.delivery = i.job.delivery.asked(o, try == len(askAgain) && !timeUp, now)
		e := i.lane.note(i.job, i.job.delivery, o, false, began, now)
		i.box.announce(i.lane.tell(&e))
		i.record(ctx, e.result.attempt)
		switch i.job.delivery.state {
		case pending:
		case dead:
			i.out(work, o.text())
			return
		default:
			return
		}
		if timeUp {
			break
		}
		if !sleepUntil(ctx, sooner(time.Now().Add(askAgain[try]), i.answerBy)) {
			return
		}
		if !i.lane.places.enter(ctx, i.answerBy) {
			if ctx.Err() != nil {
				return
			}
			break
		}
	}
	i.job.delivery = i.job.delivery.ended(expired, time.Now())
	i.record(ctx, nil)
	i.lane.tellExpired(i.job)
}

// attempt asks once, for no longer than an answer is of use.
func (i *inquiry) attempt(work context.Context) (o outcome, cutOff bool) {
	limited, cancel := context.WithDeadline(work, i.answerBy)
	defer cancel()
	o, err := i.lane.questions.attempt(limited, i.job)
	switch {
	case work.Err() != nil:
		i.lane.logger.Warn("question cut off by the shutdown", "event_id", i.job.eventID, "call_id", i.job.call)
		return outcome{}, true
	case err != nil:
		return outcome{err: fmt.Errorf("no answer within ROUTING_TIMEOUT (%s)", i.box.opts.RoutingTimeout)}, false
	}
	return o, false
}

// record keeps how the delivery stands, and lets the lane go on with what waits behind it.
func (i *inquiry) record(ctx context.Context, made *Attempt) {
	i.box.asker.persist(ctx, func() error {
		return i.box.store.record(i.lane.endpoint.Name, []result{{job: i.job, now: i.job.delivery, attempt: made}})
	})
	i.lane.freed.Store(true)
	i.lane.wakeUp()
}

// heard draws from a webhook's answer what it says about the call. An endpoint without a token cannot answer later, so a call does not wait for it.
func (i *inquiry) heard(work context.Context, o outcome) {
	to, said, err := readAnswer(o.body)
	log := i.lane.logger.With("event_id", i.job.eventID, "call_id", i.job.call)
	var notAllowed *telephony.NotAllowedError
	switch {
	case err != nil:
		log.Warn("an answer to the question where a call goes does not count", "err", err.Error())
	case said:
		err = i.router.Answer(work, i.job.call, i.opened, i.lane.endpoint.Name, to)
		if !errors.As(err, &notAllowed) { // which is logged already, and is no answer
			if err != nil {
				log.Info("an endpoint answered where a call goes, to no effect", "err", err.Error())
			}
			return
		}
	case len(bytes.TrimSpace(o.body)) > 0:
		log.Warn("an answer to the question where a call goes says nothing that is known", "response", telephony.BriefText(o.response))
	}
	canAnswerLater := len(i.lane.endpoint.Tokens) > 0
	switch {
	case notAllowed != nil: // it has answered, and the call's page is to say why that leads nowhere
		i.out(work, "its answer is not allowed: "+err.Error())
	case canAnswerLater:
	case err != nil:
		i.out(work, "its answer does not count, and it has no token to answer later: "+err.Error())
	default:
		i.out(work, "it took the question without an answer, and has no token to answer later")
	}
}

func (i *inquiry) out(work context.Context, why string) {
	if i.opened == i.job.eventID { // else it may answer the first one still
		i.router.Out(work, i.job.call, i.opened, i.lane.endpoint.Name, why)
	}
}

// asked gives the delivery of a question after an attempt; last says that there will be no other.
func (d delivery) asked(o outcome, last bool, now time.Time) delivery {
	d.attempts++
	switch v := classify(o.status); {
	case v == success:
		return d.ended(delivered, now)
	case v == hopeless, last:
		return d.ended(dead, now)
	}
	if d.failedAt == 0 {
		d.failedAt = now.UnixNano()
	}
	return d
}

// question is an event that asks where a call should go.
type question struct {
	event    stored
	answerBy time.Time
	opened   string              // the ID of the event that has opened the question: another one if the call had asked before
	stands   bool                // it is not done with
	asked    map[string]delivery // of the endpoints that are being asked
}

func (s *store) question(n uint64) (q question, err error) {
	err = s.view(func(tx *txn) error {
		q.stands = tx.questions.Get(number(n)) != nil
		if q.event, err = decodeEvent(tx.events.Get(number(n))); err != nil {
			return err
		}
		q.opened = q.event.id.String()
		if r, err := tx.route(q.event.call); err == nil && r != nil {
			if opener, known := tx.numberOf(r.EventID); !known || opener <= n { // else the call has asked anew since
				q.opened = r.EventID
			}
		}
		q.asked = map[string]delivery{}
		for i := range s.endpoints {
			name := s.endpoints[i].Name
			if d, _ := tx.queue(name).get(n); d != nil && d.state == pending && d.due == asking {
				q.asked[name] = *d
			}
		}
		return nil
	})
	return q, err
}

// questions gives the numbers of the events that are being asked about.
func (s *store) questions() (list []uint64, err error) {
	err = s.view(func(tx *txn) error {
		return tx.questions.ForEach(func(k, _ []byte) error {
			list = append(list, binary.BigEndian.Uint64(k))
			return nil
		})
	})
	return list, err
}

// routeOf gives the route of a question's call, without an outcome if the call has asked anew since.
func (s *store) routeOf(q question) (r telephony.Route, err error) {
	err = s.view(func(tx *txn) error {
		kept, err := tx.route(q.event.call)
		if err == nil && kept != nil && kept.EventID == q.opened {
			r = *kept
		}
		return err
	})
	return r, err
}

// lateJob is a delivery that has become too late.
type lateJob struct {
	job
	endpoint string
}

// endQuestion takes an event from the questions, and gives the deliveries that end with it: where it
// has not been taken it is too late. Where it was not asked, it is kept why.
func (s *store) endQuestion(n uint64, notAsked []telephony.Reply, hold time.Duration) (late []lateJob, err error) {
	err = s.commit(func(tx *txn) error {
		late = nil
		for _, name := range tx.names() {
			q := tx.queue(name)
			d, history := q.get(n)
			if d == nil || d.state != pending || d.due != asking {
				continue
			}
			if i := slices.IndexFunc(notAsked, func(r telephony.Reply) bool { return r.By == name }); i >= 0 {
				history = addAttempt(nil, history, Attempt{At: time.Now(), Error: notAsked[i].Why})
			}
			now := d.ended(expired, time.Now())
			if err := errors.Join(q.put(n, d, now, history), tx.release(q, now, hold)); err != nil {
				return err
			}
			if e, _, err := decodeEventHead(tx.events.Get(number(n))); err == nil { // nobody is going to send its body
				late = append(late, lateJob{job{number: n, delivery: now, stored: e, eventID: e.id.String()}, name})
			}
		}
		return tx.questions.Delete(number(n))
	})
	return late, err
}
