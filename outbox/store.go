package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"pzbridge/internal/clock"
)

// The file. Numbers are big-endian, so that keys sort as numbers do.
//
//	meta                       schema, client_guid, pruned (the highest number of an event that was removed), disconnected (that it is to be so),
//	                           sessions (the generation of those of the dashboard that are good)
//	events                     number              -> an event: see encodeEvent
//	ids                        event ID            -> number
//	calls                      call key, sequence  -> number, fingerprint
//	routes                     call key            -> a telephony.Route as JSON
//	questions                  number              -> nothing; one for each event that endpoints are being asked about
//	keys                       hash of a key       -> an idempotency key's request and answer: see encodeClaim
//	key_ages/NAME              time, hash          -> the bytes that a bearer's key takes: see putKey
//	endpoints/NAME             "counts"            -> how many deliveries are in each state: see counts
//	endpoints/NAME             "reader"            -> how far it has read, if it has no URL: see reading
//	endpoints/NAME/deliveries  number              -> a delivery and its last attempts: see encodeDelivery
//	endpoints/NAME/due         time, number        -> nothing; one for each pending delivery that is not held, nor of a question
//
// An event's number says when it was appended: 1, 2, 3 …, and after a restore on from higher ones: see renumber. A record and its index change in one
// transaction.
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

	keySchema       = []byte("schema")
	keyClientGUID   = []byte("client_guid")
	keyPruned       = []byte("pruned")
	keyDisconnected = []byte("disconnected")
	keySessions     = []byte("sessions")
	keyCounts       = []byte("counts")
)

// readAtOnce is how many records one read goes through at most: a long one would keep pages from being used again.
const readAtOnce = 4096

// lockTimeout is how long to wait for a process that is just ending. bbolt's default is for ever.
const lockTimeout = time.Second

// store is what touches bbolt.
type store struct {
	db        *bolt.DB
	endpoints []Endpoint
	hold      time.Duration // Options.OrderHold
	routing   time.Duration // Options.RoutingTimeout
	quiet     bool          // Options.QuietWithoutWinner
	maxBytes  int64         // Options.MaxBytes
	pageSize  int64
	observer  Observer
	danger    *danger
	clock     *clock.Clock
	readers   *readers

	mu         sync.Mutex
	waiting    []*change // for the next commit
	committing bool
	crowd      int   // changes that may be brought together, by the last commit
	failed     error // of the last commit; nil if it went well
	broken     error // not nil once a commit has met a page that is damaged: to write on could destroy more
	full       error // of the last append; nil if it went well
}

func openStore(opts Options) (*store, error) {
	if err := putBack(opts.Path, opts.Logger); err != nil {
		return nil, err
	}
	db, err := openFile(opts.Path, mapped(opts.MaxBytes))
	if err != nil {
		return nil, err
	}
	opened, err := os.Stat(opts.Path) // the lock is held, and it was just looked whether it is the same file
	if err != nil {
		return nil, errors.Join(plain(err), db.Close())
	}
	s := &store{
		danger: &danger{path: opts.Path, opened: opened, logger: opts.Logger, clock: opts.Clock}, clock: opts.Clock,
		db: db, endpoints: opts.Endpoints, hold: opts.OrderHold, routing: opts.RoutingTimeout, quiet: opts.QuietWithoutWinner,
		maxBytes: opts.MaxBytes, pageSize: int64(db.Info().PageSize), observer: opts.Observer, readers: newReaders(),
	}
	if err := guarded(func() error { return s.db.Update(s.prepare) }); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// LargestMaxBytes is the largest Options.MaxBytes: half of what bbolt maps of a file at most, since
// free pages make a file larger than what is in use. A process of 32 bits maps 2 GiB.
const LargestMaxBytes int64 = min(math.MaxInt, 1<<48-1)/2 + 1

// mapped is how much of the address space a file gets from the start that may have so many bytes in use. When a file outgrows its mapping, bbolt makes a new
// one, and everybody waits for the longest reader, such as the copying for a backup. Free pages make a file larger than what is in use.
func mapped(maxBytes int64) int {
	if math.MaxInt == math.MaxInt32 {
		return 0 // there is no room to spare
	}
	return int(min(2*maxBytes, 1<<40))
}

// guarded reads a file that may be damaged: bbolt meets one that is cut off or overwritten with a panic, or reads past its end, which is a fault.
func guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // a fault
			err = damage{ErrNotOutbox, "a part of it is missing, or cannot be read"}
		default:
			err = damage{ErrNotOutbox, fmt.Sprint(r)}
		}
	}()
	return read()
}

