package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/repeat"
	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// schema is the version of the layout of the file. Each record has a version of its own: records of
// an older layout are read as they are, and rewritten when they change.
const schema = 4

// migrations maps each version to the function that brings a file to the next one, in the
// transaction that opens it. Except migrate1, they change only a few records of each bucket.
var migrations = map[uint64]func(*txn) error{1: migrate1, 2: migrate2, 3: migrate3}

// prepare creates the buckets that are missing and brings an older file to the present layout.
func (s *Engine) prepare(tx *bolt.Tx) error {
	first, _ := tx.Cursor().First()
	if first != nil {
		if meta := tx.Bucket(bucketMeta); meta == nil || meta.Get(keySchema) == nil {
			return damage{ErrNotOutbox, "another program has made it"}
		}
	}
	if err := refuseMoved(tx); err != nil {
		return err
	}
	for _, name := range topBuckets {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	if first == nil { // a new file has no events of an older layout
		if err := tx.Bucket(bucketMeta).Put(keyNumbered, number(filledWhole)); err != nil {
			return err
		}
	}
	endpoints := tx.Bucket(bucketEndpoints)
	for _, name := range s.rules.Endpoints {
		if endpoints.Bucket([]byte(name)) != nil {
			continue
		}
		b, err := endpoints.CreateBucket([]byte(name))
		if err != nil {
			return err
		}
		if err := b.Put(keyFilled, number(filledWhole)); err != nil { // a new bucket has no records of an older layout
			return err
		}
	}
	if err := endpoints.ForEachBucket(func(name []byte) error {
		for _, inner := range endpointBuckets {
			if _, err := endpoints.Bucket(name).CreateBucketIfNotExists(inner); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return migrate(tx, &s.rules)
}

// migrate brings an older file to the present layout, in one transaction. It rejects a newer file.
func migrate(tx *bolt.Tx, rules *store.Rules) error {
	t := newTxn(tx, rules)
	version := uint64(schema)
	if v := t.meta.Get(keySchema); len(v) == 8 {
		version = binary.BigEndian.Uint64(v)
	}
	if err := tooNew(version); err != nil {
		return err
	}
	for ; version < schema; version++ {
		step, ok := migrations[version]
		if !ok {
			return damage{ErrNotOutbox, fmt.Sprintf("its layout is %d", version)}
		}
		if err := step(t); err != nil {
			return fmt.Errorf("bring the file from layout %d to %d: %w", version, version+1, err)
		}
	}
	return t.meta.Put(keySchema, number(schema))
}

// announceMigration calls migrating if the file is of an older layout.
func announceMigration(db *bolt.DB, migrating func(layout int, write func(io.Writer) error) error) error {
	return db.View(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			return nil
		}
		v := meta.Get(keySchema)
		if len(v) != 8 || binary.BigEndian.Uint64(v) >= schema {
			return nil
		}
		return migrating(schema, func(w io.Writer) error {
			_, err := tx.WriteTo(w)
			return err
		})
	})
}

// tooNew returns an error if this version does not support a layout.
func tooNew(version uint64) error {
	if version > schema {
		return &telephony.Fault{
			Code: telephony.CodeNewerFile,
			Args: []string{strconv.FormatUint(version, 10), strconv.Itoa(schema)},
			Text: fmt.Sprintf("the file is of a newer version of pzbridge "+
				"(its layout is %d, this version reads up to %d)", version, schema),
		}
	}
	return nil
}

// migrate1 comes from layout 1, in which a delivery was state (1 byte), attempts (2), due (8),
// status (2) and failedAt (8): it had no history of attempts and no link to the next delivery, and
// the states were not counted.
func migrate1(tx *txn) error {
	for _, name := range tx.names() {
		q := tx.queue(name)
		var keys [][]byte
		if err := q.deliveries.ForEach(func(k, _ []byte) error {
			keys = append(keys, bytes.Clone(k))
			return nil
		}); err != nil {
			return err
		}
		for _, k := range keys {
			if err := migrate1Delivery(q, k); err != nil {
				return err
			}
		}
	}
	return tx.putCounts()
}

func migrate1Delivery(q *queue, k []byte) error {
	v := q.deliveries.Get(k)
	if len(v) != 21 || store.State(v[0]) > store.Dead {
		return nil // damaged: the lane that claims it makes it dead
	}
	attempts := int(binary.BigEndian.Uint16(v[1:]))
	d := store.Delivery{
		State:    store.State(v[0]),
		Attempts: attempts,
		Step:     attempts,
		Due:      int64(binary.BigEndian.Uint64(v[3:])),
		FailedAt: int64(binary.BigEndian.Uint64(v[13:])),
	}
	// The record is of version 0, so that fillIndexes later adds it to the index by expiry like any
	// other old record.
	record := encodeDelivery(d, nil)[:headSize0]
	record[0] = byte(d.State)
	if err := q.deliveries.Put(k, record); err != nil {
		return err
	}
	q.counts[d.State]++
	q.changed = true
	if d.State != store.Pending {
		return nil
	}
	r, err := q.rowsOf(binary.BigEndian.Uint64(k))
	if err != nil {
		return nil // its event is damaged: the lane makes it dead too
	}
	store.Link(r, r.n)
	return r.finish(time.Time{}, 0)
}

// migrate2 comes from layout 2, which had no routes and no questions, and changes nothing. The
// layout has a number of its own so that an older version rejects the file: it would never deliver
// an event that is being asked about.
func migrate2(*txn) error { return nil }

// migrate3 comes from layout 3, in which deliveries had no expiry time and no index by it, those
// that have failed no index, and calls no index by number: fillIndexes fills them while the bridge
// runs. The time for which an endpoint has been failing was not stored among its notes.
func migrate3(tx *txn) error {
	for _, name := range tx.names() {
		q := tx.queue(name)
		failing := q.root.Get(keyFailing)
		if failing == nil {
			continue
		}
		note := append(append(number(1), number(0)...), failing...)
		if err := errors.Join(q.notes.Put(keyFailing, note), q.root.Delete(keyFailing)); err != nil {
			return err
		}
	}
	return nil
}

// keyFailing is the name of the note that holds for how long an endpoint has been failing.
var keyFailing = []byte("failing")

// keyFilled holds, in the bucket of an endpoint, the number of the delivery up to which its index
// by expiry is filled; filledWhole means all of it.
var keyFilled = []byte("filled")

const filledWhole = uint64(math.MaxUint64)

// fillBatch is how many deliveries one transaction rewrites: few enough not to delay deliveries.
const fillBatch = 256

// fillRetryWait is the wait after a step that failed.
const fillRetryWait = time.Second

// fillIndexes rewrites what an older layout has stored, so that it stands in the indexes, in steps
// that survive a kill. Until it is done, a delivery that has expired is found only when a lane
// claims it, and older calls are not found by their number.
func (s *Engine) fillIndexes(ctx context.Context) {
	failures := repeat.New(s.logger)
	for _, name := range s.rules.Endpoints {
		if !s.fill(ctx, failures, func() (bool, error) { return s.fillSome(name) }) {
			return
		}
	}
	if s.fill(ctx, failures, s.fillNumbers) {
		failures.Recovered("the indexes are filled")
	}
}

// fill takes one step after another until all is done, or cannot be since a page is damaged. It is
// false if ctx has ended.
func (s *Engine) fill(ctx context.Context, failures *repeat.Log, step func() (done bool, err error)) bool {
	for {
		done, err := step()
		if err != nil {
			failures.Failed("an index of the outbox cannot be filled", err)
		}
		switch {
		case done || errors.Is(err, store.ErrDamaged): // what another index is made of may be sound
			return true
		case ctx.Err() != nil || err != nil && !sleep.For(ctx, fillRetryWait):
			return false
		}
	}
}

// fillSome rewrites the next batch of an endpoint, and reports whether that was the last.
func (s *Engine) fillSome(endpoint string) (done bool, err error) {
	var old []uint64
	var next uint64
	err = s.view(func(tx *txn) error {
		q := tx.queue(endpoint)
		filled := decodeNumber(q.root.Get(keyFilled))
		if done = filled == filledWhole; done {
			return nil
		}
		old, next = q.oldDeliveries(filled)
		return nil
	})
	if err != nil || done {
		return done, err
	}
	err = s.commit(func(tx *txn) error {
		q := tx.queue(endpoint)
		for _, n := range old {
			d, history, ok := q.get(n)
			if !ok {
				continue
			}
			if err := q.put(n, d, history); err != nil {
				return err
			}
		}
		return q.root.Put(keyFilled, number(next))
	})
	return next == filledWhole, err
}

// oldDeliveries returns the next batch of deliveries of an older layout after a number that are to
// stand in an index, and the number of the last delivery that it looked at.
func (q *queue) oldDeliveries(after uint64) (old []uint64, next uint64) {
	c := q.deliveries.Cursor()
	seen := 0
	for k, v := c.Seek(number(after + 1)); k != nil; k, v = c.Next() {
		if seen++; seen > maxRead || len(old) == fillBatch {
			return old, next
		}
		next = decodeNumber(k)
		if d, _, version, err := decodeDelivery(v); err == nil && version == 0 && d.State != store.Delivered {
			old = append(old, next)
		}
	}
	return old, filledWhole
}

// keyNumbered holds the number of the event up to which the index by number is filled; filledWhole
// means all of it.
var keyNumbered = []byte("numbered")

// fillNumbers adds the next batch of events to the index by number, and reports whether that was
// the last.
func (s *Engine) fillNumbers() (done bool, err error) {
	var old []uint64
	var next uint64
	err = s.view(func(tx *txn) error {
		filled := decodeNumber(tx.meta.Get(keyNumbered))
		if done = filled == filledWhole; !done {
			old, next = tx.eventsAfter(filled, fillBatch)
		}
		return nil
	})
	if err != nil || done {
		return done, err
	}
	err = s.commit(func(tx *txn) error {
		for _, n := range old {
			if err := s.fillNumbersOf(tx, n); err != nil {
				return err
			}
		}
		return tx.meta.Put(keyNumbered, number(next))
	})
	return next == filledWhole, err
}

// eventsAfter returns the next numbers of events after a number, and where to go on.
func (tx *txn) eventsAfter(after uint64, limit int) (list []uint64, next uint64) {
	c := tx.events.Cursor()
	for k, _ := c.Seek(number(after + 1)); k != nil; k, _ = c.Next() {
		if len(list) == limit {
			return list, list[limit-1]
		}
		list = append(list, decodeNumber(k))
	}
	return list, filledWhole
}

// fillNumbersOf adds an event to the index by number, unless it has gone or stands there already.
func (s *Engine) fillNumbersOf(tx *txn, n uint64) error {
	e, body, err := decodeEventHead(tx.events.Get(number(n)))
	if err != nil || e.Call == "" {
		return nil // what is damaged is found by its number never
	}
	place := binary.BigEndian.AppendUint64(callKey(e.Call), e.Sequence)
	entry := callEntry(tx.calls.Get(place))
	if entry.isIndexed() || len(entry) < callEntryHead {
		return nil
	}
	from, to := store.NumbersIn(body)
	entry = s.withKeys(bytes.Clone(entry), from, to)
	var before callEntry
	if k, v := seekBefore(tx.calls.Cursor(), place); bytes.HasPrefix(k, callKey(e.Call)) {
		before = v
	}
	if err := tx.indexNumbers(n, entry, before); err != nil {
		return err
	}
	return tx.calls.Put(place, entry)
}
