package postgres

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// AddRedelivery stores a redelivery of many: see store.Archive.
func (s *Engine) AddRedelivery(
	ctx context.Context, r store.Redelivery, now time.Time,
) (number uint32, err error) {
	state := store.RedeliveryState{Redelivery: r, At: now.UTC()}
	err = s.change(ctx, func(tx *txn) error {
		if err := tx.refuseUntilWhole(); err != nil {
			return err // deliveries that it is for may be among what is copied later
		}
		// A repeated call changes the row of the first one, so that it writes: what the first one
		// has stored may not be safe before.
		_, err := tx.queryRow([]any{&number}, `INSERT INTO redelivery (token, value) VALUES ($1, $2)
			ON CONFLICT (token) DO UPDATE SET value = redelivery.value RETURNING number`, r.Token, state)
		// Numbers may be left out, so those that stay are counted.
		tx.write(`DELETE FROM redelivery WHERE number < (SELECT min(number) FROM (
			SELECT number FROM redelivery ORDER BY number DESC LIMIT $1) newest)`, store.MaxRedeliveries)
		return err
	})
	return number, err
}

// Redeliveries gives the stored redeliveries of many: see store.Archive.
func (s *Engine) Redeliveries(
	ctx context.Context, number uint32, limit int,
) (list []store.RedeliveryState, err error) {
	err = s.view(ctx, func(tx *txn) error {
		if number != 0 {
			state, err := tx.redelivery(number)
			switch {
			case err != nil:
				return err
			case state == nil:
				return store.ErrNoRedelivery
			}
			list = append(list, *state)
			return nil
		}
		return tx.query(func(rows pgx.Rows) error {
			state, err := scanRedelivery(rows)
			list = append(list, state)
			return err
		}, selectRedelivery+` ORDER BY number DESC LIMIT $1`, min(limit, store.MaxRedeliveries))
	})
	return list, err
}

const selectRedelivery = `SELECT number, value FROM redelivery`

func scanRedelivery(rows pgx.Rows) (state store.RedeliveryState, err error) {
	var number uint32
	err = rows.Scan(&number, &state)
	state.Number = number
	return state, err
}

// redelivery gives a redelivery of many, nil if it is not known. In a change it is locked, and what
// is made of it is stored.
func (tx *txn) redelivery(number uint32) (*store.RedeliveryState, error) {
	if err := tx.loadRedeliveries(number); err != nil {
		return nil, err
	}
	return tx.requests[number], nil
}

// loadRedeliveries reads redeliveries of many, as far as they are not known yet. They are locked in
// the order of their numbers, so that no two transactions wait for each other.
func (tx *txn) loadRedeliveries(numbers ...uint32) error {
	var unknown []int64
	for _, number := range numbers {
		if _, read := tx.requests[number]; !read {
			tx.requests[number] = nil
			unknown = append(unknown, int64(number))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	sql := selectRedelivery + ` WHERE number = ANY($1) ORDER BY number`
	if !tx.readOnly {
		sql += ` FOR UPDATE`
	}
	return tx.query(func(rows pgx.Rows) error {
		state, err := scanRedelivery(rows)
		tx.requests[state.Number] = &state
		return err
	}, sql, unknown)
}

// countRedelivered counts what becomes of the changed deliveries that a redelivery of many has
// requested. A pending one that is removed counts as dead.
func (tx *txn) countRedelivered() error {
	changes, numbers := tx.redelivered()
	if err := tx.loadRedeliveries(numbers...); err != nil {
		return err
	}
	for _, c := range changes {
		if state := tx.requests[c.before.Request]; state != nil { // else it is no longer kept
			state.Count(c.before, c.after)
		}
	}
	return nil
}

// redeliveryChange is what has become of a delivery that a redelivery of many has requested.
type redeliveryChange struct{ before, after store.Delivery }

// redelivered returns the changes that count for redeliveries of many, and the numbers of these.
func (tx *txn) redelivered() (changes []redeliveryChange, numbers []uint32) {
	seen := map[uint32]bool{}
	for _, r := range tx.deliveries {
		if !r.changed || !r.wasStored {
			continue
		}
		c := redeliveryChange{r.stored, r.Delivery}
		if !r.exists {
			c.after = r.stored.Ended(store.Dead, time.Time{})
		}
		if store.CountsForRedelivery(c.before, c.after) {
			changes, seen[c.before.Request] = append(changes, c), true
		}
	}
	return changes, slices.Collect(maps.Keys(seen))
}

// flushRedeliveries queues the writes of the redeliveries of many that were read to be changed.
func (tx *txn) flushRedeliveries() error {
	if tx.readOnly {
		return nil
	}
	for number, state := range tx.requests {
		if state == nil {
			continue
		}
		value, err := json.Marshal(state)
		if err != nil {
			return err
		}
		tx.write(`UPDATE redelivery SET value = $2 WHERE number = $1`, int64(number), value)
	}
	return nil
}
