// Package outbox brings every event to each endpoint that is to get it, at least once and with the
// same ID each time. An engine keeps the events (package store), a Sender makes one attempt; the
// outbox decides what is delivered when. A delivery goes
//
//	pending ──success──► delivered
//	   │ ▲
//	   │ └─ a failure: again after the schedule's next wait
//	   ├──the endpoint is gone, or the schedule is used up──► dead
//	   └──too late to be of use─────────────────────────────► expired
//
// Events of one call go to an endpoint in their order: a delivery is held while the one before it
// in its call is pending, but no longer than the hold after that has failed, and of one call never
// two attempts are under way at one endpoint. A hold may therefore last one attempt longer. Calls
// do not wait for one another, nor does an endpoint for another: each has its own lane. An endpoint
// at which many attempts in a row have failed is only probed, until one succeeds: see health. A
// question where a call should go stands in no lane: package routing asks it.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/clock"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Options says where events are stored and how they are delivered.
type Options struct {
	Engine    store.Engine // its Rules are those of package Rules
	Endpoints []store.Endpoint
	Senders   map[string]store.Sender // by endpoint; none for one that reads its events
	Formatter Formatter
	// RetrySchedule holds the waits after the first, second, … failed attempt. After the last one a
	// delivery is dead.
	RetrySchedule []time.Duration
	// RoutingTimeout is how long it is of use to ask where a call should go.
	RoutingTimeout time.Duration
	// Retention is how long an event stays, counted from when it was read. One that an endpoint
	// still waits for stays longer.
	Retention time.Duration
	// Grace is how long attempts in flight may go on after Run's context has ended, or, if that is
	// earlier, after Stopping.
	Grace time.Duration
	// Stopping ends when the program begins to stop, which may be before it is the outbox's turn.
	// May be nil.
	Stopping context.Context
	Logger   *slog.Logger
	Observer Observer // may be nil
	// Clock says how fresh things are; nil is one that begins now.
	Clock *clock.Clock
}

func (o *Options) validate() error {
	if o.Engine == nil || o.Formatter == nil || o.Logger == nil || o.Retention <= 0 || o.RoutingTimeout <= 0 {
		return errors.New("outbox: Options.Engine, Formatter, Retention, RoutingTimeout and Logger must be set")
	}
	if err := store.ValidateEndpoints(o.Endpoints); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	for i := range o.Endpoints {
		if e := &o.Endpoints[i]; !e.Reads() && o.Senders[e.Name] == nil {
			return fmt.Errorf("outbox: endpoint %q has no Sender", e.Name)
		}
	}
	if o.Observer == nil {
		o.Observer = unobserved{}
	}
	if o.Clock == nil {
		o.Clock = clock.New(time.Time{}, time.Time{})
	}
	return nil
}

// Outbox is what must be delivered, to which endpoint, and when.
type Outbox struct {
	opts   Options
	engine store.Engine
	lanes  []*lane

	nearlyFull chan struct{} // the engine is
	failures   *repeat.Log   // of removing old events

	mu        sync.Mutex
	appendErr error // of the last Append; nil if it went well
}

// New gives an outbox on an open engine, which stays the caller's to close.
func New(ctx context.Context, opts Options) (*Outbox, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	o := &Outbox{
		opts:       opts,
		engine:     opts.Engine,
		nearlyFull: make(chan struct{}, 1),
		failures:   repeat.New(opts.Logger),
	}
	for _, e := range opts.Endpoints {
		_, withCall := opts.Senders[e.Name].(store.CallSender)
		queue, err := opts.Engine.Lane(ctx, e.Name, withCall)
		if err != nil {
			return nil, fmt.Errorf("take the lane of %s: %w", e.Name, err)
		}
		o.lanes = append(o.lanes, newLane(e, queue, opts, o.appendOperational, o.wakeLanes))
	}
	if err := o.warnOfOrphans(ctx); err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return o, nil
}

