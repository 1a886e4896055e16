package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// What can be wrong with a database as the destination of a copy.
var (
	// ErrNotEmpty means that the database has events that do not come from the copy.
	ErrNotEmpty = &telephony.Fault{Code: telephony.CodeNotEmpty, Text: "events are stored in the database already"}
	// ErrOtherCopy means that another file is, or was, copied into the database.
	ErrOtherCopy = &telephony.Fault{Code: telephony.CodeOtherCopy, Text: "another file is copied into the database"}
	// ErrBridge means that a bridge runs on the database.
	ErrBridge = &telephony.Fault{Code: telephony.CodeBridgeOnDatabase, Text: "a bridge runs on the database"}
	// ErrDelivered means that a copy cannot be taken back.
	ErrDelivered = &telephony.Fault{
		Code: telephony.CodeDelivered,
		Text: "bridges on the database have delivered or stored something since the copy",
	}
)

// settingCopy is the name of the setting that has the copyState.
const settingCopy = "copy"

// copyState is how a copy of a file into the database stands.
type copyState struct {
	ID    uuid.UUID `json:"id"`
	File  string    `json:"file"` // for people
	Stage copyStage `json:"stage"`
	// TakingBack means that the copy is being taken back.
	TakingBack bool `json:"taking_back,omitempty"`
	// Position is that of the dump. Every event from CompleteFrom on is stored, until all are.
	Position     []byte `json:"position,omitempty"`
	CompleteFrom uint64 `json:"complete_from,omitempty"`
}

type copyStage string

const (
	copyingFirstPart copyStage = "first_part"
	copyingHistory   copyStage = "history"
	copyWhole        copyStage = "whole"
	copyTakenBack    copyStage = "taken_back"
)

// hasFirstPart reports whether all is there that a bridge needs.
func (c *copyState) hasFirstPart() bool { return c.Stage == copyingHistory || c.Stage == copyWhole }

// copyState reads how a copy stands; isCopy is false if there was none.
func (tx *txn) copyState() (c copyState, isCopy bool, err error) {
	var value []byte
	isCopy, err = tx.queryRow([]any{&value}, getSetting, settingCopy)
	if err == nil && isCopy {
		err = json.Unmarshal(value, &c)
	}
	return c, isCopy, err
}

// putCopyState queues the writing of how a copy stands.
func (tx *txn) putCopyState(c copyState) error {
	value, err := json.Marshal(c)
	tx.write(putSetting, settingCopy, value)
	return err
}

// refuseHalfCopied fails if the first part of a copy is not whole, or a copy was taken back. The
// process has appeared before: so a copy that begins meanwhile sees it, or is seen by it.
func (s *Engine) refuseHalfCopied(ctx context.Context) error {
	return s.view(ctx, func(tx *txn) error {
		c, isCopy, err := tx.copyState()
		switch {
		case err != nil || !isCopy:
			return err
		case c.TakingBack || c.Stage == copyTakenBack:
			return &telephony.Fault{
				Code: telephony.CodeTakenBack,
				Args: []string{c.File},
				Text: "the copy of " + c.File + " into the database was taken back",
			}
		case !c.hasFirstPart():
			return &telephony.Fault{
				Code: telephony.CodeHalfCopied,
				Args: []string{c.File},
				Text: "the copy of " + c.File + " into the database has not come far enough for a bridge",
			}
		}
		return nil
	})
}

// refuseUntilWhole fails with store.ErrStillCopied while the history is copied.
func (tx *txn) refuseUntilWhole() error {
	c, _, err := tx.copyState()
	if err == nil && c.Stage == copyingHistory {
		err = store.ErrStillCopied
	}
	return err
}

// completeFrom gives from which event on all are stored; no row, or NULL, if all are.
const completeFrom = `SELECT (convert_from(value, 'UTF8')::json ->> 'complete_from')::bigint FROM setting
	WHERE name = '` + settingCopy + `'`

// Loader is a database into which a file is copied.
type Loader struct {
	engine *Engine
	state  copyState
}

var _ store.Loader = (*Loader)(nil)

// OpenLoader connects to a database to copy a file into it, and makes the tables.
func OpenLoader(ctx context.Context, opts Options) (*Loader, error) {
	s, err := open(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the database of the outbox: %w", err), s.Close())
	}
	return &Loader{engine: s}, nil
}

// Close closes the connections.
func (l *Loader) Close() error { return l.engine.Close() }

