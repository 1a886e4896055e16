package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"pzbridge/outbox/store"
)

var (
	bucketMeta       = []byte("meta")
	bucketEvents     = []byte("events")
	bucketIDs        = []byte("ids")
	bucketCalls      = []byte("calls")
	bucketNumbers    = []byte("numbers")
	bucketRoutes     = []byte("routes")
	bucketQuestions  = []byte("questions")
	bucketKeys       = []byte("keys")
	bucketKeyAges    = []byte("key_ages")
	bucketEndpoints  = []byte("endpoints")
	bucketDeliveries = []byte("deliveries")
	bucketDue        = []byte("due")
	bucketExpiry     = []byte("expiry")
	bucketFailed     = []byte("failed")
	bucketKept       = []byte("kept")
	bucketNotes      = []byte("notes")
	bucketRequests   = []byte("redeliveries")
	bucketAudits     = []byte("audits")

	keySchema = []byte("schema")
	keyPruned = []byte("pruned")
	keyCounts = []byte("counts")
)

// topBuckets are the buckets of every file.
var topBuckets = [][]byte{
	bucketMeta, bucketEvents, bucketIDs, bucketCalls, bucketNumbers, bucketRoutes, bucketQuestions, bucketKeys,
	bucketKeyAges, bucketEndpoints, bucketRequests, bucketAudits,
}

// endpointBuckets are the buckets of every endpoint.
var endpointBuckets = [][]byte{
	bucketDeliveries, bucketDue, bucketExpiry, bucketFailed, bucketKept, bucketNotes,
}

// maxRead is how many records one read goes through at most: a long one would keep pages from being
// used again.
const maxRead = 4096

// txn is a transaction with its buckets, each looked up once.
type txn struct {
	*bolt.Tx
	rules *store.Rules

	meta, calls, numbers, questions, keys, ages, endpoints, requests, audits *bolt.Bucket
	events, ids, routes                                                      lookedUp

	queues map[string]*queue
	cursor *bolt.Cursor                      // of calls: see lastOf
	inUse  int64                             // bytes of the file, as the transaction began; 0 until it was asked for
	prints map[string]map[[16]byte]bool      // fingerprints of a call: see isReplay
	known  []string                          // see names
	states map[uint32]*store.RedeliveryState // see redelivery
}

// lookedUp is a bucket in which much is looked up. A bucket's own Get makes a cursor, which
// allocates at each level of the tree; this one uses its cursor again.
type lookedUp struct {
	*bolt.Bucket
	cursor *bolt.Cursor
}

// Get returns the value of a key, nil if there is none.
func (b *lookedUp) Get(key []byte) []byte {
	if b.cursor == nil {
		b.cursor = b.Cursor()
	}
	if k, v := b.cursor.Seek(key); bytes.Equal(k, key) {
		return v
	}
	return nil
}

func newTxn(tx *bolt.Tx, rules *store.Rules) *txn {
	t := &txn{
		Tx:        tx,
		rules:     rules,
		meta:      tx.Bucket(bucketMeta),
		events:    lookedUp{Bucket: tx.Bucket(bucketEvents)},
		ids:       lookedUp{Bucket: tx.Bucket(bucketIDs)},
		calls:     tx.Bucket(bucketCalls),
		numbers:   tx.Bucket(bucketNumbers),
		routes:    lookedUp{Bucket: tx.Bucket(bucketRoutes)},
		questions: tx.Bucket(bucketQuestions),
		keys:      tx.Bucket(bucketKeys),
		ages:      tx.Bucket(bucketKeyAges),
		endpoints: tx.Bucket(bucketEndpoints),
		requests:  tx.Bucket(bucketRequests),
		audits:    tx.Bucket(bucketAudits),
		queues:    map[string]*queue{},
		states:    map[uint32]*store.RedeliveryState{},
		prints:    map[string]map[[16]byte]bool{},
	}
	fill(t.events.Bucket)
	fill(t.ids.Bucket)
	return t
}

// deliveriesFill leaves a page of deliveries room for the attempts that will be kept with them, or
// each page would be split when they are recorded.
const deliveriesFill = 0.6

// fill is for buckets whose keys grow: a page that has been left behind gets nothing any more, so
// half-full pages, bbolt's default, would stay so.
func fill(b *bolt.Bucket) {
	if b != nil {
		b.FillPercent = 0.9
	}
}

// queue gives what belongs to an endpoint, nil if the file knows none of that name.
func (tx *txn) queue(endpoint string) *queue {
	q, ok := tx.queues[endpoint]
	if !ok {
		if b := tx.endpoints.Bucket([]byte(endpoint)); b != nil {
			q = &queue{
				name: endpoint, tx: tx, root: b,
				deliveries: lookedUp{Bucket: b.Bucket(bucketDeliveries)},
				due:        b.Bucket(bucketDue),
				expiry:     b.Bucket(bucketExpiry),
				failed:     b.Bucket(bucketFailed),
				kept:       b.Bucket(bucketKept),
				notes:      b.Bucket(bucketNotes),
				counts:     decodeCounts(b.Get(keyCounts)),
			}
			if q.deliveries.Bucket != nil {
				q.deliveries.FillPercent = deliveriesFill
			}
		}
		tx.queues[endpoint] = q
	}
	return q
}

