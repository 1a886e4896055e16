// Package storetest is what every engine promises, as tests. An engine's own tests call Run with a
// Harness that opens it; each test then opens an outbox on it, with real senders and real HTTP to a
// receiver in the same process, in fake time.
package storetest

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/internal/phone"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/webhook"
)

// Harness opens an engine.
type Harness interface {
	// Place gives a place where nothing is stored yet.
	Place(t testing.TB) string
	// Open opens what is stored at a place.
	Open(o EngineOptions) (store.Engine, error)
	// Check fails the test where what is stored contradicts itself.
	Check(t testing.TB, e store.Engine)
}

// EngineOptions is what a Harness opens an engine with.
type EngineOptions struct {
	Place     string
	MaxBytes  int64
	Rules     store.Rules
	Logger    *slog.Logger
	Clock     *clock.Clock
	Committed func(time.Duration)
}

// slow are the tests that take most of the suite's time: they open an engine again and again, or go
// through days in fake time. With -short, and in RunQuick, they are left out.
var slow = []string{
	"TestCallComesPageByPage",
	"TestCallsAreFoundByWhatTheyAre",
	"TestClockSetForwardGivesNothingUp",
	"TestEventsOfAWrongClockAreAsOldAsTheNextOnes",
	"TestEverythingArrivesAfterADayDown",
	"TestFailingEndpointGetsOneAttemptAtATime",
	"TestFailingIsCountedThroughRestarts",
	"TestFirstCursorIsGoodForTheNextRead",
	"TestForgettingANumberRemovesAllOfItsCalls",
	"TestFullEndsByItself",
	"TestManyDueEventsOfACallHoldUpNoOther",
	"TestManyEventsOfAWrongClockGoWithTheNextOnes",
	"TestManyQuestionsAtOnceAreBounded",
	"TestNewsOfALiveCallIsTriedWhileItIsOfUse",
	"TestNoDeliveryWaitsForTheLane",
	"TestNoEndpointHoldsUpAnother",
	"TestNotesArePruned",
	"TestOldEventsGoUnlessAnEndpointWaits",
	"TestOrderAtRandom",
	"TestQuestionStaysOpenNoLongerAfterClockWasSetBack",
	"TestQuestionsThatWaitForTheirCallTakeNoPlace",
	"TestRateLeavesRoomForLiveCalls",
	"TestReaderWithoutEventsMissesNothing",
	"TestRedeliverAllChoosesByStateTypeAndTime",
	"TestRedeliverAllHoldsUpNoLiveCall",
	"TestRedeliverWithAGap",
	"TestRedeliveriesKeepTheirIDAndOrder",
	"TestRetriesBesideABacklog",
	"TestRetriesBySchedule",
	"TestRoutesArePruned",
	"TestSequenceOutlivesEarlyPruning",
	"TestTheOutcomeIsDecidedWhenACallEnds",
	"TestTooLateBehindABacklogExpires",
	"TestTooLateExpiresOnTimeWhateverItWaitsFor",
	"TestTooLateIsFoundWhereverItStands",
	"TestWaitsCutShortDoNotCount",
	"TestWhatEachAnswerLeadsTo",
	"TestWhatWaitsForAWorkerIsCheckedAgain",
	"TestWhatWaitsForAnAbandonedEndpointGoes",
	"TestWhatWaitsForAnUnknownEndpointDoesNotGoEarly",
}

// Run runs every test of the suite, many at once; with -short, those that are not slow.
func Run(t *testing.T, h Harness) { run(t, h, testing.Short(), 1) }

// RunQuick runs one of so many tests of the suite that are not slow: a third of them for 3.
func RunQuick(t *testing.T, h Harness, of int) { run(t, h, true, of) }

func run(t *testing.T, h Harness, quick bool, of int) {
	s := reflect.ValueOf(suite{h})
	for i := range s.NumMethod() {
		name := s.Type().Method(i).Name
		isLeftOut := quick && slices.Contains(slow, name) || i%of != 0
		if name, isTest := strings.CutPrefix(name, "Test"); isTest && !isLeftOut {
			test := s.Method(i).Interface().(func(*testing.T))
			t.Run(name, func(t *testing.T) {
				t.Parallel() // each has an engine of its own, and most wait for the disk
				test(t)
			})
		}
	}
}

// suite has the tests as methods.
type suite struct{ Harness }

