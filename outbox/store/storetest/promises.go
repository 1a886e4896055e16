package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// callOf reads which event of which call a webhook brings.
func callOf(t *testing.T, r Received) (call string, sequence int) {
	t.Helper()
	var body struct {
		Data struct {
			CallID   string `json:"call_id"`
			Sequence int    `json:"sequence"`
		} `json:"data"`
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	return body.Data.CallID, body.Data.Sequence
}

// sequencesOf reads which events of their calls webhooks bring.
func sequencesOf(t *testing.T, hooks []Received) (sequences []int) {
	t.Helper()
	for _, h := range hooks {
		_, n := callOf(t, h)
		sequences = append(sequences, n)
	}
	return sequences
}

// idOf reads the ID of the event that a webhook brings.
func idOf(t *testing.T, r Received) string {
	t.Helper()
	var body struct{ ID string }
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	return body.ID
}

// TestNoEndpointHoldsUpAnother checks that beside an endpoint that hangs and one that refuses
// connections a healthy one gets everything as soon as if it were alone.
func (s suite) TestNoEndpointHoldsUpAnother(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			switch {
			case strings.HasPrefix(address, "hangs"):
				<-ctx.Done()
				return nil, ctx.Err()
			case strings.HasPrefix(address, "refuses"):
				return nil, errors.New("connection refused")
			}
			return c.Net.Dial(ctx, network, address)
		}
		var endpoints []store.Endpoint
		for _, name := range []string{"hangs", "refuses", "healthy"} {
			e := Endpoint(name)
			e.URL = "http://" + name
			endpoints = append(endpoints, e)
		}
		o := s.open(t, Options{DialContext: dial, Endpoints: endpoints, Logger: slog.New(slog.DiscardHandler)})
		stop := RunBox(t, o)
		const many = 500
		began := time.Now()
		for i := range many {
			MustAppend(t, o, Event("call.incoming", fmt.Sprint(i)))
		}
		synctest.Wait()
		if n := len(c.Received()); n != many || time.Since(began) > 0 {
			t.Errorf("%d of %d arrived in %s", n, many, time.Since(began))
		}
		stop()
		if got := States(t, o, "hangs"); got[store.Pending] != many {
			t.Errorf("states of the one that hangs: %v", got)
		}
	})
}

// TestNewsOfALiveCallIsTriedWhileItIsOfUse checks that what is of use only while a call lives is
// tried for so long and not later, and that the rest goes through the whole schedule.
func (s suite) TestNewsOfALiveCallIsTriedWhileItIsOfUse(t *testing.T) {
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call != "taken" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL = 5 * time.Minute
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: slices.Repeat([]time.Duration{3 * time.Second}, 1000),
		})
		began := time.Now()
		kinds := map[string]telephony.EventType{}
		for i, kind := range telephony.EventTypes {
			kinds[fmt.Sprint(i)] = kind
			MustAppend(t, o, Event(kind, fmt.Sprint(i)))
		}
		stop := RunBox(t, o)
		const beats = 20 * 60 / 2
		for range beats { // something is taken every two seconds, so that the CRM is not failing
			MustAppend(t, o, Event("call.completed", "taken"))
			time.Sleep(2 * time.Second)
		}
		stop()
		last := map[telephony.EventType]time.Duration{}
		for _, h := range c.Received() {
			if call, _ := callOf(t, h); call != "taken" {
				last[kinds[call]] = h.At.Sub(began)
			}
		}
		// A question has waits of its own: the fourth attempt, after 3.5 s, is the last.
		if kind := telephony.EventTransferRequested; last[kind] != 3500*time.Millisecond {
			t.Errorf("%s was tried for %s", kind, last[kind])
		}
		for _, kind := range telephony.EventTypes[1:] {
			end := 20 * time.Minute // the whole test
			switch kind {
			case telephony.EventIncoming, telephony.EventIncomingAnswered,
				telephony.EventOutgoing, telephony.EventOutgoingAnswered:
				end = e.RingingTTL
			}
			if last[kind] > end || last[kind] < end-4*time.Second {
				t.Errorf("%s was tried for %s, want %s", kind, last[kind], end)
			}
		}
		want := map[store.State]int{
			store.Dead: 1, store.Expired: 4, store.Pending: len(telephony.EventTypes) - 5, store.Delivered: beats,
		}
		if got := States(t, o, "crm"); !maps.Equal(got, want) {
			t.Errorf("states: %v", got)
		}
	})
}

