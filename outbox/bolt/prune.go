package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"math"
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// pruneBatch is how many events one transaction looks at: few enough to stall no delivery.
const pruneBatch = 256

// Prune removes events that are too old, keys and notes: see store.Upkeep. When the file is nearly
// full it removes younger events too, that nothing waits for. bbolt uses the freed pages again, so
// under a steady load the file stops growing.
func (s *Engine) Prune(ctx context.Context, r store.Retention) (store.Pruned, error) {
	p := pruning{engine: s, givenUp: map[string]int{}}
	pass := store.Pruning{Retention: r, Endpoints: s.rules.Endpoints, Age: s.clock.Age, IsDated: s.clock.IsDated}
	err := p.run(ctx, pass)
	for _, latest := range []bool{false, true} {
		if err == nil && s.nearlyFull() {
			err = p.run(ctx, pass.Sooner(latest))
		}
	}
	if err == nil {
		err = errors.Join(s.pruneKeys(), s.pruneNotes())
	}
	return store.Pruned{Events: p.removed, GivenUp: p.givenUp, NearlyFull: s.nearlyFull()}, err
}

// pruning is one or more passes through the events that are old enough.
type pruning struct {
	store.Pruning
	engine  *Engine
	removed int // events
	givenUp map[string]int
}

func (p *pruning) run(ctx context.Context, pass store.Pruning) error {
	p.Pruning = pass
	for from := uint64(0); from != pruneDone && ctx.Err() == nil; {
		if p.Early && !p.engine.nearlyFull() {
			return nil
		}
		var old []uint64
		var err error
		old, from, err = p.oldEvents(from)
		if err != nil {
			return err
		}
		for batch := range slices.Chunk(old, pruneBatch) {
			if err := p.removeAll(batch); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeAll removes events, those that may still go, in one transaction.
func (p *pruning) removeAll(numbers []uint64) error {
	removed, givenUp := 0, map[string]int{}
	err := p.engine.commit(func(tx *txn) error {
		removed, givenUp = 0, map[string]int{}
		for _, n := range numbers {
			gone, err := p.remove(tx, n, givenUp)
			if err != nil {
				return err
			}
			if gone {
				removed++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.removed += removed
	for name, n := range givenUp {
		p.givenUp[name] += n
	}
	return nil
}

// pruneDone stands for the event after the last one that is old enough.
const pruneDone = uint64(math.MaxUint64)

// oldEvents gives the events that may go among the next ones from a number on, and the number to go
// on from.
func (p *pruning) oldEvents(from uint64) (old []uint64, next uint64, err error) {
	next = pruneDone
	err = p.engine.view(func(tx *txn) error {
		c := tx.events.Cursor()
		seen := 0
		for k, v := c.Seek(number(from)); k != nil; k, v = c.Next() {
			n := binary.BigEndian.Uint64(k)
			if len(old) >= pruneBatch || seen == maxRead {
				next = n
				return nil
			}
			seen++
			e, _, err := decodeEventHead(v)
			if err != nil {
				continue // what is damaged stays, so that it can be looked at
			}
			gone, done := p.Next(n, &e, &storedEvent{tx, n, &e})
			if old = append(old, gone...); done {
				return nil
			}
		}
		return nil
	})
	return old, next, err
}

// storedEvent is what is stored about an event that may go: a store.Stored.
type storedEvent struct {
	tx *txn
	n  uint64
	e  *store.Event
}

// IsLatest reports whether it is the latest event of its call.
func (e *storedEvent) IsLatest() bool { return e.tx.isLatest(e.e, e.n) }

// Route gives the route of its call.
func (e *storedEvent) Route() *telephony.Route {
	r, err := e.tx.route(e.e.Call)
	if err != nil {
		return nil
	}
	return r
}

// Pending gives the endpoints to which its delivery is pending.
func (e *storedEvent) Pending() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, name := range e.tx.names() {
			d, _, ok := e.tx.queue(name).get(e.n)
			if ok && d.State == store.Pending && !yield(name) {
				return
			}
		}
	}
}

// remove removes one event with all that points to it, if it may still go.
func (p *pruning) remove(tx *txn, n uint64, givenUp map[string]int) (bool, error) {
	e, _, err := decodeEventHead(tx.events.Get(number(n)))
	if err != nil || p.IsWaitedFor(&e, &storedEvent{tx, n, &e}) {
		return false, nil
	}
	for _, name := range tx.names() {
		if err := p.removeDelivery(tx.queue(name), n, &e, givenUp); err != nil {
			return false, err
		}
	}
	if n > decodeNumber(tx.meta.Get(keyPruned)) {
		if err := tx.meta.Put(keyPruned, number(n)); err != nil {
			return false, err
		}
	}
	return true, tx.removeEvent(n, e)
}

// removeEvent removes an event whose deliveries are removed, with all that refers to it.
func (tx *txn) removeEvent(n uint64, e store.Event) error {
	place := binary.BigEndian.AppendUint64(callKey(e.Call), e.Sequence)
	entry := callEntry(bytes.Clone(tx.calls.Get(place)))
	return errors.Join(
		tx.forgetRoute(e),
		tx.calls.Delete(place),
		tx.unindexNumbers(n, entry, place),
		tx.forgetCall(e.Call),
		tx.ids.Delete(e.ID[:]),
		tx.events.Delete(number(n)),
	)
}

func (p *pruning) removeDelivery(q *queue, n uint64, e *store.Event, givenUp map[string]int) error {
	d, _, ok := q.get(n)
	if !ok {
		return nil
	}
	if d.State == store.Pending {
		if slices.Contains(p.Endpoints, q.name) {
			givenUp[q.name]++
		}
		r, now := q.rowsAt(n, e.Call, e.Sequence, 0), time.Now()
		store.Release(r, d.Ended(store.Dead, now), 0)
		if err := r.finish(now, 0); err != nil {
			return err
		}
	}
	return q.remove(n)
}

// forgetRoute removes what is kept of a call's question with the event that has asked it.
func (tx *txn) forgetRoute(e store.Event) error {
	if e.Type != telephony.EventTransferRequested {
		return nil
	}
	if r, err := tx.route(e.Call); err == nil && (r == nil || r.EventID != e.ID.String()) {
		return nil
	}
	return tx.routes.Delete(callKey(e.Call))
}
