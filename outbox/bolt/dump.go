package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// The file is dumped section by section, each in the order of its keys, so that a dump goes on
// behind any record and holds no more than one batch in memory.

// sections are the parts of a dump, in their order. Each goes on from the position, and is true
// once nothing is left of it.
var sections = []func(*dumping) bool{
	(*dumping).head, (*dumping).notes, (*dumping).claims, (*dumping).audits, (*dumping).redeliveries,
	(*dumping).calls, (*dumping).events,
}

const (
	// maxDumpBytes is after how many bytes of events one batch ends.
	maxDumpBytes = 1 << 20
	// recentEvents is of how long before the newest event all events belong to the first part: the
	// exchange may send them again, and most calls that go on have begun since.
	recentEvents = 24 * time.Hour
)

// dumpPosition is where a dump stands.
type dumpPosition struct {
	section byte
	list    uint16 // which of the lists of a section, or which part of it
	key     []byte // the last one that was looked at in it; empty if there was none
}

func (p dumpPosition) encode() []byte {
	return append(binary.BigEndian.AppendUint16([]byte{p.section}, p.list), p.key...)
}

func decodeDumpPosition(v []byte) dumpPosition {
	if len(v) < 3 {
		return dumpPosition{}
	}
	return dumpPosition{section: v[0], list: binary.BigEndian.Uint16(v[1:]), key: bytes.Clone(v[3:])}
}

// Dump returns the next records after a position: see store.Dumper.
func (s *Source) Dump(_ context.Context, after []byte, limit int) (out store.Dumped, err error) {
	err = s.engine.view(func(tx *txn) error {
		d := &dumping{engine: s.engine, tx: tx, at: decodeDumpPosition(after), limit: limit}
		for int(d.at.section) < len(sections) && !d.isFull() {
			if sections[d.at.section](d) {
				d.at = dumpPosition{section: d.at.section + 1}
			}
		}
		if out = d.out; int(d.at.section) < len(sections) {
			out.Next = d.at.encode()
		}
		return nil
	})
	return out, err
}

// dumping is a Dump under way.
type dumping struct {
	engine *Engine
	tx     *txn
	at     dumpPosition
	limit  int

	out    store.Dumped
	looked int  // records
	size   int  // bytes of the events
	ended  bool // the batch ends here
}

func (d *dumping) isFull() bool {
	return d.ended || len(d.out.Records) >= d.limit || d.size >= maxDumpBytes || d.looked >= maxRead
}

func (d *dumping) add(r store.CopyRecord) { d.out.Records = append(d.out.Records, r) }

// passed moves the position behind a key.
func (d *dumping) passed(k []byte) {
	d.looked++
	d.at.key = append(d.at.key[:0], k...)
}

// behind moves a cursor to the first key behind the position.
func (d *dumping) behind(c *bolt.Cursor) (k, v []byte) {
	if k, v = c.Seek(d.at.key); len(d.at.key) > 0 && bytes.Equal(k, d.at.key) {
		return c.Next()
	}
	return k, v
}

// walk calls visit for the records of a bucket behind the position. It is true once it has reached
// the end.
func (d *dumping) walk(b *bolt.Bucket, visit func(k, v []byte)) (done bool) {
	c := b.Cursor()
	for k, v := d.behind(c); k != nil; k, v = c.Next() {
		if d.isFull() {
			return false
		}
		visit(k, v)
		d.passed(k)
	}
	return true
}

// walkAll is walk for several buckets, one after the other.
func (d *dumping) walkAll(count int, bucket func(i int) *bolt.Bucket, visit func(i int, k, v []byte)) (done bool) {
	for int(d.at.list) < count {
		i := int(d.at.list)
		if !d.walk(bucket(i), func(k, v []byte) { visit(i, k, v) }) {
			return false
		}
		d.at.list, d.at.key = d.at.list+1, nil
	}
	return true
}

// ownSettings are the names in the meta bucket that are no settings.
var ownSettings = [][]byte{keySchema, keyPruned, keyNumbered, keyDoubt, keyMoved}

func (d *dumping) head() (done bool) {
	d.add(store.NumbersRecord{Last: d.tx.events.Sequence(), Pruned: decodeNumber(d.tx.meta.Get(keyPruned))})
	for _, name := range d.tx.names() {
		d.add(store.EndpointRecord{Name: name, Reading: decodeReading(d.tx.queue(name).root.Get(keyReader))})
	}
	_ = d.tx.meta.ForEach(func(k, v []byte) error {
		if !slices.ContainsFunc(ownSettings, func(own []byte) bool { return bytes.Equal(own, k) }) {
			d.add(store.SettingRecord{Name: string(k), Value: string(v)})
		}
		return nil
	})
	return true
}

