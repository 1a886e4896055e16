package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TakeQuestions gives the numbers of the events that are being asked about.
func (s *Engine) TakeQuestions(ctx context.Context) (list []uint64, err error) {
	err = s.look(ctx, func(tx *txn) error {
		list = nil
		return tx.query(func(rows pgx.Rows) error {
			var n uint64
			err := rows.Scan(&n)
			list = append(list, n)
			return err
		}, `SELECT n FROM question ORDER BY n`)
	})
	return list, err
}

// isQuestion reports whether endpoints are being asked about an event.
func (tx *txn) isQuestion(n uint64) (bool, error) {
	var number uint64
	return tx.queryRow([]any{&number}, `SELECT n FROM question WHERE n = $1`, int64(n))
}

// event reads an event; known is false if there is none.
func (tx *txn) event(n uint64) (e store.Event, known bool, err error) {
	err = tx.query(func(rows pgx.Rows) error {
		var at int64
		var kind string
		known = true
		err := rows.Scan(&e.ID, &at, &kind, &e.Call, &e.Sequence, &e.Body)
		e.At, e.Type = milliTime(at), eventType(kind)
		return err
	}, `SELECT id, at, type, call, sequence, body FROM event WHERE n = $1`, int64(n))
	return e, known, err
}

// Question gives an event that is asked about: see store.Questions.
func (s *Engine) Question(ctx context.Context, n uint64) (q store.Question, err error) {
	err = s.look(ctx, func(tx *txn) error {
		q = store.Question{Number: n, Asked: map[string]store.Job{}}
		var known bool
		if q.Event, known, err = tx.event(n); err != nil {
			return err
		}
		if !known {
			return fmt.Errorf("question %d: %w", n, store.ErrBadRecord)
		}
		if q.Open, err = tx.isQuestion(n); err != nil {
			return err
		}
		if q.Opened, err = tx.openerOf(&q.Event, n); err != nil {
			return err
		}
		return s.addAsked(tx, &q)
	})
	return q, err
}

// openerOf gives the ID of the event that opened a question: that of the route, unless the call has
// asked again since.
func (tx *txn) openerOf(e *store.Event, n uint64) (string, error) {
	id := e.ID.String()
	r, err := tx.route(e.Call)
	if err != nil || r == nil {
		return id, err
	}
	opener, known, err := tx.numberOf(r.EventID)
	if err == nil && (!known || opener <= n) {
		id = r.EventID
	}
	return id, err
}

// addAsked adds the endpoints that are being asked.
func (s *Engine) addAsked(tx *txn, q *store.Question) error {
	var keys []deliveryKey
	for _, name := range s.rules.Endpoints {
		id, _ := s.endpoints.id(name)
		keys = append(keys, deliveryKey{q.Number, id})
	}
	if err := tx.load(keys...); err != nil {
		return err
	}
	for i, name := range s.rules.Endpoints {
		d := tx.deliveries[keys[i]]
		if !d.exists || !isAsked(d.Delivery) {
			continue
		}
		jobs := []store.Job{{
			Number: q.Number, Delivery: d.Delivery, Event: q.Event, EventID: q.Event.ID.String(), IsQuestion: true,
		}}
		if err := tx.addCalls(keys[i].endpoint, jobs); err != nil {
			return err
		}
		q.Asked[name] = jobs[0]
	}
	return nil
}

func isAsked(d store.Delivery) bool { return d.State == store.Pending && d.Due == store.Asking }

// RecordQuestion stores how an attempt at a question ended.
func (s *Engine) RecordQuestion(ctx context.Context, endpoint string, r *store.Result) error {
	id, known := s.endpoints.id(endpoint)
	if !known {
		return fmt.Errorf("%w: %q", store.ErrNoEndpoint, endpoint)
	}
	results := []store.Result{*r}
	err := s.record(ctx, id, results)
	r.Overruled = results[0].Overruled
	return err
}

// EndQuestion takes an event from the questions: see store.Questions.
func (s *Engine) EndQuestion(
	ctx context.Context, n uint64, notAsked []telephony.Reply, now time.Time,
) (ended []store.EndedJob, err error) {
	err = s.change(ctx, func(tx *txn) error {
		ended = nil
		e, known, err := tx.event(n)
		if err != nil {
			return err
		}
		tx.write(`DELETE FROM question WHERE n = $1`, int64(n))
		if !known {
			return nil
		}
		e.Body = nil
		if err := tx.lockCalls(lockName(n, e.Call)); err != nil {
			return err
		}
		ended, err = s.endAsked(tx, n, &e, notAsked, now)
		return err
	})
	return ended, err
}

// endAsked ends the deliveries of a question that endpoints are still asked about.
func (s *Engine) endAsked(
	tx *txn, n uint64, e *store.Event, notAsked []telephony.Reply, now time.Time,
) (ended []store.EndedJob, err error) {
	names := s.endpoints.names()
	keys := make([]deliveryKey, len(names))
	for i, name := range names {
		id, _ := s.endpoints.id(name)
		keys[i] = deliveryKey{n, id}
	}
	if err := tx.load(keys...); err != nil {
		return nil, err
	}
	for i, name := range names {
		known := tx.deliveries[keys[i]]
		if !known.exists || !isAsked(known.Delivery) {
			continue
		}
		r := tx.rowsOf(keys[i].endpoint, n, e)
		if at := slices.IndexFunc(notAsked, func(r telephony.Reply) bool { return r.By == name }); at >= 0 {
			r.attempt = &store.Attempt{At: now, Error: notAsked[at].Why, Cause: notAsked[at].Cause}
		}
		d := known.Ended(store.Expired, now)
		store.End(r, n, d, s.rules.Hold)
		if r.Err() != nil {
			return nil, r.Err()
		}
		ended = append(ended, store.EndedJob{
			Job:      store.Job{Number: n, Delivery: d, Event: *e, EventID: e.ID.String()},
			Endpoint: name,
		})
	}
	return ended, nil
}

// Route gives the question where a call should go, nil if it has not asked.
func (s *Engine) Route(ctx context.Context, callID string) (route *telephony.Route, err error) {
	callID = callName(callID)
	err = s.look(ctx, func(tx *txn) error {
		route, err = tx.route(callID)
		return err
	})
	return route, err
}

// ChangeRoute applies a change to a call's route: see store.Routes.
func (s *Engine) ChangeRoute(
	ctx context.Context, callID string, c telephony.RouteChange,
) (result telephony.RouteResult, err error) {
	callID = callName(callID)
	err = s.change(ctx, func(tx *txn) error {
		if err := tx.lockCalls(callID); err != nil {
			return err
		}
		r, err := tx.route(callID)
		if err != nil {
			return err
		}
		if r == nil {
			return telephony.ErrNeverAsked
		}
		result = s.rules.ChangeRoute(r, c)
		tx.putRoute(r)
		return nil
	})
	return result, err
}
