package bolt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"time"

	"pzbridge/outbox/store"
)

// AddRedelivery stores a redelivery of many: see store.Archive.
func (s *Engine) AddRedelivery(_ context.Context, r store.Redelivery, now time.Time) (number uint32, err error) {
	err = s.commit(func(tx *txn) error {
		number, err = tx.addRedelivery(r, now)
		return err
	})
	return number, err
}

func (tx *txn) addRedelivery(r store.Redelivery, now time.Time) (number uint32, err error) {
	const recent = 16 // requests, among which a repeated one is looked for
	c := tx.requests.Cursor()
	k, v := c.Last()
	for i := 0; k != nil && i < recent; i++ {
		var known store.RedeliveryState
		if json.Unmarshal(v, &known) == nil && known.Token == r.Token {
			return known.Number, nil
		}
		k, v = c.Prev()
	}
	next, err := tx.requests.NextSequence()
	if err != nil {
		return 0, err
	}
	r.Number = uint32(next)
	tx.states[r.Number] = &store.RedeliveryState{Redelivery: r, At: now.UTC()}
	if r.Number <= store.MaxRedeliveries {
		return r.Number, nil
	}
	oldest := r.Number - store.MaxRedeliveries
	tx.states[oldest] = nil // or it would be written again: see putRedeliveries
	return r.Number, tx.requests.Delete(requestKey(oldest))
}

func requestKey(number uint32) []byte { return binary.BigEndian.AppendUint32(nil, number) }

// Redeliveries gives the stored redeliveries of many: see store.Archive.
func (s *Engine) Redeliveries(
	_ context.Context, number uint32, limit int,
) (list []store.RedeliveryState, err error) {
	err = s.view(func(tx *txn) error {
		if number != 0 {
			state := tx.redelivery(number)
			if state == nil {
				return store.ErrNoRedelivery
			}
			list = append(list, *state)
			return nil
		}
		c := tx.requests.Cursor()
		for k, v := c.Last(); k != nil && len(list) < limit; k, v = c.Prev() {
			var state store.RedeliveryState
			if json.Unmarshal(v, &state) == nil {
				list = append(list, state)
			}
		}
		return nil
	})
	return list, err
}

// redelivery gives a redelivery of many to be changed in this transaction, nil if it is not known.
func (tx *txn) redelivery(number uint32) *store.RedeliveryState {
	if state, read := tx.states[number]; read {
		return state
	}
	var state *store.RedeliveryState
	if v := tx.requests.Get(requestKey(number)); v != nil {
		state = &store.RedeliveryState{}
		if json.Unmarshal(v, state) != nil {
			state = nil
		}
	}
	tx.states[number] = state
	return state
}

// countRedelivered counts what becomes of a delivery that a redelivery of many has requested.
func (tx *txn) countRedelivered(before, after store.Delivery) {
	if !store.CountsForRedelivery(before, after) {
		return
	}
	if state := tx.redelivery(before.Request); state != nil { // else it is no longer kept
		state.Count(before, after)
	}
}

// putRedeliveries writes the redeliveries of many that were read to be changed.
func (tx *txn) putRedeliveries() error {
	for number, state := range tx.states {
		if state == nil {
			continue
		}
		v, err := json.Marshal(state)
		if err != nil {
			return err
		}
		if err := tx.requests.Put(requestKey(number), v); err != nil {
			return err
		}
	}
	return nil
}
