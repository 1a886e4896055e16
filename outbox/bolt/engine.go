// Package bolt is the engine of one process: it keeps everything in one bbolt file.
//
// A file has these buckets. Numbers are big-endian, so that keys sort as numbers do.
//
//	meta                      schema, settings, pruned (the highest number of a removed event),
//	                          clock (a step of it that does not count yet), moved (the file is
//	                          copied into a database: see moved.go)
//	events                    number              -> an event: see encodeEvent
//	ids                       event ID            -> number
//	calls                     call key, sequence  -> number, fingerprint, keys of its phone
//	                                                 numbers: see callEntry
//	numbers                   key, number         -> a byte; where a phone number came into a
//	                                                 call: see indexNumbers
//	routes                    call key            -> a telephony.Route as JSON
//	questions                 number              -> nothing; one for each event that endpoints
//	                                                 are being asked about
//	keys                      hash of a key       -> an idempotency key's request and answer: see
//	                                                 encodeClaim
//	key_ages/NAME             time, hash          -> the bytes that a bearer's key takes: see
//	                                                 putKey
//	audits                    number              -> a store.Audit as JSON
//	redeliveries              number of a request -> a store.RedeliveryState as JSON
//	endpoints/NAME            counts, reader, failing, filled
//	endpoints/NAME/deliveries number              -> a delivery and its last attempts: see
//	                                                 encodeDelivery
//	endpoints/NAME/due        time, number        -> nothing; one for each delivery that may be
//	                                                 tried at that time
//	endpoints/NAME/expiry     second, block       -> a byte; one for each block of 64 deliveries
//	                                                 of which some may expire in that second
//	endpoints/NAME/failed     state, number       -> a byte; one for each delivery that is expired
//	                                                 or dead
//	endpoints/NAME/kept       call key            -> version, what the endpoint's sender has kept
//	                                                 for the call
//	endpoints/NAME/notes      name                -> version, end, value
//
// Events are numbered in the order of appends: 1, 2, 3 …, and from a higher number on after a
// restore: see renumber. A record and its index change in one transaction. Changes that wait are
// committed together: see commit. A damaged record makes its own delivery fail, a damaged page
// everything that is stored on it: see danger.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/clock"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// The ways in which opening a file can fail.
var (
	// ErrInUse means that another process has the file open.
	ErrInUse = &telephony.Fault{
		Code: telephony.CodeFileInUse,
		Text: "another process has it open: only one bridge may run on one outbox file",
	}
	// ErrNotOutbox means that the file is something else, or damaged.
	ErrNotOutbox = &telephony.Fault{Code: telephony.CodeNotOutbox, Text: "the file is no outbox, or is damaged"}
)

// Options is the path of the file and the rules that apply to it.
type Options struct {
	Path string // of the file; Open creates its folder
	// MaxBytes bounds the bytes of the file that are in use; above it Append fails with
	// store.ErrFull. Above nine tenths of it, Prune removes the oldest events early, as far as no
	// endpoint waits for them.
	MaxBytes int64
	Rules    store.Rules
	Logger   *slog.Logger
	// Clock computes ages; nil uses a clock that starts with Open.
	Clock     *clock.Clock
	Committed func(took time.Duration) // called after each commit; may be nil
	// Migrating is called before a file of an older layout gets the present one, with what writes a
	// copy of it; may be nil. An error of it fails Open, and the file stays as it is.
	Migrating func(layout int, write func(io.Writer) error) error
}

func (o *Options) validate() error {
	if o.Path == "" || o.Logger == nil || o.MaxBytes <= 0 {
		return errors.New("bolt: Options.Path, MaxBytes and Logger must be set")
	}
	if o.MaxBytes > store.LargestMaxBytes {
		return fmt.Errorf("bolt: Options.MaxBytes must be at most %d", store.LargestMaxBytes)
	}
	if o.Clock == nil {
		o.Clock = clock.New(time.Time{}, time.Time{})
	}
	if o.Migrating == nil {
		o.Migrating = func(int, func(io.Writer) error) error { return nil }
	}
	if o.Committed == nil {
		o.Committed = func(time.Duration) {}
	}
	return nil
}

// Engine is an open file.
type Engine struct {
	db        *bolt.DB
	path      string
	rules     store.Rules
	maxBytes  int64
	pageSize  int64
	committed func(time.Duration)
	logger    *slog.Logger
	danger    *danger
	clock     *clock.Clock
	readers   *store.Readers

	mu              sync.Mutex
	waiting         []*change // for the next commit
	committing      bool
	expectedWriters int           // the expected number of changes in the next commit, from the last one
	failed          error         // the error of the last commit; nil if it succeeded
	broken          error         // set after a commit has met a damaged page, since more writes could destroy more
	changed         chan struct{} // closed when events have been appended; nil while no caller waits for it
}

var _ store.Engine = (*Engine)(nil)

