// Package outbox delivers every event to each endpoint that is to get it, at least once and with
// the same ID each time. An engine stores the events (package store), a Sender makes one attempt;
// the outbox decides what is delivered when. The states of a delivery:
//
//	pending ──success──► delivered
//	   │ ▲
//	   │ └─ a failure: retried after the next wait of the schedule
//	   ├──the endpoint is gone, or the schedule is used up──► dead
//	   └──too late to be of use──► expired
//
// Events of one call are delivered to an endpoint in their order: a delivery is held while the one
// before it in its call is pending, but not beyond the hold after that one has failed. Of one call
// there are never two attempts in flight at an endpoint, so a hold may last one attempt longer.
// Calls do not wait for one another, nor do endpoints: each has its own lane. An endpoint at which
// many attempts in a row have failed is only probed until one succeeds: see health. Questions where
// a call should go stand in no lane: package routing asks them.
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
	"pzbridge/internal/phone"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Options configures an Outbox.
type Options struct {
	Engine    store.Engine // opened with the rules that Rules returns
	Bridge    string       // the name of this one, if several share the outbox
	Endpoints []store.Endpoint
	Inner     []store.Endpoint        // those of the bridge itself: see store.IsInner
	Senders   map[string]store.Sender // by endpoint; an endpoint that reads its events has none
	Formatter Formatter
	Numbers   *phone.Plan // reads the numbers of calls
	// RetrySchedule holds the waits after the first, second, … failed attempt. A delivery that
	// fails after the last of them is dead.
	RetrySchedule []time.Duration
	// RoutingTimeout is how long the answer to a question where a call should go is of use.
	RoutingTimeout time.Duration
	// Retention is how long an event is kept after it was read; longer while an endpoint waits for
	// it.
	Retention time.Duration
	// Grace is how long attempts in flight may go on after the context of Run has ended, or after
	// Stopping if that ends earlier.
	Grace time.Duration
	// Stopping ends when the program begins to stop, which may be before the outbox is stopped. May
	// be nil.
	Stopping context.Context
	Logger   *slog.Logger
	Observer Observer // may be nil
	// Recordings are those of calls, which are forgotten with them; nil if there are none.
	Recordings Recordings
	// Clock computes ages; nil uses a clock that starts with New.
	Clock *clock.Clock
}