// damage is what was found to be wrong with a file, and what that means.
type damage struct {
	meaning error
	found   string
}

func (d damage) Error() string { return fmt.Sprintf("%s (%s)", d.meaning, d.found) }

func (d damage) Unwrap() error { return d.meaning }

// openFile opens the file for this process alone, or makes it, and maps so many bytes of it at first; 0 is as many as it has.
func openFile(path string, mapped int) (db *bolt.DB, err error) {
	err = guarded(func() error {
		db, err = openAlone(path, mapped)
		return err
	})
	return db, err
}

func openAlone(path string, mapped int) (*bolt.DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make its folder: %w", plain(err))
	}
	var opened *os.File
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: lockTimeout, InitialMmapSize: mapped, FreelistType: bolt.FreelistMapType,
		OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
			opened, err = os.OpenFile(name, flag, mode)
			return opened, err
		},
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrInUse
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w (%w)", ErrNotOutbox, err)
	case err != nil && strings.Contains(err.Error(), "file size too small"):
		return nil, fmt.Errorf("%w (%w)", ErrNotOutbox, err)
	case errors.Is(err, fs.ErrPermission):
		needs := "write in " + filepath.Dir(path)
		if _, err := os.Stat(path); err == nil {
			needs = "read and write it"
		}
		return nil, missingRight(err, needs)
	case err != nil:
		return nil, plain(err)
	}
	// Compact puts another file in its place. Whoever waited for the lock meanwhile has opened the one that is gone.
	mine, errMine := opened.Stat()
	there, errThere := os.Stat(path)
	if err := errors.Join(errMine, errThere); err != nil || !os.SameFile(mine, there) {
		return nil, errors.Join(ErrInUse, db.Close())
	}
	if err := guarded(func() error {
		return db.View(func(tx *bolt.Tx) error { return checkBranches(tx, opened, db.Info().PageSize) })
	}); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// plain takes the path out of an error that is wrapped in a sentence with it already.