// TestRetriesBySchedule checks that a CRM that fails is tried again after the schedule's waits,
// with the same bytes and a fresh signature, and that then the delivery is dead.
func (s suite) TestRetriesBySchedule(t *testing.T) {
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("call.incoming", "5"))
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		hooks := c.Received()
		if len(hooks) != 3 {
			t.Fatalf("%d attempts", len(hooks))
		}
		for i, wait := range []time.Duration{5 * time.Second, 5 * time.Minute} {
			took := hooks[i+1].At.Sub(hooks[i].At)
			if took < wait*8/10 || took > wait*12/10 {
				t.Errorf("wait %d: %s, not %s ±20 %%", i, took, wait)
			}
			one, other := hooks[i], hooks[i+1]
			if !bytes.Equal(one.Body, other.Body) || one.Header.Get("webhook-id") != other.Header.Get("webhook-id") {
				t.Error("another attempt sent something else")
			}
			if one.Header.Get("webhook-timestamp") == other.Header.Get("webhook-timestamp") {
				t.Error("another attempt has the timestamp of the first")
			}
		}
		if got := States(t, o, "crm"); got[store.Dead] != 1 {
			t.Errorf("states: %v", got)
		}
	})
}

// TestWhatEachAnswerLeadsTo checks 2xx, 410, a redirect, a timeout and a broken connection, each
// from the first attempt to the end.
func (s suite) TestWhatEachAnswerLeadsTo(t *testing.T) {
	for name, c := range map[string]struct {
		answer   func(n int, r Received, w http.ResponseWriter)
		attempts int // requests that arrive
		state    store.State
	}{
		"204": {func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(204) }, 1, store.Delivered},
		"410": {func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(410) }, 1, store.Dead},
		"404, 200": {func(n int, _ Received, w http.ResponseWriter) {
			w.WriteHeader(map[int]int{1: 404}[n] + map[int]int{2: 200}[n])
		}, 2, store.Delivered},
		"a redirect": {func(_ int, _ Received, w http.ResponseWriter) {
			w.Header().Set("Location", "/other")
			w.WriteHeader(302)
		}, 3, store.Dead},
		"a timeout": {func(n int, _ Received, _ http.ResponseWriter) {
			time.Sleep(time.Duration(2-min(n, 2)) * time.Hour)
		}, 2, store.Delivered},
		"three resets are one attempt": {func(n int, _ Received, _ http.ResponseWriter) {
			if n <= 3 {
				panic(http.ErrAbortHandler)
			}
		}, 4, store.Delivered},
		"a Retry-After of a year": {func(n int, _ Received, w http.ResponseWriter) {
			if n == 1 {
				w.Header().Set("Retry-After", "31536000")
				w.WriteHeader(503)
			}
		}, 2, store.Delivered},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := &CRM{Answer: c.answer}
			Bubble(t, c2, func(t *testing.T) {
				o := s.open(t, Options{DialContext: c2.Net.Dial})
				stop := RunBox(t, o)
				MustAppend(t, o, Event("call.incoming", "5"))
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				stop()
				for _, h := range c2.Received() {
					if h.Path != "/hook?token=t0psecret" {
						t.Errorf("a redirect was followed to %s", h.Path)
					}
				}
				if n := len(c2.Received()); n != c.attempts {
					t.Errorf("%d requests, want %d", n, c.attempts)
				}
				if got := States(t, o, "crm"); got[c.state] != 1 {
					t.Errorf("states: %v", got)
				}
			})
		})
	}
}

// TestFilteredEventsCountInTheSequence checks that an endpoint gets the types that it names alone,
// and that the events of a call are counted whether it gets them or not, also after a restart.
func (s suite) TestFilteredEventsCountInTheSequence(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Events = store.Filter{"call.completed"}
		place := s.Place(t)
		for range 2 { // the count goes on after a restart
			o, closeEngine := s.openAgain(t, Options{
				Place: place, Endpoints: []store.Endpoint{e}, DialContext: c.Net.Dial,
			})
			stop := RunBox(t, o)
			MustAppend(t, o, Event("call.incoming", "5"), Event("call.completed", "5"),
				Event("call.completed", "55"), Event("call.incoming", ""))
			synctest.Wait()
			stop()
			closeEngine()
		}
		sequences := sequencesOf(t, c.Received())
		// The order of two calls is not promised.
		counts := map[int]int{}
		for _, n := range sequences {
			counts[n]++
		}
		if !maps.Equal(counts, map[int]int{1: 1, 2: 2, 4: 1}) {
			t.Errorf("sequences: %v", sequences)
		}
	})
}

