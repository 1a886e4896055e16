package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"pzbridge/internal/sleep"
	"pzbridge/outbox/store"
)

// txn is a transaction. What it reads comes in batches, each one round trip; what it writes is kept
// until the end and goes in one batch with the commit. Deliveries and the latest events of calls
// are kept as they are read and changed, so a change sees what was changed before it.
type txn struct {
	engine     *Engine
	ctx        context.Context
	conn       *pgxpool.Conn
	begin      string // the statement with which it begins; empty once it has begun
	readOnly   bool
	try        int  // 1 for the first: see change
	hasWritten bool // in the commit
	writes     pgx.Batch

	deliveries map[deliveryKey]*record
	calls      map[string]*callTail
	routes     map[string]*routeRecord
	requests   map[uint32]*store.RedeliveryState // see redelivery
	counted    map[tallyKey]int64
	kept       map[keptKey]*keptBytes // see loadKept
	opened     map[int16]uint64       // the lowest number that may have become due, of each endpoint: see front

	// What an append knows: see prepareAppend.
	incoming   *incoming
	rules      *numberedRules
	hasHead    bool      // the head is held
	isRaised   bool      // the numbers go on far beyond: see aboveSeen
	committing bool      // and written
	appended   int64     // the number of the last event
	slot       int       // of the listener whose events are appended; 0: none
	heard      [2]uint64 // the number of the last event of each listener
	grown      int64     // bytes by which the events grow
	touched    bool      // see touch

	// What the removal of events means for the head: see removeEvents.
	pruned uint64 // the highest number of one that was too old
	shrunk int64  // bytes by which the events shrink; negative if they grow: see loading
}

// tallyKey is a count of table tally.
type tallyKey struct {
	endpoint int16
	state    store.State
}

const (
	beginChange = "begin isolation level read committed"
	beginView   = "begin isolation level repeatable read, read only"
)

// change runs do in a transaction and commits it. A conflict with another transaction rolls both
// back and is met by another try, so do may run several times.
func (s *Engine) change(ctx context.Context, do func(*txn) error) error {
	const tries = 10
	for try := 1; ; try++ {
		began := time.Now()
		var tried *txn
		err := s.transact(ctx, beginChange, func(tx *txn) error {
			tx.try, tried = try, tx
			return do(tx)
		})
		if err == nil {
			if tried.hasWritten { // else it says nothing of whether anything can be stored
				s.committed(time.Since(began))
				s.setFailed(nil)
			}
			return nil
		}
		if errors.Is(err, errOutdated) && try < tries {
			if err = s.readSubscriptions(ctx); err == nil {
				continue
			}
		}
		if isDuplicate(err) && try < tries {
			continue
		}
		// Two that have met once must not meet again for ever.
		if isConflict(err) && try < tries && sleep.For(ctx, rand.N(time.Duration(try)*10*time.Millisecond)) {
			continue
		}
		err = classify(err)
		if isDatabaseError(err) {
			s.setFailed(err)
		}
		return err
	}
}

// look runs read in a transaction that sees one state of the database.
func (s *Engine) look(ctx context.Context, read func(*txn) error) error {
	return classify(s.transact(ctx, beginView, read))
}

// view is look for what people and programs read. It leaves connections to events and deliveries,
// however much is read.
func (s *Engine) view(ctx context.Context, read func(*txn) error) error {
	select {
	case s.viewers <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.viewers }()
	return s.look(ctx, read)
}

// operationTimeout bounds one transaction: a database that does not answer must not hold anything
// for ever.
const operationTimeout = 10 * time.Second

// errEnding means that the end of the engine has broken a transaction off.
var errEnding = errors.New("the bridge ends, and it has not answered")