// Options says how a test's outbox is set up; what is left out has a default.
type Options struct {
	Place              string
	Bridge             string
	Endpoints          []store.Endpoint
	RetrySchedule      []time.Duration
	OrderHold          time.Duration
	RoutingTimeout     time.Duration
	QuietWithoutWinner bool
	Retention          time.Duration
	MaxBytes           int64
	Grace              time.Duration
	Stopping           context.Context
	Logger             *slog.Logger
	Observer           outbox.Observer
	Clock              *clock.Clock
	// Senders are used in place of webhooks, by endpoint.
	Senders     map[string]store.Sender
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// WithDefaults fills in what a test does not care about.
func WithDefaults(t testing.TB, h Harness, o Options) Options {
	t.Helper()
	if o.Place == "" {
		o.Place = h.Place(t)
	}
	if o.Endpoints == nil {
		o.Endpoints = []store.Endpoint{Endpoint("crm")}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if o.RetrySchedule == nil {
		o.RetrySchedule = []time.Duration{5 * time.Second, 5 * time.Minute}
	}
	if o.Clock == nil {
		o.Clock = clock.New(time.Time{}, time.Time{})
	}
	o.OrderHold = cmp.Or(o.OrderHold, time.Minute)
	o.Retention = cmp.Or(o.Retention, 168*time.Hour)
	o.RoutingTimeout = cmp.Or(o.RoutingTimeout, 10*time.Second)
	o.MaxBytes = cmp.Or(o.MaxBytes, 1<<30)
	o.Grace = cmp.Or(o.Grace, 5*time.Second)
	return o
}

// numbers are those of a company in Russia.
var numbers = func() *phone.Plan {
	p, err := phone.New(phone.Options{Region: "RU", InternalDigits: 6})
	if err != nil {
		panic(err)
	}
	return p
}()

// Rules gives the rules of an outbox with these options.
func (o *Options) Rules() store.Rules {
	r := outbox.Rules(outbox.RulesOptions{
		Endpoints:          o.Endpoints,
		RetrySchedule:      o.RetrySchedule,
		OrderHold:          o.OrderHold,
		RoutingTimeout:     o.RoutingTimeout,
		QuietWithoutWinner: o.QuietWithoutWinner,
		Numbers:            numbers,
	})
	r.Receive, r.ChangeRoute = routing.Receive(o.Endpoints, o.RoutingTimeout), routing.Change
	return r
}

// Box is an outbox on an engine, with its senders and its questions. Its methods are those of the
// outbox without a context, as a test has none to care about.
type Box struct {
	Outbox  *outbox.Outbox
	Engine  store.Engine
	opts    Options
	senders map[string]store.Sender

	mu         sync.Mutex
	dispatcher *routing.Dispatcher
}

// Open opens an outbox; Close closes it.
func Open(h Harness, o Options) (*Box, error) {
	b := &Box{opts: o, senders: map[string]store.Sender{}}
	committed := func(time.Duration) {}
	if c, ok := o.Observer.(interface{ Committed(time.Duration) }); ok {
		committed = c.Committed
	}
	var err error
	b.Engine, err = h.Open(EngineOptions{
		Place:     o.Place,
		MaxBytes:  o.MaxBytes,
		Rules:     o.Rules(),
		Logger:    o.Logger,
		Clock:     o.Clock,
		Committed: committed,
	})
	if err != nil {
		return nil, err
	}
	for i := range o.Endpoints {
		if e := &o.Endpoints[i]; o.Senders[e.Name] != nil {
			b.senders[e.Name] = o.Senders[e.Name]
		} else if !e.Reads() {
			b.senders[e.Name] = webhook.New(*e, webhook.Options{
				UserAgent: "pzbridge/test", Questions: routing.MaxQuestions, DialContext: o.DialContext,
			})
		}
	}
	b.Outbox, err = outbox.New(context.Background(), outbox.Options{
		Engine:         b.Engine,
		Bridge:         o.Bridge,
		Endpoints:      o.Endpoints,
		Senders:        b.senders,
		Formatter:      webhook.Formatter{},
		Numbers:        numbers,
		RetrySchedule:  o.RetrySchedule,
		RoutingTimeout: o.RoutingTimeout,
		Retention:      o.Retention,
		Grace:          o.Grace,
		Stopping:       o.Stopping,
		Logger:         o.Logger,
		Observer:       o.Observer,
		Clock:          o.Clock,
	})
	if err != nil {
		return nil, errors.Join(err, b.Engine.Close())
	}
	b.dispatcher, err = b.newDispatcher(Silence{})
	if err != nil {
		return nil, errors.Join(err, b.Engine.Close())
	}
	return b, nil
}

func (b *Box) newDispatcher(d routing.Decider) (*routing.Dispatcher, error) {
	return routing.NewDispatcher(routing.Options{
		Questions: b.Engine,
		Routes:    b.Engine,
		Outbox:    b.Outbox,
		Router:    d,
		Endpoints: b.opts.Endpoints,
		Senders:   b.senders,
		Timeout:   b.opts.RoutingTimeout,
		Freshness: b.opts.Clock.Freshness,
		Logger:    b.opts.Logger,
	})
}

// Close closes the engine. Run must have ended.
func (b *Box) Close() error { return b.Engine.Close() }

// Run delivers and asks until ctx ends; d takes what comes of asking.
func (b *Box) Run(ctx context.Context, d routing.Decider) error {
	dispatcher, err := b.newDispatcher(d)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.dispatcher = dispatcher
	b.mu.Unlock()
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	var engine, parts sync.WaitGroup
	errs := make(chan error, 3)
	engine.Go(func() { errs <- b.Engine.Run(engineCtx) })
	parts.Go(func() { errs <- dispatcher.Run(ctx) })
	parts.Go(func() { errs <- b.Outbox.Run(ctx) })
	parts.Wait()
	stopEngine()
	engine.Wait()
	for _, s := range b.senders {
		s.Close()
	}
	return errors.Join(<-errs, <-errs, <-errs)
}

// Append stores events and has the questions among them asked.
func (b *Box) Append(ctx context.Context, events []telephony.Event) error {
	questions, err := b.Outbox.Append(ctx, events)
	b.mu.Lock()
	dispatcher := b.dispatcher
	b.mu.Unlock()
	dispatcher.Ask(questions)
	return err
}

// Silence is a router to which no question matters.
type Silence struct{}

func (Silence) Settle(context.Context, string, string, bool, []telephony.Reply) {}
func (Silence) Answer(context.Context, string, string, string, string) error    { return nil }
func (Silence) NoAnswer(context.Context, string, string, string, error)         {}

// Endpoints is Outbox.Endpoints.
func (b *Box) Endpoints() ([]outbox.EndpointStatus, error) {
	return b.Outbox.Endpoints(context.Background())
}

// Deliveries is Outbox.Deliveries.
func (b *Box) Deliveries(q store.DeliveryQuery) (list []store.DeliveryView, cursor string, err error) {
	p, err := b.Outbox.Deliveries(context.Background(), q)
	return p.Deliveries, p.Cursor, err
}

// Delivery is Outbox.Delivery.
func (b *Box) Delivery(id string) (store.DeliveryView, []store.Attempt, error) {
	return b.Outbox.Delivery(context.Background(), id)
}

// Redeliver is Outbox.Redeliver.
func (b *Box) Redeliver(id string) (store.DeliveryView, error) {
	return b.Outbox.Redeliver(context.Background(), id)
}

// RedeliverAll is Outbox.RedeliverAll.
func (b *Box) RedeliverAll(ctx context.Context, r store.Redelivery) (int, error) {
	_, count, err := b.Outbox.RedeliverAll(ctx, r)
	return count, err
}

// Events is Outbox.Events.
func (b *Box) Events(q store.EventQuery) (store.EventPage, error) {
	return b.Outbox.Events(context.Background(), q)
}

// Call is Outbox.Call.
func (b *Box) Call(id string, after uint64) (store.CallPage, error) {
	return b.Outbox.Call(context.Background(), id, after)
}

// Route is Outbox.Route.
func (b *Box) Route(id string) (*telephony.Route, error) {
	return b.Outbox.Route(context.Background(), id)
}

// OldestPending is Outbox.OldestPending.
func (b *Box) OldestPending(endpoint string) (time.Time, error) {
	return b.Outbox.OldestPending(context.Background(), endpoint)
}

// Writable is Outbox.Writable.
func (b *Box) Writable() error { return b.Outbox.Writable(context.Background()) }

// InUse is Outbox.InUse.
func (b *Box) InUse() int64 {
	n, _ := b.Outbox.InUse(context.Background())
	return n
}

// Changed is Outbox.Changed.
func (b *Box) Changed() <-chan struct{} { return b.Outbox.Changed() }

// Sessions is Outbox.Sessions.
func (b *Box) Sessions() (uint64, error) { return b.Outbox.Sessions(context.Background()) }

// EndSessions is Outbox.EndSessions.
func (b *Box) EndSessions() (uint64, error) { return b.Outbox.EndSessions(context.Background()) }

// ClientGUID is Outbox.ClientGUID.
func (b *Box) ClientGUID(generated string) (string, error) {
	return b.Outbox.ClientGUID(context.Background(), 1, generated)
}

// SendTest is Outbox.SendTest.
func (b *Box) SendTest(ctx context.Context, endpoint string) (string, store.Attempt, error) {
	return b.Outbox.SendTest(ctx, endpoint)
}

// Sent is Outbox.Sent.
func (b *Box) Sent(endpoint, eventID string) (string, []byte, error) {
	return b.Outbox.Sent(context.Background(), endpoint, eventID)
}

// OpenBox opens an outbox and, when the test ends, checks what is stored and closes it.
func OpenBox(t testing.TB, h Harness, o Options) *Box {
	t.Helper()
	b, err := Open(h, WithDefaults(t, h, o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Check(t, b.Engine)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (s suite) open(t *testing.T, o Options) *Box {
	t.Helper()
	return OpenBox(t, s.Harness, o)
}

// openAgain opens an outbox, and gives what closes it before the test ends: then it can be opened
// again with what it has kept.
func (s suite) openAgain(t *testing.T, o Options) (b *Box, closeBox func()) {
	t.Helper()
	b, err := Open(s.Harness, WithDefaults(t, s.Harness, o))
	if err != nil {
		t.Fatal(err)
	}
	closeBox = sync.OnceFunc(func() {
		s.Check(t, b.Engine)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(closeBox)
	return b, closeBox
}
