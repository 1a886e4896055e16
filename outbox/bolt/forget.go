package bolt

import (
	"bytes"
	"context"
	"errors"
	"math"

	"pzbridge/outbox/store"
)

// forgetBatch is how many events one transaction forgets: few enough to stall no delivery.
const forgetBatch = 256

// Forget removes the next calls with a number: see store.Upkeep. Removed records stay in free pages
// of the file until these are used again or the file is compacted.
func (s *Engine) Forget(_ context.Context, key string, dryRun bool) (f store.Forgotten, err error) {
	if dryRun {
		err = s.view(func(tx *txn) error {
			f, err = s.countToForget(tx, key)
			return err
		})
		return f, err
	}
	err = s.commit(func(tx *txn) error {
		f, err = s.forgetSome(tx, key)
		return err
	})
	if err == nil {
		s.notifyReaders()
	}
	return f, err
}

// callsOfNumber calls visit for each call with a number, the latest first, until it returns an
// error. Fails with that, or with store.ErrUnindexed.
func (tx *txn) callsOfNumber(key string, visit func(callID string) error) error {
	if decodeNumber(tx.meta.Get(keyNumbered)) != filledWhole {
		return store.ErrUnindexed
	}
	q := store.CallQuery{Key: key, Match: store.KeyEquals}
	known := map[string]bool{}
	for _, n := range tx.numberEntries(q, math.MaxUint64, math.MaxInt) {
		e, _, err := decodeEventHead(tx.events.Get(number(n)))
		if err != nil || known[e.Call] {
			continue
		}
		known[e.Call] = true
		if err := visit(e.Call); err != nil {
			return err
		}
	}
	return nil
}

func (s *Engine) countToForget(tx *txn, key string) (f store.Forgotten, err error) {
	err = tx.callsOfNumber(key, func(callID string) error {
		f.Calls++
		if r, err := tx.route(callID); err == nil && r != nil {
			f.Routes++
		}
		for n := range tx.eventsBackwards(callID) {
			f.Events++
			for _, name := range tx.names() {
				countDelivery(&f, tx.queue(name), n)
			}
		}
		return nil
	})
	return f, err
}

// countDelivery counts a delivery, if there is one.
func countDelivery(f *store.Forgotten, q *queue, n uint64) {
	d, _, ok := q.get(n)
	if !ok {
		return
	}
	f.Deliveries++
	if d.State == store.Pending {
		f.Pending++
	}
}

// errBatchFull ends a look at calls, and is no failure.
var errBatchFull = errors.New("enough for one transaction")

func (s *Engine) forgetSome(tx *txn, key string) (f store.Forgotten, err error) {
	err = tx.callsOfNumber(key, func(callID string) error {
		if f.Events >= forgetBatch {
			f.More = true
			return errBatchFull
		}
		return tx.forgetWholeCall(key, callID, &f)
	})
	if errors.Is(err, errBatchFull) {
		err = nil
	}
	return f, err
}

// forgetWholeCall removes the events of a call that is found by a number, up to the rest of the
// batch.
func (tx *txn) forgetWholeCall(key, callID string, f *store.Forgotten) error {
	place := callKey(callID)
	hadRoute := tx.routes.Get(place) != nil
	numbers := tx.nextToForget(key, callID, forgetBatch-f.Events)
	for _, n := range numbers {
		e, _, err := decodeEventHead(tx.events.Get(number(n)))
		if err != nil {
			continue
		}
		for _, name := range tx.names() {
			countDelivery(f, tx.queue(name), n)
			if err := tx.queue(name).remove(n); err != nil {
				return err
			}
		}
		if err := errors.Join(tx.questions.Delete(number(n)), tx.removeEvent(n, e)); err != nil {
			return err
		}
		f.Events++
	}
	if sequence, _ := tx.lastOf(bytes.Clone(place)); sequence != 0 {
		f.More = f.More || len(numbers) > 0 // else what is left of it is damaged
		return nil
	}
	f.Calls++
	if hadRoute {
		f.Routes++
	}
	return tx.routes.Delete(place)
}

// nextToForget gives the events of a call to be removed next, limit at most, the latest first.
// Those by which the call is found by the number come last of all: the number may have joined the
// call late, and what is left of it must be found by the next transaction.
func (tx *txn) nextToForget(key, callID string, limit int) (numbers []uint64) {
	var indexed []uint64
	for n := range tx.eventsBackwards(callID) {
		if tx.numbers.Get(numberKey([]byte(key), n)) != nil {
			indexed = append(indexed, n)
			continue
		}
		if len(numbers) == limit {
			return numbers
		}
		numbers = append(numbers, n)
	}
	return append(numbers, indexed[:min(len(indexed), limit-len(numbers))]...)
}
