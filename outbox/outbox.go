// Package outbox keeps every event until each endpoint that is to get it has it.
//
// Append stores events in one bbolt file; once it has returned nil they survive whatever happens to the process. Run POSTs them
// as signed webhooks, at least once each and with the same ID each time, and records how every attempt ended. A delivery goes
//
//	pending ──2xx──► delivered
//	   │ ▲
//	   │ └─ anything else: again after the schedule's next wait
//	   ├──410, or the schedule is used up──► dead
//	   └──too late to be of use────────────► expired
//
// Per endpoint, the events of one call go in their order: a delivery is held while the one before it in its call is pending, but no
// longer than OrderHold after that has failed. Calls do not wait for one another, nor does an endpoint for another: each has its own lane.
// An endpoint at which many attempts in a row have failed is only probed, until one succeeds: see health. A question where a call should go waits
// for none of this: see asker. Who has won a call is kept with it, and decides who is told that it rings: see goesTo.
//
// Changes to the file that are waiting are committed together: see store.commit. No HTTP happens inside a transaction.
package outbox

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/clock"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
)

// The ways in which an outbox can fail to open.
var (
	// ErrInUse means that another process has the file open.
	ErrInUse = errors.New("another process has it open: only one bridge may run on one outbox file")
	// ErrNotOutbox means that the file is something else, or damaged.
	ErrNotOutbox = errors.New("the file is no outbox, or is damaged: restore it from a backup, or move it away to start with an empty one")
)

// Endpoint is a CRM: where its events go, with which secrets they are signed, and which it wants.
type Endpoint struct {
	Name string
	// URL is http or https; its query and path often hold a token, so it is never logged. An endpoint without one reads its events: see Events.
	URL     string
	Secrets [][]byte
	Events  Filter
	Headers http.Header
	Format  Format        // empty is FormatStandard
	Timeout time.Duration // of a whole attempt
	// RingingTTL is how long it is of use to tell it that a call rings or was answered.
	RingingTTL time.Duration
	// Concurrency is how many attempts may be under way at once, those at questions not counted.
	Concurrency int
	// Rate is how many attempts a second may begin, those at questions not counted; 0 is no limit.
	Rate float64
	// Tokens are what the endpoint calls the API with; none if it cannot, and so has no way to
	// answer where a call should go but the response to its webhook.
	Tokens []string
	// TLS says whom to trust at an https URL, and which certificate to show there. Nil is the
	// usual.
	TLS *tls.Config
}

// Options says where the file is and whom to deliver to.
type Options struct {
	Path      string // of the bbolt file; its folder is made if need be
	Endpoints []Endpoint
	// RetrySchedule holds the waits after the first, second, … failed attempt. After the last one a delivery is dead.
	RetrySchedule []time.Duration
	// OrderHold is how long an event that fails holds the later ones of its call; then they may overtake it.
	OrderHold time.Duration
	// RoutingTimeout is how long it is of use to ask where a call should go.
	RoutingTimeout time.Duration
	// QuietWithoutWinner keeps it from all endpoints that a call rings, or was answered, if it has asked where to go and no endpoint wants it, or not yet.
	// Otherwise all are told.
	QuietWithoutWinner bool
	// Retention is how long an event stays, counted from when it was read. One that an endpoint still waits for stays longer.
	Retention time.Duration
	// MaxBytes is how much of the file may be in use; then Append fails with ErrFull. From nine tenths on the oldest events that are
	// delivered or given up go before Retention is over.
	MaxBytes int64
	// Grace is how long attempts in flight may go on after Run's context has ended, or, if that is earlier, after Stopping.
	Grace time.Duration
	// Stopping ends when the program begins to stop, which may be before it is the outbox's turn. May be nil.
	Stopping  context.Context
	UserAgent string
	Logger    *slog.Logger
	Observer  Observer // may be nil
	// Clock says how old things are; nil is one that begins now, for a program of which nobody knows
	// when it was built.
	Clock *clock.Clock

	// DialContext opens the connection below HTTP; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o Options) validate() error {
	if o.Path == "" || o.Logger == nil || o.Retention <= 0 || o.RoutingTimeout <= 0 || o.MaxBytes <= 0 {
		return errors.New("outbox: Options.Path, Retention, RoutingTimeout, MaxBytes and Logger must be set")
	}
	if o.MaxBytes > LargestMaxBytes {
		return fmt.Errorf("outbox: Options.MaxBytes must be at most %d", LargestMaxBytes)
	}
	names := map[string]bool{}
	for _, e := range o.Endpoints {
		if e.Name == "" || e.URL != "" && len(e.Secrets) == 0 || e.Timeout <= 0 || e.Concurrency <= 0 || e.RingingTTL <= 0 || e.Rate < 0 {
			return fmt.Errorf("outbox: endpoint %q must have a name, a secret if it has a URL, a timeout, a concurrency and a time for ringing", e.Name)
		}
		if names[e.Name] {
			return fmt.Errorf("outbox: two endpoints are named %q", e.Name)
		}
		names[e.Name] = true
	}
	return nil
}

