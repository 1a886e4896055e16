package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Calls lists calls: see store.Archive. With a number or a state, a call stands at its latest event
// that has these.
func (s *Engine) Calls(ctx context.Context, q store.CallQuery) (list store.CallList, err error) {
	below, err := store.ParseCallCursor(q.Cursor)
	if err != nil || below == 0 || !isText(q.Key) {
		return store.CallList{}, err
	}
	err = s.view(ctx, func(tx *txn) error {
		readings, err := tx.readings()
		if err != nil {
			return err
		}
		f := callSearch{CallQuery: q, tx: tx, readings: readings, known: map[string]bool{}}
		err = f.run(below)
		list = f.list
		return err
	})
	return list, err
}

// callSearch is a search for calls under way.
type callSearch struct {
	store.CallQuery
	tx       *txn
	readings map[int16]store.Reading
	list     store.CallList
	known    map[string]bool // the calls that were looked at, or stand on an earlier page
}

// foundCall is a call at the event at which it was found.
type foundCall struct {
	id string
	n  uint64
}

func (f *callSearch) run(below uint64) error {
	if !f.Until.IsZero() {
		first, err := f.tx.firstSince(f.Until.Add(store.ClockSlack))
		if err != nil || first == 0 {
			return err
		}
		below = min(below, first)
	}
	src, oldest := f.source()
	for looked := 0; looked < store.MaxLooked; looked += chunkSize {
		found, last, isEnd, err := f.candidates(src, below-1, oldest)
		if err != nil {
			return err
		}
		if isFull, err := f.look(found); err != nil || isFull {
			return err
		}
		if isEnd {
			return nil
		}
		below = last
	}
	f.list.Cursor = store.CallCursor(below)
	return nil
}

// source is where the events stand at which calls are found, and how old the oldest may be.
func (f *callSearch) source() (src source, oldest time.Time) {
	if !f.Since.IsZero() {
		oldest = f.Since.Add(-store.ClockSlack - store.LongestFound)
	}
	switch {
	case f.Key != "" && f.Match == store.KeyEquals:
		return source{sql: eventsOfNumber, isAt: hasNumber, args: []any{f.Key}}, oldest
	case f.Key != "" && f.Match == store.KeyBegins:
		end := len(f.Key) - 1
		above := f.Key[:end] + string(rune(f.Key[end]+1)) // the first key that does not begin with it
		return source{sql: eventsOfNumbers, isAt: hasNumbers, args: []any{f.Key, above}}, oldest
	}
	if src, ok := f.tx.sourceOfState(f.State, f.tx.engine.endpoints.ids(), f.readings); ok {
		return src, oldest
	}
	return source{sql: eventsOfAll, isAt: `true`}, f.Since.Add(-store.ClockSlack)
}

const (
	// eventsOfNumber are those of calls with a number.
	eventsOfNumber = `(SELECT n FROM event WHERE from_key = $3 AND from_key <> '' AND n <= $1 ORDER BY n DESC LIMIT $2)
		UNION (SELECT n FROM event WHERE to_key = $3 AND to_key <> '' AND n <= $1 ORDER BY n DESC LIMIT $2)
		ORDER BY n DESC LIMIT $2`
	hasNumber = `l.from_key = $3 OR l.to_key = $3`

	// eventsOfNumbers are those of calls with one of the numbers whose keys are from one up to, and
	// without, another. The events of one number stand together in an index, so the newest of all
	// are known only when the newest of each number are read. Each number is looked up behind the
	// one before it, which passes over the events: an extension may have most calls.
	eventsOfNumbers = `WITH RECURSIVE f AS (
		(SELECT from_key AS key FROM event WHERE from_key <> '' AND from_key >= $3 AND from_key < $4
			ORDER BY from_key LIMIT 1)
		UNION ALL SELECT (SELECT from_key FROM event WHERE from_key <> '' AND from_key > f.key AND from_key < $4
			ORDER BY from_key LIMIT 1) FROM f WHERE key IS NOT NULL
	), t AS (
		(SELECT to_key AS key FROM event WHERE to_key <> '' AND to_key >= $3 AND to_key < $4 ORDER BY to_key LIMIT 1)
		UNION ALL SELECT (SELECT to_key FROM event WHERE to_key <> '' AND to_key > t.key AND to_key < $4
			ORDER BY to_key LIMIT 1) FROM t WHERE key IS NOT NULL
	) SELECT e.n FROM f CROSS JOIN LATERAL (SELECT n FROM event
			WHERE from_key = f.key AND from_key <> '' AND n <= $1 ORDER BY n DESC LIMIT $2) e
		UNION SELECT e.n FROM t CROSS JOIN LATERAL (SELECT n FROM event
			WHERE to_key = t.key AND to_key <> '' AND n <= $1 ORDER BY n DESC LIMIT $2) e
		ORDER BY n DESC LIMIT $2`
	hasNumbers = `l.from_key >= $3 AND l.from_key < $4 OR l.to_key >= $3 AND l.to_key < $4`
)

