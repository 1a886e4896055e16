package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/clock"
	"pzbridge/internal/telephony"
)

const (
	// pruneEvery is how often the outbox looks for what is too old.
	pruneEvery = time.Minute
	// crowdedAgain is how long it does not look for what can go early after it has found nothing.
	crowdedAgain = 10 * time.Second
	// pruneBatch is how many events one transaction looks at: few enough to stall no delivery.
	pruneBatch = 256
)

// prune removes, until ctx ends, events that are older than the retention and that no endpoint waits for any more; when the file is nearly full,
// also younger ones. bbolt uses the freed pages again, so under a steady load the file stops growing.
func (o *Outbox) prune(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	var fruitless time.Time // when it last found nothing that can go early
	last := time.Now()      // pass
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-o.crowded:
			if time.Since(fruitless) < crowdedAgain {
				continue
			}
		}
		p := pruning{store: o.store, clock: o.opts.Clock, maxAge: o.opts.Retention}
		p.abandoned, p.abandonedAge = o.abandoned(time.Since(last)), o.opts.Retention+lifespan(o.opts.RetrySchedule)
		last = time.Now()
		err := p.run(ctx)
		if err == nil && o.store.nearlyFull() {
			p.early, p.maxAge = true, 0
			if err = p.run(ctx); err == nil && o.store.nearlyFull() {
				p.latest = true
				err = p.run(ctx)
			}
			if p.removed == 0 {
				fruitless = time.Now()
			}
		}
		if err == nil {
			err = o.store.pruneKeys()
		}
		if err != nil {
			o.trouble.Failed("old events cannot be removed from the outbox", err)
			continue
		}
		o.trouble.Recovered("old events are removed again")
		if p.removed > 0 {
			o.opts.Logger.Debug("old events removed from the outbox", "events", p.removed)
		}
		if len(p.given) > 0 {
			o.wakeUp() // they may have held what can go now
		}
		for name, n := range p.given {
			o.opts.Observer.GivenUp(name, n)
			o.opts.Logger.Error("events were given up: their endpoint has been failing for longer than OUTBOX_RETENTION", "endpoint", name, "deliveries", n)
		}
	}
}

// keyFailing holds, among what belongs to an endpoint, for how long it has been failing, in
// nanoseconds that have passed while the bridge ran: a clock that is set adds nothing to it, nor does
// a time in which the bridge was down and could not know.
var keyFailing = []byte("failing")

// abandoned gives the endpoints that have been failing for longer than the retention and the whole
// schedule together. What has waited for one for that long is given up: an endpoint that never returns
// must not fill the disk. Passed is the time since this was asked last. Where the file cannot be
// written, nobody is abandoned.
func (o *Outbox) abandoned(passed time.Duration) map[string]bool {
	list := map[string]bool{}
	for _, l := range o.lanes {
		failing, succeeded := l.currentHealth().failing, l.succeeded.Swap(false)
		if !failing && !succeeded {
			continue
		}
		total, err := o.store.failingFor(l.endpoint.Name, failing, succeeded, passed)
		if err != nil {
			o.trouble.Failed("for how long endpoints have been failing cannot be recorded", err)
		}
		list[l.endpoint.Name] = err == nil && total > o.opts.Retention+lifespan(o.opts.RetrySchedule)
	}
	return list
}

// failingFor adds to the time for which an endpoint has been failing, or begins it anew where it has
// succeeded, and gives it.
func (s *store) failingFor(endpoint string, failing, succeeded bool, passed time.Duration) (total time.Duration, err error) {
	root := func(tx *txn) *bolt.Bucket { return tx.queue(endpoint).root }
	err = s.view(func(tx *txn) error {
		total = time.Duration(decodeNumber(root(tx).Get(keyFailing)))
		return nil
	})
	switch {
	case err != nil:
		return 0, err
	case succeeded && total == 0 && !failing:
		return 0, nil
	case succeeded:
		total = 0
	}
	if failing {
		total += passed
	}
	return total, s.commit(func(tx *txn) error { return root(tx).Put(keyFailing, number(uint64(total))) })
}

// pruning is one pass through the events that are old enough.
type pruning struct {
	store        *store
	clock        *clock.Clock
	maxAge       time.Duration   // events that are older may go
	early        bool            // only until there is room again
	latest       bool            // also the latest event of a call that may go on: rather its numbering begins anew than that nothing is taken any more
	abandoned    map[string]bool // endpoints: what is older than abandonedAge does not wait for them any more
	abandonedAge time.Duration
	undated      [][]byte       // keys of events that are as old as the next dated one
	removed      int            // events
	given        map[string]int // deliveries that were pending, by endpoint
}