// Outbox is what must be delivered, to whom, and when.
type Outbox struct {
	opts  Options
	store *store
	lanes []*lane
	asker *asker

	mu      sync.Mutex
	changed chan struct{} // closed when events have been appended; nil while nobody waits for it

	crowded chan struct{} // the file is nearly full
	trouble *repeat.Log   // with removing old events
}

// Open opens the file, or makes it. It fails with ErrInUse or ErrNotOutbox, or says what it may not do.
func Open(opts Options) (*Outbox, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Observer == nil {
		opts.Observer = unobserved{}
	}
	if opts.Clock == nil {
		opts.Clock = clock.New(time.Time{}, time.Time{})
	}
	store, err := openStore(opts)
	if err != nil {
		return nil, fmt.Errorf("open the outbox %s: %w", opts.Path, err)
	}
	o := &Outbox{opts: opts, store: store, crowded: make(chan struct{}, 1), trouble: repeat.New(opts.Logger)}
	o.asker = &asker{box: o, trouble: repeat.New(opts.Logger), reading: repeat.New(opts.Logger), wake: make(chan struct{}, 1), known: map[uint64]bool{}}
	for _, e := range opts.Endpoints {
		o.lanes = append(o.lanes, newLane(e, store, opts, o.announce))
	}
	if err := errors.Join(guarded(o.store.resumeClock), guarded(o.store.closeReaders), guarded(o.store.adoptKeys), guarded(o.warnOfOrphans)); err != nil {
		return nil, errors.Join(fmt.Errorf("read the outbox %s: %w", opts.Path, err), o.Close())
	}
	return o, nil
}

// warnOfOrphans tells of what waits for endpoints that are configured no longer: a slip in a name would show itself in nothing else.
func (o *Outbox) warnOfOrphans() error {
	list, err := o.store.orphans()
	for _, name := range slices.Sorted(maps.Keys(list)) {
		o.opts.Logger.Warn("deliveries wait for an endpoint that is configured no longer; they go when OUTBOX_RETENTION is over",
			"endpoint", name, "deliveries", list[name])
	}
	return err
}

// keyDoubt holds the step of the clock that is not believed yet: see clock.Doubt.
var keyDoubt = []byte("clock")

// keepDoubt keeps what the clock doubts, as far as the file does not have it: a restart would believe it.
func (s *store) keepDoubt() error {
	d := s.clock.Doubt()
	v := slices.Concat(number(uint64(d.By)), number(uint64(d.From.UnixNano())), number(uint64(d.Left)))
	var kept []byte
	err := s.view(func(tx *txn) error {
		kept = bytes.Clone(tx.meta.Get(keyDoubt))
		return nil
	})
	if err != nil || d.By == 0 && kept == nil {
		return err
	}
	return s.commit(func(tx *txn) error {
		if d.By == 0 {
			return tx.meta.Delete(keyDoubt)
		}
		return tx.meta.Put(keyDoubt, v)
	})
}

// resumeClock lets the clock know what it doubted, and when the bridge stored something last.
func (s *store) resumeClock() error {
	return s.view(func(tx *txn) error {
		if v := tx.meta.Get(keyDoubt); len(v) == 24 {
			s.clock.Resume(clock.Doubt{
				By: time.Duration(decodeNumber(v[:8])), From: time.Unix(0, int64(decodeNumber(v[8:16]))), Left: time.Duration(decodeNumber(v[16:])),
			})
		}
		if _, v := tx.events.Cursor().Last(); v != nil {
			if e, _, err := decodeEventHead(v); err == nil {
				s.clock.RanAt(e.at)
			}
		}
		return nil
	})
}

