package storetest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TestProbeAnsweredGoneEndsNoDelivery checks that a 410 to a probe is about the endpoint, not about
// the event with which it is probed: that event waits on, and is delivered once the endpoint is
// well.
func (s suite) TestProbeAnsweredGoneEndsNoDelivery(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusServiceUnavailable)
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(int(status.Load())) }}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{Endpoint("crm")}})
		stop := RunBox(t, o)
		for i := range 30 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		status.Store(http.StatusGone)
		time.Sleep(time.Hour)
		if got := States(t, o, "crm"); got[store.Pending] != 30 {
			t.Errorf("after an hour of 410: %v", got)
		}
		status.Store(http.StatusOK)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		stop()
		if got := States(t, o, "crm"); got[store.Delivered] != 30 {
			t.Errorf("once it is well: %v", got)
		}
	})
}

// gauge counts what is under way at once, and when each began.
type gauge struct {
	mu       sync.Mutex
	now, max int
	began    []time.Time
}

func (g *gauge) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now++
	g.max = max(g.max, g.now)
	g.began = append(g.began, time.Now())
}

func (g *gauge) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now--
}

// TestEverythingArrivesAfterADayDown has a CRM fail for a day in which 100,000 events come.
// Meanwhile it is probed now and then; afterwards everything arrives, in order within each call,
// with no more requests at once than its concurrency and within its rate, and no delivery has died.
func (s suite) TestEverythingArrivesAfterADayDown(t *testing.T) {
	SkipBulk(t)
	const (
		perAppend, perCall     = 200, 4
		concurrency, perSecond = 64, 20_000

		events = dayOfEvents
	)
	var up atomic.Bool
	var g gauge
	last, missed := map[string]int{}, 0
	var mu sync.Mutex
	c := &CRM{Forget: true}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		g.enter()
		defer g.leave()
		time.Sleep(3200 * time.Microsecond)
		if !up.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		call, n := callOf(t, r)
		if n != last[call]+1 {
			missed++
		}
		last[call] = n
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency, e.Rate = concurrency, perSecond
		var log logtest.Buffer
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: []time.Duration{time.Second, time.Minute},
			Logger:        slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
		stop := RunBox(t, o)
		var batch []telephony.Event
		for i := range events {
			call := i/perAppend*perAppend + i%(perAppend/perCall)
			batch = append(batch, Event("call.completed", fmt.Sprint(call)))
			if len(batch) == perAppend {
				MustAppend(t, o, batch...)
				batch = nil
				time.Sleep(24 * time.Hour / time.Duration(events/perAppend))
			}
		}
		synctest.Wait()
		if n := c.Count(); n < 24*60/5 || n > 24*60/4+100 {
			t.Errorf("%d attempts in a day, which is not a probe every five minutes", n)
		}
		status, err := o.Endpoints()
		isAsExpected := err == nil && status[0].State == stateFailing && status[0].Pending == uint64(events) &&
			status[0].Dead == 0 && status[0].LastError == "HTTP 502"
		if !isAsExpected {
			t.Errorf("it stands as %+v, %v", status, err)
		}
		g.mu.Lock()
		g.max, g.began = 0, nil
		g.mu.Unlock()
		up.Store(true)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		stop()
		mu.Lock()
		defer mu.Unlock()
		g.mu.Lock()
		defer g.mu.Unlock()
		if got := States(t, o, "crm"); got[store.Delivered] != events || len(last) != events/perCall || missed > 0 {
			t.Errorf("states: %v, %d calls, %d out of order", got, len(last), missed)
		}
		if g.max != concurrency {
			t.Errorf("%d requests at once, want %d", g.max, concurrency)
		}
		for i := perSecond + 1; i < len(g.began); i++ {
			if took := g.began[i].Sub(g.began[i-perSecond-1]); took < time.Second {
				t.Fatalf("%d requests in %s", perSecond+2, took)
			}
		}
		if n := strings.Count(log.String(), "endpoint is failing"); n != 1 {
			t.Errorf("that it is failing is logged %d times", n)
		}
	})
}

