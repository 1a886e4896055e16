package bolt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TakeQuestions gives the numbers of the events that are being asked about.
func (s *Engine) TakeQuestions(context.Context) (list []uint64, err error) {
	err = s.view(func(tx *txn) error {
		return tx.questions.ForEach(func(k, _ []byte) error {
			list = append(list, binary.BigEndian.Uint64(k))
			return nil
		})
	})
	return list, err
}

// Question gives a question: see store.Questions.
func (s *Engine) Question(_ context.Context, n uint64) (q store.Question, err error) {
	err = s.view(func(tx *txn) error {
		q = store.Question{Number: n, Open: tx.questions.Get(number(n)) != nil, Asked: map[string]store.Job{}}
		if q.Event, err = decodeEvent(tx.events.Get(number(n))); err != nil {
			return err
		}
		q.Opened = q.Event.ID.String()
		if r, err := tx.route(q.Event.Call); err == nil && r != nil {
			if opener, known := tx.numberOf(r.EventID); !known || opener <= n { // else the call has asked again since
				q.Opened = r.EventID
			}
		}
		for _, name := range s.rules.Endpoints {
			queue := tx.queue(name)
			if d, _, ok := queue.get(n); ok && isAsked(d) {
				j := store.Job{Number: n, Delivery: d, Event: q.Event, EventID: q.Event.ID.String(), IsQuestion: true}
				queue.addCall(&j)
				q.Asked[name] = j
			}
		}
		return nil
	})
	return q, err
}

func isAsked(d store.Delivery) bool { return d.State == store.Pending && d.Due == store.Asking }

// RecordQuestion stores how an attempt at a question ended.
func (s *Engine) RecordQuestion(_ context.Context, endpoint string, r *store.Result) error {
	err := s.commit(func(tx *txn) error { return s.recordOne(tx.queue(endpoint), r) })
	if err == nil && len(r.Events) > 0 {
		s.notifyReaders()
	}
	return err
}

// EndQuestion takes an event from the questions: see store.Questions.
func (s *Engine) EndQuestion(
	_ context.Context, n uint64, notAsked []telephony.Reply, now time.Time,
) (ended []store.EndedJob, err error) {
	err = s.commit(func(tx *txn) error {
		ended = nil
		e, _, eventErr := decodeEventHead(tx.events.Get(number(n)))
		for _, name := range tx.names() {
			q := tx.queue(name)
			d, _, ok := q.get(n)
			if !ok || !isAsked(d) {
				continue
			}
			r := q.rowsAt(n, e.Call, e.Sequence, 0)
			if i := slices.IndexFunc(notAsked, func(r telephony.Reply) bool { return r.By == name }); i >= 0 {
				r.attempt = &store.Attempt{At: now, Error: notAsked[i].Why, Cause: notAsked[i].Cause}
			}
			d = d.Ended(store.Expired, now)
			store.End(r, n, d, s.rules.Hold)
			if err := r.finish(now, s.rules.Hold); err != nil {
				return err
			}
			if eventErr == nil {
				ended = append(ended, store.EndedJob{
					Job:      store.Job{Number: n, Delivery: d, Event: e, EventID: e.ID.String()},
					Endpoint: name,
				})
			}
		}
		return tx.questions.Delete(number(n))
	})
	return ended, err
}

// Route gives the question where a call should go, nil if it has not asked.
func (s *Engine) Route(_ context.Context, callID string) (route *telephony.Route, err error) {
	err = s.view(func(tx *txn) error {
		route, err = tx.route(callID)
		return err
	})
	return route, err
}

// ChangeRoute applies a change to a call's route: see store.Routes.
func (s *Engine) ChangeRoute(
	_ context.Context, callID string, c telephony.RouteChange,
) (result telephony.RouteResult, err error) {
	err = s.commit(func(tx *txn) error {
		r, err := tx.route(callID)
		if err != nil {
			return err
		}
		if r == nil {
			return telephony.ErrNeverAsked
		}
		result = s.rules.ChangeRoute(r, c)
		return tx.putRoute(*r)
	})
	return result, err
}

// route gives what is stored of the question where a call goes, nil if it has never asked.
func (tx *txn) route(call string) (*telephony.Route, error) {
	v := tx.routes.Get(callKey(call))
	if v == nil {
		return nil, nil
	}
	var r telephony.Route
	if err := json.Unmarshal(v, &r); err != nil {
		return nil, fmt.Errorf("the route of call %s: %w", call, store.ErrBadRecord)
	}
	return &r, nil
}

func (tx *txn) putRoute(r telephony.Route) error {
	v, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.routes.Put(callKey(r.CallID), v)
}

// receive brings the route of an event's call up to date, and gives it as far as it says something
// of the event. Asks says that endpoints are to be asked about the event now.
func (s *Engine) receive(tx *txn, e *store.NewEvent) (route *telephony.Route, asks bool, err error) {
	if !e.MayRoute() {
		return nil, false, nil
	}
	before, err := tx.route(e.Call)
	if errors.Is(err, store.ErrBadRecord) {
		before, err = nil, nil // no event may be kept from being stored by it; the next question writes it again
	}
	if err != nil {
		return nil, false, err
	}
	route, asks, changed := s.rules.Receive(e, before)
	if changed {
		if err := tx.putRoute(*route); err != nil {
			return nil, false, err
		}
	}
	if route != nil && !route.Live(e.At) {
		route = nil
	}
	return route, asks, nil
}
