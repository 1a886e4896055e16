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

// Redeliver makes one delivery pending again: see store.Archive.
func (s *Engine) Redeliver(ctx context.Context, eventID, endpoint string, now time.Time) error {
	id, known := s.endpoints.id(endpoint)
	if !known {
		return store.ErrNotFound
	}
	return s.change(ctx, func(tx *txn) error {
		n, known, err := tx.numberOf(eventID)
		if err != nil {
			return err
		}
		if !known {
			return store.ErrNotFound
		}
		events, err := tx.lockToRedeliver(id, []uint64{n})
		if err != nil {
			return err
		}
		if len(events) == 0 { // it was removed meanwhile
			return store.ErrNotFound
		}
		return tx.redeliver(id, &events[0], now, 0)
	})
}

const (
	// redeliverBatch is how many events one transaction makes again: few enough to stall no
	// delivery.
	redeliverBatch = 256
	// redeliverLook is how many events one transaction looks at.
	redeliverLook = 1024
)

// RedeliverSome makes the next few deliveries again that a selection is for: see store.Archive.
func (s *Engine) RedeliverSome(
	ctx context.Context, r store.Redelivery, from, last uint64, now time.Time,
) (count int, next uint64, err error) {
	id, known := s.endpoints.id(r.Endpoint)
	if !known {
		return 0, 0, fmt.Errorf("%w: %q", store.ErrNoEndpoint, r.Endpoint)
	}
	m := matching{Redelivery: r, endpoint: id}
	if r.DryRun {
		err = s.view(ctx, func(tx *txn) error {
			if err := tx.refuseUntilWhole(); err != nil {
				return err
			}
			list, err := m.find(tx, from, last)
			count = len(list)
			return err
		})
		return count, m.next, err
	}
	err = s.change(ctx, func(tx *txn) error {
		list, err := m.find(tx, from, last)
		if err != nil {
			return err
		}
		if count, err = m.redeliver(tx, list, now); err != nil {
			return err
		}
		state, err := tx.redelivery(r.Number)
		if state != nil {
			state.Chosen += count
			state.Whole = m.next > last
		}
		return err
	})
	return count, m.next, err
}

// matching finds the deliveries that a redelivery is for.
type matching struct {
	store.Redelivery
	endpoint int16
	next     uint64 // the number to go on from
}

const (
	// nextStates reads the next events, each with the state of its delivery, -1 if there is none.
	nextStates = `SELECT ` + eventColumns + `, coalesce(
			(SELECT 0 FROM pending p WHERE p.n = e.n AND p.endpoint = $1),
			(SELECT d.state FROM ended d WHERE d.endpoint = $1 AND d.n = e.n), -1)
		FROM event e WHERE e.n BETWEEN $2 AND $3 ORDER BY e.n LIMIT $4`
	// nextFailed reads the next events of which the delivery is in one of some states, others than
	// delivered, however many events lie between them. Rows are compared, and sorted by the state
	// as well, since no other index has them in that order; the offset keeps the join as it is
	// written.
	nextFailed = `SELECT ` + eventColumns + `, d.state FROM unnest($5::smallint[]) AS s(state) CROSS JOIN LATERAL (
			SELECT n, state FROM ended WHERE ended.endpoint = $1 AND ended.state <> 1
			AND (ended.state, ended.n) BETWEEN (s.state, $2) AND (s.state, $3) ORDER BY ended.state, ended.n LIMIT $4) d
		CROSS JOIN LATERAL (SELECT * FROM event WHERE event.n = d.n OFFSET 0) e ORDER BY e.n LIMIT $4`
)

// failedStates are the states that the redelivery is for, if an index has all of them.
func (m *matching) failedStates() (states []int16, ok bool) {
	for _, name := range m.States {
		state := slices.Index(store.StateNames[:], name)
		if state <= int(store.Delivered) {
			return nil, false
		}
		states = append(states, int16(state))
	}
	return states, len(states) > 0
}

// choice is an event with its delivery as it stands.
type choice struct {
	tailEvent
	delivery record
}