// warnOfOrphans logs what waits for endpoints that are configured no longer: a slip in a name would
// show itself in nothing else.
func (o *Outbox) warnOfOrphans(ctx context.Context) error {
	standing, err := o.engine.Standing(ctx)
	for _, name := range slices.Sorted(maps.Keys(standing)) {
		if n := standing[name].Pending; n > 0 && o.endpoint(name) == nil {
			o.opts.Logger.Warn("deliveries wait for an endpoint that is configured no longer; "+
				"they go when OUTBOX_RETENTION is over",
				"endpoint", name, "deliveries", n)
		}
	}
	return err
}

// Append stores events in the order given, all in one transaction, and returns nil only when they
// are durable. An event whose ID is known is left alone, so a batch whose commit failed may be
// appended again; a replayed event that says what is stored already is left alone too. Fails with
// store.ErrFull. It returns the questions that the events open, for routing to ask.
func (o *Outbox) Append(ctx context.Context, events []telephony.Event) (questions []uint64, err error) {
	questions, err = o.append(ctx, events)
	o.mu.Lock()
	o.appendErr = err
	o.mu.Unlock()
	return questions, err
}

func (o *Outbox) append(ctx context.Context, events []telephony.Event) (questions []uint64, err error) {
	encoded := make([]store.NewEvent, len(events))
	for i := range events {
		e, err := store.Encode(&events[i], o.opts.RoutingTimeout)
		if err != nil {
			return nil, fmt.Errorf("event %s: %w", events[i].ID, err)
		}
		encoded[i] = e
	}
	appended, err := o.engine.Append(ctx, encoded)
	if appended.NearlyFull {
		wake(o.nearlyFull)
	}
	if err != nil {
		return nil, err
	}
	o.wakeLanes()
	return appended.Questions, nil
}

// appendOperational stores events of the bridge itself, where an endpoint gets them. If they cannot
// be stored, the log has said what they say; since they are tried once, that says nothing of what
// can be stored later.
func (o *Outbox) appendOperational(news []telephony.Event) {
	news = slices.DeleteFunc(news, func(e telephony.Event) bool {
		return !slices.ContainsFunc(o.opts.Endpoints, func(to store.Endpoint) bool { return to.Events.Match(e.Type) })
	})
	if len(news) == 0 {
		return
	}
	for i := range news {
		news[i].ID, news[i].Time = uuid.Must(uuid.NewV7()).String(), time.Now()
	}
	if _, err := o.append(context.Background(), news); err != nil {
		o.opts.Logger.Warn("operational events cannot be stored", "events", len(news), "err", err.Error())
	}
}

// wakeLanes lets the lanes look for what is new.
func (o *Outbox) wakeLanes() {
	for _, l := range o.lanes {
		wake(l.wake)
	}
}

// Run delivers until ctx ends. Attempts in flight may then go on for what is left of Options.Grace,
// and how they ended is recorded.
func (o *Outbox) Run(ctx context.Context) error {
	work, stop := o.Work(ctx)
	defer stop()
	var parts sync.WaitGroup
	for _, l := range o.lanes {
		if !l.endpoint.Reads() {
			parts.Go(func() { l.run(ctx, work) })
		}
	}
	parts.Go(func() { o.prune(ctx) })
	parts.Wait()
	return nil
}

// Work gives the context of attempts, which outlives ctx by the grace: a webhook that is under way
// when a shutdown begins is better finished than sent twice.
func (o *Outbox) Work(ctx context.Context) (work context.Context, stop context.CancelFunc) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	endWork := func() { time.AfterFunc(o.opts.Grace, cancel) }
	stops := []func() bool{context.AfterFunc(ctx, endWork)}
	if o.opts.Stopping != nil {
		stops = append(stops, context.AfterFunc(o.opts.Stopping, endWork))
	}
	return work, func() {
		for _, s := range stops {
			s()
		}
		cancel()
	}
}

// endpoint gives the endpoint of a name, nil if none is configured.
func (o *Outbox) endpoint(name string) *store.Endpoint {
	for i := range o.opts.Endpoints {
		if o.opts.Endpoints[i].Name == name {
			return &o.opts.Endpoints[i]
		}
	}
	return nil
}

// lane gives the lane of an endpoint that is configured.
func (o *Outbox) lane(endpoint string) *lane {
	return o.lanes[slices.IndexFunc(o.lanes, func(l *lane) bool { return l.endpoint.Name == endpoint })]
}

// wake wakes the goroutine that waits on a channel with room for one.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
