package postgres

import (
	"context"
	"errors"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

const (
	// pruneBatch is how many events one transaction removes: few enough to stall no delivery.
	pruneBatch = 256
	// maxPruneLook is how many events one transaction looks at. A look begins with a batch, since
	// most often all that it looks at may go, and grows while nothing may.
	maxPruneLook = 4096
)

// Prune removes events that are too old, keys and notes: see store.Upkeep. When the events take
// nearly as much as they may, it removes younger ones too, that nothing waits for.
func (s *Engine) Prune(ctx context.Context, r store.Retention) (store.Pruned, error) {
	if isMine, err := s.takeLeaseOfPrune(ctx); err != nil || !isMine {
		return store.Pruned{}, err
	}
	p := pruning{engine: s, givenUp: map[string]int{}}
	endpoints := s.shared.now.Load().Endpoints // of all bridges
	pass := store.Pruning{Retention: r, Endpoints: endpoints, Age: s.clock.Age, IsDated: s.clock.IsDated}
	isFull, err := p.run(ctx, pass)
	for _, latest := range []bool{false, true} {
		if err == nil && isFull {
			isFull, err = p.run(ctx, pass.Sooner(latest))
		}
	}
	if err == nil {
		err = errors.Join(s.pruneKeys(ctx), s.pruneNotes(ctx), s.pruneRemoved(ctx))
	}
	if ctx.Err() != nil {
		err = nil // it was to end
	}
	return store.Pruned{Events: p.removed, GivenUp: p.givenUp, NearlyFull: isFull}, err
}

// pruneWait is how long a process waits for the removal of old events. If it is free, that takes
// one look.
const pruneWait = time.Second

// takeLeaseOfPrune takes the removal of old events for this process, which then keeps it. It
// reports whether this process has it.
func (s *Engine) takeLeaseOfPrune(ctx context.Context) (isMine bool, err error) {
	if s.presence.leases.has(leasePrune) {
		return s.Held().Err() == nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, pruneWait)
	defer cancel()
	lease, err := s.Take(ctx, leasePrune)
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // another process has it
	}
	return lease != nil, err
}

func (s *Engine) isNearlyFull(ctx context.Context) (bool, error) {
	used, _, err := s.Usage(ctx)
	return err == nil && s.nearlyFull(used), err
}

// pruning is one or more passes through the events that are old enough.
type pruning struct {
	store.Pruning
	engine  *Engine
	removed int // events
	givenUp map[string]int
}

// run makes one pass, an early one only until there is room again, and reports whether the engine
// is nearly full after it.
func (p *pruning) run(ctx context.Context, pass store.Pruning) (isFull bool, err error) {
	p.Pruning = pass
	limit := pruneBatch
	for from := uint64(0); from != pruneDone; {
		old, next, err := p.oldEvents(ctx, from, limit)
		if err != nil {
			return false, err
		}
		for batch := range slices.Chunk(old, pruneBatch) {
			if err := p.removeAll(ctx, batch); err != nil {
				return false, err
			}
		}
		if from = next; len(old) == 0 {
			limit = min(2*limit, maxPruneLook)
		}
		if p.Early {
			if isFull, err := p.engine.isNearlyFull(ctx); err != nil || !isFull {
				return isFull, err
			}
		}
	}
	return p.engine.isNearlyFull(ctx)
}

// pruneDone stands for the event after the last one that is old enough.
const pruneDone = uint64(math.MaxUint64)

// oldEvents gives the events that may go among the next ones from a number on, and the number to go
// on from.
func (p *pruning) oldEvents(ctx context.Context, from uint64, limit int) (old []uint64, next uint64, err error) {
	err = p.engine.view(ctx, func(tx *txn) error {
		list, err := tx.storedEvents(p.Early, ` WHERE e.n >= $2 ORDER BY e.n LIMIT $3`, int64(from), limit)
		if err != nil {
			return err
		}
		next = pruneDone
		if len(list) == limit {
			next = list[limit-1].n + 1
		}
		for _, e := range list {
			gone, done := p.Next(e.n, &e.Event, e)
			if old = append(old, gone...); done {
				next = pruneDone
				break
			}
		}
		return nil
	})
	return old, next, err
}