// TestProbesTakeTurns checks that one event which a CRM always refuses does not keep it failing:
// the next probe takes another.
func (s suite) TestProbesTakeTurns(t *testing.T) {
	var up atomic.Bool
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); !up.Load() || call == "poison" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			RetrySchedule: slices.Repeat([]time.Duration{5 * time.Minute}, 100),
		})
		stop := RunBox(t, o)
		MustAppend(t, o, Event("call.incoming", "poison"), Event("call.incoming", "A"), Event("call.completed", "A"))
		time.Sleep(2 * time.Hour)
		if status, _ := o.Endpoints(); status[0].State != stateFailing {
			t.Errorf("it stands as %+v", status)
		}
		up.Store(true)
		time.Sleep(11 * time.Minute) // two probes
		if got := States(t, o, "crm"); got[store.Delivered] != 2 {
			t.Errorf("states: %v", got)
		}
		if status, _ := o.Endpoints(); status[0].State != stateOK || status[0].Pending != 1 {
			t.Errorf("it stands as %+v", status)
		}
		stop()
	})
}

// TestWaitsCutShortDoNotCount has a CRM take ten events a second and answer 503 to all beyond that,
// so that it is failing again and again. A wait that is cut short by that uses up nothing of the
// schedule.
func (s suite) TestWaitsCutShortDoNotCount(t *testing.T) {
	var mu sync.Mutex
	var taken time.Time
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) {
		time.Sleep(time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if time.Since(taken) < 100*time.Millisecond {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		taken = time.Now()
	}}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			RetrySchedule: []time.Duration{5 * time.Second, 5 * time.Minute, time.Hour, 2 * time.Hour, 5 * time.Hour},
		})
		stop := RunBox(t, o)
		for i := range 300 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(2 * time.Minute)
		stop()
		if got := States(t, o, "crm"); got[store.Dead] > 0 {
			t.Errorf("two minutes later: %v, %d requests", got, c.Count())
		}
	})
}

// Test429WithRetryAfterPausesTheEndpoint checks that it stops everything for the endpoint, not only
// the event that it answers.
func (s suite) Test429WithRetryAfterPausesTheEndpoint(t *testing.T) {
	c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, o)
		began := time.Now()
		MustAppend(t, o, Event("call.incoming", "A"))
		synctest.Wait()
		MustAppend(t, o, Event("call.incoming", "B"))
		synctest.Wait()
		status, _ := o.Endpoints()
		if status[0].State != statePaused || !status[0].NextAttempt.Equal(began.Add(30*time.Second)) {
			t.Errorf("it stands as %+v", status)
		}
		time.Sleep(time.Minute)
		stop()
		hooks := c.Received()
		if len(hooks) != 3 {
			t.Fatalf("%d attempts", len(hooks))
		}
		for _, h := range hooks[1:] {
			if wait := h.At.Sub(began); wait < 30*time.Second {
				t.Errorf("an attempt after %s", wait)
			}
		}
	})
}