// Close closes the file. Run must have ended. Where the file is not at its path any more, what it holds is saved beside that. Where a commit has met damage
// it fails with ErrDamaged, and the file is closed when the process ends.
func (o *Outbox) Close() error {
	if o.store.isBroken() {
		return o.store.danger.err() // bbolt may hold its own lock still, and would wait for it for ever
	}
	return errors.Join(o.store.danger.rescue(o.store.db), o.store.db.Close())
}

// Append stores events in the order given, all in one transaction, and returns nil only when they are on the disk. An event whose ID
// is known is left alone, so a batch whose commit failed may be appended again; a replayed event that says what the
// outbox has already been told is left alone too. It fails with ErrFull while Options.MaxBytes are in use. The context is not
// looked at: a commit cannot be called off.
func (o *Outbox) Append(_ context.Context, events []telephony.Event) error {
	err := o.append(events)
	o.store.appended(err)
	return err
}

func (o *Outbox) append(events []telephony.Event) error {
	records := make([]record, len(events))
	for i := range events {
		r, err := newRecord(&events[i], o.opts.RoutingTimeout)
		if err != nil {
			return fmt.Errorf("event %s: %w", events[i].ID, err)
		}
		records[i] = r
	}
	questions, crowded, err := o.store.append(records)
	if crowded {
		signal(o.crowded)
	}
	if err != nil {
		return err
	}
	o.asker.put(questions)
	o.wakeUp()
	o.tell()
	return nil
}

// announce stores events that tell of the bridge itself, where somebody wants them. If they cannot be stored, the log has said what they say, and since nobody
// tries it again that says nothing of what can be stored later.
func (o *Outbox) announce(news []telephony.Event) {
	news = slices.DeleteFunc(news, func(e telephony.Event) bool { return len(o.store.subscribers(e.Type)) == 0 })
	if len(news) == 0 {
		return
	}
	for i := range news {
		news[i].ID, news[i].Time = uuid.Must(uuid.NewV7()).String(), time.Now()
	}
	if err := o.append(news); err != nil {
		o.opts.Logger.Warn("operational events cannot be stored", "events", len(news), "err", err.Error())
	}
}

// wakeUp tells the lanes that the file holds something new.
func (o *Outbox) wakeUp() {
	for _, l := range o.lanes {
		l.wakeUp()
	}
}

// ClientGUID is the identity under which the exchange remembers what the bridge has missed: made once, kept in the file.
func (o *Outbox) ClientGUID() (string, error) { return o.store.clientGUID() }

// Connect keeps, through restarts, whether the bridge is to be connected to the exchange.
func (o *Outbox) Connect(enabled bool) error { return o.store.connect(enabled) }

// IsToConnect says what Connect has kept last; true if it has never been called.
func (o *Outbox) IsToConnect() (bool, error) { return o.store.isToConnect() }

// Writable says why events cannot be stored, nil if they can: the last Append and the last commit went well, or a commit does now. It fails with ErrDamaged
// or ErrFileGone, too, while the file is in danger: events are stored then, but may be lost.
func (o *Outbox) Writable() error { return o.store.writable() }

// Run delivers until ctx ends; attempts in flight may then go on for what is left of Options.Grace, and how they ended is recorded. Router is told of what the endpoints
// say to a question where a call should go.
func (o *Outbox) Run(ctx context.Context, router Router) error {
	// Attempts outlive ctx: a webhook that is under way when a shutdown begins is better finished than sent twice.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	endWork := func() { time.AfterFunc(o.opts.Grace, stop) }
	defer context.AfterFunc(ctx, endWork)()
	if o.opts.Stopping != nil {
		defer context.AfterFunc(o.opts.Stopping, endWork)()
	}
	var parts sync.WaitGroup
	for _, l := range o.lanes {
		if l.endpoint.URL != "" {
			parts.Go(func() { l.run(ctx, work) })
		}
	}
	parts.Go(func() { o.asker.run(ctx, work, router) })
	parts.Go(func() { o.prune(ctx) })
	parts.Go(func() { o.store.danger.watch(ctx, o.store.keepDoubt) })
	parts.Go(func() { o.keepReads(ctx) })
	parts.Wait()
	return nil
}
