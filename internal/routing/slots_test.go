package routing_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/webhook"
)

// calledLate is a router whose exchange takes three seconds. It notes what comes once it is over.
type calledLate struct {
	storetest.Silence
	mu   sync.Mutex
	over bool
	late []string
}

func (c *calledLate) note(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		c.late = append(c.late, s)
	}
}

func (c *calledLate) NoAnswer(_ context.Context, _, _, by string, _ error) {
	c.note("no answer of " + by)
}

func (c *calledLate) Answer(_ context.Context, _, _, by, _ string) error {
	time.Sleep(3 * time.Second) // the exchange's reply
	c.note("answer of " + by)
	return nil
}

func (c *calledLate) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

// TestQuestionIsWithdrawnOnce checks that a question that a stop has withdrawn is not withdrawn
// once more when its time is up: Run returns when nothing is under way any more.
func TestQuestionIsWithdrawnOnce(t *testing.T) {
	c := &storetest.CRM{Answer: func(_ int, _ storetest.Received, w http.ResponseWriter) {
		time.Sleep(3 * time.Second)
		_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
	}}
	storetest.Bubble(t, c, func(t *testing.T) {
		var log logtest.Buffer
		const timeout = 4 * time.Second
		endpoints := []store.Endpoint{storetest.Endpoint("a"), storetest.Endpoint("b")}
		endpoints[0].Timeout = time.Minute
		opts := storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
			DialContext:    c.Net.Dial,
			Endpoints:      endpoints,
			RoutingTimeout: timeout,
			Grace:          20 * time.Second,
			Logger:         slog.New(slog.NewTextHandler(&log, nil)),
		})
		box, err := storetest.Open(bolttest.Harness{}, opts)
		if err != nil {
			t.Fatal(err)
		}
		router, senders := &calledLate{}, map[string]store.Sender{}
		for _, e := range endpoints {
			senders[e.Name] = webhook.New(e, webhook.Options{Questions: routing.MaxQuestions, DialContext: c.Net.Dial})
		}
		d, err := routing.NewDispatcher(routing.Options{
			Questions: box.Engine,
			Routes:    box.Engine,
			Outbox:    box.Outbox,
			Router:    router,
			Endpoints: endpoints,
			Senders:   senders,
			Timeout:   timeout,
			Freshness: opts.Clock.Freshness,
			Logger:    opts.Logger,
		})
		if err != nil {
			t.Fatal(err)
		}
		d.TakeAllSlots("b")
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { _ = d.Run(ctx) })
		running.Go(func() { _ = box.Outbox.Run(ctx) })
		questions, err := box.Outbox.Append(ctx, []telephony.Event{storetest.Event("call.transfer_requested", "1")})
		if err != nil {
			t.Fatal(err)
		}
		d.Ask(questions)
		time.Sleep(time.Second)
		synctest.Wait()
		cancel() // the exchange answers at 6 s, the time is up at 4 s
		running.Wait()
		router.end()
		for _, s := range senders {
			s.Close()
		}
		if err := box.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(30 * time.Second)
		if len(router.late) > 0 {
			t.Errorf("after Run has ended: %v\n%s", router.late, log.String())
		}
		if s := log.String(); strings.Contains(s, "cannot be recorded") {
			t.Error(s)
		}
	})
}

// slowExchange takes long to do what an answer asks for.
type slowExchange struct{ storetest.Silence }

func (slowExchange) Answer(context.Context, string, string, string, string) error {
	time.Sleep(3 * time.Second)
	return nil
}

// TestSlowExchangeHoldsNoPlaces checks that a place is for an attempt, not for what the exchange
// does with its answer: where that takes seconds all are asked nevertheless.
func TestSlowExchangeHoldsNoPlaces(t *testing.T) {
	if testing.Short() {
		t.Skip("three thousand questions")
	}
	var made atomic.Int64
	c := &storetest.CRM{Forget: true, Answer: func(_ int, _ storetest.Received, w http.ResponseWriter) {
		made.Add(1)
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
	}}
	storetest.Bubble(t, c, func(t *testing.T) {
		e := storetest.Endpoint("crm")
		e.Tokens = []string{"a token"}
		box := storetest.OpenBox(t, bolttest.Harness{}, storetest.Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{e},
			Logger:      slog.New(slog.DiscardHandler),
		})
		stop := storetest.RunWith(t, box, slowExchange{})
		var list []telephony.Event
		for i := range 3000 {
			list = append(list, storetest.Event("call.transfer_requested", strconv.Itoa(1000+i)))
		}
		storetest.MustAppend(t, box, list...)
		time.Sleep(time.Minute)
		stop()
		if made.Load() != 3000 {
			t.Errorf("the CRM answers in 100 ms, and was asked %d of 3000", made.Load())
		}
	})
}
