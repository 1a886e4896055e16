package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"pzbridge/outbox/store"
)

var (
	bucketMeta       = []byte("meta")
	bucketEvents     = []byte("events")
	bucketIDs        = []byte("ids")
	bucketCalls      = []byte("calls")
	bucketRoutes     = []byte("routes")
	bucketQuestions  = []byte("questions")
	bucketKeys       = []byte("keys")
	bucketKeyAges    = []byte("key_ages")
	bucketEndpoints  = []byte("endpoints")
	bucketDeliveries = []byte("deliveries")
	bucketDue        = []byte("due")
	bucketExpiry     = []byte("expiry")
	bucketKept       = []byte("kept")
	bucketNotes      = []byte("notes")

	keySchema = []byte("schema")
	keyPruned = []byte("pruned")
	keyCounts = []byte("counts")
)

// topBuckets are the buckets of every file.
var topBuckets = [][]byte{
	bucketMeta, bucketEvents, bucketIDs, bucketCalls, bucketRoutes, bucketQuestions, bucketKeys, bucketKeyAges,
	bucketEndpoints,
}

// maxRead is how many records one read goes through at most: a long one would keep pages from being
// used again.
const maxRead = 4096

// txn is a transaction with its buckets, each looked up once.
type txn struct {
	*bolt.Tx
	rules *store.Rules

	meta, events, ids, calls, routes, questions, keys, ages, endpoints *bolt.Bucket

	queues   map[string]*queue
	byID     seeker                       // in ids
	byNumber seeker                       // in events
	cursor   *bolt.Cursor                 // of calls: see lastOf
	inUse    int64                        // bytes of the file, as the transaction began; 0 until it was asked for
	prints   map[string]map[[16]byte]bool // fingerprints of a call: see isReplay
	known    []string                     // see names
	newest   []byte                       // the largest ID that is stored, nil until it was looked for: see knows
}

func newTxn(tx *bolt.Tx, rules *store.Rules) *txn {
	t := &txn{
		Tx: tx, rules: rules,
		meta: tx.Bucket(bucketMeta), events: tx.Bucket(bucketEvents), ids: tx.Bucket(bucketIDs),
		calls: tx.Bucket(bucketCalls), routes: tx.Bucket(bucketRoutes), questions: tx.Bucket(bucketQuestions),
		keys: tx.Bucket(bucketKeys), ages: tx.Bucket(bucketKeyAges), endpoints: tx.Bucket(bucketEndpoints),
		queues: map[string]*queue{}, prints: map[string]map[[16]byte]bool{},
	}
	fill(t.events)
	fill(t.ids)
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
				deliveries: b.Bucket(bucketDeliveries), due: b.Bucket(bucketDue), expiry: b.Bucket(bucketExpiry),
				kept: b.Bucket(bucketKept), notes: b.Bucket(bucketNotes),
				counts: decodeCounts(b.Get(keyCounts)),
			}
			if q.deliveries != nil {
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
	return nil
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
	name                          string
	tx                            *txn
	root, deliveries, due, expiry *bolt.Bucket
	kept, notes                   *bolt.Bucket

	counts           counts
	changed          bool
	byNumber, byTime seeker            // in deliveries and due
	together         map[uint64][]byte // see readTogether
	recent           [2]recent
	at               int    // where in recent the next record goes
	buf              []byte // for a record of attempts, until it is put
	rows             rows
}

// recent is a record that was read a moment ago, since most are read, then changed.
type recent struct {
	number uint64
	record []byte
}

// seeker looks up keys of one bucket. Each look of the bucket's own makes a new cursor.
type seeker struct {
	cursor *bolt.Cursor
	key    [16]byte // room for one
}

