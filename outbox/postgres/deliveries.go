package postgres

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// Deliveries lists deliveries: see store.Archive.
func (s *Engine) Deliveries(ctx context.Context, q store.DeliveryQuery) (page store.DeliveryPage, err error) {
	q.CallID = callName(q.CallID)
	list, err := store.NewListing(q, s.endpoints.names())
	if err != nil || len(list.Endpoints()) == 0 {
		return store.DeliveryPage{}, err
	}
	err = s.view(ctx, func(tx *txn) error {
		l := listing{Listing: list, tx: tx, ids: s.endpoints.idsOf(list.Endpoints())}
		return l.run()
	})
	return list.Page, err
}

// listing is a list of deliveries that is being made.
type listing struct {
	*store.Listing
	tx       *txn
	ids      []int16 // of the endpoints, in the order of their names
	readings map[int16]store.Reading
}

const (
	// chunkSize is how many events are read at once, whose deliveries a list may have.
	chunkSize = 256
	// maxChunks is how many such reads a page takes at most: enough for store.MaxLooked, unless
	// what the list is for stands far apart.
	maxChunks = store.MaxLooked/chunkSize + 2
)

func (l *listing) run() (err error) {
	if l.readings, err = l.tx.readings(); err != nil {
		return err
	}
	if !l.Until.IsZero() {
		first, err := l.tx.firstSince(l.Until.Add(store.ClockSlack))
		if err != nil {
			return err
		}
		l.StartBelow(first)
	}
	from, limit, source := l.From.Number, min(l.Limit+1, chunkSize), l.source()
	for range maxChunks {
		events, err := l.tx.eventsFrom(source, from, limit)
		if err != nil {
			return err
		}
		more, err := l.add(events)
		if err != nil {
			return err
		}
		if !more {
			return l.addSides()
		}
		from, limit = events[len(events)-1].n-1, chunkSize
	}
	l.EndAt(from + 1)
	return l.addSides()
}

// source is where the events stand whose deliveries the list may have.
func (l *listing) source() source {
	if l.CallID != "" {
		return source{sql: eventsOfCall, args: []any{l.CallID}}
	}
	if src, ok := l.tx.sourceOfState(l.State, l.ids, l.readings); ok {
		return src
	}
	return source{sql: eventsOfAll}
}

// add adds the deliveries of events that the list is for. It is false once the page is complete.
func (l *listing) add(events []tailEvent) (more bool, err error) {
	var keys []deliveryKey
	for i := range events {
		if l.Matches(&events[i].Event) {
			for _, id := range l.ids {
				keys = append(keys, deliveryKey{events[i].n, id})
			}
		}
	}
	if err := l.tx.load(keys...); err != nil {
		return false, err
	}
	more = len(events) > 0
	for i := 0; more && i < len(events); i++ {
		e := &events[i]
		more = l.Add(e.n, &e.Event, func(endpoint string) (store.Listed, bool) {
			id, _ := l.tx.engine.endpoints.id(endpoint)
			return l.tx.listed(deliveryKey{e.n, id}, l.readings)
		})
	}
	return more, nil
}

// listed returns a delivery that was read, as people see it.
func (tx *txn) listed(k deliveryKey, readings map[int16]store.Reading) (d store.Listed, ok bool) {
	r := tx.deliveries[k]
	if !r.exists {
		return store.Listed{}, false
	}
	d = store.Listed{Delivery: r.Delivery, History: r.history}
	if last, reads := readings[k.endpoint]; reads {
		d.Delivery, d.ToBeRead = last.Shown(k.n, d.Delivery)
	}
	return d, true
}

// addSides adds to the deliveries what their events say of numbers.
func (l *listing) addSides() error {
	found := l.Page.Deliveries
	if len(found) == 0 {
		return nil
	}
	type sides struct{ client, extension string }
	byEvent := map[string]sides{}
	ids := make([]string, len(found))
	for i := range found {
		ids[i] = found[i].EventID
	}
	err := l.tx.query(func(rows pgx.Rows) error {
		var id uuid.UUID
		var body []byte
		err := rows.Scan(&id, &body)
		client, extension := store.SidesIn(body)
		byEvent[id.String()] = sides{client, extension}
		return err
	}, `SELECT id, body FROM event WHERE id = ANY($1::uuid[])`, ids)
	for i := range found {
		of := byEvent[found[i].EventID]
		found[i].Client, found[i].Extension = of.client, of.extension
	}
	return err
}