// TestAppendOfAKnownIDIsANoOp checks that an event is stored once, however often it is appended.
func (s suite) TestAppendOfAKnownIDIsANoOp(t *testing.T) {
	o := s.open(t, Options{})
	e := Event("call.incoming", "5")
	MustAppend(t, o, e)
	MustAppend(t, o, e, Event("call.completed", "5"))
	if got := States(t, o, "crm"); got[store.Pending] != 2 {
		t.Errorf("states: %v", got)
	}
}

// TestAReplayOfWhatIsKnownIsNotSentAgain checks that an event that the exchange sends once more,
// since the bridge was away, is left out if it says what is stored already.
func (s suite) TestAReplayOfWhatIsKnownIsNotSentAgain(t *testing.T) {
	for kind, call := range map[telephony.EventType]string{"call.completed": "5", telephony.EventSMSStatus: ""} {
		o := s.open(t, Options{})
		said := func(print byte, replayed bool) telephony.Event {
			e := Event(kind, call)
			e.Fingerprint[0], e.Replayed = print, replayed
			return e
		}
		MustAppend(t, o, said(1, false))
		MustAppend(t, o, said(1, false)) // the same thing said twice live is two things
		MustAppend(t, o, said(1, true), said(2, true), said(2, true))
		MustAppend(t, o, said(2, true))
		if got := States(t, o, "crm"); got[store.Pending] != 3 {
			t.Errorf("%s: states: %v", kind, got)
		}
	}
}

// TestRedeliveriesKeepTheirIDAndOrder checks that what is delivered again keeps its ID, goes in
// order within its call, and does not expire.
func (s suite) TestRedeliveriesKeepTheirIDAndOrder(t *testing.T) {
	var refuses atomic.Bool
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		time.Sleep(time.Second)
		if _, n := callOf(t, r); refuses.Load() && n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL = time.Minute
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: slices.Repeat([]time.Duration{10 * time.Minute}, 5),
			OrderHold:     time.Hour,
		})
		stop := RunBox(t, o)
		first, second := Event("call.incoming", "5"), Event("call.completed", "5")
		MustAppend(t, o, first, second)
		time.Sleep(24 * time.Hour)
		refuses.Store(true)
		from := len(c.Received())
		// The first one, which is refused for a while, holds the second.
		for _, id := range []string{first.ID, second.ID} {
			d, err := o.Redeliver(id + ".crm")
			if err != nil || d.State != "pending" || !d.Redelivered {
				t.Fatalf("%+v, %v", d, err)
			}
		}
		time.Sleep(5 * time.Minute)
		refuses.Store(false)
		time.Sleep(30 * time.Minute)
		stop()
		var sequences []int
		for _, h := range c.Received()[from:] {
			_, n := callOf(t, h)
			sequences = append(sequences, n)
			if id := idOf(t, h); id != map[int]string{1: first.ID, 2: second.ID}[n] {
				t.Errorf("event %d has the ID %s", n, id)
			}
		}
		if !slices.Equal(sequences, []int{1, 1, 2}) {
			t.Errorf("delivered again: %v", sequences)
		}
		if got := States(t, o, "crm"); got[store.Delivered] != 2 {
			t.Errorf("states: %v", got)
		}
	})
}

