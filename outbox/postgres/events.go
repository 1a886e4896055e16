package postgres

import (
	"context"
	"math"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// Events reads events: see store.Archive.
func (s *Engine) Events(ctx context.Context, q store.EventQuery) (page store.EventPage, err error) {
	at, err := beginning(q)
	if err != nil {
		return store.EventPage{}, err
	}
	err = s.view(ctx, func(tx *txn) error {
		r := eventReading{EventQuery: q, tx: tx}
		if q.Backwards {
			err = r.before(at)
		} else {
			err = r.after(at)
		}
		page = r.page
		return err
	})
	return page, err
}

// beginning is where a read of events begins, as far as its cursor says that.
func beginning(q store.EventQuery) (at store.EventCursor, err error) {
	if q.After != "" && q.After != store.CursorLatest {
		return store.ParseEventCursor(q.After)
	}
	if q.Backwards {
		at.After = math.MaxUint64
	}
	return at, nil
}

// eventReading is a read of events under way.
type eventReading struct {
	store.EventQuery
	tx   *txn
	page store.EventPage

	chosen []int64 // the numbers of the page's events
	looked int
	size   int // bytes of the page's events
}

// candidate is an event at which a read looks.
type candidate struct {
	n        uint64
	size     int  // of its body
	isFor    bool // the endpoint gets it
	isOfType bool // it is of one of the types
}

// A read finds events with the sizes of their bodies, and then reads the bodies of those that fit.
// The first parameters are the number and the limit. The events of an endpoint that reads are found
// by its deliveries, all of which have ended; those of another are looked for among all events,
// since its pending ones may stand far apart among those of others.
const (
	upwards   = ` WHERE n > $1 ORDER BY n LIMIT $2`
	downwards = ` WHERE n <= $1 ORDER BY n DESC LIMIT $2`

	allEvents = `SELECT n, octet_length(body), true, $3::text[] IS NULL OR type = ANY($3) FROM event`

	endpointsEvents = `SELECT n, octet_length(body),
		coalesce((SELECT true FROM ended d WHERE d.endpoint = $4 AND d.n = event.n),
			(SELECT true FROM pending d WHERE d.endpoint = $4 AND d.n = event.n), false),
		$3::text[] IS NULL OR type = ANY($3) FROM event`

	readersEvents = `SELECT n, octet_length(body), true, $3::text[] IS NULL OR type = ANY($3)
		FROM (SELECT n FROM ended`
	readersAfter = readersEvents + ` WHERE endpoint = $4 AND n > $1 ORDER BY n LIMIT $2) d
		JOIN event USING (n) ORDER BY n`
	readersBefore = readersEvents + ` WHERE endpoint = $4 AND n <= $1 ORDER BY n DESC LIMIT $2) d
		JOIN event USING (n) ORDER BY n DESC`
)

// queue queues the reading of the events at which to look, from a number on.
func (r *eventReading) queue(b *pgx.Batch, from uint64, got *[]candidate) {
	var types []string
	for _, t := range r.Types {
		types = append(types, string(t))
	}
	reads := r.Endpoint != "" && r.tx.engine.rules.Reads(r.Endpoint)
	limit := store.MaxLooked
	if len(types) == 0 && (reads || r.Endpoint == "") { // each is for the page
		limit = min(limit, r.Limit)
	}
	args := []any{bigint(from), limit + 1, types}
	sql := allEvents + upwards
	switch {
	case reads && r.Backwards:
		sql = readersBefore
	case reads:
		sql = readersAfter
	case r.Endpoint != "" && r.Backwards:
		sql = endpointsEvents + downwards
	case r.Endpoint != "":
		sql = endpointsEvents + upwards
	case r.Backwards:
		sql = allEvents + downwards
	}
	if r.Endpoint != "" {
		id, _ := r.tx.engine.endpoints.id(r.Endpoint)
		args = append(args, id)
	}
	each(b.Queue(sql, args...), func(rows pgx.Rows) error {
		var c candidate
		err := rows.Scan(&c.n, &c.size, &c.isFor, &c.isOfType)
		*got = append(*got, c)
		return err
	})
}

// look takes an event into the page if the query is for it. It is false, and takes nothing, once
// the read has looked at enough or the page is full.
func (r *eventReading) look(c candidate) bool {
	if r.looked == store.MaxLooked || r.isFull() && c.isFor {
		r.page.More = true
		return false
	}
	r.looked++
	if c.isFor && c.isOfType {
		r.chosen = append(r.chosen, int64(c.n))
		r.size += c.size
	}
	return true
}

func (r *eventReading) isFull() bool {
	return len(r.chosen) == r.Limit || r.size >= store.MaxPageBytes
}

// after reads the next events after a place.
func (r *eventReading) after(at store.EventCursor) error {
	var stored store.StoredEvents
	var list []candidate
	complete := new(int64) // nil if the history is whole
	err := r.tx.read(func(b *pgx.Batch) {
		queueAround(b, at, &stored)
		each(b.Queue(completeFrom), func(rows pgx.Rows) error { return rows.Scan(&complete) })
		if r.After != store.CursorLatest {
			r.queue(b, at.After, &list)
		}
	})
	if err != nil {
		return err
	}
	if r.After != store.CursorLatest && complete != nil && bigint(at.After)+1 < *complete {
		return store.ErrStillCopied // what is copied later would be passed over
	}
	switch r.After {
	case "":
		at.Warned = stored.Pruned
	case store.CursorLatest:
		at.After = stored.Last
	default:
		if err := r.tx.checkGap(at, stored); err != nil {
			return err
		}
	}
	for _, c := range list {
		if !r.look(c) {
			break
		}
		if c.isFor || !r.isFull() {
			at.After = c.n
		}
	}
	if !r.page.More {
		// Nothing was missed up to the last event of all, whatever endpoint got it: that one stays
		// longer than the last that this endpoint got.
		at.After = max(at.After, stored.Last)
	}
	r.page.Cursor, r.page.Last = at.String(), at.After
	return r.readBodies()
}

// before reads the events up to a place, the newest first.
func (r *eventReading) before(at store.EventCursor) error {
	var list []candidate
	if err := r.tx.read(func(b *pgx.Batch) { r.queue(b, at.After, &list) }); err != nil {
		return err
	}
	for _, c := range list {
		if !r.look(c) {
			r.page.Last = c.n
			r.page.Cursor = store.EventCursor{After: c.n}.String()
			break
		}
	}
	return r.readBodies()
}

// readBodies reads the bodies of the events that were taken into the page.
func (r *eventReading) readBodies() error {
	if len(r.chosen) == 0 {
		return nil
	}
	bodies := make(map[int64][]byte, len(r.chosen))
	err := r.tx.query(func(rows pgx.Rows) error {
		var n int64
		var body []byte
		err := rows.Scan(&n, &body)
		bodies[n] = body
		return err
	}, `SELECT n, body FROM event WHERE n = ANY($1)`, r.chosen)
	for _, n := range r.chosen {
		r.page.Events = append(r.page.Events, bodies[n])
	}
	return err
}

// queueAround queues the reading of what is stored at a cursor and after it.
func queueAround(b *pgx.Batch, at store.EventCursor, s *store.StoredEvents) {
	each(b.Queue(`SELECT last, pruned, EXISTS (SELECT FROM event WHERE n = $1),
		coalesce((SELECT n FROM event WHERE n > $1 ORDER BY n LIMIT 1), 0) FROM head`, bigint(at.After)),
		func(rows pgx.Rows) error { return rows.Scan(&s.Last, &s.Pruned, &s.Has, &s.Next) })
}

// checkGap fails with a *store.PrunedError where events after a cursor are missing.
func (tx *txn) checkGap(at store.EventCursor, s store.StoredEvents) error {
	if at.CheckGap(s) == nil {
		return nil
	}
	_, err := tx.queryRow([]any{&s.First, &s.Before}, `SELECT
		coalesce((SELECT n FROM event ORDER BY n LIMIT 1), 0),
		coalesce((SELECT n FROM event WHERE n < $1 ORDER BY n DESC LIMIT 1), 0)`, bigint(at.After))
	if err != nil {
		return err
	}
	return at.CheckGap(s)
}

// Event gives one event by its ID: see store.Archive.
func (s *Engine) Event(ctx context.Context, eventID string) (e store.Event, err error) {
	err = s.view(ctx, func(tx *txn) error {
		n, known, err := tx.numberOf(eventID)
		if err == nil && known {
			e, known, err = tx.event(n)
		}
		if err == nil && !known {
			err = store.ErrNotFound
		}
		return err
	})
	return e, err
}

// bigint is a number as an argument of a statement, which may add one. A number that is too large
// is above all that are stored.
func bigint(n uint64) int64 { return int64(min(n, math.MaxInt64-1)) }
