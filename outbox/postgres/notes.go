package postgres

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// Note gives a note of an endpoint: see store.Notes.
func (s *Engine) Note(
	ctx context.Context, endpoint, name string, now time.Time,
) (value []byte, version uint64, err error) {
	id, known := s.endpoints.id(endpoint)
	if !known {
		return nil, 0, fmt.Errorf("%w: %q", store.ErrNoEndpoint, endpoint)
	}
	until := int64(0)
	err = s.view(ctx, func(tx *txn) error {
		_, err := tx.queryRow([]any{&version, &until, &value},
			`SELECT version, until, value FROM note WHERE endpoint = $1 AND name = $2`, id, name)
		return err
	})
	if until != 0 && now.UnixNano() >= until {
		value = nil
	}
	return value, version, err
}

// SetNote stores a note of an endpoint: see store.Notes. The same call once more writes it once
// more: what the first one has stored may not be safe before.
func (s *Engine) SetNote(
	ctx context.Context, endpoint, name string, version uint64, value []byte, until time.Time,
) error {
	if len(value) > store.MaxNote {
		return fmt.Errorf("%w: a note of %d bytes, %d are allowed", store.ErrTooLong, len(value), store.MaxNote)
	}
	id, known := s.endpoints.id(endpoint)
	if !known {
		return fmt.Errorf("%w: %q", store.ErrNoEndpoint, endpoint)
	}
	value = append([]byte{}, value...) // nil would be NULL
	return s.change(ctx, func(tx *txn) error {
		var stored []byte
		var storedVersion uint64
		var storedUntil int64
		isStored, err := tx.queryRow([]any{&storedVersion, &storedUntil, &stored},
			`SELECT version, until, value FROM note WHERE endpoint = $1 AND name = $2 FOR UPDATE`, id, name)
		if err != nil {
			return err
		}
		isRepeated := storedVersion == version+1 && storedUntil == unixNano(until) && bytes.Equal(stored, value)
		if storedVersion != version && !isRepeated {
			return store.ErrChanged
		}
		sql := `INSERT INTO note (endpoint, name, version, until, value) VALUES ($1, $2, $3, $4, $5)`
		if isStored {
			sql = `UPDATE note SET version = $3, until = $4, value = $5 WHERE endpoint = $1 AND name = $2`
		}
		tx.write(sql, id, name, int64(version+1), unixNano(until), value)
		return nil
	})
}

// noteKey names a note.
type noteKey struct {
	endpoint int16
	name     string
}

