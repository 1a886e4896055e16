package outbox

import (
	"bytes"
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// schema is the version of the file's layout.
const schema = 3

// migrations bring a file from the version that is their index to the next one.
var migrations = map[uint64]func(*txn) error{1: migrate1, 2: migrate2}

// migrate brings an older file to this version's layout, in the transaction that has opened it: it is migrated whole or not at all. A newer file
// is refused.
func migrate(tx *bolt.Tx) error {
	t := newTxn(tx)
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
			return fmt.Errorf("%w (it says that its layout is %d)", ErrNotOutbox, version)
		}
		if err := step(t); err != nil {
			return fmt.Errorf("bring the file from layout %d to %d: %w", version, version+1, err)
		}
	}
	return t.meta.Put(keySchema, number(schema))
}

// tooNew refuses a file of a layout that this version does not know.
func tooNew(version uint64) error {
	if version > schema {
		return fmt.Errorf("the file is of a newer version of pzbridge (its layout is %d, this version reads up to %d): "+
			"use that version again, or a backup from before the upgrade", version, schema)
	}
	return nil
}

// migrate1: a delivery was state (1 byte), attempts (2), due (8), status (2), failedAt (8). It had no attempts, did not say what comes after it, and
// nobody counted.
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
			v := q.deliveries.Get(k)
			if len(v) != 21 || state(v[0]) > dead {
				continue // it was damaged before, and the lane that claims it will say so
			}
			attempts := int(binary.BigEndian.Uint16(v[1:]))
			d := delivery{
				state: state(v[0]), attempts: attempts, step: attempts,
				due: int64(binary.BigEndian.Uint64(v[3:])), failedAt: int64(binary.BigEndian.Uint64(v[13:])),
			}
			if err := q.deliveries.Put(k, encodeDelivery(d, nil)); err != nil {
				return err
			}
			q.counts[d.state]++
			q.changed = true
			if err := tx.link(q, binary.BigEndian.Uint64(k), d); err != nil {
				return err
			}
		}
	}
	return tx.putCounts()
}

// migrate2: there were no routes and no questions, and a version that knows none must not have such a file: it would never deliver what is being asked.
func migrate2(*txn) error { return nil }

// link tells the delivery before a pending one in its call, if that is pending too, what comes after it.
func (tx *txn) link(q *queue, n uint64, d delivery) error {
	e, _, err := decodeEventHead(tx.events.Get(number(n)))
	if d.state != pending || err != nil {
		return nil
	}
	at, before, history := tx.neighbour(q, e.call, e.sequence, (*bolt.Cursor).Prev, delivery.isAny)
	return q.follow(at, before, history, n)
}