func (p *pruning) run(ctx context.Context) error {
	if p.given == nil {
		p.given = map[string]int{}
	}
	p.undated = nil
	for from := uint64(0); from != pruneDone && ctx.Err() == nil; {
		if p.early && !p.store.nearlyFull() {
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
	removed, given := 0, map[string]int{}
	err := p.store.commit(func(tx *txn) error {
		removed, given = 0, map[string]int{}
		for _, k := range keys {
			gone, err := p.prune(tx, k, given)
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
	for name, n := range given {
		p.given[name] += n
	}
	return nil
}

// pruneDone stands for the event after the last one that is old enough.
const pruneDone = uint64(math.MaxUint64)

// oldEvents gives the keys of the events that may go among the next ones from a number on, and the
// number to go on from. An event that came while the clock was wrong is as old as the next one that did
// not.
func (p *pruning) oldEvents(from uint64) (old [][]byte, next uint64, err error) {
	next = pruneDone
	err = p.store.view(func(tx *txn) error {
		c := tx.events.Cursor()
		seen := 0
		for k, v := c.Seek(number(from)); k != nil; k, v = c.Next() {
			if len(old) >= pruneBatch || seen == readAtOnce {
				next = binary.BigEndian.Uint64(k)
				return nil
			}
			seen++
			e, _, err := decodeEventHead(v)
			if err != nil {
				continue // what is damaged stays for somebody to look at
			}
			age := p.clock.Age(e.at)
			isUndated := !p.clock.IsDated(e.at) && !p.early
			switch {
			case age < 0: // of the future, until the clock is there again
			case isUndated && !p.waitedFor(tx, binary.BigEndian.Uint64(k), e):
				p.undated = append(p.undated, bytes.Clone(k))
			case isUndated:
			case age <= p.maxAge:
				return nil // and so are all that came later
			case !p.waitedFor(tx, binary.BigEndian.Uint64(k), e):
				old, p.undated = append(append(old, p.undated...), bytes.Clone(k)), nil
			default:
				old, p.undated = append(old, p.undated...), nil
			}
		}
		return nil
	})
	return old, next, err
}

// goesOnFor is after how long without an event a call counts as over, so that its numbering may begin anew.
const goesOnFor = 4 * time.Hour

// goesOn says whether an event is the latest of a call that may go on: the sequence of the next one follows from it, and must not begin anew.
func (p *pruning) goesOn(tx *txn, n uint64, e stored) bool {
	if e.call == "" || e.kind == telephony.EventCompleted || p.clock.Age(e.at) > goesOnFor {
		return false
	}
	_, last := tx.lastOf(callKey(e.call))
	return last == n
}

// waitedFor says whether an event has to stay: it would go early while its call goes on, it says who has won its call, or an endpoint still waits for it. What
// waits for an endpoint that is configured no longer waits as long as the retention.
func (p *pruning) waitedFor(tx *txn, n uint64, e stored) bool {
	if p.early && !p.latest && p.goesOn(tx, n, e) {
		return true
	}
	if e.kind == telephony.EventTransferRequested {
		if r, err := tx.route(e.call); err == nil && r != nil && r.EventID == e.id.String() && r.Live(r.AskedAt.Add(p.clock.Age(r.AskedAt))) {
			return true // who has won it must be known until the call is over
		}
	}
	for _, name := range tx.names() {
		if !p.early && !p.store.configured(name) {
			continue
		}
		d, _ := tx.queue(name).get(n)
		if d != nil && d.state == pending && (!p.abandoned[name] || p.clock.Age(e.at) <= p.abandonedAge) {
			return true
		}
	}
	return false
}

// prune removes one event with all that points to it, if it may still go.
func (p *pruning) prune(tx *txn, k []byte, given map[string]int) (bool, error) {
	n := binary.BigEndian.Uint64(k)
	e, _, err := decodeEventHead(tx.events.Get(k))
	if err != nil || p.waitedFor(tx, n, e) {
		return false, nil
	}
	for _, name := range tx.names() {
		q := tx.queue(name)
		d, _ := q.get(n)
		if d == nil {
			continue
		}
		if d.state == pending {
			if p.store.configured(name) {
				given[name]++
			}
			if err := tx.release(q, d.ended(dead, time.Now()), 0); err != nil {
				return false, err
			}
		}
		if err := q.remove(n); err != nil {
			return false, err
		}
	}
	if n > decodeNumber(tx.meta.Get(keyPruned)) {
		if err := tx.meta.Put(keyPruned, number(n)); err != nil {
			return false, err
		}
	}
	return true, errors.Join(
		tx.forgetRoute(e),
		tx.calls.Delete(binary.BigEndian.AppendUint64(callKey(e.call), e.sequence)),
		tx.ids.Delete(e.id[:]),
		tx.events.Delete(k),
	)
}

// forgetRoute removes what is kept of a call's question with the event that has asked it.
func (tx *txn) forgetRoute(e stored) error {
	if e.kind != telephony.EventTransferRequested {
		return nil
	}
	if r, err := tx.route(e.call); err == nil && (r == nil || r.EventID != e.id.String()) {
		return nil
	}
	return tx.routes.Delete(callKey(e.call))
}
