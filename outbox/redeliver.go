package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
)

// Missing is, beside the names of the states, what Redelivery.States calls an event that the endpoint was never to get: it came
// before the endpoint was configured.
const Missing = "missing"

// Redelivery says what to deliver again.
type Redelivery struct {
	Endpoint string
	// Since and Until bound when the bridge read the event: from Since on, before Until. The zero value is no bound.
	Since, Until time.Time
	States       []string              // delivered, expired, dead, Missing; none means all of them
	Types        []telephony.EventType // none means all
	DryRun       bool                  // only count
}

// How asking for deliveries can fail.
var (
	// ErrNotFound means that there is no such delivery, or none any more.
	ErrNotFound = errors.New("there is no such delivery: OUTBOX_RETENTION may have removed it")
	// ErrNoEndpoint means that no endpoint of that name is configured.
	ErrNoEndpoint = errors.New("there is no endpoint of that name")
	// ErrBadState means that a name of a state is none.
	ErrBadState = errors.New("there is no such state")
)

// Redeliver makes one delivery again, whatever became of it, and gives how it stands then. The event keeps its ID, does not expire, and goes behind what is
// pending before it in its call. It fails with ErrNotFound, ErrNoEndpoint or ErrNoURL.
func (o *Outbox) Redeliver(id string) (Delivery, error) {
	eventID, endpoint, whole := strings.Cut(id, ".")
	if !whole {
		return Delivery{}, ErrNotFound
	}
	if err := o.store.takesWebhooks(endpoint); err != nil {
		return Delivery{}, err
	}
	missing := false
	err := o.store.commit(func(tx *txn) error {
		n, known := tx.numberOf(eventID)
		if missing = !known; missing {
			return nil
		}
		return tx.redeliver(tx.queue(endpoint), n, o.opts.OrderHold)
	})
	if err != nil {
		return Delivery{}, err
	}
	if missing {
		return Delivery{}, ErrNotFound
	}
	o.wakeUp()
	d, _, err := o.Delivery(id)
	return d, err
}

// redeliverBatch is how many events one transaction looks at: few enough to stall no delivery.
const redeliverBatch = 256

// RedeliverAll makes many deliveries again, or only counts them, and says how many. Events that come in meanwhile are not among them. It fails with
// ErrNoEndpoint, ErrNoURL or ErrBadState; if the disk fails on the way, what was done until then is done, and counted.
func (o *Outbox) RedeliverAll(ctx context.Context, r Redelivery) (count int, err error) {
	if err := o.store.takesWebhooks(r.Endpoint); err != nil {
		return 0, err
	}
	for _, s := range r.States {
		if s != Missing && (!slices.Contains(stateNames[:], s) || s == pending.String()) {
			return 0, fmt.Errorf("%w as %q: there are delivered, expired, dead and %s", ErrBadState, s, Missing)
		}
	}
	last, err := o.store.lastNumber()
	if err != nil {
		return 0, err
	}
	for from := uint64(0); from <= last; {
		if ctx.Err() != nil {
			return count, ctx.Err()
		}
		var n int
		if n, from, err = o.store.redeliverSome(r, from, last); err != nil {
			return count, err
		}
		if count += n; n > 0 && !r.DryRun {
			o.wakeUp() // what is pending already need not wait until all is
		}
	}
	return count, nil
}

// redeliverSome makes deliveries again among the next events from a number to the last, or only counts
// them, and gives the number to go on from. They are chosen and changed in one transaction, or one that
// ended in between would be sent again for nothing.
func (s *store) redeliverSome(r Redelivery, from, last uint64) (count int, next uint64, err error) {
	endpoint, err := s.endpoint(r.Endpoint)
	if err != nil {
		return 0, 0, err
	}
	choose := func(tx *txn) []uint64 {
		var list []uint64
		list, next = s.matching(tx, r, &endpoint, from, last)
		count = len(list)
		return list
	}
	if r.DryRun {
		err = s.view(func(tx *txn) error {
			choose(tx)
			return nil
		})
		return count, next, err
	}
	err = s.commit(func(tx *txn) error {
		for _, n := range choose(tx) {
			if err := tx.redeliver(tx.queue(r.Endpoint), n, s.hold); err != nil {
				return err
			}
		}
		return nil
	})
	return count, next, err
}