// TestRedeliverWithAGap checks that the events of a call that are delivered again go in their
// order, also where those between them are not delivered again: together, or one by one with the
// last one first.
func (s suite) TestRedeliverWithAGap(t *testing.T) {
	for name, again := range map[string]func(*testing.T, *Box, []telephony.Event){
		"together": func(t *testing.T, o *Box, _ []telephony.Event) {
			dead := store.Redelivery{Endpoint: "crm", States: []string{"dead"}}
			if n, err := o.RedeliverAll(t.Context(), dead); n != 3 || err != nil {
				t.Errorf("RedeliverAll = %d, %v", n, err)
			}
		},
		"the last one first": func(t *testing.T, o *Box, events []telephony.Event) {
			for _, i := range []int{4, 2, 0} {
				if _, err := o.Redeliver(events[i].ID + ".crm"); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var isAgain atomic.Bool
			c := &CRM{}
			c.Answer = func(_ int, r Received, w http.ResponseWriter) {
				_, n := callOf(t, r)
				switch {
				case !isAgain.Load() && n%2 == 1:
					w.WriteHeader(http.StatusGone)
				case n == 1 && c.Count() < 8: // the first one that is delivered again is refused twice
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}
			Bubble(t, c, func(t *testing.T) {
				opts := Options{
					Place:         s.Place(t),
					DialContext:   c.Net.Dial,
					OrderHold:     time.Hour,
					RetrySchedule: slices.Repeat([]time.Duration{time.Minute}, 5),
				}
				o, closeEngine := s.openAgain(t, opts)
				stop := RunBox(t, o)
				var events []telephony.Event
				for range 5 {
					events = append(events, Event("call.completed", "5"))
					MustAppend(t, o, events[len(events)-1])
				}
				time.Sleep(time.Hour)
				stop()
				closeEngine()
				isAgain.Store(true)
				o, _ = s.openAgain(t, opts)
				again(t, o, events)
				stop = RunBox(t, o)
				time.Sleep(time.Hour)
				stop()
				sequences := sequencesOf(t, c.Received()[5:])
				if !slices.Equal(sequences, []int{1, 1, 1, 3, 5}) {
					t.Errorf("delivered again: %v", sequences)
				}
			})
		})
	}
}

// TestRedeliverWhileUnderWay checks that a delivery that is asked for again while an attempt at it
// is under way is made again at once if that fails, from the beginning of the schedule, be it the
// first such request or another one.
func (s suite) TestRedeliverWhileUnderWay(t *testing.T) {
	for name, attempt := range map[string]int{"the first attempt": 1, "the one that was asked for": 2} {
		t.Run(name, func(t *testing.T) {
			c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
				if n == attempt {
					time.Sleep(10 * time.Second)
					w.WriteHeader(http.StatusGone)
				}
			}}
			Bubble(t, c, func(t *testing.T) {
				day := []time.Duration{24 * time.Hour}
				o := s.open(t, Options{DialContext: c.Net.Dial, RetrySchedule: day})
				stop := RunBox(t, o)
				e := Event("call.completed", "5")
				MustAppend(t, o, e)
				for range attempt {
					time.Sleep(time.Second)
					if _, err := o.Redeliver(e.ID + ".crm"); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute)
				stop()
				d, attempts, err := o.Delivery(e.ID + ".crm")
				if err != nil || d.State != "delivered" || !d.Redelivered || len(attempts) != attempt+1 {
					t.Errorf("%+v, %d attempts, %v", d, len(attempts), err)
				}
			})
		})
	}
}

// TestRetriesBesideABacklog checks that however much waits that has not been tried yet, a retry
// goes when its time has come, and so does what it has held.
func (s suite) TestRetriesBesideABacklog(t *testing.T) {
	SkipBulk(t)
	failed := false
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "sick" && !failed {
			failed = true
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Rate = 10
		o := s.open(t, Options{
			DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}, RetrySchedule: []time.Duration{5 * time.Second},
		})
		stop := RunBox(t, o)
		began := time.Now()
		MustAppend(t, o, Event("call.outgoing", "sick"), Event("call.completed", "sick"))
		synctest.Wait()
		for i := range 200 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint("before ", i)))
		}
		for i := range 120 { // a fifth more than the rate, for two minutes
			for k := range 12 {
				MustAppend(t, o, Event("call.completed", fmt.Sprint(i, ".", k)))
			}
			time.Sleep(time.Second)
		}
		stop()
		var sent []time.Duration
		for _, r := range c.Received() {
			if call, _ := callOf(t, r); call == "sick" {
				sent = append(sent, r.At.Sub(began).Round(time.Second))
			}
		}
		if len(sent) != 3 || sent[1] > 20*time.Second || sent[2] > 40*time.Second {
			t.Errorf("the one that failed and the one behind it were sent after %v", sent)
		}
	})
}

// TestRedeliverAllHoldsUpNoLiveCall checks that a mass that is delivered again does not keep a live
// call's news waiting until it is of no use.
func (s suite) TestRedeliverAllHoldsUpNoLiveCall(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Rate, e.RingingTTL = 2, 5*time.Minute
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		stop := RunBox(t, o)
		const many = 800 // two a second for longer than it rings
		for i := range many {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Hour)
		if n, err := o.RedeliverAll(t.Context(), store.Redelivery{Endpoint: "crm"}); n != many || err != nil {
			t.Fatal(n, err)
		}
		live := Event("call.incoming", "live")
		MustAppend(t, o, live)
		time.Sleep(time.Minute)
		if d, _, err := o.Delivery(live.ID + ".crm"); err != nil || d.State != "delivered" {
			t.Errorf("a minute later: %+v, %v", d, err)
		}
		stop()
	})
}
