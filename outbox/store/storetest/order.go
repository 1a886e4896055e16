package storetest

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TestAFailedEventHoldsItsCallForTheHold checks that an event that fails holds the later ones of
// its call for OrderHold after its first failure, and no other call at all.
func (s suite) TestAFailedEventHoldsItsCallForTheHold(t *testing.T) {
	var refused atomic.Bool // the first event of call A is
	refused.Store(true)
	c := &CRM{}
	var tried atomic.Bool // it was
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, n := callOf(t, r); refused.Load() && call == "A" && n == 1 {
			if !tried.Swap(true) { // a retry under way when the hold ends would make it longer
				time.Sleep(2 * time.Second)
			}
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		schedule := slices.Repeat([]time.Duration{20 * time.Second}, 100)
		o := s.open(t, Options{DialContext: c.Net.Dial, RetrySchedule: schedule})
		stop := RunBox(t, o)
		began := time.Now()
		MustAppend(t, o, Event("call.incoming", "A"), Event("call.incoming_answered", "A"),
			Event("call.completed", "A"), Event("call.incoming", "B"))
		time.Sleep(5 * time.Minute)
		MustAppend(t, o, Event("pz.event", "A")) // what has failed for longer than that holds nothing any more
		synctest.Wait()
		at := map[string]time.Duration{}
		for _, h := range c.Received() {
			call, n := callOf(t, h)
			if _, again := at[fmt.Sprint(call, n)]; !again {
				at[fmt.Sprint(call, n)] = h.At.Sub(began)
			}
		}
		for key, when := range map[string]time.Duration{
			"A1": 0,
			"B1": 0,
			"A2": 62 * time.Second,
			"A3": 62 * time.Second,
			"A4": 5 * time.Minute,
		} {
			if got, ok := at[key]; !ok || got.Round(time.Second) != when {
				t.Errorf("%s came after %s, want %s", key, got, when)
			}
		}
		refused.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		if got := States(t, o, "crm"); got[store.Delivered] != 5 {
			t.Errorf("states: %v", got)
		}
	})
}

// TestTheNextGoesWhenOneIsDone checks that an event that is done with, delivered or dead, lets the
// next one of its call go at once.
func (s suite) TestTheNextGoesWhenOneIsDone(t *testing.T) {
	c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
		time.Sleep(time.Second)
		w.WriteHeader(map[int]int{1: 503, 2: 200, 3: 410, 4: 200}[n])
	}}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, o)
		MustAppend(t, o, Event("call.incoming", "A"), Event("call.incoming_answered", "A"),
			Event("call.completed", "A"))
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		hooks := c.Received()
		got := sequencesOf(t, hooks)
		if !slices.Equal(got, []int{1, 1, 2, 3}) {
			t.Fatalf("attempts: %v", got)
		}
		for i := 2; i < len(hooks); i++ {
			if wait := hooks[i].At.Sub(hooks[i-1].At); wait != time.Second {
				t.Errorf("event %d went %s after the one before", got[i], wait)
			}
		}
	})
}