// find gives, of the next events from a number to the last, those that the redelivery is for.
func (m *matching) find(tx *txn, from, last uint64) (list []uint64, err error) {
	choices, err := m.look(tx, from, last)
	if err != nil {
		return nil, err
	}
	if err := m.loadRoutes(tx, choices); err != nil {
		return nil, err
	}
	for i := range choices {
		c := &choices[i]
		if len(list) == redeliverBatch {
			m.next = c.n
			break
		}
		if m.wants(tx, &c.Event, &c.delivery) {
			list = append(list, c.n)
		}
	}
	return list, nil
}

// look reads the next events from a number to the last that the redelivery may be for.
func (m *matching) look(tx *txn, from, last uint64) (list []choice, err error) {
	m.next = last + 1
	sql, limit := nextStates, redeliverLook
	args := []any{m.endpoint, int64(from), int64(last), limit}
	if states, ok := m.failedStates(); ok {
		sql, limit = nextFailed, redeliverBatch
		args = []any{m.endpoint, int64(from), int64(last), limit, states}
	}
	seen := 0
	err = tx.query(func(rows pgx.Rows) error {
		var c choice
		var state int16
		var err error
		c.tailEvent, err = scanEvent(rows, &state)
		if c.delivery.exists = state >= 0; c.delivery.exists {
			c.delivery.State = store.State(state)
		}
		if m.Matches(c.Event) {
			list = append(list, c)
		}
		if seen++; seen == limit {
			m.next = c.n + 1
		}
		return err
	}, sql, args...)
	return list, err
}

// loadRoutes reads the routes of the calls whose events may be missing at the endpoint.
func (m *matching) loadRoutes(tx *txn, list []choice) error {
	calls := map[string]bool{}
	for i := range list {
		if c := &list[i]; !c.delivery.exists && c.Call != "" {
			calls[c.Call] = true
		}
	}
	if len(calls) == 0 {
		return nil
	}
	return tx.read(func(b *pgx.Batch) { tx.queueRoutes(b, sortedKeys(calls)) })
}

// redeliver makes deliveries pending again, those that the redelivery is still for.
func (m *matching) redeliver(tx *txn, numbers []uint64, now time.Time) (count int, err error) {
	events, err := tx.lockToRedeliver(m.endpoint, numbers)
	if err != nil {
		return 0, err
	}
	for i := range events {
		e := &events[i]
		if !m.wants(tx, &e.Event, tx.deliveries[deliveryKey{e.n, m.endpoint}]) {
			continue
		}
		if err := tx.redeliver(m.endpoint, e, now, m.Number); err != nil {
			return 0, err
		}
		count++
	}
	return count, nil
}

// wants reports whether a delivery stands as the redelivery asks.
func (m *matching) wants(tx *txn, e *store.Event, d *record) bool {
	return tx.engine.rules.Wants(&m.Redelivery, e, d.Delivery, d.exists, func() *telephony.Route {
		if r := tx.routes[e.Call]; r != nil {
			return r.route
		}
		return nil
	})
}

// lockToRedeliver takes the locks of events, and reads those that are still there, with what the
// rules of order need.
func (tx *txn) lockToRedeliver(endpoint int16, numbers []uint64) (list []tailEvent, err error) {
	calls, err := tx.lockEvents(numbers)
	if err != nil {
		return nil, err
	}
	then := func() error { return nil }
	err = tx.read(func(b *pgx.Batch) {
		each(b.Queue(`SELECT `+eventColumns+` FROM event e WHERE e.n = ANY($1) ORDER BY e.n`, signed(numbers)),
			func(rows pgx.Rows) error {
				e, err := scanEvent(rows)
				list = append(list, e)
				return err
			})
		if len(calls) > 0 {
			then = tx.queueTails(b, calls, tailSize)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := then(); err != nil {
		return nil, err
	}
	keys := make([]deliveryKey, len(list))
	for i, e := range list {
		keys[i] = deliveryKey{e.n, endpoint}
	}
	return list, tx.load(keys...)
}

// redeliver makes a delivery pending again, or for the first time.
func (tx *txn) redeliver(endpoint int16, e *tailEvent, now time.Time, request uint32) error {
	tx.touch()
	r := tx.rowsOf(endpoint, e.n, &e.Event)
	store.Redeliver(r, e.n, now, tx.engine.rules.Hold, request)
	return r.Err()
}
