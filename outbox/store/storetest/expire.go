package storetest

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// pause answers a webhook: nothing is to be sent for an hour.
func pause(_ int, _ Received, w http.ResponseWriter) {
	w.Header().Set("Retry-After", "3600")
	w.WriteHeader(http.StatusTooManyRequests)
}

// TestTooLateExpiresOnTimeWhateverItWaitsFor checks it for a pause, a probe, a rate and a slow CRM,
// and that what is held by such an event expires as well.
func (s suite) TestTooLateExpiresOnTimeWhateverItWaitsFor(t *testing.T) {
	const slow = 20 * time.Minute
	fail := func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }
	for name, c := range map[string]struct {
		first  int // events before it, of other calls
		answer func(int, Received, http.ResponseWriter)
		rate   float64
		as     string // how the endpoint stands meanwhile
	}{
		"a pause":        {first: 1, answer: pause, as: statePaused},
		"the next probe": {first: failingAfter, answer: fail, as: stateFailing},
		"its turn": {
			first:  100,
			answer: func(int, Received, http.ResponseWriter) {},
			rate:   0.01,
			as:     stateOK,
		},
		"a slow CRM": {
			first:  100,
			answer: func(int, Received, http.ResponseWriter) { time.Sleep(slow) },
			as:     stateOK,
		},
	} {
		t.Run(name, func(t *testing.T) {
			receiver := &CRM{Answer: c.answer}
			Bubble(t, receiver, func(t *testing.T) {
				e := Endpoint("crm")
				e.RingingTTL, e.Rate, e.Timeout = 5*time.Minute, c.rate, time.Hour
				var counted expirations
				o := s.open(t, Options{
					DialContext:   receiver.Net.Dial,
					Endpoints:     []store.Endpoint{e},
					RetrySchedule: slices.Repeat([]time.Duration{time.Hour}, 9),
					Observer:      &counted,
				})
				stop := RunBox(t, o)
				defer time.Sleep(slow) // until the CRM has answered the last one, which the stop cuts off
				defer stop()
				for i := range c.first {
					MustAppend(t, o, Event("call.completed", fmt.Sprint("before ", i)))
				}
				time.Sleep(11 * time.Minute) // the waits between probes are long by now
				MustAppend(t, o,
					Event("call.incoming", "A"),
					Event("call.incoming_answered", "A"),
					Event("call.completed", "A"))
				time.Sleep(3 * time.Minute)
				MustAppend(t, o, Event("call.outgoing", "B"))
				for _, want := range []struct {
					in      time.Duration
					expired int
				}{
					{2*time.Minute - time.Second, 0},
					{5 * time.Second, 2},
					{3*time.Minute - 6*time.Second, 2},
					{5 * time.Second, 3},
				} {
					time.Sleep(want.in)
					status, err := o.Endpoints()
					if err != nil {
						t.Fatal(err)
					}
					got := States(t, o, "crm")
					areExpired := got[store.Expired] == want.expired && counted.n.Load() == int64(want.expired)
					if !areExpired || got[store.Dead] != 0 || status[0].State != c.as {
						t.Errorf("%s later: %v, the endpoint is %s; want %d expired, and %s",
							want.in, got, status[0].State, want.expired, c.as)
					}
				}
			})
		})
	}
}

// expirations counts deliveries that are reported as expired.
type expirations struct {
	unobserved
	n atomic.Int64
}

// Expired counts one.
func (e *expirations) Expired(string) { e.n.Add(1) }