// Open opens the file for this process alone, and creates it if necessary. Fails with ErrInUse,
// ErrNotOutbox, or an error that names the right that is missing.
func Open(opts Options) (*Engine, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	s, err := attach(opts)
	if err != nil {
		return nil, fmt.Errorf("open the outbox %s: %w", opts.Path, err)
	}
	if err := s.begin(opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// attach opens the file and changes nothing in it.
func attach(opts Options) (*Engine, error) {
	if err := restoreRescued(opts.Path, opts.Logger); err != nil {
		return nil, err
	}
	db, err := openFile(opts.Path, mapped(opts.MaxBytes))
	if err != nil {
		return nil, err
	}
	opened, err := os.Stat(opts.Path) // the lock is held, and openFile has compared the file
	if err != nil {
		return nil, errors.Join(withoutPath(err), db.Close())
	}
	return &Engine{
		db:        db,
		path:      opts.Path,
		rules:     opts.Rules,
		maxBytes:  opts.MaxBytes,
		pageSize:  int64(db.Info().PageSize),
		committed: opts.Committed,
		logger:    opts.Logger,
		danger:    &danger{path: opts.Path, opened: opened, logger: opts.Logger, clock: opts.Clock},
		clock:     opts.Clock,
		readers:   store.NewReaders(),
	}, nil
}

// begin brings the file to the present layout, and reads what outlives a restart.
func (s *Engine) begin(opts Options) error {
	if err := guarded(func() error { return announceMigration(s.db, opts.Migrating) }); err != nil {
		return fmt.Errorf("open the outbox %s: %w", opts.Path, err)
	}
	if err := guarded(func() error { return s.db.Update(s.prepare) }); err != nil {
		return fmt.Errorf("open the outbox %s: %w", opts.Path, err)
	}
	for _, prepare := range []func() error{s.resumeClock, s.closeReaders, s.adoptKeys} {
		if err := guarded(prepare); err != nil {
			return fmt.Errorf("read the outbox %s: %w", opts.Path, err)
		}
	}
	return nil
}

// mapped returns how many bytes of address space the file gets from the start. When a file outgrows
// its mapping, bbolt replaces the mapping, and first waits for all readers to end, such as the
// copying for a backup. The factor of two allows for free pages, which make the file larger than
// what is in use.
func mapped(maxBytes int64) int {
	if math.MaxInt == math.MaxInt32 || onWindows {
		return 0 // a 32-bit address space is too small for that; on Windows the file grows to what is mapped
	}
	return int(min(2*maxBytes, 1<<40))
}

// Run watches the file, stores how far endpoints have read, and fills new indexes, until ctx ends.
func (s *Engine) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { s.danger.watch(ctx, s.keepDoubt) })
	parts.Go(func() { s.keepReads(ctx) })
	parts.Go(func() { s.fillIndexes(ctx) })
	parts.Wait()
	return nil
}

// Close closes the file; Run must have ended. If the file is no longer at its path, Close first
// saves a copy of it beside the path. If a commit has met damage, Close fails with store.ErrDamaged
// and leaves the file to be closed when the process ends: bbolt may still hold its own lock, and
// would wait for it for ever.
func (s *Engine) Close() error {
	if s.isBroken() {
		return s.danger.err()
	}
	return errors.Join(s.danger.rescue(s.db), s.db.Close())
}

// Changed returns a channel that is closed when events have been appended.
func (s *Engine) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// notifyReaders closes the channel that Changed has returned.
func (s *Engine) notifyReaders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// update changes the file in one transaction. Fails with store.ErrDamaged where a page is damaged.
func (s *Engine) update(change func(*txn) error) error {
	return s.watched(s.db.Update, change)
}

// view reads a snapshot of the file. Fails with store.ErrDamaged where a page is damaged.
func (s *Engine) view(read func(*txn) error) error {
	return s.watched(s.db.View, read)
}

// watched runs do in a transaction and records any damage: see danger. If damage prevents even the
// start of a transaction, bbolt may hold its own locks for ever, so the engine is then broken and
// does nothing more with the file.
func (s *Engine) watched(transaction func(func(*bolt.Tx) error) error, do func(*txn) error) error {
	if broken := s.brokenErr(); broken != nil {
		return broken
	}
	hasBegun := false
	err := s.danger.keepDamage(guarded(func() error {
		return transaction(func(tx *bolt.Tx) error {
			hasBegun = true
			return do(newTxn(tx, &s.rules))
		})
	}))
	if !hasBegun && errors.Is(err, store.ErrDamaged) {
		s.mu.Lock()
		s.broken = err
		s.mu.Unlock()
	}
	return err
}

func (s *Engine) brokenErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// isBroken reports whether the engine has met damage after which it does nothing more with the
// file.
func (s *Engine) isBroken() bool { return s.brokenErr() != nil }

// Writable returns an error if events cannot be stored or are in danger: see danger. After a failed
// commit it tries another one first.
func (s *Engine) Writable(context.Context) error {
	s.mu.Lock()
	failed := s.failed
	s.mu.Unlock()
	if failed != nil {
		if err := s.commit(func(*txn) error { return nil }); err != nil {
			return err
		}
	}
	return s.danger.err()
}

// Usage returns how many bytes of the file are in use, and how many may be.
func (s *Engine) Usage(context.Context) (used, allowed int64, err error) {
	err = s.view(func(tx *txn) error {
		used = s.inUse(tx.Tx)
		return nil
	})
	return used, s.maxBytes, err
}

// inUse returns how many bytes of the file hold events: its size without free pages and without
// idempotency keys, which have a bound of their own.
func (s *Engine) inUse(tx *bolt.Tx) int64 {
	free := s.db.Stats()
	return max(0, tx.Size()-int64(free.FreePageN+free.PendingPageN)*s.pageSize-keyBytes(tx))
}

// nearlyFull reports whether so much is in use that Prune is to remove events early.
func (s *Engine) nearlyFull() bool {
	n, _, err := s.Usage(context.Background())
	return err == nil && float64(n) >= nearlyFullAt*float64(s.maxBytes)
}