func (o *Options) validate() error {
	isComplete := o.Engine != nil && o.Formatter != nil && o.Numbers != nil && o.Logger != nil
	if !isComplete || o.Retention <= 0 || o.RoutingTimeout <= 0 {
		return errors.New("outbox: Options.Engine, Formatter, Numbers, Retention, RoutingTimeout and Logger " +
			"must be set")
	}
	all := slices.Concat(o.Endpoints, o.Inner)
	if err := store.ValidateEndpoints(all); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	for i := range all {
		if e := &all[i]; !e.Reads() && o.Senders[e.Name] == nil {
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

// Outbox delivers the events of an engine to the endpoints.
type Outbox struct {
	opts   Options
	engine store.Engine
	lanes  []*lane // of the configured endpoints
	all    []*lane // and of the inner ones

	nearlyFull chan struct{} // wakes prune early
	failures   *repeat.Log   // failures to remove old events

	sessions  sync.Mutex // held by EndSessions
	mu        sync.Mutex
	appendErr error // the error of the last Append; nil if it succeeded
}

// New returns an outbox on an open engine, which the caller closes.
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
		o.lanes = append(o.lanes, newLane(e, opts, o.appendOperational, o.wakeLanes))
	}
	o.all = slices.Clone(o.lanes)
	for _, e := range opts.Inner {
		unseen := opts
		unseen.Observer = unobserved{}
		o.all = append(o.all, newLane(e, unseen, func([]telephony.Event) {}, o.wakeLanes))
	}
	if err := o.warnOfOrphans(ctx); err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return o, nil
}

// endpointsOfAll returns the names of the endpoints of all bridges, without the inner ones.
func (o *Outbox) endpointsOfAll() (names []string) {
	for _, e := range o.opts.Endpoints {
		names = append(names, e.Name)
	}
	if shared := o.shared(); shared != nil {
		names = slices.Clone(shared.AllRules().Endpoints)
	}
	return slices.DeleteFunc(names, store.IsInner)
}

// warnOfOrphans logs the deliveries that are pending for endpoints that no bridge has any more.
// Nothing else would show a misspelt name.
func (o *Outbox) warnOfOrphans(ctx context.Context) error {
	standing, err := o.engine.Standing(ctx)
	configured := o.endpointsOfAll()
	for _, name := range slices.Sorted(maps.Keys(standing)) {
		if n := standing[name].Pending; n > 0 && !slices.Contains(configured, name) && !store.IsInner(name) {
			o.opts.Logger.Warn("deliveries wait for an endpoint that is configured no longer; "+
				"they go when OUTBOX_RETENTION is over",
				"endpoint", name, "deliveries", n)
		}
	}
	return err
}

// Append stores events in the order given, all in one transaction, and returns nil only when they
// are durable. An event whose ID is stored already is left out, so a batch whose commit failed may
// be appended again; so is a replayed event with the content of a stored one. Fails with
// store.ErrFull. It returns the questions that the events open, for routing to ask.
func (o *Outbox) Append(ctx context.Context, events []telephony.Event) (questions []uint64, err error) {
	questions, err = o.append(events, func(encoded []store.NewEvent) (store.Appended, error) {
		return o.engine.Append(ctx, encoded)
	})
	o.noteAppend(err)
	return questions, err
}

// AppendHeard is Append for what one of two listeners has read: see store.Shared, which the engine
// must be.
func (o *Outbox) AppendHeard(
	ctx context.Context, slot int, followed uint64, events []telephony.Event,
) (questions []uint64, err error) {
	questions, err = o.append(events, func(encoded []store.NewEvent) (store.Appended, error) {
		return o.shared().AppendHeard(ctx, slot, followed, encoded)
	})
	if !errors.Is(err, store.ErrBehind) {
		o.noteAppend(err)
	}
	return questions, err
}

func (o *Outbox) noteAppend(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.appendErr = err
}

// append encodes events and stores them.
func (o *Outbox) append(
	events []telephony.Event, put func([]store.NewEvent) (store.Appended, error),
) (questions []uint64, err error) {
	encoded := make([]store.NewEvent, len(events))
	var named telephony.Event // one for all: a copy of its own for each would be garbage
	for i := range events {
		named = events[i]
		o.nameSides(&named)
		e, err := store.Encode(&named, o.opts.RoutingTimeout)
		if err != nil {
			return nil, fmt.Errorf("event %s: %w", events[i].ID, err)
		}
		encoded[i] = e
	}
	appended, err := put(encoded)
	if appended.NearlyFull {
		wake(o.nearlyFull)
	}
	if err != nil {
		return nil, err
	}
	o.wakeLanes()
	return appended.Questions, nil
}

// appendOwn stores events of the bridge itself.
func (o *Outbox) appendOwn(ctx context.Context, events []telephony.Event) error {
	_, err := o.append(events, func(encoded []store.NewEvent) (store.Appended, error) {
		return o.engine.Append(ctx, encoded)
	})
	return err
}

// nameSides says who is the employee and who the client among the numbers of an event.
func (o *Outbox) nameSides(e *telephony.Event) {
	if e.CallID == "" {
		return
	}
	sides := o.opts.Numbers.Split(string(e.Direction), e.From, e.To)
	e.Client, e.Extension, e.Internal = sides.Client, sides.Extension, sides.Internal
}

// appendOperational stores events about the bridge itself, if an endpoint subscribes to them. It
// tries once: the log already has their content. A failure is not kept as that of Append is, since
// it does not show that later events cannot be stored.
func (o *Outbox) appendOperational(news []telephony.Event) {
	news = slices.DeleteFunc(news, func(e telephony.Event) bool { return !o.isWanted(e.Type) })
	if len(news) == 0 {
		return
	}
	for i := range news {
		news[i].ID, news[i].Time = uuid.Must(uuid.NewV7()).String(), time.Now()
	}
	if err := o.appendOwn(context.Background(), news); err != nil {
		o.opts.Logger.Warn("operational events cannot be stored", "events", len(news), "err", err)
	}
}

// isWanted reports whether an endpoint of any bridge subscribes to a type of operational events.
func (o *Outbox) isWanted(t telephony.EventType) bool {
	if shared := o.shared(); shared != nil {
		rules := shared.AllRules()
		return rules.IsWanted(&store.NewEvent{Event: store.Event{Type: t}})
	}
	return slices.ContainsFunc(o.opts.Endpoints, func(to store.Endpoint) bool { return to.Events.Match(t) })
}

// Alert stores alerts for the endpoints that subscribe to them. Those that cannot be stored are
// sent once, past the outbox: that it is full is what they may be about.
func (o *Outbox) Alert(ctx context.Context, alerts []telephony.Event) {
	for i := range alerts {
		alerts[i].ID, alerts[i].Time = uuid.Must(uuid.NewV7()).String(), time.Now()
		o.opts.Logger.Info("alert", "type", string(alerts[i].Type), "endpoint", alerts[i].Endpoint,
			"recovered", alerts[i].Recovered)
	}
	err := o.appendOwn(ctx, alerts)
	if err == nil {
		return
	}
	o.opts.Logger.Warn("alerts cannot be stored, and are sent once", "alerts", len(alerts), "err", err)
	for i := range alerts {
		o.sendPast(ctx, &alerts[i])
	}
}

// sendPast makes one attempt at an event for each endpoint that subscribes to it, without storing
// anything.
func (o *Outbox) sendPast(ctx context.Context, e *telephony.Event) {
	encoded, err := store.Encode(e, o.opts.RoutingTimeout)
	if err != nil {
		o.opts.Logger.Warn("an alert cannot be sent", "err", err)
		return
	}
	var attempts sync.WaitGroup
	defer attempts.Wait()
	for i := range o.opts.Endpoints {
		to := &o.opts.Endpoints[i]
		sender := o.opts.Senders[to.Name]
		if sender == nil || !to.Events.Match(e.Type) {
			continue
		}
		attempts.Go(func() {
			outcome := sender.Send(ctx, store.Job{Event: encoded.Event, EventID: e.ID})
			if outcome.Verdict != store.Done {
				o.opts.Logger.Warn("an alert did not arrive", "endpoint", to.Name, "err", outcome.Text())
			}
		})
	}
}

// The name of the setting that keeps which alerts were sent.
const settingAlerts = "alerts"

// AlertsSent returns what SetAlertsSent has stored, empty if there was none.
func (o *Outbox) AlertsSent(ctx context.Context) (string, error) {
	return o.engine.Setting(ctx, settingAlerts, "")
}

// SetAlertsSent stores which alerts were sent, for later starts.
func (o *Outbox) SetAlertsSent(ctx context.Context, sent string) error {
	return o.engine.SetSetting(ctx, settingAlerts, sent)
}

// wakeLanes makes every lane look for new deliveries.
func (o *Outbox) wakeLanes() {
	for _, l := range o.all {
		wake(l.wake)
	}
}

// Run delivers until ctx ends. Attempts in flight may then go on for the rest of Options.Grace, and
// their outcomes are recorded.
func (o *Outbox) Run(ctx context.Context) error {
	work, stop := o.Work(ctx)
	defer stop()
	var parts sync.WaitGroup
	for _, l := range o.all {
		if !l.endpoint.Reads() {
			parts.Go(func() { l.keep(ctx, work) })
		}
	}
	parts.Go(func() { o.prune(ctx) })
	if o.shared() != nil {
		parts.Go(func() { o.followOthers(ctx) })
	}
	parts.Wait()
	return nil
}

// shared returns the engine as one that other processes use as well; nil if it is not.
func (o *Outbox) shared() store.Shared {
	engine, _ := o.engine.(store.Shared)
	return engine
}

// followOthers wakes the lanes when another process has changed what is stored.
func (o *Outbox) followOthers(ctx context.Context) {
	for {
		changed := o.engine.Changed()
		select {
		case <-changed:
			o.wakeLanes()
		case <-ctx.Done():
			return
		}
	}
}

// Work returns the context of attempts, which outlives ctx by the grace: it is better to finish a
// webhook that is in flight when a shutdown begins than to send it twice.
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

// WhileHeld returns a context that ends with work, or when another process may have taken the work
// of this one over.
func (o *Outbox) WhileHeld(work context.Context) (held context.Context, end context.CancelFunc) {
	if o.shared() == nil {
		return work, func() {}
	}
	return whileHeld(work, o.shared().Held())
}

// endpoint returns the endpoint with a name, or nil if none is configured.
func (o *Outbox) endpoint(name string) *store.Endpoint {
	for i := range o.opts.Endpoints {
		if o.opts.Endpoints[i].Name == name {
			return &o.opts.Endpoints[i]
		}
	}
	return nil
}

// lane returns the lane of a configured endpoint.
func (o *Outbox) lane(endpoint string) *lane {
	return o.lanes[slices.IndexFunc(o.lanes, func(l *lane) bool { return l.endpoint.Name == endpoint })]
}

// wake wakes the goroutine that receives from a channel with a buffer of one.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