// TestTooLateIsFoundWhereverItStands checks it for what is claimed to be sent next, for what was
// tried before its endpoint began to fail, and behind a delivery that has died meanwhile.
func (s suite) TestTooLateIsFoundWhereverItStands(t *testing.T) {
	const ttl, soon = 5 * time.Minute, 15 * time.Second
	for name, c := range map[string]struct {
		rate  float64
		given []string // what comes, as type and call
		dies  bool     // call.completed of the call "late" does, and until then what is too late is held by it
	}{
		"to be sent next": {
			rate:  0.001,
			given: []string{"call.completed busy", "call.completed busy", "call.incoming late"},
		},
		"tried before": {
			given: slices.Concat(
				[]string{"call.incoming late"},
				slices.Repeat([]string{"call.completed busy"}, failingAfter+5),
			),
		},
		"behind one that died": {
			rate:  0.001,
			given: []string{"call.completed busy", "call.completed late", "call.incoming late"},
			dies:  true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			receiver := &CRM{Answer: func(_ int, r Received, w http.ResponseWriter) {
				time.Sleep(time.Second)
				switch call, _ := callOf(t, r); {
				case strings.HasPrefix(call, "busy") || !c.dies:
					w.WriteHeader(http.StatusBadGateway)
				case call == "late":
					w.WriteHeader(http.StatusGone)
				}
			}}
			Bubble(t, receiver, func(t *testing.T) {
				e := Endpoint("crm")
				e.RingingTTL, e.Rate, e.Concurrency = ttl, c.rate, 1
				var counted expirations
				o := s.open(t, Options{
					DialContext:   receiver.Net.Dial,
					Endpoints:     []store.Endpoint{e},
					RetrySchedule: slices.Repeat([]time.Duration{24 * time.Hour}, 9),
					OrderHold:     48 * time.Hour,
					Observer:      &counted,
				})
				stop := RunBox(t, o)
				defer time.Sleep(time.Second)
				defer stop()
				var events []telephony.Event
				for n, given := range c.given {
					kind, call, _ := strings.Cut(given, " ")
					if call == "busy" {
						call = fmt.Sprint("busy", n)
					}
					events = append(events, Event(telephony.EventType(kind), call))
				}
				MustAppend(t, o, events[0])
				time.Sleep(2 * time.Second) // nothing is under way when the others come
				MustAppend(t, o, events[1:]...)
				time.Sleep(ttl)
				for c.dies && States(t, o, "crm")[store.Dead] == 0 {
					time.Sleep(time.Second)
				}
				time.Sleep(soon)
				if got := States(t, o, "crm"); got[store.Expired] != 1 || counted.n.Load() != 1 {
					t.Errorf("%v, reported %d times", got, counted.n.Load())
				}
			})
		})
	}
}

// TestTooLateAfterAPauseExpiresOnTime checks that an event which was answered with a 429 expires on
// time, not when the pause ends, and that the log of its attempt has the time.
func (s suite) TestTooLateAfterAPauseExpiresOnTime(t *testing.T) {
	c := &CRM{Answer: pause}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL = 15 * time.Second
		var log logtest.Buffer
		o := s.open(t, Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{e},
			Logger:      slog.New(slog.NewTextHandler(&log, nil)),
		})
		stop := RunBox(t, o)
		defer stop()
		MustAppend(t, o, Event("call.incoming", "A"))
		synctest.Wait()
		if got := log.String(); !strings.Contains(got, "expires_in=15s") || strings.Contains(got, "retry_in") {
			t.Error(got)
		}
		time.Sleep(e.RingingTTL + 2*time.Second)
		got, _, err := o.Deliveries(store.DeliveryQuery{Limit: 10})
		if err != nil || len(got) != 1 || got[0].State != "expired" || got[0].Attempts != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// TestTooLateBehindAQuestionExpiresOnceItHasEnded checks it while the endpoint is paused, in which