// candidates returns the calls at whose latest events from a number down the search looks next, the
// newest first, and the last number that it has come to. IsEnd means that there are no more.
func (f *callSearch) candidates(
	src source, from uint64, oldest time.Time,
) (found []foundCall, last uint64, isEnd bool, err error) {
	looked, last, isEnd := 0, from+1, false
	err = f.tx.query(func(rows pgx.Rows) error {
		var c foundCall
		var at int64
		var isLater bool
		if err := rows.Scan(&c.n, &at, &c.id, &isLater); err != nil {
			return err
		}
		looked++
		last = c.n
		isEnd = isEnd || milliTime(at).Before(oldest)
		if isEnd || c.id == "" || f.known[c.id] {
			return nil
		}
		f.known[c.id] = true
		if !isLater { // else it stands on an earlier page
			found = append(found, c)
		}
		return nil
	}, src.withLater(), append([]any{bigint(from), chunkSize}, src.args...)...)
	return found, last, isEnd || looked < chunkSize, err
}

// withLater returns a query for the calls of the events that a source gives, and whether it gives a
// later event of the call too. A search is short: a call with more than a thousand later events may
// be listed twice.
func (src *source) withLater() string {
	return `WITH c AS (` + src.sql + `) SELECT e.n, e.at, e.call, EXISTS (
			SELECT FROM (SELECT * FROM event
				WHERE call = e.call AND call <> '' AND sequence > e.sequence ORDER BY sequence LIMIT 1000) l
			WHERE ` + src.isAt + `
		) FROM c CROSS JOIN LATERAL (SELECT * FROM event WHERE event.n = c.n OFFSET 0) e ORDER BY e.n DESC`
}

// look adds the calls that the search is for. IsFull says that the page is full, and that another
// one follows.
func (f *callSearch) look(found []foundCall) (isFull bool, err error) {
	const headsAtOnce = 32
	left, err := f.withoutOthers(found)
	if err != nil {
		return false, err
	}
	withoutState := f.CallQuery
	withoutState.State = "" // of deliveries, which are read for the calls that it leaves
	for len(found) > 0 {
		n, ids := 0, []string{}
		for ; n < len(found) && len(ids) < headsAtOnce; n++ {
			if left[found[n].id] {
				ids = append(ids, found[n].id)
			}
		}
		heads, err := f.tx.heads(ids, withoutState.Matches, f.readings)
		if err != nil {
			return false, err
		}
		for _, c := range found[:n] {
			f.list.Looked++
			h, ok := heads[c.id]
			switch {
			case !ok || !f.Matches(&h):
			case len(f.list.Calls) == f.Limit:
				f.list.Cursor = store.CallCursor(c.n + 1)
				return true, nil
			default:
				f.list.Calls = append(f.list.Calls, h)
			}
		}
		found = found[n:]
	}
	return false, nil
}

// latestMatches leaves those of calls for which the search may be by their latest event: a number
// of it contains digits, and it has not ended the call in another way.
const latestMatches = `SELECT c.call FROM unnest($1::text[]) AS c(call) CROSS JOIN LATERAL (
		SELECT * FROM event WHERE event.call = c.call AND event.call <> '' ORDER BY sequence DESC LIMIT 1) l
	WHERE (position($2 IN l.from_key) > 0 OR position($2 IN l.to_key) > 0 OR $2 = '')
		AND NOT (l.type = $3 AND EXISTS (SELECT FROM unnest($4::bytea[]) o WHERE position(o IN l.body) > 0))`

// withoutOthers returns the calls without those that the search is certainly not for, by their
// latest event: that is known without their other events.
func (f *callSearch) withoutOthers(found []foundCall) (left map[string]bool, err error) {
	ids := make([]string, len(found))
	left = map[string]bool{}
	for i, c := range found {
		ids[i], left[c.id] = c.id, true
	}
	digits, others := "", [][]byte{}
	if f.Match == store.KeyContains {
		digits = f.Key
	}
	for _, outcome := range []telephony.Outcome{
		telephony.OutcomeAnswered, telephony.OutcomeMissed, telephony.OutcomeNoAnswer,
	} {
		if f.Outcome != "" && f.Outcome != outcome { // no text holds that: its quotes are escaped
			others = append(others, []byte(`,"outcome":"`+outcome+`"`))
		}
	}
	if digits == "" && len(others) == 0 {
		return left, nil
	}
	clear(left)
	err = f.tx.query(func(rows pgx.Rows) error {
		var id string
		err := rows.Scan(&id)
		left[id] = true
		return err
	}, latestMatches, ids, digits, string(telephony.EventCompleted), others)
	return left, err
}

// firstSince gives the number of the first event that was read at a time or later, one above all
// if there is none, and 0 if there are no events. Events are numbered in the order in which they
// were read.
func (tx *txn) firstSince(at time.Time) (n uint64, err error) {
	_, err = tx.queryRow([]any{&n}, `WITH RECURSIVE s AS (
			SELECT (SELECT n FROM event ORDER BY n LIMIT 1) AS low,
				(SELECT n + 1 FROM event ORDER BY n DESC LIMIT 1) AS high
			UNION ALL SELECT CASE WHEN e.at < $1 THEN e.n + 1 ELSE low END,
				CASE WHEN e.at < $1 THEN high ELSE (low + high) / 2 END
			FROM s CROSS JOIN LATERAL (SELECT n, at FROM event WHERE n >= (low + high) / 2 ORDER BY n LIMIT 1) e
			WHERE low < high
		) SELECT low FROM s WHERE low = high`, at.UnixMilli())
	return n, err
}