// TestWhatWaitsForAWorkerIsCheckedAgain checks that an attempt which waits for its turn at a busy
// endpoint is not made where it is no longer to be: the event then waits in the outbox, or has
// expired.
func (s suite) TestWhatWaitsForAWorkerIsCheckedAgain(t *testing.T) {
	// Each first attempt takes so long that the second event waits for it.
	const busy = 2 * time.Second
	refuse := func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }
	take := func(int, Received, http.ResponseWriter) {}
	for name, c := range map[string]struct {
		failures int // attempts that have failed before
		first    func(int, Received, http.ResponseWriter)
		ringing  time.Duration
		stop     bool          // while it waits
		from     time.Duration // when it is sent at the earliest, after the beginning; 0 is never
		state    store.State
	}{
		"a pause": {
			first: func(_ int, _ Received, w http.ResponseWriter) {
				w.Header().Set("Retry-After", "30")
				w.WriteHeader(429)
			},
			ringing: time.Hour,
			from:    32 * time.Second,
			state:   store.Delivered,
		},
		"a failure": {
			failures: failingAfter - 1,
			first:    refuse,
			ringing:  time.Hour,
			from:     6 * time.Second,
			state:    store.Delivered,
		},
		"too late": {first: take, ringing: time.Second, state: store.Expired},
		"the end": {
			first:   take,
			ringing: time.Hour,
			stop:    true,
			state:   store.Pending,
		},
		"nothing": {
			first:   refuse,
			ringing: time.Hour,
			from:    busy,
			state:   store.Delivered,
		},
	} {
		t.Run(name, func(t *testing.T) {
			receiver := &CRM{}
			receiver.Answer = func(n int, r Received, w http.ResponseWriter) {
				switch call, _ := callOf(t, r); call {
				case "before":
					refuse(n, r, w)
				case "first":
					time.Sleep(busy)
					c.first(n, r, w)
				}
			}
			Bubble(t, receiver, func(t *testing.T) {
				e := Endpoint("crm")
				e.Concurrency, e.RingingTTL = 1, c.ringing
				o := s.open(t, Options{
					DialContext:   receiver.Net.Dial,
					Endpoints:     []store.Endpoint{e},
					RetrySchedule: []time.Duration{10 * time.Hour},
					Grace:         time.Minute,
				})
				stop := RunBox(t, o)
				for range c.failures {
					MustAppend(t, o, Event("call.completed", "before"))
				}
				time.Sleep(time.Hour)
				began := time.Now()
				MustAppend(t, o, Event("call.completed", "first"))
				synctest.Wait()
				MustAppend(t, o, Event("call.incoming", "second"))
				synctest.Wait()
				if c.stop {
					stop()
				}
				time.Sleep(time.Minute)
				stop()
				sent := time.Duration(0)
				for _, r := range receiver.Received() {
					if call, _ := callOf(t, r); call == "second" {
						sent = r.At.Sub(began)
					}
				}
				list, _, err := o.Deliveries(store.DeliveryQuery{CallID: "second", Limit: 10})
				isInTime := sent >= c.from && (sent > 0) == (c.from > 0)
				if err != nil || len(list) != 1 || list[0].State != c.state.String() || !isInTime {
					t.Errorf("it was sent after %s, want %s or more; %+v, want %s (%v)",
						sent, c.from, list, c.state, err)
				}
			})
		})
	}
}

// GivenUp counts them.
func (g *givenUp) GivenUp(_ string, n int) { g.n.Add(int64(n)) }

// TestWhatWaitsForAnAbandonedEndpointGoes checks that an endpoint which never returns does not fill
// the disk: what has waited for longer than the retention and the schedule together is removed.
func (s suite) TestWhatWaitsForAnAbandonedEndpointGoes(t *testing.T) {
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }}
	Bubble(t, c, func(t *testing.T) {
		var log logtest.Buffer
		gone := &givenUp{}
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			RetrySchedule: []time.Duration{8 * time.Hour},
			Retention:     16 * time.Hour,
			OrderHold:     1000 * time.Hour,
			Logger:        slog.New(slog.NewTextHandler(&log, nil)),
			Observer:      gone,
		})
		stop := RunBox(t, o)
		for i := range 30 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)), Event("pz.event", fmt.Sprint(i)))
		}
		time.Sleep(23 * time.Hour)
		if got := States(t, o, "crm"); got[store.Pending] != 60 {
			t.Errorf("before its time: %v", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		left := storedEvents(t, o.Engine) + len(list(t, o, store.DeliveryQuery{Limit: 500}))
		if left != 0 || strings.Count(log.String(), "events were given up") != 1 {
			t.Errorf("afterwards %d events and deliveries are left", left)
		}
		stop()
		if gone.n.Load() != 60 {
			t.Errorf("%d were counted as given up", gone.n.Load())
		}
	})
}

