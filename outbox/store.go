package outbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"pzbridge/internal/telephony"
)

// The file. Numbers are big-endian, so that keys sort as numbers do.
//
//	meta                     schema, client_guid
//	events                   number              -> an event: see encodeEvent
//	ids                      event ID            -> number
//	calls                    call key, sequence  -> number, fingerprint
//	endpoints/NAME/deliveries  number            -> a delivery: see encodeDelivery
//	endpoints/NAME/due         time, number      -> nothing; one for each pending delivery that is not held
//
// An event's number says when it was appended: 1, 2, 3 … A record and its index change in one transaction.
var (
	bucketMeta       = []byte("meta")
	bucketEvents     = []byte("events")
	bucketIDs        = []byte("ids")
	bucketCalls      = []byte("calls")
	bucketEndpoints  = []byte("endpoints")
	bucketDeliveries = []byte("deliveries")
	bucketDue        = []byte("due")

	keySchema     = []byte("schema")
	keyClientGUID = []byte("client_guid")
)

// schema is the version of this layout.
const schema = 1

// lockTimeout is how long to wait for a process that is just ending. bbolt's default is for ever.
const lockTimeout = time.Second

// store is the only thing that touches bbolt.
type store struct {
	db        *bolt.DB
	endpoints []Endpoint
	hold      time.Duration // Options.OrderHold

	mu         sync.Mutex
	waiting    []*change // for the next commit
	committing bool
	failed     error // of the last commit; nil if it went well
	full       error // of the last append; nil if it went well
}