// TestOrderAtRandom checks, with attempts that fail at random and with restarts, that while no hold
// runs out the events of each call are delivered in order and none is missing, that calls overtake
// each other, and that there are never more attempts at once than allowed.
func (s suite) TestOrderAtRandom(t *testing.T) {
	for range 5 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { s.orderAtRandom(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func (s suite) orderAtRandom(t *testing.T, random *rand.Rand) {
	var mu sync.Mutex // guards random and what follows
	last := map[string]int{}
	under, most, overtaken := 0, 0, false
	newest := uint64(0)
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		mu.Lock()
		under++
		most = max(most, under)
		takes, fails := time.Duration(random.IntN(3000))*time.Millisecond, random.IntN(3) == 0
		mu.Unlock()
		time.Sleep(takes)
		mu.Lock()
		defer mu.Unlock()
		under--
		if fails {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		call, n := callOf(t, r)
		// The same once more is allowed: its outcome may not have been recorded.
		if n != last[call] && n != last[call]+1 {
			t.Errorf("call %s: %d came after %d", call, n, last[call])
		}
		last[call] = n
		var number uint64
		_, _ = fmt.Sscan(call, &number)
		overtaken = overtaken || number < newest
		newest = max(newest, number)
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency = 4
		opts := Options{
			Place:          s.Place(t),
			Endpoints:      []store.Endpoint{e},
			DialContext:    c.Net.Dial,
			OrderHold:      1000 * time.Hour,
			RetrySchedule:  slices.Repeat([]time.Duration{5 * time.Second}, 100),
			Grace:          time.Second,
			Retention:      1000 * time.Hour,
			RoutingTimeout: time.Hour,
			Logger:         slog.New(slog.DiscardHandler),
		}
		appended := map[string]int{}
		for round := range 5 {
			o, closeEngine := s.openAgain(t, opts)
			stop := RunBox(t, o)
			for range 20 {
				var events []telephony.Event
				mu.Lock()
				for range 1 + random.IntN(5) {
					call := fmt.Sprint(1 + random.IntN(15))
					appended[call]++
					events = append(events, Event("call.incoming", call))
				}
				pause := time.Duration(random.IntN(2000)) * time.Millisecond
				mu.Unlock()
				MustAppend(t, o, events...)
				time.Sleep(pause)
			}
			if round == 4 {
				time.Sleep(3 * time.Hour)
			}
			stop()
			time.Sleep(time.Minute) // attempts that were cut off end at the CRM too
			closeEngine()
		}
		mu.Lock()
		defer mu.Unlock()
		for call, n := range appended {
			if last[call] != n {
				t.Errorf("call %s: %d of %d arrived", call, last[call], n)
			}
		}
		if most != e.Concurrency {
			t.Errorf("%d attempts at once, of %d that are allowed", most, e.Concurrency)
		}
		if !overtaken {
			t.Error("no call overtook another")
		}
	})
}

// TestOrderThroughAPause checks that the events of a call go in order after a pause that their
// endpoint has asked for: while it lasts nothing can be sent, so nothing is overtaken.
func (s suite) TestOrderThroughAPause(t *testing.T) {
	c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency = 1
		o := s.open(t, Options{
			DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}, OrderHold: time.Minute,
		})
		stop := RunBox(t, o)
		MustAppend(t, o, Event("call.outgoing", "5"), Event("call.outgoing_answered", "5"),
			Event("call.completed", "5"))
		time.Sleep(10 * time.Minute)
		stop()
		sequences := sequencesOf(t, c.Received())
		if !slices.Equal(sequences, []int{1, 1, 2, 3}) {
			t.Errorf("sent: %v", sequences)
		}
	})
}

// TestManyDueEventsOfACallHoldUpNoOther checks that a call of which more is due than a lane keeps
// in memory holds up no other call while an attempt of it is under way.
func (s suite) TestManyDueEventsOfACallHoldUpNoOther(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	const events = 700
	var hangs atomic.Bool
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call != "A" {
			return
		}
		if hangs.Load() {
			time.Sleep(29 * time.Second)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Timeout = 30 * time.Second
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			OrderHold:     time.Millisecond,
			RetrySchedule: []time.Duration{time.Hour, time.Hour},
			Logger:        slog.New(slog.DiscardHandler),
		})
		stop := RunBox(t, o)
		for i := range events {
			MustAppend(t, o, Event("call.completed", "A"), Event("call.completed", fmt.Sprint("B", i)))
			time.Sleep(10 * time.Millisecond)
		}
		hangs.Store(true)
		others := events
		for range 150 { // until all are due again, while others show that the endpoint is well
			time.Sleep(30 * time.Second)
			MustAppend(t, o, Event("call.completed", fmt.Sprint("B", others)))
			others++
		}
		time.Sleep(time.Second)
		if got := States(t, o, "crm"); got[store.Pending] < 600 || got[store.Delivered] != others {
			t.Errorf("%d events of other calls were stored; the states are %v", others, got)
		}
		hangs.Store(false)
		time.Sleep(time.Minute)
		stop()
	})
}