// TestRetryAfterDateIsBounded checks that a Retry-After in form of a date, by a clock that is
// wrong, pauses an endpoint for no longer than one in seconds.
func (s suite) TestRetryAfterDateIsBounded(t *testing.T) {
	c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", time.Now().Add(48*time.Hour).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("call.completed", "5"))
		time.Sleep(2 * time.Hour) // past the longest pause, an hour
		synctest.Wait()
		if n := c.Count(); n != 2 {
			list, _ := o.Endpoints()
			t.Errorf("after two hours %d attempts; the endpoint is %s until %s (now %s)",
				n, list[0].State, list[0].NextAttempt, time.Now())
		}
	})
}

// TestHealthChangesAreLoggedInOrder checks that changes of an endpoint's health are logged in their
// order, whether an attempt of its lane or a question has brought them.
func (s suite) TestHealthChangesAreLoggedInOrder(t *testing.T) {
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		switch call, _ := callOf(t, r); call {
		case "hangs":
			time.Sleep(10 * time.Second)
		case "question":
			time.Sleep(101 * time.Millisecond)
		case "last":
			time.Sleep(100 * time.Millisecond)
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		var log logtest.Buffer
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			RetrySchedule: []time.Duration{10 * time.Hour},
			Logger:        slog.New(slog.NewTextHandler(&log, nil)),
		})
		stop := RunBox(t, o)
		for i := range failingAfter - 1 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Second)
		MustAppend(t, o,
			Event("call.completed", "hangs"),
			Event("call.completed", "last"),
			Event("call.transfer_requested", "question"))
		time.Sleep(time.Second)
		_, after, fails := strings.Cut(log.String(), "endpoint is failing")
		if !fails || !strings.Contains(after, "endpoint has recovered") {
			t.Error(log.String())
		}
		time.Sleep(10 * time.Second)
		stop()
	})
}

// TestFailingEndpointGetsOneAttemptAtATime checks that this holds too for what was ordered before
// the endpoint began to fail and had to wait for a worker.
func (s suite) TestFailingEndpointGetsOneAttemptAtATime(t *testing.T) {
	var g gauge
	c := &CRM{}
	c.Answer = func(n int, r Received, w http.ResponseWriter) {
		if n <= 8 {
			time.Sleep(time.Minute)
		} else if call, _ := callOf(t, r); call[0] == 'w' {
			g.enter()
			defer g.leave()
			time.Sleep(time.Second)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency, e.Timeout = 8, time.Hour
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: []time.Duration{10 * time.Hour},
		})
		stop := RunBox(t, o)
		for _, kind := range []string{"hangs", "waits"} {
			for i := range e.Concurrency {
				MustAppend(t, o, Event("call.completed", fmt.Sprint(kind, i)))
			}
		}
		synctest.Wait()
		for i := range failingAfter / questionAttempts {
			MustAppend(t, o, Event("call.transfer_requested", fmt.Sprint("q", i)))
		}
		time.Sleep(2 * time.Hour) // probes take turns
		stop()
		if g.max != 1 {
			t.Errorf("%d at once", g.max)
		}
	})
}

// fuse is a log that counts lines, and calls blow at the hundredth.
type fuse struct {
	lines atomic.Int64
	blow  func()
}

func (f *fuse) Write(p []byte) (int, error) {
	if f.lines.Add(1) == 100 {
		f.blow()
	}
	return len(p), nil
}

// TestNothingIsSentOnceTheGraceIsOver checks that, where the time of the shutdown is up before
// Run's context has ended, nothing is sent and the lane does not spin.
func (s suite) TestNothingIsSentOnceTheGraceIsOver(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := &fuse{blow: cancel}
		stopping, stopped := context.WithCancel(t.Context())
		o := s.open(t, Options{
			DialContext: c.Net.Dial,
			Stopping:    stopping,
			Logger:      slog.New(slog.NewTextHandler(log, nil)),
		})
		var running sync.WaitGroup
		running.Go(func() { _ = o.Run(ctx, Silence{}) })
		stopped()
		time.Sleep(6 * time.Second) // the grace is five
		MustAppend(t, o, Event("call.completed", "A"))
		time.Sleep(time.Second)
		cancel()
		running.Wait()
		if n := log.lines.Load(); n > 2 || c.Count() != 0 {
			t.Errorf("%d lines, %d webhooks", n, c.Count())
		}
	})
}