// Knows reports whether the copy with an ID has begun in the database.
func (l *Loader) Knows(ctx context.Context, id uuid.UUID) (known bool, err error) {
	err = l.engine.look(ctx, func(tx *txn) error {
		c, _, err := tx.copyState()
		known = c.ID == id
		return err
	})
	return known, err
}

// Check reports whether the copy with an ID can begin or go on. Fails with ErrNotEmpty,
// ErrOtherCopy or ErrBridge.
func (l *Loader) Check(ctx context.Context, id uuid.UUID) error {
	var c copyState
	err := l.engine.look(ctx, func(tx *txn) (err error) {
		c, err = tx.checkCopy(id)
		return err
	})
	if err != nil || c.hasFirstPart() {
		return err
	}
	return l.engine.refuseLiving(ctx)
}

// checkCopy returns how a copy stands, or its first state if it can begin.
func (tx *txn) checkCopy(id uuid.UUID) (copyState, error) {
	c, isCopy, err := tx.copyState()
	switch {
	case err != nil:
		return copyState{}, err
	case isCopy && c.ID == id && c.Stage != copyTakenBack:
		return c, nil
	case isCopy && c.Stage != copyTakenBack:
		return copyState{}, ErrOtherCopy.With(": "+c.File, c.File)
	}
	var last int64
	if _, err := tx.queryRow([]any{&last}, `SELECT last FROM head`); err != nil {
		return copyState{}, err
	}
	if last != 0 {
		return copyState{}, ErrNotEmpty
	}
	return copyState{ID: id, Stage: copyingFirstPart}, nil
}

// Begin begins the copy with an ID of a file, or goes on with it: from now on no bridge starts on
// the database until its first part is whole. After is the position from which to dump, and whole
// means that nothing is left to copy. Fails as Check does.
func (l *Loader) Begin(ctx context.Context, id uuid.UUID, file string) (after []byte, whole bool, err error) {
	s := l.engine
	err = s.change(ctx, func(tx *txn) error {
		// An append holds the head as well, so none comes between.
		if _, err := tx.queryRow(nil, `SELECT FROM head FOR UPDATE`); err != nil {
			return err
		}
		if l.state, err = tx.checkCopy(id); err != nil {
			return err
		}
		l.state.File, l.state.TakingBack = file, false
		return tx.putCopyState(l.state)
	})
	if err != nil {
		return nil, false, err
	}
	if !l.state.hasFirstPart() {
		if err := s.refuseLiving(ctx); err != nil {
			return nil, false, err
		}
		if err := s.keepDoubt(ctx); err != nil { // the clock has that of the file
			return nil, false, err
		}
	}
	return l.state.Position, l.state.Stage == copyWhole, s.addEndpoints(ctx)
}

// HasFirstPart reports whether all is there that a bridge needs.
func (l *Loader) HasFirstPart() bool { return l.state.hasFirstPart() }

