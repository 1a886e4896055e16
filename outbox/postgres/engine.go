// Package postgres is the engine of several processes: it keeps everything in one PostgreSQL
// database, in tables of a schema of its own: see the folder schema.
//
// Events are numbered in the order of their commits: an append holds the row of table head from the
// number of its first event until the commit. What changes the deliveries of a call holds the lock
// of that call meanwhile: see lockCalls. So the rules of order see one call as if nobody else were
// there, whichever process runs them.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pzbridge/internal/clock"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Options is the address of the database and the rules that apply to it.
type Options struct {
	URL    string // postgres://user:password@host,host/database?…
	Name   string // of the bridge, for people
	Schema string // of the tables; Open creates it. Empty is "pzbridge"
	// MaxBytes bounds the bytes that the events take by an estimate; above it Append fails with
	// store.ErrFull. Above nine tenths of it, Prune removes the oldest events early, as far as no
	// endpoint waits for them.
	MaxBytes int64
	Rules    store.Rules
	// Subscriptions are those of the bridge's endpoints, and Extend returns the rules with those of
	// other bridges: events are stored for the endpoints of all bridges. Extend may be nil: then
	// they are stored for those of Rules.
	Subscriptions []store.Subscription
	Extend        func(others []store.Subscription) store.Rules
	Logger        *slog.Logger
	// Clock computes ages; nil uses a clock that starts with Open.
	Clock     *clock.Clock
	Committed func(took time.Duration) // called after each commit; may be nil
	// Poll is how often Run looks for what other processes have stored. Beat is the beat in which a
	// process shows that it lives: see presence.go. 0 is a second.
	Poll, Beat time.Duration
	// Ending ends when the database is not waited for any longer, as at the end of a shutdown. It
	// may be nil: never.
	Ending context.Context

	tracer pgx.QueryTracer // of every statement, for tests
	quiet  bool            // of a test in fake time: no notification is awaited, and no connection pinged
}

func (o *Options) validate() error {
	if o.URL == "" || o.Logger == nil || o.MaxBytes <= 0 {
		return errors.New("postgres: Options.URL, MaxBytes and Logger must be set")
	}
	if o.Schema == "" {
		o.Schema = "pzbridge"
	}
	if o.Clock == nil {
		o.Clock = clock.New(time.Time{}, time.Time{})
	}
	if o.Committed == nil {
		o.Committed = func(time.Duration) {}
	}
	if o.Ending == nil {
		o.Ending = context.Background()
	}
	o.Poll, o.Beat = cmp.Or(o.Poll, time.Second), cmp.Or(o.Beat, time.Second)
	return nil
}

// Engine is an open database.
type Engine struct {
	pool      *pgxpool.Pool
	keeper    keeper
	pooled    string    // behind a pooler: what follows the statement with which a transaction begins
	id        uuid.UUID // of this process
	name      string    // of the bridge
	presence  presence
	schema    string
	rules     store.Rules
	shared    sharedRules
	maxBytes  int64
	poll      time.Duration
	beat      time.Duration
	committed func(time.Duration)
	logger    *slog.Logger
	clock     *clock.Clock
	endpoints endpoints
	readers   *store.Readers
	appends   appends
	rises     rises
	clocks    *repeat.Log   // the differences from the database's clock
	viewers   chan struct{} // has an element for each view that runs
	quiet     bool          // see Options
	ending    context.Context

	mu      sync.Mutex
	failed  error         // of the last change; nil if it succeeded
	changed chan struct{} // closed when events have been appended; nil while no caller waits for it
	seen    headState
	lanes   map[int16]*lane // the open ones, by endpoint

	setBackOnce sync.Once
	setBack     chan struct{} // closed once the database was found to be set back

	doubt string // of the clock, as it is stored: see keepDoubt
}

var _ store.Engine = (*Engine)(nil)