// source is a query for the numbers of events, the newest first. Its first parameters are the
// highest number and the limit; args are the others.
type source struct {
	sql  string
	isAt string // a condition: it gives event l, whatever the number and the limit
	args []any
}

const (
	eventsOfAll = `SELECT n FROM event WHERE n <= $1 ORDER BY n DESC LIMIT $2`

	// eventsOfCall are those of one call. The event at the number or just above it, if it is one of
	// them, tells where in the call that is.
	eventsOfCall = `SELECT n FROM event WHERE call = $3 AND call <> '' AND n <= $1 AND sequence <= coalesce(
		(SELECT max(sequence) FROM event WHERE n IN ($1, $1::bigint + 1) AND call = $3), 9223372036854775807)
		ORDER BY sequence DESC LIMIT $2`

	// eventsFailed are those of which a delivery is in a state, expired or dead.
	eventsFailed = `SELECT DISTINCT d.n FROM unnest($3::smallint[]) AS x(endpoint) CROSS JOIN LATERAL (
		SELECT n FROM ended WHERE ended.endpoint = x.endpoint AND state = $4 AND state <> 1 AND n <= $1
		ORDER BY n DESC LIMIT $2) d ORDER BY n DESC LIMIT $2`
	hasFailed = `(SELECT true FROM ended d WHERE d.endpoint = ANY($3) AND d.n = l.n AND d.state = $4 LIMIT 1)`

	// eventsPending are those of which a delivery to one of the endpoints is pending. Those of
	// others, among which they stand, are passed over up to a bound; then the next one is given,
	// from which another look goes on. An event may come more than once.
	eventsPending = `(SELECT n FROM (SELECT n, endpoint FROM pending WHERE n <= $1 ORDER BY n DESC LIMIT 65536) near
			WHERE endpoint = ANY($3) LIMIT $2)
		UNION ALL (SELECT n FROM pending WHERE n <= $1 ORDER BY n DESC OFFSET 65536 LIMIT 1) LIMIT $2`
	isPending = `(SELECT true FROM pending d WHERE d.n = l.n AND d.endpoint = ANY($3) LIMIT 1)`
)

// sourceOfState returns where the events stand of which a delivery to one of the endpoints is in a
// state. It is false if no index has them. What an endpoint reads is stored as delivered.
func (tx *txn) sourceOfState(state string, endpoints []int16, readings map[int16]store.Reading) (source, bool) {
	switch state {
	case store.Expired.String():
		return source{sql: eventsFailed, isAt: hasFailed, args: []any{endpoints, int16(store.Expired)}}, true
	case store.Dead.String():
		return source{sql: eventsFailed, isAt: hasFailed, args: []any{endpoints, int16(store.Dead)}}, true
	case store.Pending.String():
		for _, id := range endpoints {
			if _, reads := readings[id]; reads {
				return source{}, false
			}
		}
		return source{sql: eventsPending, isAt: isPending, args: []any{endpoints}}, true
	}
	return source{}, false
}

// eventsFrom reads the events up to a number that a source gives, the newest first.
func (tx *txn) eventsFrom(src source, from uint64, limit int) (list []tailEvent, err error) {
	err = tx.query(func(rows pgx.Rows) error {
		e, err := scanEvent(rows)
		if len(list) == 0 || list[len(list)-1].n != e.n {
			list = append(list, e)
		}
		return err
	}, `WITH c AS (`+src.sql+`) SELECT `+eventColumns+` FROM c CROSS JOIN LATERAL (
		SELECT * FROM event WHERE event.n = c.n OFFSET 0) e ORDER BY e.n DESC`,
		append([]any{bigint(from), limit}, src.args...)...)
	return list, err
}

