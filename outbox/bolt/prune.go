package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// pruneBatch is how many events one transaction looks at: few enough to stall no delivery.
const pruneBatch = 256

// Prune removes events that are too old, and keys: see store.Upkeep. When the file is nearly full
// it removes younger events too, that nothing waits for. bbolt uses the freed pages again, so under
// a steady load the file stops growing.
func (s *Engine) Prune(ctx context.Context, r store.Retention) (store.Pruned, error) {
	p := pruning{engine: s, Retention: r, givenUp: map[string]int{}}
	err := p.run(ctx)
	if err == nil && s.nearlyFull() {
		p.early, p.MaxAge = true, 0
		if err = p.run(ctx); err == nil && s.nearlyFull() {
			p.latest = true
			err = p.run(ctx)
		}
	}
	if err == nil {
		err = s.pruneKeys()
	}
	return store.Pruned{Events: p.removed, GivenUp: p.givenUp, NearlyFull: s.nearlyFull()}, err
}

// pruning is one or more passes through the events that are old enough.
type pruning struct {
	store.Retention
	engine *Engine
	early  bool // only until there is room again
	// latest says that the latest event of a call goes, too, that may go on: rather its numbering
	// begins again than that nothing can be stored any more.
	latest  bool
	undated [][]byte // keys of events that are as old as the next dated one
	removed int      // events
	givenUp map[string]int
}

func (p *pruning) run(ctx context.Context) error {
	p.undated = nil
	for from := uint64(0); from != pruneDone && ctx.Err() == nil; {
		if p.early && !p.engine.nearlyFull() {
			return nil
		}
		var old [][]byte
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
func (p *pruning) removeAll(keys [][]byte) error {
	removed, givenUp := 0, map[string]int{}
	err := p.engine.commit(func(tx *txn) error {
		removed, givenUp = 0, map[string]int{}
		for _, k := range keys {
			gone, err := p.remove(tx, k, givenUp)
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

// oldEvents gives the keys of the events that may go among the next ones from a number on, and the
// number to go on from. An event that came while the clock was wrong is as old as the next one that
// did not.
func (p *pruning) oldEvents(from uint64) (old [][]byte, next uint64, err error) {
	next = pruneDone
	err = p.engine.view(func(tx *txn) error {
		c := tx.events.Cursor()
		seen := 0
		for k, v := c.Seek(number(from)); k != nil; k, v = c.Next() {
			if len(old) >= pruneBatch || seen == maxRead {
				next = binary.BigEndian.Uint64(k)
				return nil
			}
			seen++
			e, _, err := decodeEventHead(v)
			if err != nil {
				continue // what is damaged stays, so that it can be looked at
			}
			age := p.engine.clock.Age(e.At)
			isUndated := !p.engine.clock.IsDated(e.At) && !p.early
			switch {
			case age < 0: // of the future, until the clock is there again
			case isUndated && !p.isWaitedFor(tx, binary.BigEndian.Uint64(k), e):
				p.undated = append(p.undated, bytes.Clone(k))
			case isUndated:
			case age <= p.MaxAge:
				return nil // and so are all that came later
			case !p.isWaitedFor(tx, binary.BigEndian.Uint64(k), e):
				old, p.undated = append(append(old, p.undated...), bytes.Clone(k)), nil
			default:
				old, p.undated = append(old, p.undated...), nil
			}
		}
		return nil
	})
	return old, next, err
}

// callEndsAfter is after how long without an event a call counts as over, so that its numbering may
// begin again.
const callEndsAfter = 4 * time.Hour

// goesOn reports whether an event is the latest of a call that may go on: the sequence of the next
// one follows from it.
func (p *pruning) goesOn(tx *txn, n uint64, e store.Event) bool {
	if e.Call == "" || e.Type == telephony.EventCompleted || p.engine.clock.Age(e.At) > callEndsAfter {
		return false
	}
	_, last := tx.lastOf(callKey(e.Call))
	return numberAt(last) == n
}

// isWaitedFor reports whether an event has to stay: it would go early while its call goes on, it
// says who has won its call, or an endpoint still waits for it. What waits for an endpoint that is
// configured no longer waits as long as the retention.
func (p *pruning) isWaitedFor(tx *txn, n uint64, e store.Event) bool {
	if p.early && !p.latest && p.goesOn(tx, n, e) {
		return true
	}
	age := p.engine.clock.Age
	if e.Type == telephony.EventTransferRequested {
		r, err := tx.route(e.Call)
		if err == nil && r != nil && r.EventID == e.ID.String() && r.Live(r.AskedAt.Add(age(r.AskedAt))) {
			return true // the winner must be known until the call is over
		}
	}
	for _, name := range tx.names() {
		if !p.early && !p.isConfigured(name) {
			continue
		}
		d, _, ok := tx.queue(name).get(n)
		if ok && d.State == store.Pending && (!p.Abandoned[name] || age(e.At) <= p.AbandonedAge) {
			return true
		}
	}
	return false
}

func (p *pruning) isConfigured(name string) bool {
	return slices.Contains(p.engine.rules.Endpoints, name)
}

// remove removes one event with all that points to it, if it may still go.
func (p *pruning) remove(tx *txn, k []byte, givenUp map[string]int) (bool, error) {
	n := binary.BigEndian.Uint64(k)
	e, _, err := decodeEventHead(tx.events.Get(k))
	if err != nil || p.isWaitedFor(tx, n, e) {
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
		if p.isConfigured(q.name) {
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
