package postgres

import (
	"context"
	"encoding/json"
	"iter"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// nearlyFullAt is the part of Options.MaxBytes from which on the oldest finished events go before
// their time.
const nearlyFullAt = 0.9

// Append stores events with the duty to deliver each: see store.Appender.
func (s *Engine) Append(ctx context.Context, events []store.NewEvent) (store.Appended, error) {
	return s.appendWithOthers(ctx, &appending{events: events})
}

// incoming is what an append knows of the events that it is to store.
type incoming struct {
	ids      []uuid.UUID
	isLooked bool                              // known is complete
	known    map[uuid.UUID]uint64              // the numbers of those that are stored
	prints   map[string]map[uuid.UUID]struct{} // what the replayed calls have stored
	rows     []newRow
	asking   []int64 // the numbers of those that endpoints are to be asked about
}

// prepareAppend locks the calls of events, reads what their storing needs, and then holds the head
// until the commit, all in one round trip. It returns how many bytes are in use.
func (tx *txn) prepareAppend(events []*store.NewEvent) (used int64, err error) {
	calls, replayed, asking := map[string]bool{}, map[string]bool{}, map[string]bool{}
	var ids, callless []uuid.UUID // the latter are the fingerprints of replays without a call
	for _, e := range events {
		ids = append(ids, e.ID)
		e.Call = callName(e.Call)
		if e.Call == "" {
			if e.Replayed {
				callless = append(callless, e.Fingerprint)
			}
			continue
		}
		calls[e.Call] = true
		if e.Replayed {
			replayed[e.Call] = true
		}
		if e.MayRoute() {
			asking[e.Call] = true
		}
	}
	in := &incoming{known: map[uuid.UUID]uint64{}, prints: map[string]map[uuid.UUID]struct{}{}, ids: ids}
	tx.incoming = in
	// At first none is taken for stored: if one is, the database refuses to store it again, and the
	// next try looks.
	known := ids
	if in.isLooked = tx.try > 1; !in.isLooked {
		known = nil
	}
	list := sortedKeys(calls)
	var then func() error
	var change int64 // the last one of the endpoints
	tx.rules = tx.engine.shared.now.Load()
	err = tx.readTogether(len(events) <= maxTogether, []func(*pgx.Batch){
		func(b *pgx.Batch) { queueLocks(b, tx.engine.lockKeys(list)) },
		func(b *pgx.Batch) { tx.queueKnown(b, known) },
		func(b *pgx.Batch) { then = tx.queueTails(b, list, tailSize) },
		func(b *pgx.Batch) { tx.queueRoutes(b, sortedKeys(asking)) },
		func(b *pgx.Batch) { tx.queuePrints(b, sortedKeys(replayed)) },
		func(b *pgx.Batch) {
			each(b.Queue(`SELECT last, used, heard_1, heard_2, subscribed FROM head FOR UPDATE`),
				func(rows pgx.Rows) error {
					return rows.Scan(&tx.appended, &used, &tx.heard[0], &tx.heard[1], &change)
				})
		},
		// Behind the head, since no lock keeps another process from storing the same meanwhile.
		func(b *pgx.Batch) { tx.queueCallless(b, callless) },
	})
	tx.hasHead = true
	if err == nil {
		err = then()
	}
	if err == nil && change != tx.rules.change {
		err = errOutdated
	}
	if err == nil {
		tx.appended, tx.isRaised = tx.engine.aboveSeen(tx.appended)
	}
	return used, err
}

// queueKnown queues the reading of the events that are stored already.
func (tx *txn) queueKnown(b *pgx.Batch, ids []uuid.UUID) {
	if len(ids) == 0 {
		return
	}
	each(b.Queue(`SELECT id, n FROM event WHERE id = ANY($1)`, ids), func(rows pgx.Rows) error {
		var id uuid.UUID
		var n uint64
		err := rows.Scan(&id, &n)
		tx.incoming.known[id] = n
		return err
	})
}

// queuePrints queues the reading of what is stored of calls.
func (tx *txn) queuePrints(b *pgx.Batch, calls []string) {
	if len(calls) == 0 {
		return
	}
	for _, call := range calls {
		tx.incoming.prints[call] = map[uuid.UUID]struct{}{}
	}
	const prints = `SELECT c.call, print FROM unnest($1::text[]) AS c(call) CROSS JOIN LATERAL (
		SELECT print FROM event WHERE event.call = c.call AND event.call <> '' OFFSET 0) e`
	each(b.Queue(prints, calls), func(rows pgx.Rows) error {
		var call string
		var print uuid.UUID
		err := rows.Scan(&call, &print)
		tx.incoming.prints[call][print] = struct{}{}
		return err
	})
}

// queueCallless queues the reading of which replays without a call are stored.
func (tx *txn) queueCallless(b *pgx.Batch, prints []uuid.UUID) {
	if len(prints) == 0 {
		return
	}
	tx.incoming.prints[""] = map[uuid.UUID]struct{}{}
	each(b.Queue(`SELECT print FROM event WHERE print = ANY($1) AND call = ''`, prints), func(rows pgx.Rows) error {
		var print uuid.UUID
		err := rows.Scan(&print)
		tx.incoming.prints[""][print] = struct{}{}
		return err
	})
}

// newRow is an event that is to be inserted.
type newRow struct {
	*store.NewEvent
	n, sequence uint64
	body        []byte
	size        int
	slot        int16
}

// rowSize estimates the bytes that an event takes with its deliveries.
func rowSize(body []byte, deliveries int) int {
	const eventSize, deliverySize = 500, 250 // bytes of a row with its indexes, without the body
	return eventSize + len(body) + deliveries*deliverySize
}

// appendOne stores one event, unless it is known, gives its number, and says whether endpoints are
// to be asked about it.
func (s *Engine) appendOne(tx *txn, e *store.NewEvent) (n uint64, asks bool, err error) {
	in := tx.incoming
	if n, known := in.known[e.ID]; known {
		// The commit that stored it may have been reported as failed: then nothing was asked yet.
		asks, err := tx.isQuestion(n)
		return n, asks, err
	}
	if e.Replayed {
		if _, isReplay := in.prints[e.Call][e.Fingerprint]; isReplay {
			return 0, false, nil
		}
	}
	if telephony.IsOperational(e.Type) && !tx.rules.IsWanted(e) {
		return 0, false, nil
	}
	tx.appended++
	n = uint64(tx.appended)
	in.known[e.ID] = n
	sequence, outcome, err := tx.place(n, e)
	if err != nil {
		return 0, false, err
	}
	stored := e.Event
	stored.Sequence = sequence
	route, asks, err := s.receive(tx, e)
	if err != nil {
		return 0, false, err
	}
	if asks {
		in.asking = append(in.asking, int64(n))
	}
	row := newRow{NewEvent: e, n: n, sequence: sequence, body: e.AppendBody(nil, sequence, outcome)}
	deliveries := 0
	for _, name := range tx.rules.Endpoints {
		if tx.rules.IsFor(name, &e.Event, route) {
			deliveries++
			if err := s.appendDelivery(tx, name, n, &stored, asks); err != nil {
				return 0, false, err
			}
		}
	}
	row.size = rowSize(row.body, deliveries)
	if tx.slot > 0 && !telephony.IsOperational(e.Type) {
		row.slot, tx.heard[tx.slot-1] = int16(tx.slot), n
		if e.Replayed {
			row.slot = -row.slot
		}
	}
	tx.grown += int64(row.size)
	in.rows = append(in.rows, row)
	if prints, read := in.prints[e.Call]; read {
		prints[e.Fingerprint] = struct{}{}
	}
	return n, asks, nil
}

// place puts an event behind the others of its call, and decides how the call has ended.
func (tx *txn) place(n uint64, e *store.NewEvent) (sequence uint64, outcome telephony.Outcome, err error) {
	if e.Call == "" {
		return 1, "", nil
	}
	t := tx.calls[e.Call]
	if e.Type == telephony.EventCompleted {
		if err := tx.lengthenTail(e.Call); err != nil {
			return 0, "", err
		}
		outcome = store.OutcomeOf(e, t.backwards())
	}
	sequence = 1
	if len(t.events) > 0 {
		sequence = t.events[len(t.events)-1].Sequence + 1
	}
	added := e.Event
	added.Sequence, added.Body = sequence, nil
	t.events = append(t.events, tailEvent{added, n})
	tx.know(n)
	return sequence, outcome, nil
}

// lengthenTail reads more of a call: how it has ended is decided by its latest hundred events.
func (tx *txn) lengthenTail(call string) error {
	const size = 100
	t := tx.calls[call]
	if t.whole || len(t.events) >= size {
		return nil
	}
	var before []tailEvent
	err := tx.query(func(rows pgx.Rows) error {
		e, err := scanEvent(rows)
		before = append(before, e)
		return err
	}, `SELECT `+eventColumns+` FROM event e WHERE call = $1 AND call <> '' AND sequence < $2
		ORDER BY sequence DESC LIMIT $3`, call, t.events[0].Sequence, size-len(t.events))
	t.whole = len(before) < size-len(t.events)
	slices.Reverse(before)
	t.events = append(before, t.events...)
	return err
}

// backwards gives the events of a tail, the latest first.
func (t *callTail) backwards() iter.Seq[store.Event] {
	return func(yield func(store.Event) bool) {
		for i := len(t.events) - 1; i >= 0; i-- {
			if !yield(t.events[i].Event) {
				return
			}
		}
	}
}

// appendDelivery stores the duty to deliver an event.
func (s *Engine) appendDelivery(tx *txn, name string, n uint64, e *store.Event, asks bool) error {
	endpoint, _ := s.endpoints.id(name)
	if tx.rules.Reads(name) { // it is there to be read
		tx.put(deliveryKey{n, endpoint}, store.Delivery{}.Ended(store.Delivered, e.At), nil)
		return nil
	}
	tx.know(n)
	r := tx.rowsOf(endpoint, n, e)
	expires := unixNano(tx.rules.Expires(name, e))
	if asks {
		store.EnqueueQuestion(r, n, expires)
	} else {
		store.Enqueue(r, n, expires, tx.rules.Hold)
	}
	return r.Err()
}

const insertEvents = `INSERT INTO event (n, id, at, type, call, sequence, print, from_key, to_key, size, body,
		slot)
	SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::uuid[],
		$8::text[], $9::text[], $10::integer[], $11::bytea[], $12::smallint[])`

// flushAppend writes the events that were appended, and the head. The head is written also if
// nothing new came: a repeated append must not be reported as done before what stored it the first
// time is safe, and a transaction that writes nothing waits for no standby.
func (tx *txn) flushAppend() {
	if !tx.hasHead {
		return
	}
	tx.hasHead, tx.committing = false, true
	tx.write(`UPDATE head SET last = $1, used = greatest(used + $2, 0), heard_1 = $3, heard_2 = $4`,
		tx.appended, tx.grown, int64(tx.heard[0]), int64(tx.heard[1]))
	if rows := tx.incoming.rows; len(rows) > 0 {
		tx.notifyOthers()
		tx.write(insertEvents, tx.engine.eventValues(rows)...)
	}
	if asking := tx.incoming.asking; len(asking) > 0 {
		tx.write(`INSERT INTO question (n, owner) SELECT n, $2 FROM unnest($1::bigint[]) n`, asking, tx.engine.id)
	}
}

// eventValues are the arguments of insertEvents.
func (s *Engine) eventValues(rows []newRow) []any {
	var (
		n, at, sequence              []int64
		id, print                    [][16]byte // pgx writes a uuid.UUID as a text
		kind, call, fromKeys, toKeys []string
		size                         []int32
		body                         [][]byte
		slot                         []int16
		key                          = s.rules.NumberKey
	)
	for _, r := range rows {
		n, id, at = append(n, int64(r.n)), append(id, r.ID), append(at, r.At.UnixMilli())
		kind, call = append(kind, string(r.Type)), append(call, r.Call)
		sequence, print = append(sequence, int64(r.sequence)), append(print, r.Fingerprint)
		from, to := "", ""
		if r.Call != "" {
			from, to = key(r.From), key(r.To)
		}
		fromKeys, toKeys = append(fromKeys, from), append(toKeys, to)
		size, body = append(size, int32(r.size)), append(body, r.body)
		slot = append(slot, r.slot)
	}
	return []any{n, id, at, kind, call, sequence, print, fromKeys, toKeys, size, body, slot}
}

// receive brings the route of an event's call up to date, and gives it as far as it says something
// of the event. Asks says that endpoints are to be asked about the event now.
func (s *Engine) receive(tx *txn, e *store.NewEvent) (route *telephony.Route, asks bool, err error) {
	if !e.MayRoute() {
		return nil, false, nil
	}
	before, err := tx.route(e.Call)
	if err != nil {
		return nil, false, err
	}
	route, asks, changed := tx.rules.Receive(e, before)
	if changed {
		tx.putRoute(route)
	}
	if route != nil && !route.Live(e.At) {
		route = nil
	}
	return route, asks, nil
}

// routeRecord is a route as a transaction knows it.
type routeRecord struct {
	route   *telephony.Route // nil: the call has not asked
	changed bool
}

func (tx *txn) queueRoutes(b *pgx.Batch, calls []string) {
	if len(calls) == 0 {
		return
	}
	for _, call := range calls {
		tx.routes[call] = &routeRecord{}
	}
	each(b.Queue(`SELECT call, value FROM route WHERE call = ANY($1)`, calls), func(rows pgx.Rows) error {
		var call string
		var value []byte
		if err := rows.Scan(&call, &value); err != nil {
			return err
		}
		route := &telephony.Route{}
		if err := json.Unmarshal(value, route); err == nil { // else the next question writes it again
			tx.routes[call].route = route
		}
		return nil
	})
}

// route gives what is stored of the question where a call goes, nil if it has never asked. What it
// points to is the caller's.
func (tx *txn) route(call string) (*telephony.Route, error) {
	if tx.routes[call] == nil {
		if err := tx.read(func(b *pgx.Batch) { tx.queueRoutes(b, []string{call}) }); err != nil {
			return nil, err
		}
	}
	return tx.routes[call].route, nil
}

func (tx *txn) putRoute(r *telephony.Route) {
	tx.routes[r.CallID] = &routeRecord{route: r, changed: true}
}

const writeRoutes = `INSERT INTO route (call, value, write_by)
	SELECT * FROM unnest($1::text[], $2::bytea[], $3::bigint[])
	ON CONFLICT (call) DO UPDATE SET value = excluded.value, write_by = excluded.write_by`

func (tx *txn) flushRoutes() error {
	var (
		calls   []string
		values  [][]byte
		writeBy []int64
	)
	for call, r := range tx.routes {
		if !r.changed {
			continue
		}
		r.changed = false
		value, err := json.Marshal(r.route)
		if err != nil {
			return err
		}
		by := int64(0)
		if r.route.Transfer == telephony.TransferNotSent {
			by = r.route.TransferBy().UnixNano()
		}
		calls, values, writeBy = append(calls, call), append(values, value), append(writeBy, by)
	}
	if len(calls) > 0 {
		tx.write(writeRoutes, calls, values, writeBy)
	}
	return nil
}