// Delivery gives one delivery and its last attempts: see store.Archive.
func (s *Engine) Delivery(
	ctx context.Context, eventID, endpoint string,
) (view store.DeliveryView, attempts []store.Attempt, err error) {
	id, isKnown := s.endpoints.id(endpoint)
	if !isKnown {
		return store.DeliveryView{}, nil, store.ErrNotFound
	}
	err = s.view(ctx, func(tx *txn) error {
		n, known, err := tx.numberOf(eventID)
		if err != nil {
			return err
		}
		if !known {
			return store.ErrNotFound
		}
		e, _, err := tx.event(n)
		if err != nil {
			return err
		}
		readings, err := tx.readings()
		if err != nil {
			return err
		}
		k := deliveryKey{n, id}
		if err := tx.load(k); err != nil {
			return err
		}
		d, ok := tx.listed(k, readings)
		if !ok {
			return store.ErrNotFound
		}
		view, attempts = store.DescribeDelivery(e, endpoint, d.Delivery, d.History), store.Attempts(d.History)
		view.ToBeRead = d.ToBeRead
		return nil
	})
	return view, attempts, err
}

// sumCounts gives how many deliveries to each endpoint are in each state.
const sumCounts = `SELECT endpoint, state, greatest(sum(number), 0)::bigint FROM tally GROUP BY endpoint, state`

// Standing says how the deliveries of each endpoint stand: see store.Archive.
func (s *Engine) Standing(ctx context.Context) (map[string]store.Standing, error) {
	list := map[string]store.Standing{}
	err := s.view(ctx, func(tx *txn) error {
		counts := map[tallyKey]uint64{}
		readings, err := tx.readings()
		if err != nil {
			return err
		}
		unread := map[int16]uint64{}
		err = tx.read(func(b *pgx.Batch) {
			each(b.Queue(sumCounts), func(rows pgx.Rows) error {
				var k tallyKey
				var n uint64
				err := rows.Scan(&k.endpoint, &k.state, &n)
				counts[k] = n
				return err
			})
			for id, last := range readings {
				queueUnread(b, id, last, func(count, _ uint64) { unread[id] = count })
			}
		})
		for _, name := range s.endpoints.names() {
			id, _ := s.endpoints.id(name)
			standing := store.Standing{
				Pending:   counts[tallyKey{id, store.Pending}],
				Delivered: counts[tallyKey{id, store.Delivered}],
				Expired:   counts[tallyKey{id, store.Expired}],
				Dead:      counts[tallyKey{id, store.Dead}],
			}
			if last, reads := readings[id]; reads {
				standing.LastRead, standing.Pending = last.At, unread[id]
				standing.Delivered -= min(standing.Delivered, unread[id])
			}
			list[name] = standing
		}
		return err
	})
	return list, err
}

const (
	// oldestUntried is the first delivery that may be made at once, and oldestTried the first of
	// the next few thousand that wait for their time. What is delivered again has not waited.
	oldestUntried = `SELECT n FROM (SELECT n, redelivered FROM pending WHERE endpoint = $1 AND due = 0 AND due >= 0
		ORDER BY n LIMIT 4096) p WHERE redelivered = 0 LIMIT 1`
	oldestTried = `SELECT n FROM (SELECT n, redelivered FROM pending WHERE endpoint = $1 AND due > 0 AND due >= 0
		ORDER BY due, n LIMIT 4096) p WHERE redelivered = 0 ORDER BY n LIMIT 1`
)

// OldestPending is when the oldest event was read that waits for an endpoint: see store.Archive. A
// question that is being asked does not count, nor what waits behind it, nor what is delivered
// again, which has not waited since it was read.
func (s *Engine) OldestPending(ctx context.Context, endpoint string) (at time.Time, err error) {
	id, isKnown := s.endpoints.id(endpoint)
	if !isKnown {
		return time.Time{}, nil
	}
	err = s.view(ctx, func(tx *txn) error {
		readings, err := tx.readings()
		if err != nil {
			return err
		}
		oldest := uint64(0)
		isOldest := func(n uint64) {
			if n != 0 && (oldest == 0 || n < oldest) {
				oldest = n
			}
		}
		err = tx.read(func(b *pgx.Batch) {
			for _, sql := range []string{oldestUntried, oldestTried} {
				each(b.Queue(sql, id), func(rows pgx.Rows) error {
					var n uint64
					err := rows.Scan(&n)
					isOldest(n)
					return err
				})
			}
			if last, reads := readings[id]; reads {
				queueUnread(b, id, last, func(_, first uint64) { isOldest(first) })
			}
		})
		if err != nil || oldest == 0 {
			return err
		}
		e, _, err := tx.event(oldest)
		at = e.At
		return err
	})
	return at, err
}