// pruneNotes removes the notes whose time is over. It goes through all of them, some at a time.
func (s *Engine) pruneNotes(ctx context.Context) error {
	for from, more := (noteKey{}), true; more && ctx.Err() == nil; {
		var old []noteKey
		var err error
		old, from, more, err = s.oldNotes(ctx, from)
		if err == nil && len(old) > 0 {
			err = s.removeNotes(ctx, old)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// oldNotes lists those of the next notes whose time is over. Last is the last one that was looked
// at, and more is true if there may be others behind it.
func (s *Engine) oldNotes(ctx context.Context, from noteKey) (old []noteKey, last noteKey, more bool, err error) {
	const some = 1000
	last = from
	err = s.view(ctx, func(tx *txn) error {
		seen := 0
		err := tx.query(func(rows pgx.Rows) error {
			var until int64
			err := rows.Scan(&last.endpoint, &last.name, &until)
			if seen++; err == nil && s.isOldNote(until) {
				old = append(old, last)
			}
			return err
		}, `SELECT endpoint, name, until FROM note WHERE (endpoint, name) > ($1, $2)
			ORDER BY endpoint, name LIMIT $3`, from.endpoint, from.name, some)
		more = seen == some
		return err
	})
	return old, last, more, err
}

// removeNotes removes notes, but for those that were written anew meanwhile, with another end.
func (s *Engine) removeNotes(ctx context.Context, old []noteKey) error {
	var endpoints []int16
	var names []string
	for _, k := range old {
		endpoints, names = append(endpoints, k.endpoint), append(names, k.name)
	}
	return s.change(ctx, func(tx *txn) error {
		tx.write(`DELETE FROM note USING unnest($1::smallint[], $2::text[]) AS o(endpoint, name)
			WHERE note.endpoint = o.endpoint AND note.name = o.name AND note.until > 0 AND note.until <= $3`,
			endpoints, names, time.Now().UnixNano())
		return nil
	})
}

// isOldNote reports whether a note may be removed.
func (s *Engine) isOldNote(until int64) bool {
	return until != 0 && s.clock.Age(time.Unix(0, until)) >= store.NoteGrace
}

// keptKey names what a sender keeps for a call.
type keptKey struct {
	call     string
	endpoint int16
}

// keptBytes are what a sender keeps for a call, as a transaction knows them.
type keptBytes struct {
	version   uint64 // 0: nothing is kept
	value     []byte
	hasEvents bool // an event of the call is left
}

// loadKept reads what an endpoint's sender keeps for calls, as far as it is not known yet.
func (tx *txn) loadKept(endpoint int16, calls ...string) error {
	if tx.kept == nil {
		tx.kept = map[keptKey]*keptBytes{}
	}
	var unknown []string
	for _, call := range calls {
		if k := (keptKey{call, endpoint}); tx.kept[k] == nil {
			tx.kept[k] = &keptBytes{}
			unknown = append(unknown, call)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return tx.query(func(rows pgx.Rows) error {
		var call string
		var version *uint64
		k := &keptBytes{}
		err := rows.Scan(&call, &version, &k.value, &k.hasEvents)
		if version != nil {
			k.version = *version
		}
		tx.kept[keptKey{call, endpoint}] = k
		return err
	}, `SELECT c.call, k.version, k.value,
			EXISTS (SELECT FROM event WHERE event.call = c.call AND event.call <> '')
		FROM unnest($1::text[]) AS c(call) LEFT JOIN kept k ON k.call = c.call AND k.endpoint = $2`, unknown, endpoint)
}

// keep stores what a sender keeps for a call, whose lock is held. It is false, and stores nothing,
// where something newer is stored than what the attempt began with. The same result once more is
// the newest. Nothing is kept for a call without events: it may have been forgotten while an
// attempt was under way, and nothing would remove it any more.
func (tx *txn) keep(call string, endpoint int16, r *store.Result) (isNewest bool, err error) {
	if len(r.Keep) > store.MaxKept {
		return false, fmt.Errorf("%w: %d bytes for a call, %d are allowed",
			store.ErrTooLong, len(r.Keep), store.MaxKept)
	}
	if err := tx.loadKept(endpoint, call); err != nil {
		return false, err
	}
	k := tx.kept[keptKey{call, endpoint}]
	switch isRepeated := k.version == r.Job.KeptVersion+1 && bytes.Equal(k.value, r.Keep); {
	case isRepeated:
		return true, nil
	case k.version != r.Job.KeptVersion:
		return false, nil
	case r.Keep == nil, !k.hasEvents:
		return true, nil
	}
	k.version, k.value = k.version+1, r.Keep
	tx.write(`INSERT INTO kept (call, endpoint, version, value) VALUES ($1, $2, $3, $4)
		ON CONFLICT (call, endpoint) DO UPDATE SET version = excluded.version, value = excluded.value`,
		call, endpoint, int64(k.version), k.value)
	return true, nil
}

// laterEvents are the later events of calls that are stored already, store.MaxLater of each at
// most.
const laterEvents = `SELECT j.i, ` + eventColumns + `, e.body
	FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS j(call, sequence, i) CROSS JOIN LATERAL (
		SELECT * FROM event WHERE event.call = j.call AND event.call <> '' AND event.sequence > j.sequence
		ORDER BY event.sequence LIMIT $3) e
	ORDER BY j.i, e.sequence`

// addCalls adds to jobs what an endpoint's sender kept for their calls, and the calls' later
// events.
func (tx *txn) addCalls(endpoint int16, jobs []store.Job) error {
	var ofCalls []*store.Job
	var calls []string
	var sequences []int64
	for i := range jobs {
		if e := &jobs[i].Event; e.Call != "" {
			ofCalls, calls = append(ofCalls, &jobs[i]), append(calls, e.Call)
			sequences = append(sequences, int64(e.Sequence))
		}
	}
	if len(ofCalls) == 0 {
		return nil
	}
	return tx.read(func(b *pgx.Batch) {
		each(b.Queue(`SELECT j.i, k.version, k.value FROM unnest($1::text[]) WITH ORDINALITY AS j(call, i)
			JOIN kept k ON k.call = j.call AND k.endpoint = $2`, calls, endpoint), func(rows pgx.Rows) error {
			var i int
			var version uint64
			var value []byte
			err := rows.Scan(&i, &version, &value)
			if err == nil {
				ofCalls[i-1].KeptVersion, ofCalls[i-1].Kept = version, value
			}
			return err
		})
		each(b.Queue(laterEvents, calls, sequences, store.MaxLater), func(rows pgx.Rows) error {
			var i int
			var n uint64
			var at int64
			var kind string
			var e store.Event
			err := rows.Scan(&i, &n, &e.ID, &at, &kind, &e.Call, &e.Sequence, &e.Body)
			e.At, e.Type = milliTime(at), eventType(kind)
			if err == nil {
				ofCalls[i-1].Later = append(ofCalls[i-1].Later, e)
			}
			return err
		})
	})
}

// forgetKept queues the removal of what senders have kept for those of the calls of which no event
// is left. What removes the events is to be queued before.
func (tx *txn) forgetKept(calls []string) {
	if len(calls) > 0 {
		tx.write(`DELETE FROM kept USING unnest($1::text[]) AS c(call) WHERE kept.call = c.call
			AND NOT EXISTS (SELECT FROM event WHERE event.call = c.call AND event.call <> '')`, calls)
	}
}