// takesWebhooks fails with ErrNoEndpoint or ErrNoURL.
func (s *store) takesWebhooks(name string) error {
	e, err := s.endpoint(name)
	if err == nil && e.URL == "" {
		err = fmt.Errorf("%w: %q", ErrNoURL, name)
	}
	return err
}

// endpoint gives the endpoint of a name. It fails with ErrNoEndpoint.
func (s *store) endpoint(name string) (Endpoint, error) {
	i := slices.IndexFunc(s.endpoints, func(e Endpoint) bool { return e.Name == name })
	if i < 0 {
		return Endpoint{}, fmt.Errorf("%w: %q", ErrNoEndpoint, name)
	}
	return s.endpoints[i], nil
}

func (s *store) configured(name string) bool {
	_, err := s.endpoint(name)
	return err == nil
}

// lastNumber is the number of the event that was appended last, also if it has been removed.
func (s *store) lastNumber() (n uint64, err error) {
	err = s.view(func(tx *txn) error {
		n = tx.events.Sequence()
		return nil
	})
	return n, err
}

// matching gives, of the next events from a number to the last, those that a redelivery is for, and the number to go on from.
func (s *store) matching(tx *txn, r Redelivery, endpoint *Endpoint, from, last uint64) (list []uint64, next uint64) {
	q := tx.queue(r.Endpoint)
	c := tx.events.Cursor()
	seen := 0
	for k, v := c.Seek(number(from)); k != nil; k, v = c.Next() {
		n := binary.BigEndian.Uint64(k)
		if n > last {
			break
		}
		if seen == readAtOnce || len(list) == redeliverBatch {
			return list, n
		}
		seen++
		e, _, err := decodeEventHead(v)
		if err == nil && r.matches(e) && r.wants(q, n, func() bool { return s.isFor(tx, endpoint, e) }) {
			list = append(list, n)
		}
	}
	return list, last + 1
}

func (r Redelivery) matches(e stored) bool {
	return !e.at.Before(r.Since) && (r.Until.IsZero() || e.at.Before(r.Until)) && (len(r.Types) == 0 || slices.Contains(r.Types, e.kind))
}

// isFor says whether an endpoint would get an event if it came now: not that a call rings which is another's.
func (s *store) isFor(tx *txn, e *Endpoint, event stored) bool {
	if !e.Events.Match(event.kind) {
		return false
	}
	if !rings(event.kind) {
		return true // the route says nothing of it, and need not be read
	}
	route, err := tx.route(event.call)
	if err != nil || route != nil && !route.Covers(event.at) {
		route = nil
	}
	return goesTo(event.kind, e.Name, route, s.endpoints, s.quiet)
}

// wants says whether the delivery stands as the redelivery asks; isFor, whether an event without one is for the endpoint.
func (r Redelivery) wants(q *queue, n uint64, isFor func() bool) bool {
	name := Missing
	if d, _ := q.get(n); d != nil {
		if d.state == pending {
			return false
		}
		name = d.state.String()
	}
	return (len(r.States) == 0 || slices.Contains(r.States, name)) && (name != Missing || isFor())
}

// redeliver makes a delivery pending again, or for the first time, and holds what comes after it in its call and has not been tried yet.
func (tx *txn) redeliver(q *queue, n uint64, hold time.Duration) error {
	e, _, err := decodeEventHead(tx.events.Get(number(n)))
	if err != nil {
		return nil // it cannot be delivered, and nobody can be told but the one who looks at it
	}
	at, before, beforeHistory := tx.neighbour(q, e.call, e.sequence, (*bolt.Cursor).Prev, delivery.isPending)
	old, history := q.get(n)
	if old == nil && q.deliveries.Get(number(n)) != nil { // it is damaged; its place in the due index has to go first
		if before != nil && before.next == n && before.failedAt == 0 { // it was held
			q.pendingNoMore()
		}
		if err := tx.giveUp(q, n, hold); err != nil {
			return err
		}
		old, history = q.get(n)
	}
	var d delivery
	if old != nil {
		d = *old
	}
	d = d.again(before, time.Now(), hold)
	d.next, _, _ = tx.neighbour(q, e.call, e.sequence, (*bolt.Cursor).Next, delivery.isPending)
	if err := q.put(n, old, d, history); err != nil {
		return err
	}
	if err := q.follow(at, before, beforeHistory, n); err != nil {
		return err
	}
	return tx.release(q, d, 0)
}