func (s *Engine) transact(ctx context.Context, begin string, do func(*txn) error) (err error) {
	defer func() {
		if s.ending.Err() != nil && errors.Is(err, context.Canceled) {
			err = errEnding
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	defer context.AfterFunc(s.ending, cancel)()
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	readOnly := begin == beginView
	if s.pooled != "" {
		if _, err := conn.Exec(ctx, begin+s.pooled); err != nil {
			conn.Release()
			return err
		}
		begin = "" // it has begun
	}
	tx := &txn{
		engine: s, ctx: ctx, conn: conn, begin: begin, readOnly: readOnly,
		deliveries: map[deliveryKey]*record{},
		calls:      map[string]*callTail{},
		routes:     map[string]*routeRecord{},
		requests:   map[uint32]*store.RedeliveryState{},
		counted:    map[tallyKey]int64{},
		opened:     map[int16]uint64{},
	}
	if readOnly {
		err := do(tx)
		go tx.leave()
		return err
	}
	defer conn.Release()
	if err := do(tx); err != nil {
		tx.rollback()
		return err
	}
	defer tx.engine.openLanes(tx.opened) // also if it is not known what became of the commit
	return tx.commit()
}

// leave ends a transaction that has only read, and gives its connection back. Nobody waits for it:
// what was read is the caller's.
func (tx *txn) leave() {
	defer tx.conn.Release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tx.ctx), operationTimeout)
	defer cancel()
	tx.ctx = ctx
	tx.rollback()
}

// commit writes what was changed and commits it, in one round trip.
func (tx *txn) commit() error {
	if err := tx.flush(); err != nil {
		tx.rollback()
		return err
	}
	if tx.begin != "" && tx.writes.Len() == 0 {
		return nil // nothing was done
	}
	batch := &pgx.Batch{}
	if tx.begin != "" {
		batch.Queue(tx.begin)
	}
	batch.QueuedQueries = append(batch.QueuedQueries, tx.writes.QueuedQueries...)
	tx.hasWritten = len(tx.writes.QueuedQueries) > 0 || tx.shrunk != 0 || tx.touched
	if tx.shrunk != 0 { // the head is last, since appends wait for it
		batch.Queue(`UPDATE head SET pruned = greatest(pruned, $1), used = greatest(used - $2, 0)`,
			int64(tx.pruned), tx.shrunk)
	}
	if tx.touched {
		batch.Queue(`UPDATE head SET touched = touched + 1`)
	}
	batch.Queue("commit")
	if err := tx.conn.SendBatch(tx.ctx, batch).Close(); err != nil {
		tx.rollback()
		return err
	}
	if err := tx.confirmed(); err != nil {
		return err
	}
	if tx.committing {
		tx.engine.sawHead(tx.appended)
	}
	if tx.isRaised {
		tx.engine.setBackOnce.Do(func() { close(tx.engine.setBack) })
	}
	return nil
}

// errUnconfirmed means that a commit may be lost with this server: the wait for a standby was
// broken off.
var errUnconfirmed = errors.New("the wait for a synchronous standby was broken off")

// unconfirmed is in the custom data of a connection whose last commit may be lost.
const unconfirmed = "unconfirmed"

// noteUnconfirmed notes the warning of a server that does not wait for a standby any longer. It is
// known by the server's routine, since its text is in the server's language.
func noteUnconfirmed(c *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == "SyncRepWaitForLSN" {
		c.CustomData()[unconfirmed] = true
	}
}

// confirmed returns an error if the commit may be lost.
func (tx *txn) confirmed() error {
	data := tx.conn.Conn().PgConn().CustomData()
	if data[unconfirmed] == nil {
		return nil
	}
	delete(data, unconfirmed)
	return errUnconfirmed
}

// rollback ends a transaction that has failed. If the connection is of no use any more, the pool
// drops it.
func (tx *txn) rollback() {
	if tx.begin == "" && !tx.conn.Conn().IsClosed() {
		_, _ = tx.conn.Exec(tx.ctx, "rollback")
	}
}

// read sends queries in one round trip; each calls what it was given for its rows.
func (tx *txn) read(queue func(b *pgx.Batch)) error {
	b := &pgx.Batch{}
	if tx.begin != "" {
		b.Queue(tx.begin)
		tx.begin = ""
	}
	queue(b)
	return tx.conn.SendBatch(tx.ctx, b).Close()
}

// readTogether sends several parts of a read in one round trip, or each in one of its own: so many
// queries and rows could fill the buffers of both sides, each waiting for the other to read.
func (tx *txn) readTogether(together bool, parts []func(*pgx.Batch)) error {
	if !together {
		for _, part := range parts {
			if err := tx.read(part); err != nil {
				return err
			}
		}
		return nil
	}
	return tx.read(func(b *pgx.Batch) {
		for _, part := range parts {
			part(b)
		}
	})
}

// query is read for one query; scan is called for each row.
func (tx *txn) query(scan func(pgx.Rows) error, sql string, args ...any) error {
	return tx.read(func(b *pgx.Batch) { each(b.Queue(sql, args...), scan) })
}