func plain(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// prepare makes the buckets that are missing and brings an older file to this version's layout.
func (s *store) prepare(tx *bolt.Tx) error {
	if first, _ := tx.Cursor().First(); first != nil {
		if meta := tx.Bucket(bucketMeta); meta == nil || meta.Get(keySchema) == nil {
			return fmt.Errorf("%w (another program has made it)", ErrNotOutbox)
		}
	}
	for _, name := range [][]byte{bucketMeta, bucketEvents, bucketIDs, bucketCalls, bucketRoutes, bucketQuestions, bucketKeys, bucketKeyAges, bucketEndpoints} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
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
	return migrate(tx)
}

// update changes the file in one transaction. It fails with ErrDamaged where a page is.
func (s *store) update(change func(*txn) error) error {
	return s.watched(s.db.Update, change)
}

// view reads from the file as it stands now. It fails with ErrDamaged where a page is.
func (s *store) view(read func(*txn) error) error {
	return s.watched(s.db.View, read)
}

// watched does something in a transaction. Damage that it meets is noted: see danger. Where no
// transaction can even be begun, bbolt may hold its own locks for ever, so nothing is done with the
// file any more.
func (s *store) watched(transaction func(func(*bolt.Tx) error) error, do func(*txn) error) error {
	if broken := s.brokenErr(); broken != nil {
		return broken
	}
	hasBegun := false
	err := s.danger.note(guarded(func() error {
		return transaction(func(tx *bolt.Tx) error {
			hasBegun = true
			return do(newTxn(tx))
		})
	}))
	if !hasBegun && errors.Is(err, ErrDamaged) {
		s.mu.Lock()
		s.broken = err
		s.mu.Unlock()
	}
	return err
}

func (s *store) brokenErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// isBroken says whether damage was met after which nothing more is done with the file.
func (s *store) isBroken() bool { return s.brokenErr() != nil }

// writable says why events cannot be stored, or are in danger: see danger. That an append failed counts until one succeeds: on a full disk smaller changes still go through.
func (s *store) writable() error {
	s.mu.Lock()
	failed, full := s.failed, s.full
	s.mu.Unlock()
	if full != nil && (!errors.Is(full, ErrFull) || !s.hasRoom()) {
		return full
	}
	if failed != nil {
		if err := s.commit(func(*txn) error { return nil }); err != nil {
			return err
		}
	}
	return s.danger.err()
}

func (s *store) clientGUID() (string, error) {
	var guid string
	err := s.commit(func(tx *txn) error {
		if v := tx.meta.Get(keyClientGUID); v != nil {
			guid = string(v)
			return nil
		}
		guid = uuid.NewString()
		return tx.meta.Put(keyClientGUID, []byte(guid))
	})
	if err != nil {
		return "", fmt.Errorf("keep the client GUID in the outbox: %w", err)
	}
	return guid, nil
}

// connect keeps whether the bridge is to be connected to the exchange.
func (s *store) connect(enabled bool) error {
	return s.commit(func(tx *txn) error {
		if enabled {
			return tx.meta.Delete(keyDisconnected)
		}
		return tx.meta.Put(keyDisconnected, []byte{1})
	})
}

// isToConnect says what connect has kept last.
func (s *store) isToConnect() (enabled bool, err error) {
	err = s.view(func(tx *txn) error {
		enabled = tx.meta.Get(keyDisconnected) == nil
		return nil
	})
	return enabled, err
}

// txn is a transaction with its buckets, each looked up once.
type txn struct {
	*bolt.Tx
	meta, events, ids, calls, routes, questions, keys, ages, endpoints *bolt.Bucket

	queues   map[string]*queue
	byID     finder                       // in ids
	byNumber finder                       // in events
	cursor   *bolt.Cursor                 // of calls: see lastOf
	inUse    int64                        // bytes of the file, as the transaction began; 0 until it was asked for
	prints   map[string]map[[16]byte]bool // what has been told of a call: see told
	known    []string                     // see names
	newest   []byte                       // the largest ID that is stored, nil until it was looked for: see knows
}

func newTxn(tx *bolt.Tx) *txn {
	t := &txn{
		Tx: tx, meta: tx.Bucket(bucketMeta), events: tx.Bucket(bucketEvents), ids: tx.Bucket(bucketIDs), calls: tx.Bucket(bucketCalls),
		routes: tx.Bucket(bucketRoutes), questions: tx.Bucket(bucketQuestions), keys: tx.Bucket(bucketKeys), ages: tx.Bucket(bucketKeyAges), endpoints: tx.Bucket(bucketEndpoints),
		queues: map[string]*queue{}, prints: map[string]map[[16]byte]bool{},
	}
	fill(t.events)
	fill(t.ids)
	return t
}

// deliveriesFill leaves a page of deliveries room for the attempts that will be kept with them, or each page would be split when they are recorded.
const deliveriesFill = 0.6

// fill is for buckets whose keys grow: a page that has been left behind gets nothing any more, so half-full pages, bbolt's default, would stay so.
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
			q = &queue{root: b, deliveries: b.Bucket(bucketDeliveries), due: b.Bucket(bucketDue), counts: decodeCounts(b.Get(keyCounts))}
			if q.deliveries != nil {
				q.deliveries.FillPercent = deliveriesFill
			}
		}
		tx.queues[endpoint] = q
	}
	return q
}

// names lists the endpoints that the file knows, also those that are configured no longer. No transaction but that of the start adds one.
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

// queue is the part of a transaction that belongs to one endpoint.
type queue struct {
	root, deliveries, due *bolt.Bucket
	counts                counts
	changed               bool
	byNumber, byTime      finder            // in deliveries and in due
	read                  map[uint64][]byte // deliveries as they stand, those that are not are nil: see readTogether
	room                  []byte            // for a record of attempts, until it is put
}

// finder looks up keys of one bucket. Each look of the bucket's own makes a new cursor.
type finder struct {
	cursor *bolt.Cursor
	key    [16]byte // room for one
}