// Open connects to the database, and makes or migrates the tables.
func Open(ctx context.Context, opts Options) (*Engine, error) {
	s, err := open(ctx, opts)
	if err != nil {
		return nil, err
	}
	for _, prepare := range []func(context.Context) error{
		s.migrate, s.appear, s.refuseSameName, s.refuseHalfCopied, s.raiseAfterRestore, s.addEndpoints, s.subscribe,
		s.resumeClock, s.closeReaders,
	} {
		if err := prepare(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("prepare the database of the outbox: %w", err), s.Close())
		}
	}
	return s, nil
}

// open connects to the database and changes nothing in it.
func open(ctx context.Context, opts Options) (*Engine, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	s := &Engine{
		id:        uuid.New(),
		name:      opts.Name,
		schema:    opts.Schema,
		rules:     opts.Rules,
		shared:    sharedRules{own: opts.Subscriptions, extend: opts.Extend},
		maxBytes:  opts.MaxBytes,
		poll:      opts.Poll,
		beat:      opts.Beat,
		committed: opts.Committed,
		logger:    opts.Logger,
		clock:     opts.Clock,
		readers:   store.NewReaders(),
		setBack:   make(chan struct{}),
		clocks:    repeat.New(opts.Logger),
		viewers:   make(chan struct{}, maxViews),
		quiet:     opts.quiet,
		ending:    opts.Ending,
		lanes:     map[int16]*lane{},
	}
	if err := s.connect(ctx, opts); err != nil {
		return nil, fmt.Errorf("connect to the database of the outbox: %w", err)
	}
	return s, nil
}

// Run looks for what other processes have stored, and stores how far endpoints have read, until ctx
// ends. It fails with ErrSetBack if the database was set back, and with ErrLost if other processes
// may have taken the work of this one: what it has in memory of deliveries may be wrong then.
func (s *Engine) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var parts sync.WaitGroup
	parts.Go(func() { s.keepReads(ctx) })
	parts.Go(func() { s.follow(ctx) })
	if !s.quiet {
		parts.Go(func() { s.listen(ctx) })
	}
	var err error
	select {
	case <-ctx.Done():
	case <-s.setBack:
		err = ErrSetBack
	case <-s.presence.lost:
		err = s.presence.lostBy
	}
	stop()
	parts.Wait()
	return err
}

// Close gives up what this process owns, and closes the connections; Run must have ended.
func (s *Engine) Close() error {
	err := s.presence.leave()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.pool.Close()
		s.keeper.pool.Close()
	}()
	select {
	case <-closed:
	case <-s.ending.Done(): // a server that stands still keeps a connection open for long
	}
	return err
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

func (s *Engine) setFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

// Writable returns why events cannot be stored, or what is wrong with the clock that dates them.
// After a failed change it tries another one first.
func (s *Engine) Writable(ctx context.Context) error {
	s.mu.Lock()
	failed := s.failed
	s.mu.Unlock()
	if failed != nil {
		err := s.change(ctx, func(tx *txn) error {
			tx.write(`UPDATE head SET last = last`)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return s.clock.Check()
}

// Usage returns about how many bytes the events take, and how many they may.
func (s *Engine) Usage(ctx context.Context) (used, allowed int64, err error) {
	err = s.view(ctx, func(tx *txn) error {
		_, err := tx.queryRow([]any{&used}, `SELECT used FROM head`)
		return err
	})
	return used, s.maxBytes, err
}

// nearlyFull reports whether Prune is to remove events early.
func (s *Engine) nearlyFull(used int64) bool {
	return float64(used) >= nearlyFullAt*float64(s.maxBytes)
}

// LastNumber is the number of the event that was appended last, also if it has been removed.
func (s *Engine) LastNumber(ctx context.Context) (n uint64, err error) {
	err = s.view(ctx, func(tx *txn) error {
		_, err := tx.queryRow([]any{&n}, `SELECT last FROM head`)
		return err
	})
	return n, err
}

// milliTime is a time in Unix milliseconds.
func milliTime(at int64) time.Time { return time.UnixMilli(at) }

// unixNano is a time in Unix nanoseconds, 0 for none.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func eventType(kind string) telephony.EventType { return telephony.EventType(kind) }
