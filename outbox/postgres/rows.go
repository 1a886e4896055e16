package postgres

import (
	"cmp"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// deliveryKey names a delivery.
type deliveryKey struct {
	n        uint64
	endpoint int16
}

// record is a delivery as a transaction knows it.
type record struct {
	store.Delivery
	history []byte // its last attempts
	exists  bool
	changed bool
	// stored is the delivery as the database has it, and wasStored whether it has.
	stored    store.Delivery
	wasStored bool
}

const (
	deliveryColumns = `n, endpoint, due, attempts, step, failed_at, next, redelivered, request, expires, history`
	pendingColumns  = deliveryColumns + `, 0, put_off` // with the state

	selectPending = `SELECT ` + pendingColumns + ` FROM pending`

	// Deliveries are looked up one by one, since the offset keeps a join as it is written: else the
	// planner, where it takes a table for empty, would read all of it.
	pendingOfKeys = `SELECT ` + pendingColumns + `
		FROM unnest($1::bigint[], $2::smallint[]) AS k(event, receiver) CROSS JOIN LATERAL (
		SELECT * FROM pending WHERE n = k.event AND endpoint = k.receiver OFFSET 0) d`
	endedOfKeys = `SELECT ` + deliveryColumns + `, state, false
		FROM unnest($1::bigint[], $2::smallint[]) AS k(event, receiver) CROSS JOIN LATERAL (
		SELECT * FROM ended WHERE endpoint = k.receiver AND n = k.event OFFSET 0) d`
)

// scanDelivery keeps a row of such a query, unless the delivery is known already.
func (tx *txn) scanDelivery(rows pgx.Rows) error {
	var k deliveryKey
	r := &record{exists: true, wasStored: true}
	var state int16
	err := rows.Scan(&k.n, &k.endpoint, &r.Due, &r.Attempts, &r.Step, &r.FailedAt, &r.Next, &r.Redelivered,
		&r.Request, &r.Expires, &r.history, &state, &r.PutOff)
	if err != nil {
		return err
	}
	r.State = store.State(state)
	r.stored = r.Delivery
	if known := tx.deliveries[k]; known == nil || !known.wasStored && !known.changed {
		tx.deliveries[k] = r
	}
	return nil
}

// load reads deliveries that are not known yet.
func (tx *txn) load(keys ...deliveryKey) error {
	numbers, endpoints := make([]int64, 0, len(keys)), make([]int16, 0, len(keys))
	for _, k := range keys {
		if tx.deliveries[k] == nil {
			tx.deliveries[k] = &record{}
			numbers, endpoints = append(numbers, int64(k.n)), append(endpoints, k.endpoint)
		}
	}
	if len(numbers) == 0 {
		return nil
	}
	return tx.read(func(b *pgx.Batch) {
		each(b.Queue(pendingOfKeys, numbers, endpoints), tx.scanDelivery)
		each(b.Queue(endedOfKeys, numbers, endpoints), tx.scanDelivery)
	})
}

// delivery returns a delivery; exists is false if there is none.
func (tx *txn) delivery(k deliveryKey) (*record, error) {
	if err := tx.load(k); err != nil {
		return nil, err
	}
	return tx.deliveries[k], nil
}

// callTail is the latest events of a call, oldest first.
type callTail struct {
	events []tailEvent
	whole  bool // these are all
}

// tailEvent is an event without its body.
type tailEvent struct {
	store.Event
	n uint64
}

const (
	// tailSize is how many of a call's events are read at once: most calls have no more.
	tailSize = 8
	// farthest is how far from a delivery its neighbour is looked for. Behind so many events that
	// the endpoint does not get, order is of no use.
	farthest = 1000
)

// itsEvent joins the event of each delivery p.
const itsEvent = ` CROSS JOIN LATERAL (SELECT * FROM event WHERE event.n = p.n OFFSET 0) e`

const eventColumns = `e.n, e.id, e.at, e.type, e.call, e.sequence`

// selectTails reads the latest events of calls, of each the latest first.
const selectTails = `SELECT ` + eventColumns + ` FROM unnest($1::text[]) AS c(call) CROSS JOIN LATERAL (
	SELECT * FROM event WHERE event.call = c.call AND event.call <> '' ORDER BY sequence DESC LIMIT $2) e`

const (
	// pendingOfEvents and endedOfEvents read the deliveries of events.
	pendingOfEvents = `SELECT ` + pendingColumns + ` FROM unnest($1::bigint[]) AS e(event) CROSS JOIN LATERAL (
		SELECT * FROM pending WHERE n = e.event OFFSET 0) d`
	endedOfEvents = `SELECT ` + deliveryColumns + `, state, false FROM unnest($1::bigint[]) AS e(event)
		CROSS JOIN unnest($2::smallint[]) AS r(receiver) CROSS JOIN LATERAL (
		SELECT * FROM ended WHERE endpoint = r.receiver AND n = e.event OFFSET 0) d`
)

// queueTails queues the reading of the latest events of calls. Then is to be called once they are
// read: it reads their deliveries at all endpoints, which a call that begins does not have.
func (tx *txn) queueTails(b *pgx.Batch, calls []string, limit int) (then func() error) {
	if len(calls) == 0 {
		return func() error { return nil }
	}
	for _, call := range calls {
		tx.calls[call] = &callTail{}
	}
	each(b.Queue(selectTails, calls, limit), func(rows pgx.Rows) error {
		e, err := scanEvent(rows)
		if err != nil {
			return err
		}
		t := tx.calls[e.Call]
		t.events = append(t.events, e)
		return nil
	})
	return func() error {
		var numbers []int64
		for _, call := range calls {
			t := tx.calls[call]
			t.whole = len(t.events) < limit
			slices.Reverse(t.events)
			for _, e := range t.events {
				numbers = append(numbers, int64(e.n))
			}
		}
		return tx.readDeliveriesOf(numbers)
	}
}

// readDeliveriesOf reads the deliveries of events at all endpoints.
func (tx *txn) readDeliveriesOf(numbers []int64) error {
	if len(numbers) == 0 {
		return nil
	}
	err := tx.read(func(b *pgx.Batch) {
		each(b.Queue(pendingOfEvents, numbers), tx.scanDelivery)
		each(b.Queue(endedOfEvents, numbers, tx.engine.endpoints.ids()), tx.scanDelivery)
	})
	for _, n := range numbers {
		tx.know(uint64(n))
	}
	return err
}

// know notes that the deliveries of an event are read, for all endpoints: what was not found does
// not exist.
func (tx *txn) know(n uint64) {
	for _, id := range tx.engine.endpoints.ids() {
		if k := (deliveryKey{n, id}); tx.deliveries[k] == nil {
			tx.deliveries[k] = &record{}
		}
	}
}

// tail returns the latest events of a call.
func (tx *txn) tail(call string) (*callTail, error) {
	if t := tx.calls[call]; t != nil {
		return t, nil
	}
	var then func() error
	if err := tx.read(func(b *pgx.Batch) { then = tx.queueTails(b, []string{call}, tailSize) }); err != nil {
		return nil, err
	}
	return tx.calls[call], then()
}

// scanEvent reads a row of eventColumns, and what comes behind them.
func scanEvent(rows pgx.Rows, more ...any) (e tailEvent, err error) {
	var at int64
	var kind string
	err = rows.Scan(append([]any{&e.n, &e.ID, &at, &kind, &e.Call, &e.Sequence}, more...)...)
	e.At, e.Type = milliTime(at), eventType(kind)
	return e, err
}

// rows is what the rules of order see of one endpoint's deliveries in a transaction: a store.Rows.
// A rule is about one delivery, that with number n.
type rows struct {
	tx       *txn
	endpoint int16
	n        uint64
	call     string // empty if the delivery has no neighbour
	sequence uint64
	attempt  *store.Attempt // to be added to the delivery's record; nil if none was made
	err      error
}

// Get gives a delivery.
func (r *rows) Get(n uint64) (store.Delivery, bool) {
	d, err := r.tx.delivery(deliveryKey{n, r.endpoint})
	if err != nil {
		r.fail(err)
		return store.Delivery{}, false
	}
	return d.Delivery, d.exists
}

// Put stores a delivery, with its last attempts.
func (r *rows) Put(n uint64, d store.Delivery) {
	known, err := r.tx.delivery(deliveryKey{n, r.endpoint})
	if err != nil {
		r.fail(err)
		return
	}
	if n == r.n && r.attempt != nil {
		known.history, r.attempt = store.AppendAttempt(nil, known.history, *r.attempt), nil
	}
	r.tx.put(deliveryKey{n, r.endpoint}, d, known.history)
}

func (r *rows) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// Err is the error of the first read that failed.
func (r *rows) Err() error { return r.err }

// Neighbour gives the nearest delivery of the same call.
func (r *rows) Neighbour(n uint64, step int, want func(store.Delivery) bool) (uint64, store.Delivery) {
	if r.call == "" {
		return 0, store.Delivery{}
	}
	t, err := r.tx.tail(r.call)
	if err != nil {
		r.fail(err)
		return 0, store.Delivery{}
	}
	isInTail := t.whole || len(t.events) > 0 && t.events[0].n <= n
	if step < 0 || isInTail {
		var near []uint64
		for _, e := range t.events {
			if step < 0 && e.n < n || step > 0 && e.n > n {
				near = append(near, e.n)
			}
		}
		if step < 0 {
			slices.Reverse(near)
		}
		if at, d, found := r.first(near, want); found || step > 0 || t.whole {
			return at, d
		}
	}
	return r.beyondTail(t, step, want)
}

// first gives the first of a call's deliveries that is wanted.
func (r *rows) first(numbers []uint64, want func(store.Delivery) bool) (uint64, store.Delivery, bool) {
	keys := make([]deliveryKey, len(numbers))
	for i, n := range numbers {
		keys[i] = deliveryKey{n, r.endpoint}
	}
	if err := r.tx.load(keys...); err != nil {
		r.fail(err)
		return 0, store.Delivery{}, true
	}
	for i, n := range numbers {
		if d := r.tx.deliveries[keys[i]]; d.exists && want(d.Delivery) {
			return n, d.Delivery, true
		}
	}
	return 0, store.Delivery{}, false
}

const (
	eventsBefore = `SELECT n, sequence FROM event
		WHERE call = $1 AND call <> '' AND sequence < $2 ORDER BY sequence DESC LIMIT $3`
	eventsAfter = `SELECT n, sequence FROM event
		WHERE call = $1 AND call <> '' AND sequence > $2 ORDER BY sequence LIMIT $3`
)

// beyondTail looks for a neighbour among the events of a long call that are not in its tail.
func (r *rows) beyondTail(t *callTail, step int, want func(store.Delivery) bool) (uint64, store.Delivery) {
	const chunk = 100
	sequence, sql := r.sequence, eventsAfter
	if step < 0 {
		sql = eventsBefore
		if len(t.events) > 0 {
			sequence = min(sequence, t.events[0].Sequence)
		}
	}
	for seen := 0; seen < farthest; seen += chunk {
		var numbers []uint64
		err := r.tx.query(func(rows pgx.Rows) error {
			var n uint64
			err := rows.Scan(&n, &sequence)
			numbers = append(numbers, n)
			return err
		}, sql, r.call, sequence, chunk)
		if err != nil {
			r.fail(err)
			return 0, store.Delivery{}
		}
		if n, d, found := r.first(numbers, want); found || len(numbers) < chunk {
			return n, d
		}
	}
	return 0, store.Delivery{}
}

// put changes a delivery.
func (tx *txn) put(k deliveryKey, d store.Delivery, history []byte) {
	r := tx.deliveries[k]
	if r == nil {
		r = &record{}
		tx.deliveries[k] = r
	}
	r.Delivery, r.history, r.exists, r.changed = d, history, true, true
}

// remove takes a delivery away.
func (tx *txn) remove(k deliveryKey) error {
	r, err := tx.delivery(k)
	if err == nil && r.exists {
		r.exists, r.changed = false, true
	}
	return err
}

// columns are deliveries to be written, column by column.
type columns struct {
	n, due, failedAt, next, request, expires []int64
	endpoint, step, redelivered, state       []int16
	attempts                                 []int32
	putOff                                   []bool
	history                                  [][]byte
}

func (c *columns) add(k deliveryKey, r *record) {
	c.n, c.endpoint = append(c.n, int64(k.n)), append(c.endpoint, k.endpoint)
	c.due, c.failedAt, c.next = append(c.due, r.Due), append(c.failedAt, r.FailedAt), append(c.next, int64(r.Next))
	c.request, c.expires = append(c.request, int64(r.Request)), append(c.expires, r.Expires)
	c.step, c.redelivered = append(c.step, int16(r.Step)), append(c.redelivered, int16(r.Redelivered))
	c.state, c.attempts = append(c.state, int16(r.State)), append(c.attempts, int32(r.Attempts))
	c.putOff, c.history = append(c.putOff, r.PutOff), append(c.history, r.history)
}

const (
	insertPending = `INSERT INTO pending (` + deliveryColumns + `, put_off) SELECT * FROM ` + written + `::boolean[])`
	insertEnded   = `INSERT INTO ended (` + deliveryColumns + `, state) SELECT * FROM ` + written + `::smallint[])`
	updatePending = `UPDATE pending SET ` + rewritten + `, put_off = k.put_off FROM ` + written + `::boolean[])
		AS k(` + deliveryColumns + `, put_off) WHERE pending.n = k.n AND pending.endpoint = k.endpoint`
	updateEnded = `UPDATE ended SET ` + rewritten + `, state = k.state FROM ` + written + `::smallint[])
		AS k(` + deliveryColumns + `, state) WHERE ended.n = k.n AND ended.endpoint = k.endpoint`
	deletePending = `DELETE FROM pending USING unnest($1::bigint[], $2::smallint[]) AS k(n, endpoint)
		WHERE pending.n = k.n AND pending.endpoint = k.endpoint`
	deleteEnded = `DELETE FROM ended USING unnest($1::bigint[], $2::smallint[]) AS k(n, endpoint)
		WHERE ended.n = k.n AND ended.endpoint = k.endpoint`

	// written are rows of deliveryColumns; what follows is the type of one more column.
	written = `unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::integer[], $5::smallint[], $6::bigint[],
		$7::bigint[], $8::smallint[], $9::bigint[], $10::bigint[], $11::bytea[], $12`
	rewritten = `due = k.due, attempts = k.attempts, step = k.step, failed_at = k.failed_at, next = k.next,
		redelivered = k.redelivered, request = k.request, expires = k.expires, history = k.history`
)

// flushDeliveries writes the deliveries that were changed. One that has ended moves from one table
// to the other.
func (tx *txn) flushDeliveries() {
	var newPending, newEnded, changedPending, changedEnded, noPending, noEnded columns
	// In order, since an index takes neighbours faster.
	inOrder := slices.SortedFunc(maps.Keys(tx.deliveries), func(a, b deliveryKey) int {
		return cmp.Or(cmp.Compare(a.n, b.n), cmp.Compare(a.endpoint, b.endpoint))
	})
	for _, k := range inOrder {
		r := tx.deliveries[k]
		if !r.changed {
			continue
		}
		r.changed = false
		wasPending, isPending := r.wasStored && r.stored.State == store.Pending, r.exists && r.State == store.Pending
		wasEnded, isEnded := r.wasStored && !wasPending, r.exists && !isPending
		move(k, r, wasPending, isPending, &newPending, &changedPending, &noPending)
		move(k, r, wasEnded, isEnded, &newEnded, &changedEnded, &noEnded)
		if isPending && r.wasStored && r.Due == 0 { // a new one lies behind all that lanes have seen
			tx.open(k)
		}
		tx.countChange(k.endpoint, r)
		r.stored, r.wasStored = r.Delivery, r.exists
	}
	tx.writeKeys(deletePending, &noPending)
	tx.writeKeys(deleteEnded, &noEnded)
	tx.writeColumns(insertPending, &newPending, newPending.putOff)
	tx.writeColumns(updatePending, &changedPending, changedPending.putOff)
	tx.writeColumns(insertEnded, &newEnded, newEnded.state)
	tx.writeColumns(updateEnded, &changedEnded, changedEnded.state)
}

// move adds a delivery to what is to be done in a table in which it was, or is to be.
func move(k deliveryKey, r *record, was, is bool, added, changed, removed *columns) {
	switch {
	case was && is:
		changed.add(k, r)
	case is:
		added.add(k, r)
	case was:
		removed.add(k, r)
	}
}

func (tx *txn) writeKeys(sql string, c *columns) {
	if len(c.n) > 0 {
		tx.write(sql, c.n, c.endpoint)
	}
}

func (tx *txn) writeColumns(sql string, c *columns, last any) {
	if len(c.n) > 0 {
		tx.write(sql, c.n, c.endpoint, c.due, c.attempts, c.step, c.failedAt, c.next, c.redelivered, c.request,
			c.expires, c.history, last)
	}
}

// countChange counts what has become of a delivery.
func (tx *txn) countChange(endpoint int16, r *record) {
	if r.wasStored && r.exists && r.stored.State == r.State {
		return
	}
	if r.wasStored {
		tx.count(endpoint, r.stored.State, -1)
	}
	if r.exists {
		tx.count(endpoint, r.State, +1)
	}
}