func (d *dumping) notes() (done bool) {
	names := d.tx.names()
	bucket := func(i int) *bolt.Bucket { return d.tx.queue(names[i]).notes }
	return d.walkAll(len(names), bucket, func(i int, k, v []byte) {
		if len(v) < noteHead {
			return
		}
		note := store.NoteRecord{
			Endpoint: names[i],
			Name:     string(k),
			Version:  binary.BigEndian.Uint64(v),
			Value:    bytes.Clone(v[noteHead:]),
		}
		if until := int64(binary.BigEndian.Uint64(v[8:])); until != 0 {
			note.Until = time.Unix(0, until)
		}
		d.add(note)
	})
}

// claims dumps the idempotency keys.
func (d *dumping) claims() (done bool) {
	var bearers []string
	_ = d.tx.ages.ForEachBucket(func(name []byte) error {
		bearers = append(bearers, string(name))
		return nil
	})
	bucket := func(i int) *bolt.Bucket { return d.tx.ages.Bucket([]byte(bearers[i])) }
	return d.walkAll(len(bearers), bucket, func(i int, k, _ []byte) {
		if len(k) != 8+32 {
			return
		}
		key := [32]byte(k[8:])
		if c, err := decodeClaim(d.tx.keys.Get(key[:])); err == nil {
			d.add(store.KeyRecord{Bearer: bearers[i][1:], Key: key, Claim: c}) // see agesOf
		}
	})
}

func (d *dumping) audits() (done bool) {
	return d.walk(d.tx.audits, func(k, v []byte) {
		var e store.Audit
		if json.Unmarshal(v, &e) == nil {
			d.add(store.AuditRecord{Number: decodeNumber(k), Audit: e})
		}
	})
}

func (d *dumping) redeliveries() (done bool) {
	return d.walk(d.tx.requests, func(_, v []byte) {
		var r store.RedeliveryState
		if json.Unmarshal(v, &r) == nil {
			d.add(store.RedeliveryRecord{RedeliveryState: r})
		}
	})
}

// wholeCall in the position means that all events of the call at the key are dumped.
const wholeCall = 1

// calls dumps, of each call, all events if an endpoint waits for one of them, or else the latest
// one: the sequence of the call's next event follows from it. Of events of no call it dumps those
// for which an endpoint waits.
func (d *dumping) calls() (done bool) {
	none := callKey("")
	c := d.tx.calls.Cursor()
	for k, v := d.behind(c); k != nil; {
		if d.isFull() {
			return false
		}
		prefix := k[:max(0, len(k)-8)]
		switch {
		case len(k) != len(callPrefix(k))+8: // it is damaged
			d.passed(k)
		case bytes.Equal(prefix, none):
			if n := numberAt(v); d.isWaitedFor(n) {
				d.event(n)
			}
			d.passed(k)
		case d.at.list == wholeCall && bytes.HasPrefix(d.at.key, prefix):
			d.event(numberAt(v))
			d.passed(k)
		default:
			if d.beginCall(bytes.Clone(prefix)) {
				continue
			}
			k, v = d.behind(c)
			continue
		}
		k, v = c.Next()
	}
	return true
}

// callPrefix is the part of a key of the calls bucket that names the call, by the length with which
// it begins: see callKey.
func callPrefix(k []byte) []byte {
	if len(k) == 0 {
		return nil
	}
	return k[:min(len(k), 1+min(int(k[0]), longestCall))]
}

// beginCall dumps what is kept of a call as a whole and moves the position into the call, and is
// true, if all of its events are to be dumped. Else it dumps the latest one and moves the position
// behind it.
func (d *dumping) beginCall(prefix []byte) (whole bool) {
	sequence, entry := d.tx.lastOf(bytes.Clone(prefix))
	last := binary.BigEndian.AppendUint64(bytes.Clone(prefix), sequence)
	latest, _, err := decodeEventHead(d.tx.events.Get(number(numberAt(entry))))
	whole = err != nil
	c := d.tx.calls.Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix) && (!whole || err != nil); k, v = c.Next() {
		whole = whole || d.isWaitedFor(numberAt(v))
		if err != nil {
			latest, _, err = decodeEventHead(d.tx.events.Get(number(numberAt(v))))
		}
	}
	if err == nil { // else nothing of it can be read
		d.ofCall(prefix, latest.Call)
	}
	d.at.list = 0
	if whole {
		d.at.list = wholeCall
		d.passed(prefix)
		return true
	}
	d.event(numberAt(entry))
	d.passed(last)
	return false
}

// ofCall dumps the route of a call and what senders have kept for it.
func (d *dumping) ofCall(prefix []byte, call string) {
	var r telephony.Route
	if v := d.tx.routes.Get(prefix); v != nil && json.Unmarshal(v, &r) == nil {
		r.CallID = call // which JSON may have changed
		d.add(store.RouteRecord{Route: r})
	}
	for _, name := range d.tx.names() {
		if v := d.tx.queue(name).kept.Get(prefix); len(v) >= 8 {
			d.add(store.KeptRecord{
				Call:     call,
				Endpoint: name,
				Version:  binary.BigEndian.Uint64(v),
				Value:    bytes.Clone(v[8:]),
			})
		}
	}
}

