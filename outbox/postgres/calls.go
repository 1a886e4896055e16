package postgres

import (
	"context"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// isText reports whether a text from outside can be that of a column, which holds no other.
func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// scanWithBody reads an event that comes with its body.
func scanWithBody(rows pgx.Rows) (e tailEvent, err error) {
	var at int64
	var kind string
	err = rows.Scan(&e.n, &e.ID, &at, &kind, &e.Call, &e.Sequence, &e.Body)
	e.At, e.Type = milliTime(at), eventType(kind)
	return e, err
}

// callReading is a read of a call under way.
type callReading struct {
	tx       *txn
	call     string
	isKnown  bool
	events   []store.CallEvent
	stored   []tailEvent // the same events, without their bodies
	readings map[int16]store.Reading
}

// Call gives what has happened to a call: see store.Archive.
func (s *Engine) Call(ctx context.Context, callID string, after uint64) (page store.CallPage, err error) {
	callID = callName(callID)
	err = s.view(ctx, func(tx *txn) error {
		r := callReading{tx: tx, call: callID}
		if err := r.read(after); err != nil {
			return err
		}
		if !r.isKnown {
			return store.ErrNoCall
		}
		page, err = r.page(after)
		page.Route = tx.routes[callID].route
		return err
	})
	return page, err
}

// read reads the events of a call after a sequence number, one more than a page has, and its route.
func (r *callReading) read(after uint64) (err error) {
	err = r.tx.read(func(b *pgx.Batch) {
		each(b.Queue(`SELECT n FROM event WHERE call = $1 AND call <> '' LIMIT 1`, r.call), func(pgx.Rows) error {
			r.isKnown = true
			return nil
		})
		each(b.Queue(`SELECT `+eventColumns+`, e.body FROM event e WHERE call = $1 AND call <> '' AND sequence > $2
			ORDER BY sequence LIMIT $3`, r.call, bigint(after), store.MaxCallEvents+1), r.addEvent)
		r.tx.queueRoutes(b, []string{r.call})
	})
	if err != nil {
		return err
	}
	r.readings, err = r.tx.readings()
	return err
}

func (r *callReading) addEvent(rows pgx.Rows) error {
	e, err := scanWithBody(rows)
	from, to := store.NumbersIn(e.Body)
	e.Body = nil // a page may have many
	r.stored = append(r.stored, e)
	r.events = append(r.events, store.CallEvent{
		ID:       e.ID.String(),
		Type:     e.Type,
		Sequence: e.Sequence,
		Time:     e.At.UTC(),
		From:     telephony.Brief(from),
		To:       telephony.Brief(to),
	})
	return err
}

// page makes the page of the events that were read, as many as it has room for.
func (r *callReading) page(after uint64) (page store.CallPage, err error) {
	if err := r.tx.loadAll(r.stored); err != nil {
		return store.CallPage{}, err
	}
	size := 0
	for i, e := range r.events {
		if i == store.MaxCallEvents || size >= store.MaxCallBytes {
			page.Next = after
			break
		}
		after = e.Sequence
		for _, name := range r.tx.engine.endpoints.names() {
			id, _ := r.tx.engine.endpoints.id(name)
			if d, ok := r.tx.listed(deliveryKey{r.stored[i].n, id}, r.readings); ok {
				v := store.DescribeDelivery(r.stored[i].Event, name, d.Delivery, d.History)
				v.ToBeRead = d.ToBeRead
				e.Deliveries = append(e.Deliveries, v)
				size += v.Size() + len(d.History)
			}
		}
		page.Events = append(page.Events, e)
	}
	return page, nil
}

// loadAll reads the deliveries of events to all endpoints.
func (tx *txn) loadAll(events []tailEvent) error {
	ids := tx.engine.endpoints.ids()
	keys := make([]deliveryKey, 0, len(events)*len(ids))
	for i := range events {
		for _, id := range ids {
			keys = append(keys, deliveryKey{events[i].n, id})
		}
	}
	return tx.load(keys...)
}

// CallHead gives what is known of a call as a whole: see store.Archive.
func (s *Engine) CallHead(ctx context.Context, callID string) (head store.CallHead, err error) {
	callID = callName(callID)
	err = s.view(ctx, func(tx *txn) error {
		readings, err := tx.readings()
		if err != nil {
			return err
		}
		heads, err := tx.heads([]string{callID}, func(*store.CallHead) bool { return true }, readings)
		if err != nil {
			return err
		}
		h, known := heads[callID]
		if !known {
			return store.ErrNoCall
		}
		head = h
		return nil
	})
	return head, err
}

// heads returns what is known of those calls that isFor selects by their heads without deliveries.
// Calls of which nothing is stored are left out.
func (tx *txn) heads(
	calls []string, isFor func(*store.CallHead) bool, readings map[int16]store.Reading,
) (map[string]store.CallHead, error) {
	if len(calls) == 0 {
		return nil, nil
	}
	events := map[string][]tailEvent{}
	err := tx.query(func(rows pgx.Rows) error {
		e, err := scanWithBody(rows)
		events[e.Call] = append(events[e.Call], e)
		return err
	}, `SELECT `+eventColumns+`, e.body FROM unnest($1::text[]) AS c(call) CROSS JOIN LATERAL (SELECT * FROM event
		WHERE event.call = c.call AND event.call <> '' ORDER BY sequence DESC LIMIT $2) e`, calls, store.MaxHeadEvents)
	if err != nil {
		return nil, err
	}
	heads := map[string]store.CallHead{}
	var chosen []tailEvent
	for call, ofCall := range events {
		slices.Reverse(ofCall)
		if h := headOf(ofCall); isFor(&h) {
			heads[call] = h
			chosen = append(chosen, ofCall...)
		}
	}
	if err := tx.loadAll(chosen); err != nil {
		return nil, err
	}
	for call, h := range heads {
		h.Deliveries = tx.standings(events[call], readings)
		heads[call] = h
	}
	return heads, nil
}

// headOf returns the head of a call, without its deliveries, from its latest events.
func headOf(ofCall []tailEvent) store.CallHead {
	events := make([]store.Event, len(ofCall))
	for i := range ofCall {
		events[i] = ofCall[i].Event
	}
	return store.HeadOf(ofCall[0].Call, events)
}

// standings says how the deliveries of a call's events stand, which were read.
func (tx *txn) standings(ofCall []tailEvent, readings map[int16]store.Reading) (list []store.CallStanding) {
	for _, name := range tx.engine.endpoints.names() {
		id, _ := tx.engine.endpoints.id(name)
		standing := store.CallStanding{Endpoint: name}
		for i := range ofCall {
			if d, ok := tx.listed(deliveryKey{ofCall[i].n, id}, readings); ok {
				standing.Add(ofCall[i].Type, d.State)
			}
		}
		if standing != (store.CallStanding{Endpoint: name}) {
			list = append(list, standing)
		}
	}
	return list
}