func openStore(path string, endpoints []Endpoint, hold time.Duration) (s *store, err error) {
	// bbolt meets a file that is cut off or overwritten with a panic, or reads past its end, which is a fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w (%v)", ErrNotOutbox, r)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make its folder: %w", plain(err))
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrInUse
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w (%w)", ErrNotOutbox, err)
	case err != nil && strings.Contains(err.Error(), "file size too small"):
		return nil, fmt.Errorf("%w (%w)", ErrNotOutbox, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: give user %d the right to write in %s", plain(err), os.Getuid(), filepath.Dir(path))
	case err != nil:
		return nil, plain(err)
	}
	s = &store{db: db, endpoints: endpoints, hold: hold}
	if err := s.commit(s.prepare); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// plain takes the path out of an error that is wrapped in a sentence with it already.
func plain(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// prepare makes the buckets that are missing.
func (s *store) prepare(tx *bolt.Tx) error {
	for _, name := range [][]byte{bucketMeta, bucketEvents, bucketIDs, bucketCalls, bucketEndpoints} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	if v := meta.Get(keySchema); v != nil && !bytes.Equal(v, number(schema)) {
		return fmt.Errorf("the file is of another version of pzbridge (schema %d, this version reads %d): use the version that wrote it",
			binary.BigEndian.Uint64(v), schema)
	}
	if err := meta.Put(keySchema, number(schema)); err != nil {
		return err
	}
	for _, e := range s.endpoints {
		b, err := tx.Bucket(bucketEndpoints).CreateBucketIfNotExists([]byte(e.Name))
		if err != nil {
			return err
		}
		for _, name := range [][]byte{bucketDeliveries, bucketDue} {
			if _, err := b.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// change is a part of a transaction, and who waits for it.
type change struct {
	apply func(*bolt.Tx) error
	turn  chan turn
}

// turn is what a waiting change is told: that it was committed, with what error, or that it is its turn to commit.
type turn struct {
	lead bool
	err  error
}

// commit applies a change and returns when it is on the disk. Changes that come while a commit runs wait and are then committed
// together by the first of them: nobody waits for a timer, and no goroutine has to be owned. If one change of a group fails, all fail.
func (s *store) commit(apply func(*bolt.Tx) error) error {
	c := &change{apply: apply, turn: make(chan turn, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	if s.committing {
		s.mu.Unlock()
		if t := <-c.turn; !t.lead {
			return t.err
		}
		s.mu.Lock()
	}
	s.committing = true
	group := s.waiting
	s.waiting = nil
	s.mu.Unlock()

	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, c := range group {
			if err := c.apply(tx); err != nil {
				return err
			}
		}
		return nil
	})

	s.mu.Lock()
	s.failed = err
	s.committing = len(s.waiting) > 0
	if s.committing {
		s.waiting[0].turn <- turn{lead: true}
	}
	s.mu.Unlock()
	for _, other := range group {
		if other != c {
			other.turn <- turn{err: err}
		}
	}
	return err
}

// writable says why events cannot be stored. That an append failed counts until one succeeds: on a full disk smaller changes still go through.
func (s *store) writable() error {
	s.mu.Lock()
	failed, full := s.failed, s.full
	s.mu.Unlock()
	if failed == nil || full != nil {
		return full
	}
	return s.commit(func(*bolt.Tx) error { return nil })
}

func (s *store) clientGUID() (string, error) {
	var guid string
	err := s.commit(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if v := meta.Get(keyClientGUID); v != nil {
			guid = string(v)
			return nil
		}
		guid = uuid.NewString()
		return meta.Put(keyClientGUID, []byte(guid))
	})
	if err != nil {
		return "", fmt.Errorf("keep the client GUID in the outbox: %w", err)
	}
	return guid, nil
}

// append stores events and the duty to deliver each.
func (s *store) append(records []record) error {
	err := s.commit(func(tx *bolt.Tx) error {
		events, ids, calls := tx.Bucket(bucketEvents), tx.Bucket(bucketIDs), tx.Bucket(bucketCalls)
		told := toldAlready{calls: calls, byCall: map[string]map[[16]byte]bool{}}
		for _, r := range records {
			if ids.Get(r.id[:]) != nil || told.replay(r) {
				continue
			}
			n, err := events.NextSequence()
			if err != nil {
				return err
			}
			sequence := lastSequence(calls, callKey(r.call)) + 1
			told.note(r)
			if err := errors.Join(
				events.Put(number(n), encodeEvent(r, sequence)),
				ids.Put(r.id[:], number(n)),
				calls.Put(append(callKey(r.call), number(sequence)...), append(number(n), r.fingerprint[:]...)),
			); err != nil {
				return err
			}
			for _, e := range s.endpoints {
				if !e.Events.Match(r.kind) {
					continue
				}
				_, before := neighbour(tx, e.Name, r.call, sequence, (*bolt.Cursor).Prev)
				if err := putDelivery(tx, e.Name, n, behind(before, s.hold)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	s.mu.Lock()
	s.full = err
	s.mu.Unlock()
	return err
}

// toldAlready knows, for the calls of one transaction that have replayed events, what the outbox has been told of them. It reads a call
// once, so that a long replay of one call does not read it again for each event.
type toldAlready struct {
	calls  *bolt.Bucket
	byCall map[string]map[[16]byte]bool
}

// replay says whether an event is a replay of one that is stored.
func (t toldAlready) replay(r record) bool {
	if !r.replayed {
		return false
	}
	prints, read := t.byCall[r.call]
	if !read {
		prints = map[[16]byte]bool{}
		t.byCall[r.call] = prints
		prefix := callKey(r.call)
		c := t.calls.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			prints[[16]byte(v[8:])] = true
		}
	}
	return prints[r.fingerprint]
}

func (t toldAlready) note(r record) {
	if prints, read := t.byCall[r.call]; read {
		prints[r.fingerprint] = true
	}
}

// callKey is the prefix of a call's events. It has a length of its own, so that no call's key begins another's, and
// an ID that is no decimal number but a novel is hashed.
func callKey(call string) []byte {
	const longest = 32
	if len(call) > longest {
		sum := sha256.Sum256([]byte(call))
		return append([]byte{longest + 1}, sum[:]...)
	}
	return append([]byte{byte(len(call))}, call...)
}

// lastSequence is the sequence of a call's latest event, 0 if it has none.
func lastSequence(calls *bolt.Bucket, prefix []byte) uint64 {
	c := calls.Cursor()
	after := append(bytes.Clone(prefix), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	k, _ := c.Seek(after)
	if k == nil {
		k, _ = c.Last()
	} else {
		k, _ = c.Prev()
	}
	if !bytes.HasPrefix(k, prefix) || len(k) != len(prefix)+8 {
		return 0
	}
	return binary.BigEndian.Uint64(k[len(prefix):])
}

// job is a delivery that is due, with what an attempt needs. Nothing in it belongs to bbolt.
type job struct {
	number   uint64
	sequence uint64 // within its call
	delivery delivery
	id       uuid.UUID
	eventID  string    // the same as text
	at       time.Time // when it was read
	kind     telephony.EventType
	call     string
	body     []byte
}

// expires is when it is no longer of use to deliver the event; zero is never.
func (j job) expires(routing, ringing time.Duration) time.Time {
	if life := lifetime(j.kind, routing, ringing); life > 0 {
		return j.at.Add(life)
	}
	return time.Time{}
}

// due gives up to limit deliveries of an endpoint that are due, oldest first, but for those in flight, and how long it is until the next
// one is (0 if there is none, or if limit was reached). A due time more than horizon ahead counts as due: the clock was set back. A record
// that is damaged is passed over, so that it holds up no other; the error tells of it.
func (s *store) due(endpoint string, limit int, inFlight map[uint64]bool, horizon time.Duration) (jobs []job, wait time.Duration, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketEndpoints).Bucket([]byte(endpoint))
		deliveries, events := b.Bucket(bucketDeliveries), tx.Bucket(bucketEvents)
		now := time.Now().UnixNano()
		var damaged error
		take := func(k []byte) {
			n := binary.BigEndian.Uint64(k[8:])
			if inFlight[n] {
				return
			}
			d, errDelivery := decodeDelivery(deliveries.Get(k[8:]))
			j, errEvent := decodeEvent(events.Get(k[8:]))
			if err := errors.Join(errDelivery, errEvent); err != nil {
				damaged = fmt.Errorf("event %d: %w", n, err)
				return
			}
			j.number, j.delivery = n, d
			jobs = append(jobs, j)
		}
		c := b.Bucket(bucketDue).Cursor()
		k, _ := c.First()
		for ; k != nil && len(jobs) < limit; k, _ = c.Next() {
			if at := int64(binary.BigEndian.Uint64(k)); at > now && at <= now+int64(horizon) {
				wait = time.Duration(at - now)
				break
			}
			take(k)
		}
		// What is too far ahead is at the end; where the loop came that far it has taken it already.
		if k == nil {
			return damaged
		}
		for k, _ = c.Last(); k != nil && len(jobs) < limit; k, _ = c.Prev() {
			if at := int64(binary.BigEndian.Uint64(k)); at <= now+int64(horizon) {
				break
			}
			take(k)
		}
		return damaged
	})
	return jobs, wait, err
}

// record stores how a delivery stands after an attempt, and what that means for the next one of its call.
func (s *store) record(endpoint string, j job, now delivery) error {
	return s.commit(func(tx *bolt.Tx) error {
		if err := putDelivery(tx, endpoint, j.number, now); err != nil {
			return err
		}
		n, next := neighbour(tx, endpoint, j.call, j.sequence, (*bolt.Cursor).Next)
		if next == nil || next.state != pending {
			return nil
		}
		return putDelivery(tx, endpoint, n, next.after(now, s.hold))
	})
}

// neighbour gives the delivery, and its event's number, of the nearest event of a call, before or after the one with the sequence, that the
// endpoint gets at all. It is nil when there is none; an event of no call has none. A record that is damaged is passed over, or no
// event of that call could be appended any more.
func neighbour(
	tx *bolt.Tx, endpoint, call string, sequence uint64, step func(*bolt.Cursor) ([]byte, []byte),
) (n uint64, d *delivery) {
	// Behind so many events that the endpoint does not get, order is nobody's concern; a scan without a bound would be everybody's.
	const farthest = 1000
	if call == "" {
		return 0, nil
	}
	deliveries := tx.Bucket(bucketEndpoints).Bucket([]byte(endpoint)).Bucket(bucketDeliveries)
	prefix := callKey(call)
	c := tx.Bucket(bucketCalls).Cursor()
	c.Seek(append(bytes.Clone(prefix), number(sequence)...))
	for range farthest {
		k, v := step(c)
		if !bytes.HasPrefix(k, prefix) {
			return 0, nil
		}
		if d, err := decodeDelivery(deliveries.Get(v[:8])); err == nil {
			return binary.BigEndian.Uint64(v), &d
		}
	}
	return 0, nil
}

// putDelivery writes a delivery and its place in the due index, which it has while it is pending and not held.
func putDelivery(tx *bolt.Tx, endpoint string, n uint64, d delivery) error {
	b := tx.Bucket(bucketEndpoints).Bucket([]byte(endpoint))
	// What is stored says where it stands in the index, not what the caller has read: a delivery in flight may have been moved meanwhile.
	if record := b.Bucket(bucketDeliveries).Get(number(n)); record != nil {
		old, err := decodeDelivery(record)
		if err != nil {
			return err
		}
		if err := b.Bucket(bucketDue).Delete(dueKey(old.due, n)); err != nil {
			return err
		}
	}
	if d.state == pending && d.due != held {
		if err := b.Bucket(bucketDue).Put(dueKey(d.due, n), nil); err != nil {
			return err
		}
	}
	return b.Bucket(bucketDeliveries).Put(number(n), encodeDelivery(d))
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func dueKey(due int64, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(due)), n)
}

// errDamaged means that a record is not what this program writes.
var errDamaged = errors.New("its record in the outbox is damaged")

// encodeDelivery: state (1 byte), attempts (2), due (8), status (2), failedAt (8).
func encodeDelivery(d delivery) []byte {
	v := []byte{byte(d.state)}
	v = binary.BigEndian.AppendUint16(v, uint16(d.attempts))
	v = binary.BigEndian.AppendUint64(v, uint64(d.due))
	v = binary.BigEndian.AppendUint16(v, uint16(d.status))
	return binary.BigEndian.AppendUint64(v, uint64(d.failedAt))
}

func decodeDelivery(v []byte) (delivery, error) {
	if len(v) != 21 || state(v[0]) > dead {
		return delivery{}, errDamaged
	}
	return delivery{
		state: state(v[0]), attempts: int(binary.BigEndian.Uint16(v[1:])),
		due: int64(binary.BigEndian.Uint64(v[3:])), status: int(binary.BigEndian.Uint16(v[11:])),
		failedAt: int64(binary.BigEndian.Uint64(v[13:])),
	}, nil
}

// encodeEvent: ID (16 bytes), sequence (8), time in unix milliseconds (8), type and call (each: length as 4 bytes, text), body.
func encodeEvent(r record, sequence uint64) []byte {
	v := append(bytes.Clone(r.id[:]), number(sequence)...)
	v = append(v, number(uint64(r.at.UnixMilli()))...)
	for _, text := range [...]string{string(r.kind), r.call} {
		v = append(binary.BigEndian.AppendUint32(v, uint32(len(text))), text...)
	}
	return append(v, r.body(sequence)...)
}

func decodeEvent(v []byte) (job, error) {
	if len(v) < 32 {
		return job{}, errDamaged
	}
	j := job{id: uuid.UUID(v[:16]), sequence: binary.BigEndian.Uint64(v[16:])}
	j.eventID, j.at = j.id.String(), time.UnixMilli(int64(binary.BigEndian.Uint64(v[24:])))
	v = v[32:]
	var kind string
	for _, text := range [...]*string{&kind, &j.call} {
		if len(v) < 4 || uint64(len(v)) < 4+uint64(binary.BigEndian.Uint32(v)) {
			return job{}, errDamaged
		}
		n := binary.BigEndian.Uint32(v)
		*text, v = string(v[4:4+n]), v[4+n:]
	}
	j.kind, j.body = telephony.EventType(kind), bytes.Clone(v)
	return j, nil
}