// refuseLiving fails with ErrBridge if a process uses the database that shows that it lives, within
// the time after which others would count it as dead. One that appears meanwhile finds the state of
// the copy, and ends.
func (s *Engine) refuseLiving(ctx context.Context) error {
	before, err := s.processes(ctx)
	if err != nil || len(before) == 0 {
		return err
	}
	if !sleep.For(ctx, patienceBeats*s.beat) {
		return ctx.Err()
	}
	now, err := s.processes(ctx)
	if err != nil {
		return err
	}
	var names []string
	for id, p := range now {
		if seen, wasThere := before[id]; wasThere && p.counter != seen.counter {
			names = append(names, p.bridge)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	list := strings.Join(slices.Compact(names), ", ")
	return ErrBridge.With(": "+list, list)
}

// processRow is a process that uses the database.
type processRow struct {
	bridge  string
	counter int64
}

func (s *Engine) processes(ctx context.Context) (list map[uuid.UUID]processRow, err error) {
	err = s.look(ctx, func(tx *txn) error {
		list = map[uuid.UUID]processRow{}
		return tx.query(func(rows pgx.Rows) error {
			var id uuid.UUID
			var p processRow
			err := rows.Scan(&id, &p.bridge, &p.counter)
			list[id] = p
			return err
		}, `SELECT id, bridge, counter FROM process`)
	})
	return list, err
}

// Load stores the result of a Dump: see store.Loader.
func (l *Loader) Load(ctx context.Context, d store.Dumped) (out store.Loaded, err error) {
	if err := l.learnEndpoints(ctx, d.Records); err != nil {
		return store.Loaded{}, err
	}
	var state copyState
	err = l.engine.change(ctx, func(tx *txn) error {
		load := loading{txn: tx, state: l.state}
		if err := load.run(d); err != nil {
			return err
		}
		out, state = load.out, load.state
		return nil
	})
	if err == nil {
		l.state = state
	}
	return out, err
}

// learnEndpoints adds the endpoints among records to the database.
func (l *Loader) learnEndpoints(ctx context.Context, records []store.CopyRecord) error {
	var names []string
	for _, r := range records {
		if e, ok := r.(store.EndpointRecord); ok {
			names = append(names, e.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	l.engine.rules.Endpoints = names
	return l.engine.addEndpoints(ctx)
}

// loading is a Load under way.
type loading struct {
	*txn
	state  copyState
	out    store.Loaded
	events []store.EventRecord

	lastAudit, lastRedelivery int64 // their highest numbers; 0 if there is none
}

func (l *loading) run(d store.Dumped) error {
	if err := l.prepare(d); err != nil || l.out.Full {
		return err
	}
	l.state.Position = d.Next
	for _, r := range d.Records {
		if err := l.add(r); err != nil {
			return err
		}
	}
	l.advanceNumbers()
	if err := l.addEvents(); err != nil {
		return err
	}
	if d.Next == nil {
		l.state.Stage, l.state.CompleteFrom = copyWhole, 0
	}
	return l.putCopyState(l.state)
}

// prepare looks whether there is room for more of the history. Else that is whole as it is, and
// what is missing counts as removed. A batch that ends neither part is not waited for: one that is
// lost with the server is lost with its position and all that follow it, and the end of each part
// waits for all before it.
func (l *loading) prepare(d store.Dumped) error {
	isEnd := d.Next == nil || d.EndsFirstPart()
	used := int64(0)
	err := l.read(func(b *pgx.Batch) {
		if !isEnd {
			b.Queue(`SET LOCAL synchronous_commit = off`)
		}
		each(b.Queue(`SELECT used FROM head`), func(rows pgx.Rows) error { return rows.Scan(&used) })
	})
	if err != nil || l.state.Stage != copyingHistory || !l.engine.nearlyFull(used) {
		return err
	}
	l.out.Full = true
	l.write(`UPDATE head SET pruned = greatest(pruned, $1)`, int64(l.state.CompleteFrom)-1)
	l.state.Stage, l.state.CompleteFrom = copyWhole, 0
	return l.putCopyState(l.state)
}

const (
	insertNote = `INSERT INTO note (endpoint, name, version, until, value) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT DO NOTHING`
	insertKept = `INSERT INTO kept (call, endpoint, version, value) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	// insertClaim adds the key's bytes to those of its bearer, unless the key is there.
	insertClaim = `WITH added AS (
			INSERT INTO claim (key, bearer, id, request, status, answer, at, size)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING RETURNING bearer, size
		) INSERT INTO bearer (name, size) SELECT bearer, size FROM added
		ON CONFLICT (name) DO UPDATE SET size = bearer.size + excluded.size`
	insertAudit = `INSERT INTO audit (number, id, value) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3)
		ON CONFLICT DO NOTHING`
	insertRedelivery = `INSERT INTO redelivery (number, token, value) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3)
		ON CONFLICT DO NOTHING`
)

// add queues the writing of a record, all but those of events.
func (l *loading) add(r store.CopyRecord) error {
	switch r := r.(type) {
	case store.NumbersRecord:
		l.write(`UPDATE head SET last = greatest(last, $1), pruned = greatest(pruned, $2)`,
			int64(r.Last), int64(r.Pruned))
	case store.EndpointRecord:
		if !r.Reading.At.IsZero() {
			l.write(`UPDATE endpoint SET read_up_to = $2, read_at = $3 WHERE name = $1 AND read_at <= $3`,
				r.Name, int64(r.Reading.UpTo), r.Reading.At.UnixNano())
		}
	case store.SettingRecord:
		l.write(putSetting, r.Name, []byte(r.Value))
	case store.NoteRecord:
		id, _ := l.engine.endpoints.id(r.Endpoint)
		l.write(insertNote, id, r.Name, int64(r.Version), unixNano(r.Until), notNull(r.Value))
	case store.KeyRecord:
		c := &r.Claim
		l.write(insertClaim, r.Key[:], r.Bearer, c.ID, c.Request[:], c.Status, notNull(c.Answer), c.At.UnixMilli(),
			keySize(c))
	case store.AuditRecord:
		l.write(insertAudit, int64(r.Number), r.Audit.ID, r.Audit)
		l.lastAudit = max(l.lastAudit, int64(r.Number))
	case store.RedeliveryRecord:
		l.write(insertRedelivery, int64(r.Number), r.Token, r.RedeliveryState)
		l.lastRedelivery = max(l.lastRedelivery, int64(r.Number))
	case store.RouteRecord:
		r.Route.CallID = callName(r.Route.CallID)
		l.putRoute(&r.Route)
	case store.KeptRecord:
		id, _ := l.engine.endpoints.id(r.Endpoint)
		l.write(insertKept, callName(r.Call), id, int64(r.Version), notNull(r.Value))
	case store.EventRecord:
		l.events = append(l.events, r)
	case store.CompleteRecord:
		l.state.CompleteFrom = r.From
	case store.FirstPartRecord:
		l.state.Stage = copyingHistory
	default:
		return fmt.Errorf("load a %T: %w", r, errors.ErrUnsupported)
	}
	return nil
}

// advanceNumbers lets the numbers that the database gives begin behind those that were loaded.
func (l *loading) advanceNumbers() {
	const advance = `SELECT setval(pg_get_serial_sequence($1, 'number'), $2)`
	if l.lastAudit > 0 {
		l.write(advance, "audit", l.lastAudit)
	}
	if l.lastRedelivery > 0 {
		l.write(advance, "redelivery", l.lastRedelivery)
	}
}

// notNull is a value as a column takes it.
func notNull(v []byte) []byte { return append([]byte{}, v...) }

// addEvents inserts the events that are not there yet, with their deliveries.
func (l *loading) addEvents() error {
	known, err := l.knownEvents()
	if err != nil {
		return err
	}
	var rows []newRow
	byNumber := map[uint64]*store.EventRecord{}
	for i := range l.events {
		if r := &l.events[i]; !known[r.Number] {
			known[r.Number] = true
			byNumber[r.Number] = r
			rows = append(rows, l.rowOf(r))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	l.out.Conflicts = len(rows)
	return l.query(func(rows pgx.Rows) error {
		var n uint64
		var size int64
		if err := rows.Scan(&n, &size); err != nil {
			return err
		}
		l.out.Conflicts--
		l.out.Events++
		l.shrunk -= size
		l.addDeliveries(byNumber[n])
		return nil
	}, insertEvents+` ON CONFLICT DO NOTHING RETURNING n, size`, l.engine.eventValues(rows)...)
}

// knownEvents returns which of the events are stored already.
func (l *loading) knownEvents() (map[uint64]bool, error) {
	known := map[uint64]bool{}
	if len(l.events) == 0 {
		return known, nil
	}
	numbers := make([]uint64, len(l.events))
	for i := range l.events {
		numbers[i] = l.events[i].Number
	}
	return known, l.query(func(rows pgx.Rows) error {
		var n uint64
		err := rows.Scan(&n)
		known[n] = true
		return err
	}, `SELECT n FROM event WHERE n = ANY($1)`, signed(numbers))
}

// rowOf is the row of an event.
func (l *loading) rowOf(r *store.EventRecord) newRow {
	e := &store.NewEvent{Event: r.Event, Fingerprint: r.Fingerprint}
	e.Call = callName(e.Call)
	e.From, e.To = store.NumbersIn(e.Body)
	row := newRow{NewEvent: e, n: r.Number, sequence: e.Sequence, body: e.Body}
	if e.Call == "" {
		row.sequence = 1
	}
	row.size = rowSize(row.body, len(r.Deliveries))
	return row
}

// addDeliveries queues the writing of an event's deliveries, and of the question that it is.
func (l *loading) addDeliveries(r *store.EventRecord) {
	for _, d := range r.Deliveries {
		id, _ := l.engine.endpoints.id(d.Endpoint)
		l.put(deliveryKey{r.Number, id}, d.Delivery, d.History)
	}
	if r.Asking {
		l.write(`INSERT INTO question (n, owner) VALUES ($1, $2) ON CONFLICT DO NOTHING`, int64(r.Number), uuid.Nil)
	}
}