// removeAll removes events, those that may still go, in one transaction.
func (p *pruning) removeAll(ctx context.Context, numbers []uint64) error {
	removed, givenUp := 0, map[string]int{}
	err := p.engine.change(ctx, func(tx *txn) error {
		removed, givenUp = 0, map[string]int{}
		if _, err := tx.lockEvents(numbers); err != nil {
			return err
		}
		list, err := tx.storedEvents(p.Early, ` WHERE e.n = ANY($2) ORDER BY e.n`, signed(numbers))
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(e *storedEvent) bool { return p.IsWaitedFor(&e.Event, e) })
		if removed = len(list); removed == 0 {
			return nil
		}
		if err := p.giveUp(tx, list, givenUp); err != nil {
			return err
		}
		tx.forgetRoutes(list)
		tx.pruned = list[removed-1].n
		return tx.removeEvents(list)
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

// giveUp releases what the pending deliveries of events hold that are about to be removed, and
// counts those to endpoints that are configured.
func (p *pruning) giveUp(tx *txn, list []*storedEvent, givenUp map[string]int) error {
	deliveries, err := tx.deliveriesOf(list)
	if err != nil {
		return err
	}
	if err := tx.loadHeld(deliveries); err != nil {
		return err
	}
	now := time.Now()
	for _, e := range list { // in their order: what is released may be removed next
		for _, k := range deliveries[e.n] {
			d := tx.deliveries[k]
			if d.State != store.Pending {
				continue
			}
			if name := p.engine.endpoints.name(k.endpoint); slices.Contains(p.Endpoints, name) {
				givenUp[name]++
			}
			tx.touch()
			r := tx.rowsOf(k.endpoint, e.n, &e.Event)
			store.Release(r, d.Ended(store.Dead, now), 0)
			if r.Err() != nil {
				return r.Err()
			}
		}
	}
	return nil
}

// loadHeld reads at once what pending deliveries may hold.
func (tx *txn) loadHeld(deliveries map[uint64][]deliveryKey) error {
	var held []deliveryKey
	for _, keys := range deliveries {
		for _, k := range keys {
			if d := tx.deliveries[k]; d.State == store.Pending && d.Next != 0 {
				held = append(held, deliveryKey{d.Next, k.endpoint})
			}
		}
	}
	return tx.load(held...)
}

// forgetRoutes removes what is kept of calls' questions with the events that have asked them.
func (tx *txn) forgetRoutes(list []*storedEvent) {
	var calls []string
	for _, e := range list {
		if e.route != nil && e.route.EventID == e.ID.String() {
			calls = append(calls, e.Call)
		}
	}
	if len(calls) > 0 {
		tx.write(deleteRoutes, calls)
	}
}

const deleteRoutes = `DELETE FROM route WHERE call = ANY($1)`

// storedEvent is an event that may go, with what is stored about it: a store.Stored.
type storedEvent struct {
	tailEvent
	engine   *Engine
	size     int64
	isLatest bool // of its call; false if it was not looked for
	pending  []int16
	route    *telephony.Route // of its call; nil for an event that is no question
}

// IsLatest reports whether it is the latest event of its call.
func (e *storedEvent) IsLatest() bool { return e.isLatest }

// Route gives the route of its call, if the event is a question.
func (e *storedEvent) Route() *telephony.Route { return e.route }

// Pending gives the endpoints to which its delivery is pending. One that was added after this
// process started has no name here.
func (e *storedEvent) Pending() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, id := range e.pending {
			if !yield(e.engine.endpoints.name(id)) {
				return
			}
		}
	}
}

// selectStored reads events with what is stored about them. Whether an event is the latest of its
// call is looked for only if the first argument is true.
const selectStored = `SELECT ` + eventColumns + `, e.size,
	$1::boolean AND NOT EXISTS (SELECT FROM event later
		WHERE later.call = e.call AND later.call <> '' AND later.sequence > e.sequence),
	ARRAY(SELECT endpoint FROM pending WHERE pending.n = e.n)
	FROM event e`