// find goes to a number, or to a time and a number, or to an ID as two numbers, and gives the value there.
func (f *finder) find(b *bolt.Bucket, numbers ...uint64) (v []byte, found bool) {
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

// next is find for a number that probably comes right behind the last one, which takes a fraction of the time. The bucket must not have been changed since.
func (f *finder) next(b *bolt.Bucket, n uint64) (v []byte, found bool) {
	if f.cursor != nil {
		if k, v := f.cursor.Next(); len(k) == 8 && binary.BigEndian.Uint64(k) == n {
			return v, true
		}
	}
	return f.find(b, n)
}

// get gives a delivery and its last attempts as they are stored; they belong to bbolt. It is nil when there is none, and when its record
// is damaged.
func (q *queue) get(n uint64) (*delivery, []byte) {
	v, known := q.read[n]
	if !known {
		v, _ = q.byNumber.find(q.deliveries, n)
	}
	d, err := decodeDelivery(v)
	if err != nil {
		return nil, nil
	}
	return &d, v[deliverySize:]
}

// readTogether reads deliveries that are going to be changed, all before the first is: to look up one between two changes takes as long as to change it.
func (q *queue) readTogether(numbers []uint64) {
	slices.Sort(numbers)
	q.read = make(map[uint64][]byte, len(numbers))
	for i, n := range numbers {
		if i == 0 {
			q.read[n], _ = q.byNumber.find(q.deliveries, n)
		} else {
			q.read[n], _ = q.byNumber.next(q.deliveries, n)
		}
	}
}

// put writes a delivery and its place in the due index, which it has while it is pending and not held. Before is what is stored of it, nil if nothing is.
func (q *queue) put(n uint64, before *delivery, d delivery, history []byte) error {
	if before == nil || before.state != d.state {
		q.changed = true
		q.counts[d.state]++
		if before != nil {
			q.counts.less(before.state)
		}
	}
	if before != nil && before.isDue() && (!d.isDue() || before.due != d.due) {
		if err := q.notDue(before.due, n); err != nil {
			return err
		}
	}
	if d.isDue() && (before == nil || !before.isDue() || before.due != d.due) {
		if err := q.due.Put(dueKey(d.due, n), nil); err != nil {
			return err
		}
	}
	delete(q.read, n)
	return q.deliveries.Put(number(n), encodeDelivery(d, history))
}

// notDue takes a delivery out of the due index.
func (q *queue) notDue(due int64, n uint64) error {
	if _, found := q.byTime.find(q.due, uint64(due), n); !found {
		return nil
	}
	return q.byTime.cursor.Delete()
}

// remove takes a delivery away with its place in the due index.
func (q *queue) remove(n uint64) error {
	d, _ := q.get(n)
	if d == nil {
		return q.forget(n)
	}
	q.changed = true
	q.counts.less(d.state)
	return errors.Join(q.notDue(d.due, n), q.forget(n))
}

// forget takes a delivery's record away.
func (q *queue) forget(n uint64) error {
	delete(q.read, n)
	return q.deliveries.Delete(number(n))
}

// release gives the delivery that comes after d in its call, if there is one and it is pending, the due time that follows from how d stands now. One that
// is damaged is given up: it stands in no index, so nobody else would find it, and it would hold the rest of its call for ever.
func (tx *txn) release(q *queue, d delivery, hold time.Duration) error {
	if d.next == 0 {
		return nil
	}
	next, history := q.get(d.next)
	if next == nil && q.deliveries.Get(number(d.next)) != nil {
		q.pendingNoMore() // it was held
		return tx.giveUp(q, d.next, hold)
	}
	if next == nil || next.state != pending {
		return nil
	}
	return q.put(d.next, next, next.after(d, hold), history)
}

// pendingNoMore counts a pending delivery less, whose record cannot be read.
func (q *queue) pendingNoMore() {
	q.changed = true
	q.counts.less(pending)
}

// follow tells a delivery, if it is pending, that n comes after it in its call. At, before and history are how it is stored.
func (q *queue) follow(at uint64, before *delivery, history []byte, n uint64) error {
	if before == nil || before.state != pending || before.next == n {
		return nil
	}
	linked := *before
	linked.next = n
	return q.put(at, before, linked, history)
}

// counts says how many deliveries of an endpoint are in each state. The array's index is the state.
type counts [dead + 1]uint64

// less counts one delivery less. A count that was damaged stays at 0.
func (c *counts) less(s state) { c[s] -= min(c[s], 1) }

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