// names lists the endpoints that the file knows, also those that are configured no longer. No
// transaction but that of the start adds one.
func (tx *txn) names() []string {
	if tx.known == nil {
		tx.known = []string{}
		_ = tx.endpoints.ForEachBucket(func(name []byte) error {
			tx.known = append(tx.known, string(name))
			return nil
		})
	}
	return tx.known
}

func (tx *txn) putCounts() error {
	for _, q := range tx.queues {
		if q != nil && q.changed {
			if err := q.root.Put(keyCounts, q.counts.encode()); err != nil {
				return err
			}
		}
	}
	return tx.putRedeliveries()
}

// numberOf gives the number of the event with an ID.
func (tx *txn) numberOf(eventID string) (uint64, bool) {
	id, err := uuid.Parse(eventID)
	if err != nil {
		return 0, false
	}
	v := tx.ids.Get(id[:])
	return decodeNumber(v), len(v) == 8
}

// queue is the part of a transaction that belongs to one endpoint.
type queue struct {
	name                                   string
	tx                                     *txn
	root, due, expiry, failed, kept, notes *bolt.Bucket
	deliveries                             lookedUp

	counts  counts
	changed bool
	buf     []byte // for a record of attempts, until it is put

	lastExpiry expiryEntry // the one that was added last
	rows       rows
}

// record gives the record of a delivery as it is stored, nil if there is none. It belongs to bbolt.
func (q *queue) record(n uint64) []byte { return q.deliveries.Get(number(n)) }

// get gives a delivery and its last attempts as they are stored; the attempts belong to bbolt. It
// is false when there is none, and when its record is damaged.
func (q *queue) get(n uint64) (d store.Delivery, history []byte, ok bool) {
	return q.decode(n, q.record(n))
}

// decode is get for a record that was read already. A record of an older layout lacks the time when
// it expires, which follows from its event.
func (q *queue) decode(n uint64, record []byte) (d store.Delivery, history []byte, ok bool) {
	d, history, version, err := decodeDelivery(record)
	if err != nil {
		return store.Delivery{}, nil, false
	}
	if version == 0 && d.State == store.Pending && d.Redelivered == 0 {
		if e, _, err := decodeEventHead(q.tx.events.Get(number(n))); err == nil {
			d.Expires = unixNano(q.tx.rules.Expires(q.name, &e))
		}
	}
	return d, history, true
}

// put writes a delivery with its last attempts, and its places in the indexes.
func (q *queue) put(n uint64, d store.Delivery, history []byte) error {
	return q.replace(n, q.record(n), d, history)
}

// replace is put for a delivery of which the record is known; nil if there is none yet.
func (q *queue) replace(n uint64, record []byte, d store.Delivery, history []byte) error {
	before, _, had := q.decode(n, record)
	if had {
		q.tx.countRedelivered(before, d)
	}
	if !had || before.State != d.State {
		q.changed = true
		q.counts[d.State]++
		if had {
			q.counts.less(before.State)
		}
	}
	wasDue, isDue := had && before.IsDue(), d.IsDue()
	if wasDue && (!isDue || before.Due != d.Due) {
		if err := q.due.Delete(timeKey(before.Due, n)); err != nil {
			return err
		}
	}
	if isDue && (!wasDue || before.Due != d.Due) {
		if err := q.due.Put(timeKey(d.Due, n), nil); err != nil {
			return err
		}
	}
	if err := q.putFailed(n, d.State, before.State, had && recordVersion(record) != 0); err != nil {
		return err
	}
	isIndexed := wasDue && before.Expires == d.Expires && recordVersion(record) != 0
	if isDue && d.Expires != 0 && !isIndexed {
		if err := q.addExpiry(d.Expires, n); err != nil {
			return err
		}
	}
	return q.deliveries.Put(number(n), encodeDelivery(d, history))
}

// remove takes a delivery away with its places in the indexes.
func (q *queue) remove(n uint64) error {
	d, _, ok := q.get(n)
	if !ok {
		return q.forget(n)
	}
	q.changed = true
	q.counts.less(d.State)
	q.tx.countRedelivered(d, d.Ended(store.Dead, time.Time{}))
	return errors.Join(q.due.Delete(timeKey(d.Due, n)), q.failed.Delete(failedKey(d.State, n)), q.forget(n))
}

// forget takes a delivery's record away.
func (q *queue) forget(n uint64) error {
	return q.deliveries.Delete(number(n))
}

// pendingNoMore counts a pending delivery less, whose record cannot be read.
func (q *queue) pendingNoMore() {
	q.changed = true
	q.counts.less(store.Pending)
}

// counts says how many deliveries of an endpoint are in each state. The array's index is the state.
type counts [store.Dead + 1]uint64

// less counts one delivery less. A count that was damaged stays at 0.
func (c *counts) less(s store.State) { c[s] -= min(c[s], 1) }

func (c counts) encode() []byte {
	var v []byte
	for _, n := range c {
		v = binary.BigEndian.AppendUint64(v, n)
	}
	return v
}

func decodeCounts(v []byte) (c counts) {
	for i := range c {
		if len(v) >= 8*(i+1) {
			c[i] = binary.BigEndian.Uint64(v[8*i:])
		}
	}
	return c
}