// queryRow is query for one row at most; found is false if there is none.
func (tx *txn) queryRow(dest []any, sql string, args ...any) (found bool, err error) {
	err = tx.query(func(r pgx.Rows) error {
		found = true
		return r.Scan(dest...)
	}, sql, args...)
	return found, err
}

// each calls scan for each row of a query's answer.
func each(q *pgx.QueuedQuery, scan func(pgx.Rows) error) {
	q.Query(func(rows pgx.Rows) error {
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// touch makes other processes look for deliveries that have become due.
func (tx *txn) touch() { tx.touched = true }

// touchForOthers is touch where the deliveries may be those of other processes, if there are any.
func (tx *txn) touchForOthers() {
	if tx.engine.presence.hasOthers.Load() {
		tx.touch()
	}
}

// write keeps a statement for the end of the transaction.
func (tx *txn) write(sql string, args ...any) { tx.writes.Queue(sql, args...) }

// lockCalls takes the locks of calls, as everything does that changes their deliveries, and before
// it reads these. They are taken all at once and in one order, so that no two transactions wait for
// each other, and end with the transaction.
func (tx *txn) lockCalls(calls ...string) error {
	keys := tx.engine.lockKeys(calls)
	if len(keys) == 0 {
		return nil
	}
	return tx.read(func(b *pgx.Batch) { queueLocks(b, keys) })
}

// queueLocks queues the taking of locks.
func queueLocks(b *pgx.Batch, keys []int64) {
	if len(keys) > 0 {
		b.Queue(lockCalls, keys)
	}
}

const lockCalls = `SELECT pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) k`

// longestCall is how long a call's ID may be, in bytes, to be kept as it is.
const longestCall = 256

// callName is what stands for a call's ID: the ID, or its beginning with a hash of the whole if an
// index of PostgreSQL, or a text of it, cannot hold it. Servers send no such IDs; a hostile one
// must not keep other events from being stored.
func callName(id string) string {
	if len(id) <= longestCall && isText(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	begin := strings.ReplaceAll(strings.ToValidUTF8(id[:min(len(id), 64)], ""), "\x00", "")
	return begin + "…" + hex.EncodeToString(sum[:])
}

// lockName is what lockCalls locks for an event: its call, or a name of its own if it has none. No
// call's ID has a zero byte.
func lockName(n uint64, call string) string {
	if call == "" {
		return "\x00" + strconv.FormatUint(n, 10)
	}
	return call
}

// lockKeys are the keys of calls' locks. Calls of one key wait for each other, which does no harm.
func (s *Engine) lockKeys(calls []string) []int64 {
	keys := make([]int64, 0, len(calls))
	for _, call := range calls {
		if call == "" {
			continue
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.schema + "\x00" + call))
		keys = append(keys, int64(binary.BigEndian.Uint64(h.Sum(nil))))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// flush queues the writes of what was changed.
func (tx *txn) flush() error {
	tx.flushAppend()
	if err := tx.flushRoutes(); err != nil {
		return err
	}
	if err := tx.countRedelivered(); err != nil {
		return err
	}
	tx.flushDeliveries()
	tx.flushCounts()
	if tx.touched {
		tx.notifyOthers()
	}
	return tx.flushRedeliveries()
}

// flushCounts adds to the counts.
func (tx *txn) flushCounts() {
	var endpoints, states []int16
	var numbers []int64
	for k, by := range tx.counted {
		if by != 0 {
			endpoints, states = append(endpoints, k.endpoint), append(states, int16(k.state))
			numbers = append(numbers, by)
		}
	}
	clear(tx.counted)
	if len(numbers) > 0 {
		tx.write(`INSERT INTO tally SELECT * FROM unnest($1::smallint[], $2::smallint[], $3::bigint[])`,
			endpoints, states, numbers)
	}
}

// sortedKeys are the keys of a set.
func sortedKeys(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

// numberOf returns the number of the event with an ID, and false if there is none.
func (tx *txn) numberOf(eventID string) (n uint64, known bool, err error) {
	id, err := uuid.Parse(eventID)
	if err != nil {
		return 0, false, nil
	}
	known, err = tx.queryRow([]any{&n}, `SELECT n FROM event WHERE id = $1`, id)
	return n, known, err
}

// count adds to the count of an endpoint's deliveries in a state.
func (tx *txn) count(endpoint int16, state store.State, by int64) {
	tx.counted[tallyKey{endpoint, state}] += by
}