// isWaitedFor reports whether a delivery of an event is pending, or endpoints are being asked about
// it.
func (d *dumping) isWaitedFor(n uint64) bool {
	if d.tx.questions.Get(number(n)) != nil {
		return true
	}
	for _, name := range d.tx.names() {
		q := d.tx.queue(name)
		if delivery, _, ok := q.decode(n, q.record(n)); ok && delivery.IsPending() {
			return true
		}
	}
	return false
}

// theRest in the position means that the newest events are dumped.
const theRest = 1

// events dumps all events, the newest first, and ends the first part between them.
func (d *dumping) events() (done bool) {
	c := d.tx.events.Cursor()
	k, _ := c.Last()
	if len(d.at.key) > 0 {
		k, _ = seekBefore(c, d.at.key)
	}
	from := decodeNumber(d.at.key)
	since, upTo := d.firstRecent()
	for ; k != nil && !d.isFull(); k, _ = prev(c, k) {
		n := decodeNumber(k)
		if d.at.list != theRest && !d.isRecent(n, since, upTo) {
			break
		}
		if !d.event(n) {
			d.out.Damaged++
		}
		d.passed(k)
		from = n
	}
	if from == 0 { // there is none
		from = d.tx.events.Sequence() + 1
	}
	switch isEnd := k == nil || !d.isFull(); {
	case isEnd && d.at.list == theRest:
		return true
	case isEnd:
		d.add(store.CompleteRecord{From: from})
		d.add(store.FirstPartRecord{})
		d.at.list, d.ended = theRest, true
	default:
		d.add(store.CompleteRecord{From: from})
	}
	return false
}

// firstRecent returns from when, or from which number on, events belong to the newest: those that
// an endpoint which reads has not read, too.
func (d *dumping) firstRecent() (since time.Time, upTo uint64) {
	c := d.tx.events.Cursor()
	for k, v := c.Last(); k != nil; k, v = c.Prev() {
		if e, _, err := decodeEventHead(v); err == nil {
			since = e.At.Add(-recentEvents)
			break
		}
	}
	upTo = math.MaxUint64
	for _, name := range d.tx.names() {
		last := decodeReading(d.tx.queue(name).root.Get(keyReader))
		if d.engine.rules.Reads(name) && !last.At.IsZero() {
			upTo = min(upTo, last.UpTo)
		}
	}
	return since, upTo
}

func (d *dumping) isRecent(n uint64, since time.Time, upTo uint64) bool {
	if n >= upTo {
		return true
	}
	e, _, err := decodeEventHead(d.tx.events.Get(number(n)))
	return err != nil || !e.At.Before(since)
}

// event dumps an event with its deliveries. It is false if it cannot be read.
func (d *dumping) event(n uint64) bool {
	e, err := decodeEvent(d.tx.events.Get(number(n)))
	if err != nil {
		return false
	}
	r := store.EventRecord{Number: n, Event: e, Asking: d.tx.questions.Get(number(n)) != nil}
	entry := callEntry(d.tx.calls.Get(binary.BigEndian.AppendUint64(callKey(e.Call), e.Sequence)))
	r.Fingerprint, _ = entry.print()
	d.size += len(e.Body)
	for _, name := range d.tx.names() {
		q := d.tx.queue(name)
		if record := q.record(n); record != nil {
			of := q.dump(n, record, &e)
			r.Deliveries = append(r.Deliveries, of)
			d.size += len(of.History)
		}
	}
	d.add(r)
	return true
}

// dump returns a delivery. One that cannot be read is dead, as a lane would make it.
func (q *queue) dump(n uint64, record []byte, e *store.Event) store.DeliveryRecord {
	delivery, history, ok := q.decode(n, record)
	if !ok {
		history = store.AppendAttempt(nil, nil, store.Attempt{
			At: e.At, Error: store.ErrBadRecord.Error(), Cause: store.ErrBadRecord.Cause(),
		})
		delivery = store.Delivery{}.Ended(store.Dead, e.At)
	}
	if delivery.IsPending() && delivery.Due == store.Held && !q.isHeld(n, e) {
		delivery.Due = 0
	}
	return store.DeliveryRecord{Endpoint: q.name, Delivery: delivery, History: bytes.Clone(history)}
}

// isHeld reports whether an earlier delivery of its call holds a delivery. One that cannot be read
// is not pending in the copy, and would never release it there.
func (q *queue) isHeld(n uint64, e *store.Event) bool {
	at, _ := q.rowsAt(n, e.Call, e.Sequence, 0).Neighbour(n, -1, store.Delivery.IsPending)
	if at == 0 {
		return false
	}
	_, _, err := decodeEventHead(q.tx.events.Get(number(at)))
	return err == nil
}