// find goes to a number, or to a time and a number, or to an ID as two numbers, and gives the value
// there.
func (f *seeker) find(b *bolt.Bucket, numbers ...uint64) (v []byte, found bool) {
	if f.cursor == nil {
		f.cursor = b.Cursor()
	}
	key := f.key[:0]
	for _, n := range numbers {
		key = binary.BigEndian.AppendUint64(key, n)
	}
	k, v := f.cursor.Seek(key)
	if !bytes.Equal(k, key) {
		return nil, false
	}
	return v, true
}

// next is find for a number that probably comes right behind the last one, which takes a fraction
// of the time. The bucket must not have been changed since.
func (f *seeker) next(b *bolt.Bucket, n uint64) (v []byte, found bool) {
	if f.cursor != nil {
		if k, v := f.cursor.Next(); len(k) == 8 && binary.BigEndian.Uint64(k) == n {
			return v, true
		}
	}
	return f.find(b, n)
}

// record gives the record of a delivery as it is stored, nil if there is none. It belongs to bbolt.
func (q *queue) record(n uint64) []byte {
	if v, known := q.together[n]; known {
		return v
	}
	for i := range q.recent {
		if q.recent[i].number == n {
			return q.recent[i].record
		}
	}
	v, _ := q.byNumber.find(q.deliveries, n)
	q.remember(n, v)
	return v
}

// remember keeps what is known of a record.
func (q *queue) remember(n uint64, record []byte) {
	q.recent[q.at] = recent{n, record}
	q.at = (q.at + 1) % len(q.recent)
}

// outdate forgets what is known of a record, since it is being changed.
func (q *queue) outdate(n uint64) {
	delete(q.together, n)
	for i := range q.recent {
		if q.recent[i].number == n {
			q.recent[i] = recent{}
		}
	}
}

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

// readTogether reads deliveries that are going to be changed, all before the first is: to look up
// one between two changes takes as long as to change it.
func (q *queue) readTogether(numbers []uint64) {
	slices.Sort(numbers)
	q.together = make(map[uint64][]byte, len(numbers))
	for i, n := range numbers {
		if i == 0 {
			q.together[n], _ = q.byNumber.find(q.deliveries, n)
		} else {
			q.together[n], _ = q.byNumber.next(q.deliveries, n)
		}
	}
}

// put writes a delivery with its last attempts, and its places in the indexes.
func (q *queue) put(n uint64, d store.Delivery, history []byte) error {
	record := q.record(n)
	before, _, had := q.decode(n, record)
	if !had || before.State != d.State {
		q.changed = true
		q.counts[d.State]++
		if had {
			q.counts.less(before.State)
		}
	}
	wasDue, isDue := had && before.IsDue(), d.IsDue()
	if wasDue && (!isDue || before.Due != d.Due) {
		if err := drop(&q.byTime, q.due, before.Due, n); err != nil {
			return err
		}
	}
	if isDue && (!wasDue || before.Due != d.Due) {
		if err := q.due.Put(timeKey(d.Due, n), nil); err != nil {
			return err
		}
	}
	isIndexed := wasDue && before.Expires == d.Expires && recordVersion(record) != 0
	if isDue && d.Expires != 0 && !isIndexed {
		if err := q.addExpiry(d.Expires, n); err != nil {
			return err
		}
	}
	q.outdate(n)
	return q.deliveries.Put(number(n), encodeDelivery(d, history))
}

// drop takes a delivery out of an index.
func drop(in *seeker, index *bolt.Bucket, at int64, n uint64) error {
	if _, found := in.find(index, uint64(at), n); !found {
		return nil
	}
	return in.cursor.Delete()
}

// remove takes a delivery away with its places in the indexes.
func (q *queue) remove(n uint64) error {
	d, _, ok := q.get(n)
	if !ok {
		return q.forget(n)
	}
	q.changed = true
	q.counts.less(d.State)
	return errors.Join(drop(&q.byTime, q.due, d.Due, n), q.forget(n))
}

// forget takes a delivery's record away.
func (q *queue) forget(n uint64) error {
	q.outdate(n)
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