// a question takes no part.
func (s suite) TestTooLateBehindAQuestionExpiresOnceItHasEnded(t *testing.T) {
	c := &CRM{Answer: func(n int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "A" {
			time.Sleep(2 * time.Minute)
			return
		}
		pause(n, r, w)
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL = 5 * time.Minute
		o := s.open(t, Options{
			DialContext:    c.Net.Dial,
			Endpoints:      []store.Endpoint{e},
			RoutingTimeout: time.Minute,
		})
		stop := RunBox(t, o)
		defer stop()
		MustAppend(t, o, Event("call.completed", "before"))
		time.Sleep(30 * time.Second) // what has been tried so far was looked through before the question ends
		MustAppend(t, o,
			Event("call.transfer_requested", "A"),
			Event("call.incoming", "A"),
			Event("call.completed", "B"))
		time.Sleep(5*time.Minute + 5*time.Second)
		got, _, err := o.Deliveries(store.DeliveryQuery{CallID: "A", Limit: 10})
		if err != nil || len(got) != 2 || got[0].State != "expired" || got[1].State != "expired" {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// stateOf gives the state of the delivery of a call's only event.
func stateOf(t *testing.T, o *Box, call string) string {
	t.Helper()
	list, _, err := o.Deliveries(store.DeliveryQuery{CallID: call, Limit: 10})
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	return list[0].State
}

// TestTooLateInTheLineOfAFailingEndpointExpires checks that what was tried before its endpoint
// began to fail, and is then due at once, expires on time all the same.
func (s suite) TestTooLateInTheLineOfAFailingEndpointExpires(t *testing.T) {
	c := &CRM{}
	c.Answer = func(n int, r Received, w http.ResponseWriter) {
		switch call, _ := callOf(t, r); call {
		case "slow":
			time.Sleep(time.Minute)
			pause(n, r, w)
			return
		case "late":
		default:
			time.Sleep(time.Second)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency, e.Timeout, e.RingingTTL = 2, time.Hour, 5*time.Minute
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: []time.Duration{10 * time.Hour, 10 * time.Hour},
		})
		stop := RunBox(t, o)
		defer stop()
		MustAppend(t, o, Event("call.incoming", "late"))
		synctest.Wait()
		MustAppend(t, o, Event("call.completed", "slow"))
		time.Sleep(30 * time.Second)
		for i := range failingAfter {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(4*time.Minute + 40*time.Second)
		if got := stateOf(t, o, "late"); got != "expired" {
			t.Error(got)
		}
	})
}

// TestTooLateOnceItIsReleasedExpires checks that what the one before it in its call releases during
// a pause expires on time, though what is too late was looked for before.
func (s suite) TestTooLateOnceItIsReleasedExpires(t *testing.T) {
	c := &CRM{}
	c.Answer = func(n int, r Received, w http.ResponseWriter) {
		switch call, _ := callOf(t, r); call {
		case "A":
			time.Sleep(time.Minute)
		case "pauses":
			pause(n, r, w)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Timeout, e.RingingTTL = time.Hour, 5*time.Minute
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		stop := RunBox(t, o)
		defer stop()
		MustAppend(t, o, Event("pz.event", "A"))
		synctest.Wait() // its attempt is under way before the pause begins
		MustAppend(t, o, Event("call.completed", "pauses"))
		synctest.Wait()
		MustAppend(t, o, Event("call.incoming", "A"))
		time.Sleep(10 * time.Second)
		MustAppend(t, o, Event("call.completed", "B"))
		time.Sleep(e.RingingTTL)
		list, _, err := o.Deliveries(store.DeliveryQuery{CallID: "A", Limit: 10})
		if err != nil || len(list) != 2 || list[0].State != "expired" || list[1].State != "delivered" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// TestTooLateBehindABacklogExpires checks that behind a long backlog of what never expires, which a
// rate lets pass slowly, an event expires on time.
func (s suite) TestTooLateBehindABacklogExpires(t *testing.T) {
	SkipBulk(t)
	c := &CRM{Forget: true}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL, e.Rate = 5*time.Minute, 1
		o := s.open(t, Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{e},
			Logger:      slog.New(slog.DiscardHandler),
		})
		stop := RunBox(t, o)
		defer stop()
		const backlog = 1<<16 + 1000
		for done := 0; done < backlog; {
			var list []telephony.Event
			for range 1024 {
				list = append(list, Event("call.completed", fmt.Sprint(done)))
				done++
			}
			MustAppend(t, o, list...)
		}
		MustAppend(t, o, Event("call.incoming", "A"))
		time.Sleep(e.RingingTTL + time.Minute)
		if got := stateOf(t, o, "A"); got != "expired" {
			t.Error(got)
		}
	})
}

// TestTooLateBehindAnEventOfTheFutureExpires checks that an event which is dated ahead, from before
// the clock was set back, does not keep those after it from expiring on time.
func (s suite) TestTooLateBehindAnEventOfTheFutureExpires(t *testing.T) {
	c := &CRM{Answer: pause}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL = 15 * time.Second
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		stop := RunBox(t, o)
		defer stop()
		MustAppend(t, o, Event("pz.event", "A"))
		synctest.Wait()
		ahead := Event("call.incoming", "F")
		ahead.Time = time.Now().Add(30 * time.Minute)
		MustAppend(t, o, ahead, Event("call.incoming", "B"))
		time.Sleep(30 * time.Second)
		if got := stateOf(t, o, "B"); got != "expired" {
			t.Error(got)
		}
	})
}

// TestRedeliveredWhileItWaitsDoesNotExpire checks that a delivery which is asked for again while it
// is claimed does not expire, and is not reported as expired.
func (s suite) TestRedeliveredWhileItWaitsDoesNotExpire(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL, e.Rate = 5*time.Minute, 0.001
		var counted expirations
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}, Observer: &counted})
		stop := RunBox(t, o)
		defer stop()
		MustAppend(t, o, Event("call.completed", "x"))
		synctest.Wait()
		late := Event("call.incoming", "A")
		MustAppend(t, o, late)
		time.Sleep(4 * time.Minute)
		if _, err := o.Redeliver(late.ID + ".crm"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		if got := States(t, o, "crm"); got[store.Delivered] != 2 || counted.n.Load() != 0 {
			t.Errorf("%v, reported as expired: %d", got, counted.n.Load())
		}
	})
}

