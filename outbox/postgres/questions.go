package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TakeQuestions takes the questions that no living process asks, and gives the numbers of all that
// this one asks: see store.Questions.
func (s *Engine) TakeQuestions(ctx context.Context) (list []uint64, err error) {
	err = s.change(ctx, func(tx *txn) error {
		list = nil
		abandoned, err := tx.takeAbandoned()
		if err != nil || !abandoned {
			return err
		}
		return tx.query(func(rows pgx.Rows) error {
			var n uint64
			err := rows.Scan(&n)
			list = append(list, n)
			return err
		}, `SELECT n FROM question WHERE owner = $1 ORDER BY n`, s.id)
	})
	return list, err
}

// takeAbandoned takes the questions whose owners do not live, and reports whether this process asks
// any then. They are taken by compare and set on the owner: another process may take them too.
func (tx *txn) takeAbandoned() (any bool, err error) {
	var numbers []int64
	var owners []uuid.UUID
	err = tx.query(func(rows pgx.Rows) error {
		var n int64
		var owner uuid.UUID
		var isMine bool
		err := rows.Scan(&n, &owner, &isMine)
		if any = true; !isMine {
			numbers, owners = append(numbers, n), append(owners, owner)
		}
		return err
	}, `SELECT n, owner, owner = $1 FROM question
		WHERE owner = $1 OR NOT EXISTS (SELECT FROM process WHERE id = owner) ORDER BY n`, tx.engine.id)
	if err != nil || len(numbers) == 0 {
		return any, err
	}
	return any, tx.query(func(pgx.Rows) error { return nil }, `UPDATE question SET owner = $1
		FROM unnest($2::bigint[], $3::uuid[]) AS seen(n, owner)
		WHERE question.n = seen.n AND question.owner = seen.owner`, tx.engine.id, numbers, owners)
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
	err := s.record(ctx, id, pointers(results), true)
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
		isTaken, err := tx.queryRow(nil, `SELECT FROM question WHERE n = $1 AND owner <> $2`, int64(n), s.id)
		if err != nil || isTaken { // then another process goes on with it
			return err
		}
		tx.write(`DELETE FROM question WHERE n = $1`, int64(n))
		if !known {
			return nil
		}
		e.Body = nil
		tx.touchForOthers()
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

// UnwrittenTransfers gives the routes that were decided and left to a connected bridge: see
// store.Shared.
func (s *Engine) UnwrittenTransfers(ctx context.Context, now time.Time) (list []telephony.Route, err error) {
	err = s.look(ctx, func(tx *txn) error {
		list = nil
		return tx.query(func(rows pgx.Rows) error {
			var value []byte
			if err := rows.Scan(&value); err != nil {
				return err
			}
			var route telephony.Route
			if err := json.Unmarshal(value, &route); err == nil {
				list = append(list, route)
			}
			return nil
		}, `SELECT value FROM route WHERE write_by > $1 AND write_by > 0 ORDER BY write_by LIMIT 100`, now.UnixNano())
	})
	return list, err
}