// storedEvents reads events with what is stored about them. The condition begins with the second
// argument.
func (tx *txn) storedEvents(withLatest bool, condition string, args ...any) (list []*storedEvent, err error) {
	var asking []string
	err = tx.query(func(rows pgx.Rows) error {
		e := &storedEvent{engine: tx.engine}
		var err error
		e.tailEvent, err = scanEvent(rows, &e.size, &e.isLatest, &e.pending)
		list = append(list, e)
		if e.Type == telephony.EventTransferRequested && e.Call != "" {
			asking = append(asking, e.Call)
		}
		return err
	}, selectStored+condition, append([]any{withLatest}, args...)...)
	if err != nil || len(asking) == 0 {
		return list, err
	}
	err = tx.read(func(b *pgx.Batch) { tx.queueRoutes(b, asking) })
	for _, e := range list {
		if e.Type == telephony.EventTransferRequested && e.Call != "" {
			e.route = tx.routes[e.Call].route
		}
	}
	return list, err
}

// lockEvents takes the locks of events' calls, and gives these: see lockCalls. An event of no call
// has a lock of its own, or two processes would change its deliveries at once.
func (tx *txn) lockEvents(numbers []uint64) (calls []string, err error) {
	var locks []string
	known := map[string]bool{}
	err = tx.query(func(rows pgx.Rows) error {
		var n uint64
		var call string
		err := rows.Scan(&n, &call)
		locks = append(locks, lockName(n, call))
		if call != "" {
			known[call] = true
		}
		return err
	}, `SELECT n, call FROM event WHERE n = ANY($1)`, signed(numbers))
	if err != nil {
		return nil, err
	}
	return sortedKeys(known), tx.lockCalls(locks...)
}

const (
	// pendingOf and endedOf read the deliveries of events to all endpoints, also to those that were
	// added after this process started. The offset keeps a join as it is written: else the planner,
	// where it takes table ended for empty, would read all of it.
	pendingOf = selectPending + ` WHERE n = ANY ($1)`
	endedOf   = `SELECT ` + deliveryColumns + `, state, false
		FROM unnest($1::bigint[]) AS k(event) CROSS JOIN (SELECT id FROM endpoint) p CROSS JOIN LATERAL (
		SELECT * FROM ended WHERE ended.endpoint = p.id AND ended.n = k.event OFFSET 0) d`
)

// deliveriesOf reads the deliveries of events to all endpoints, and gives their keys by event.
func (tx *txn) deliveriesOf(list []*storedEvent) (map[uint64][]deliveryKey, error) {
	numbers := signed(numbersOf(list))
	err := tx.read(func(b *pgx.Batch) {
		each(b.Queue(pendingOf, numbers), tx.scanDelivery)
		each(b.Queue(endedOf, numbers), tx.scanDelivery)
	})
	keys := map[uint64][]deliveryKey{}
	for k, d := range tx.deliveries {
		if d.exists {
			keys[k.n] = append(keys[k.n], k)
		}
	}
	return keys, err
}

// removeEvents removes events and their deliveries, which are read, with all that refers to them
// but routes.
func (tx *txn) removeEvents(list []*storedEvent) error {
	calls, removed := map[string]bool{}, map[uint64]bool{}
	for _, e := range list {
		removed[e.n] = true
		tx.shrunk += e.size
		if e.Call != "" {
			calls[e.Call] = true
		}
	}
	for k := range tx.deliveries {
		if removed[k.n] {
			if err := tx.remove(k); err != nil {
				return err
			}
		}
	}
	numbers := signed(numbersOf(list))
	tx.noteRemoved(list)
	tx.write(`DELETE FROM event WHERE n = ANY($1)`, numbers)
	tx.write(`DELETE FROM question WHERE n = ANY($1)`, numbers)
	tx.forgetKept(sortedKeys(calls))
	return nil
}

func numbersOf(list []*storedEvent) []uint64 {
	numbers := make([]uint64, len(list))
	for i, e := range list {
		numbers[i] = e.n
	}
	return numbers
}

// signed are numbers as the database takes them.
func signed(numbers []uint64) []int64 {
	list := make([]int64, len(numbers))
	for i, n := range numbers {
		list[i] = int64(n)
	}
	return list
}