// TestStepOfTheClockExpiresNothingBeforeItsTime checks that, while a step of the clock is not
// believed, what came before it and what came after it expires by the time that passes; and where
// the step is undone, what came before it still does.
func (s suite) TestStepOfTheClockExpiresNothingBeforeItsTime(t *testing.T) {
	const ttl = 5 * time.Minute
	for name, c := range map[string]struct {
		step   time.Duration
		undone bool
		second int // how many have expired when it is time for the event that came after the step
	}{
		"it lasts":               {30 * 24 * time.Hour, false, 2},
		"it is shorter than ttl": {2 * time.Minute, false, 2},
		"it is undone":           {30 * 24 * time.Hour, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var machine machineClock
				e := Endpoint("crm")
				e.RingingTTL = ttl
				engine := s.openEngine(t, Options{Endpoints: []store.Endpoint{e}, Clock: machine.clock(time.Time{})})
				lane, err := engine.Lane(t.Context(), "crm", false)
				if err != nil {
					t.Fatal(err)
				}
				happens := func(call string) {
					t.Helper()
					e := Event("call.incoming", call)
					e.Time = machine.now().Truncate(time.Millisecond)
					appendTo(t, engine, e)
				}
				total := 0
				expire := func(want int) (next time.Duration) {
					t.Helper()
					for {
						list, at, err := lane.Expire(t.Context(), machine.now(), 10)
						if err != nil {
							t.Fatal(err)
						}
						if total += len(list); len(list) > 0 {
							continue
						}
						if total != want {
							t.Errorf("%d have expired, want %d", total, want)
						}
						return at.Sub(machine.now())
					}
				}
				happens("before")
				time.Sleep(time.Minute)
				machine.set(c.step)
				if next := expire(0); next <= 0 || next > ttl-time.Minute {
					t.Errorf("after the step the next look is in %s", next)
				}
				happens("after")
				if c.undone {
					machine.set(0)
				}
				if next := expire(0); next <= 0 || next > ttl-time.Minute {
					t.Errorf("the next look is in %s", next)
				}
				time.Sleep(ttl - 2*time.Minute)
				if next := expire(0); next <= 0 || next > time.Minute {
					t.Errorf("a minute before its time the next look is in %s", next)
				}
				probe, err := lane.Probe(t.Context(), machine.now(), 0)
				if err != nil || len(probe.Jobs) != 1 || probe.Jobs[0].Number != 1 {
					t.Errorf("a minute before its time it is not probed with: %+v, %v", probe, err)
				}
				lane.Release([]uint64{1})
				time.Sleep(time.Minute)
				if next := expire(1); !c.undone && next != time.Minute {
					t.Errorf("the look after that is in %s", next)
				}
				time.Sleep(time.Minute)
				expire(c.second)
			})
		})
	}
}

// TestTooLateWhileItIsProbedExpires checks that what becomes too late while its failing endpoint is
// probed with it, when nothing else is there to wake the lane, expires when the probe has failed.
func (s suite) TestTooLateWhileItIsProbedExpires(t *testing.T) {
	const takes = 14 * time.Second
	c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
		if n > failingAfter {
			time.Sleep(takes)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL = 12 * time.Second
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: slices.Repeat([]time.Duration{100 * time.Millisecond}, 2*failingAfter),
		})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("call.incoming", "A"))
		time.Sleep(10 * time.Second) // it was tried for two, and the first probe comes five later
		if n := c.Count(); n != failingAfter+1 {
			t.Fatalf("%d webhooks, want a probe behind %d", n, failingAfter)
		}
		time.Sleep(time.Until(c.Received()[failingAfter].At.Add(takes + time.Second)))
		if got := stateOf(t, o, "A"); got != "expired" || c.Count() != failingAfter+1 {
			t.Errorf("%s after %d webhooks", got, c.Count())
		}
	})
}

// TestTooLateWhileItWaitsForAWorkerExpires checks that what becomes too late while it waits for the
// only worker expires when the worker is free, though the endpoint is paused from then on.
func (s suite) TestTooLateWhileItWaitsForAWorkerExpires(t *testing.T) {
	c := &CRM{Answer: func(n int, r Received, w http.ResponseWriter) {
		time.Sleep(10 * time.Second)
		pause(n, r, w)
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency, e.RingingTTL = 1, 5*time.Second
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("call.completed", "B"))
		time.Sleep(time.Second)
		MustAppend(t, o, Event("call.incoming", "A"))
		time.Sleep(10 * time.Second)
		if got := stateOf(t, o, "A"); got != "expired" || c.Count() != 1 {
			t.Errorf("%s after %d webhooks", got, c.Count())
		}
	})
}
