package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// engine is what keeps events until they are delivered. The tests of this file hold it to what the outbox promises to a CRM and know nothing of
// how it keeps them: put another engine into openEngine, and they are its tests.
type engine interface {
	Append(ctx context.Context, events []telephony.Event) error
	Run(ctx context.Context, router Router) error
	Endpoints() ([]EndpointStatus, error)
	Deliveries(q DeliveryQuery) (list []Delivery, cursor string, err error)
	Delivery(id string) (Delivery, []Attempt, error)
	Redeliver(id string) (Delivery, error)
	RedeliverAll(ctx context.Context, r Redelivery) (int, error)
}

// openEngine opens an engine, and gives what closes it before the test ends: then it can be opened again with what it has kept.
func openEngine(t *testing.T, opts Options) (e engine, closeEngine func()) {
	t.Helper()
	o, err := Open(withDefaults(t, opts))
	if err != nil {
		t.Fatal(err)
	}
	closeEngine = sync.OnceFunc(func() {
		checkFile(t, o)
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(closeEngine)
	return o, closeEngine
}

// callOf reads which event of which call a webhook tells of.
func callOf(t *testing.T, r received) (call string, sequence int) {
	t.Helper()
	var body struct {
		Data struct {
			CallID   string `json:"call_id"`
			Sequence int    `json:"sequence"`
		} `json:"data"`
	}
	if err := json.Unmarshal(r.body, &body); err != nil {
		t.Fatal(err)
	}
	return body.Data.CallID, body.Data.Sequence
}

// An event that fails holds the later ones of its call for OrderHold after its first failure, and no other call at all.
func TestOrderHold(t *testing.T) {
	var refused atomic.Bool // the first event of call A is
	refused.Store(true)
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, n := callOf(t, r); refused.Load() && call == "A" && n == 1 {
			time.Sleep(2 * time.Second)
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	bubble(t, c, func(t *testing.T) {
		schedule := slices.Repeat([]time.Duration{20 * time.Second}, 100)
		o, _ := openEngine(t, Options{DialContext: c.net.Dial, RetrySchedule: schedule})
		stop := run(t, o)
		began := time.Now()
		mustAppend(t, o, event("call.incoming", "A"), event("call.incoming_answered", "A"), event("call.completed", "A"), event("call.incoming", "B"))
		time.Sleep(5 * time.Minute)
		mustAppend(t, o, event("pz.event", "A")) // what has failed for longer than that holds nobody any more
		synctest.Wait()
		at := map[string]time.Duration{}
		for _, h := range c.received() {
			call, n := callOf(t, h)
			if _, again := at[fmt.Sprint(call, n)]; !again {
				at[fmt.Sprint(call, n)] = h.at.Sub(began)
			}
		}
		want := map[string]time.Duration{"A1": 0, "B1": 0, "A2": 62 * time.Second, "A3": 62 * time.Second, "A4": 5 * time.Minute}
		for key, when := range want {
			if got, ok := at[key]; !ok || got.Round(time.Second) != when {
				t.Errorf("%s came after %s, want %s", key, got, when)
			}
		}
		refused.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		if got := states(t, o, "crm"); got[delivered] != 5 {
			t.Errorf("states: %v", got)
		}
	})
}

// An event that is done with, delivered or dead, lets the next one go at once.
func TestTheNextGoesWhenOneIsDone(t *testing.T) {
	c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
		time.Sleep(time.Second)
		w.WriteHeader(map[int]int{1: 503, 2: 200, 3: 410, 4: 200}[n])
	}}
	bubble(t, c, func(t *testing.T) {
		o, _ := openEngine(t, Options{DialContext: c.net.Dial})
		stop := run(t, o)
		mustAppend(t, o, event("call.incoming", "A"), event("call.incoming_answered", "A"), event("call.completed", "A"))
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		hooks := c.received()
		var got []int
		for _, h := range hooks {
			_, n := callOf(t, h)
			got = append(got, n)
		}
		if !slices.Equal(got, []int{1, 1, 2, 3}) {
			t.Fatalf("attempts: %v", got)
		}
		for i := 2; i < len(hooks); i++ {
			if wait := hooks[i].at.Sub(hooks[i-1].at); wait != time.Second {
				t.Errorf("event %d went %s after the one before", got[i], wait)
			}
		}
	})
}

// Whatever fails, and whenever the bridge is restarted: while no hold runs out, each call's events are delivered in order, none is missing, calls
// overtake each other, and there are never more attempts at once than allowed.
func TestOrderAtRandom(t *testing.T) {
	t.Parallel()
	for range 5 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { orderAtRandom(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func orderAtRandom(t *testing.T, random *rand.Rand) {
	var mu sync.Mutex // guards random and what follows
	last := map[string]int{}
	under, most, overtaken := 0, 0, false
	newest := uint64(0)
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
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
		if n != last[call] && n != last[call]+1 { // the same again is allowed: its outcome may not have been recorded
			t.Errorf("call %s: %d came after %d", call, n, last[call])
		}
		last[call] = n
		var number uint64
		_, _ = fmt.Sscan(call, &number)
		overtaken = overtaken || number < newest
		newest = max(newest, number)
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Concurrency = 4
		opts := Options{
			Path: filepath.Join(t.TempDir(), "outbox.db"), Endpoints: []Endpoint{e}, DialContext: c.net.Dial, OrderHold: 1000 * time.Hour,
			RetrySchedule: slices.Repeat([]time.Duration{5 * time.Second}, 100), Grace: time.Second, Retention: 1000 * time.Hour, RoutingTimeout: time.Hour, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
		}
		appended := map[string]int{}
		for round := range 5 {
			o, closeEngine := openEngine(t, opts)
			stop := run(t, o)
			for range 20 {
				var events []telephony.Event
				mu.Lock()
				for range 1 + random.IntN(5) {
					call := fmt.Sprint(1 + random.IntN(15))
					appended[call]++
					events = append(events, event("call.incoming", call))
				}
				pause := time.Duration(random.IntN(2000)) * time.Millisecond
				mu.Unlock()
				mustAppend(t, o, events...)
				time.Sleep(pause)
			}
			if round == 4 {
				time.Sleep(24 * time.Hour)
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

// Beside an endpoint that hangs and one that refuses connections, a healthy one gets everything as soon as if it were alone.
func TestIsolation(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			switch {
			case strings.HasPrefix(address, "hangs"):
				<-ctx.Done()
				return nil, ctx.Err()
			case strings.HasPrefix(address, "refuses"):
				return nil, errors.New("connection refused")
			}
			return c.net.Dial(ctx, network, address)
		}
		var endpoints []Endpoint
		for _, name := range []string{"hangs", "refuses", "healthy"} {
			e := endpoint(name)
			e.URL = "http://" + name
			endpoints = append(endpoints, e)
		}
		o, _ := openEngine(t, Options{DialContext: dial, Endpoints: endpoints, Logger: slog.New(slog.DiscardHandler)})
		stop := run(t, o)
		const many = 500
		began := time.Now()
		for i := range many {
			mustAppend(t, o, event("call.incoming", fmt.Sprint(i)))
		}
		synctest.Wait()
		if n := len(c.received()); n != many || time.Since(began) > 0 {
			t.Errorf("%d of %d arrived in %s", n, many, time.Since(began))
		}
		stop()
		if got := states(t, o, "hangs"); got[pending] != many {
			t.Errorf("states of the one that hangs: %v", got)
		}
	})
}

// What is of use only while a call lives is tried for so long and not later; the rest goes through the whole schedule.
func TestFreshness(t *testing.T) {
	t.Parallel()
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call != "taken" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL = 5 * time.Minute
		o, _ := openEngine(t, Options{
			DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: slices.Repeat([]time.Duration{3 * time.Second}, 1000),
		})
		began := time.Now()
		kinds := map[string]telephony.EventType{}
		for i, kind := range telephony.EventTypes {
			kinds[fmt.Sprint(i)] = kind
			mustAppend(t, o, event(kind, fmt.Sprint(i)))
		}
		stop := run(t, o)
		const beats = 20 * 60 / 2
		for range beats { // something is taken every two seconds, so that the CRM is not failing
			mustAppend(t, o, event("call.completed", "taken"))
			time.Sleep(2 * time.Second)
		}
		stop()
		last := map[telephony.EventType]time.Duration{}
		for _, h := range c.received() {
			if call, _ := callOf(t, h); call != "taken" {
				last[kinds[call]] = h.at.Sub(began)
			}
		}
		// A question has waits of its own: the fourth attempt, after 3.5 s, is the last.
		if kind := telephony.EventTransferRequested; last[kind] != 3500*time.Millisecond {
			t.Errorf("%s was tried for %s", kind, last[kind])
		}
		for _, kind := range telephony.EventTypes[1:] {
			end := lifetime(kind, 10*time.Second, e.RingingTTL)
			if end == 0 {
				end = 20 * time.Minute
			}
			if last[kind] > end || last[kind] < end-4*time.Second {
				t.Errorf("%s was tried for %s, want %s", kind, last[kind], end)
			}
		}
		if got := states(t, o, "crm"); got[dead] != 1 || got[expired] != 4 || got[pending] != 4 || got[delivered] != beats {
			t.Errorf("states: %v", got)
		}
	})
}

// A CRM that fails is tried again after the schedule's waits, with the same bytes and a fresh signature; then the delivery is dead.
func TestRetriesBySchedule(t *testing.T) {
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }}
	bubble(t, c, func(t *testing.T) {
		o, _ := openEngine(t, Options{DialContext: c.net.Dial})
		defer run(t, o)()
		mustAppend(t, o, event("call.incoming", "5"))
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		hooks := c.received()
		if len(hooks) != 3 {
			t.Fatalf("%d attempts", len(hooks))
		}
		for i, wait := range []time.Duration{5 * time.Second, 5 * time.Minute} {
			took := hooks[i+1].at.Sub(hooks[i].at)
			if took < wait*8/10 || took > wait*12/10 {
				t.Errorf("wait %d: %s, not %s ±20 %%", i, took, wait)
			}
			if !bytes.Equal(hooks[i].body, hooks[i+1].body) || hooks[i].header.Get("webhook-id") != hooks[i+1].header.Get("webhook-id") {
				t.Error("another attempt sent something else")
			}
			if hooks[i].header.Get("webhook-timestamp") == hooks[i+1].header.Get("webhook-timestamp") {
				t.Error("another attempt has the timestamp of the first")
			}
		}
		if got := states(t, o, "crm"); got[dead] != 1 {
			t.Errorf("states: %v", got)
		}
	})
}

// 2xx, 410, a redirect, a timeout and a broken connection, each from the first attempt to the end.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer   func(n int, r received, w http.ResponseWriter)
		attempts int // requests that arrive
		state    state
	}{
		"204": {func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(204) }, 1, delivered},
		"410": {func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(410) }, 1, dead},
		"404, 200": {func(n int, _ received, w http.ResponseWriter) {
			w.WriteHeader(map[int]int{1: 404}[n] + map[int]int{2: 200}[n])
		}, 2, delivered},
		"a redirect": {func(_ int, _ received, w http.ResponseWriter) {
			w.Header().Set("Location", "/other")
			w.WriteHeader(302)
		}, 3, dead},
		"a timeout": {func(n int, _ received, _ http.ResponseWriter) { time.Sleep(time.Duration(2-min(n, 2)) * time.Hour) }, 2, delivered},
		"three resets are one attempt": {func(n int, _ received, _ http.ResponseWriter) {
			if n <= 3 {
				panic(http.ErrAbortHandler)
			}
		}, 4, delivered},
		"a Retry-After of a year": {func(n int, _ received, w http.ResponseWriter) {
			if n == 1 {
				w.Header().Set("Retry-After", "31536000")
				w.WriteHeader(503)
			}
		}, 2, delivered},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := &crm{answer: c.answer}
			bubble(t, c2, func(t *testing.T) {
				o, _ := openEngine(t, Options{DialContext: c2.net.Dial})
				stop := run(t, o)
				mustAppend(t, o, event("call.incoming", "5"))
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				stop()
				for _, h := range c2.received() {
					if h.path != "/hook?token=t0psecret" {
						t.Errorf("a redirect was followed to %s", h.path)
					}
				}
				if n := len(c2.received()); n != c.attempts {
					t.Errorf("%d requests, want %d", n, c.attempts)
				}
				if got := states(t, o, "crm"); got[c.state] != 1 {
					t.Errorf("states: %v", got)
				}
			})
		})
	}
}

func TestSequenceAndFilter(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Events = Filter{"call.completed"}
		path := filepath.Join(t.TempDir(), "outbox.db")
		for range 2 { // the count goes on after a restart
			o, closeEngine := openEngine(t, Options{Path: path, Endpoints: []Endpoint{e}, DialContext: c.net.Dial})
			stop := run(t, o)
			mustAppend(t, o, event("call.incoming", "5"), event("call.completed", "5"), event("call.completed", "55"), event("call.incoming", ""))
			synctest.Wait()
			stop()
			closeEngine()
		}
		var sequences []int
		for _, h := range c.received() {
			_, n := decode(t, h)
			sequences = append(sequences, n)
		}
		// In which order two calls go out is nobody's promise.
		counts := map[int]int{}
		for _, n := range sequences {
			counts[n]++
		}
		if !reflect.DeepEqual(counts, map[int]int{1: 1, 2: 2, 4: 1}) {
			t.Errorf("sequences: %v", sequences)
		}
	})
}

func TestAppendOfAKnownIDIsANoOp(t *testing.T) {
	o, _ := openEngine(t, Options{})
	e := event("call.incoming", "5")
	mustAppend(t, o, e)
	mustAppend(t, o, e, event("call.completed", "5"))
	if got := states(t, o, "crm"); got[pending] != 2 {
		t.Errorf("states: %v", got)
	}
}

func TestAReplayOfWhatIsKnownIsNotSentAgain(t *testing.T) {
	o, _ := openEngine(t, Options{})
	make := func(print byte, replayed bool) telephony.Event {
		e := event("call.completed", "5")
		e.Fingerprint[0], e.Replayed = print, replayed
		return e
	}
	mustAppend(t, o, make(1, false))
	mustAppend(t, o, make(1, false)) // the same thing said twice live is two things
	mustAppend(t, o, make(1, true), make(2, true), make(2, true))
	mustAppend(t, o, make(2, true))
	if got := states(t, o, "crm"); got[pending] != 3 {
		t.Errorf("states: %v", got)
	}
}

// A shutdown lets an attempt in flight end and records it; one that takes longer than the grace is cut off and made again later.
func TestShutdownDuringAnAttempt(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration
		state state
	}{"within the grace": {2 * time.Second, delivered}, "longer": {time.Minute, pending}} {
		t.Run(name, func(t *testing.T) {
			receiver := &crm{answer: func(int, received, http.ResponseWriter) { time.Sleep(c.takes) }}
			bubble(t, receiver, func(t *testing.T) {
				const grace = 5 * time.Second
				o, _ := openEngine(t, Options{Grace: grace, DialContext: receiver.net.Dial, Endpoints: []Endpoint{{
					Name: "crm", URL: "http://crm.example", Secrets: [][]byte{secretA}, Events: all, Timeout: time.Hour, Concurrency: 16, RingingTTL: time.Hour,
				}}})
				stop := run(t, o)
				mustAppend(t, o, event("call.incoming", "5"))
				synctest.Wait()
				began := time.Now()
				stop()
				if took := time.Since(began); took > grace {
					t.Errorf("the shutdown took %s", took)
				}
				if got := states(t, o, "crm"); got[c.state] != 1 {
					t.Errorf("states: %v", got)
				}
				time.Sleep(time.Hour) // lets the receiver's handler end
			})
		})
	}
}

// What is delivered again keeps its ID and its bytes, goes in order within each call, and does not expire.
func TestRedeliver(t *testing.T) {
	var refuses atomic.Bool
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		time.Sleep(time.Second)
		if _, n := callOf(t, r); refuses.Load() && n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL = time.Minute
		o, _ := openEngine(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: slices.Repeat([]time.Duration{10 * time.Minute}, 5), OrderHold: time.Hour})
		stop := run(t, o)
		first, second := event("call.incoming", "5"), event("call.completed", "5")
		mustAppend(t, o, first, second)
		time.Sleep(24 * time.Hour)
		refuses.Store(true)
		from := len(c.received())
		for _, id := range []string{first.ID, second.ID} { // the first, which is refused for a while, holds the second
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
		for _, h := range c.received()[from:] {
			_, n := callOf(t, h)
			sequences = append(sequences, n)
			if id, _ := decode(t, h); id != map[int]string{1: first.ID, 2: second.ID}[n] {
				t.Errorf("event %d has the ID %s", n, id)
			}
		}
		if !slices.Equal(sequences, []int{1, 1, 2}) {
			t.Errorf("delivered again: %v", sequences)
		}
		if got := states(t, o, "crm"); got[delivered] != 2 {
			t.Errorf("states: %v", got)
		}
	})
}

// The events of a call that are delivered again go in their order, also where those between them are not delivered again: together or one by one, the last
// one first.
func TestRedeliverWithAGap(t *testing.T) {
	for name, again := range map[string]func(*testing.T, engine, []telephony.Event){
		"together": func(t *testing.T, o engine, _ []telephony.Event) {
			if n, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: "crm", States: []string{"dead"}}); n != 3 || err != nil {
				t.Errorf("RedeliverAll = %d, %v", n, err)
			}
		},
		"the last one first": func(t *testing.T, o engine, events []telephony.Event) {
			for _, i := range []int{4, 2, 0} {
				if _, err := o.Redeliver(events[i].ID + ".crm"); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var isAgain atomic.Bool
			c := &crm{}
			c.answer = func(_ int, r received, w http.ResponseWriter) {
				_, n := callOf(t, r)
				switch {
				case !isAgain.Load() && n%2 == 1:
					w.WriteHeader(http.StatusGone)
				case n == 1 && c.count() < 8: // the first one that is delivered again is refused twice
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}
			bubble(t, c, func(t *testing.T) {
				opts := withDefaults(t, Options{DialContext: c.net.Dial, OrderHold: time.Hour, RetrySchedule: slices.Repeat([]time.Duration{time.Minute}, 5)})
				o, closeEngine := openEngine(t, opts)
				stop := run(t, o)
				var events []telephony.Event
				for range 5 {
					events = append(events, event("call.completed", "5"))
					mustAppend(t, o, events[len(events)-1])
				}
				time.Sleep(time.Hour)
				stop()
				closeEngine()
				isAgain.Store(true)
				o, _ = openEngine(t, opts)
				again(t, o, events)
				stop = run(t, o)
				time.Sleep(time.Hour)
				stop()
				var sequences []int
				for _, h := range c.received()[5:] {
					_, n := callOf(t, h)
					sequences = append(sequences, n)
				}
				if !slices.Equal(sequences, []int{1, 1, 1, 3, 5}) {
					t.Errorf("delivered again: %v", sequences)
				}
			})
		})
	}
}

// What is asked for again while an attempt at it is under way is made again at once if that fails, from the beginning of the schedule; be it asked for the
// first time or once more.
func TestRedeliverWhileUnderWay(t *testing.T) {
	for name, attempt := range map[string]int{"the first attempt": 1, "the one that was asked for": 2} {
		t.Run(name, func(t *testing.T) {
			c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
				if n == attempt {
					time.Sleep(10 * time.Second)
					w.WriteHeader(http.StatusGone)
				}
			}}
			bubble(t, c, func(t *testing.T) {
				o, _ := openEngine(t, Options{DialContext: c.net.Dial, RetrySchedule: []time.Duration{24 * time.Hour}})
				stop := run(t, o)
				e := event("call.completed", "5")
				mustAppend(t, o, e)
				for range attempt {
					time.Sleep(time.Second)
					if _, err := o.Redeliver(e.ID + ".crm"); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute)
				stop()
				if d, attempts, err := o.Delivery(e.ID + ".crm"); err != nil || d.State != "delivered" || !d.Redelivered || len(attempts) != attempt+1 {
					t.Errorf("%+v, %d attempts, %v", d, len(attempts), err)
				}
			})
		})
	}
}

// The time for attempts in flight begins when the program begins to stop, whatever stops before the outbox does.
func TestGraceBeginsWithTheStop(t *testing.T) {
	receiver := &crm{answer: func(int, received, http.ResponseWriter) { time.Sleep(time.Hour) }}
	bubble(t, receiver, func(t *testing.T) {
		e := endpoint("crm")
		e.Timeout = time.Hour
		stopping, begin := context.WithCancel(t.Context())
		o, _ := openEngine(t, Options{Grace: 10 * time.Second, Stopping: stopping, DialContext: receiver.net.Dial, Endpoints: []Endpoint{e}})
		stop := run(t, o)
		mustAppend(t, o, event("call.completed", "5"))
		synctest.Wait()
		began := time.Now()
		begin()
		time.Sleep(4 * time.Second)
		stop()
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %s", took)
		}
		time.Sleep(time.Hour) // lets the receiver's handler end
	})
}

// Once the bridge is stopping, a connection that is refused is not dialled again.
func TestNoRedialWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		dial := func(context.Context, string, string) (net.Conn, error) {
			dials++
			time.Sleep(time.Second)
			return nil, errors.New("connection refused")
		}
		o, closeEngine := openEngine(t, Options{DialContext: dial, Grace: 10 * time.Second, RetrySchedule: []time.Duration{time.Hour}})
		stop := run(t, o)
		mustAppend(t, o, event("call.completed", "5"))
		synctest.Wait()
		stop()
		time.Sleep(time.Minute)
		if dials != 1 {
			t.Errorf("%d dials", dials)
		}
		closeEngine()
	})
}

// However much waits that has not been tried yet, a retry goes when its time has come, and so does what it has held.
func TestRetriesBesideABacklog(t *testing.T) {
	skipBulk(t)
	t.Parallel()
	failed := false
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "sick" && !failed {
			failed = true
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Rate = 10
		o, _ := openEngine(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: []time.Duration{5 * time.Second}})
		stop := run(t, o)
		began := time.Now()
		mustAppend(t, o, event("call.outgoing", "sick"), event("call.completed", "sick"))
		synctest.Wait()
		for i := range 200 {
			mustAppend(t, o, event("call.completed", fmt.Sprint("before ", i)))
		}
		for i := range 120 { // a fifth more than the rate, for two minutes
			for k := range 12 {
				mustAppend(t, o, event("call.completed", fmt.Sprint(i, ".", k)))
			}
			time.Sleep(time.Second)
		}
		stop()
		var sent []time.Duration
		for _, r := range c.received() {
			if call, _ := callOf(t, r); call == "sick" {
				sent = append(sent, r.at.Sub(began).Round(time.Second))
			}
		}
		if len(sent) != 3 || sent[1] > 20*time.Second || sent[2] > 40*time.Second {
			t.Errorf("the one that failed and the one behind it were sent after %v", sent)
		}
	})
}

// A mass that is delivered again does not keep a live call's news waiting until it is of no use.
func TestRedeliverAllHoldsUpNoLiveCall(t *testing.T) {
	t.Parallel()
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Rate, e.RingingTTL = 2, 5*time.Minute
		o, _ := openEngine(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
		stop := run(t, o)
		const many = 800 // two a second for longer than it rings
		for i := range many {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Hour)
		if n, err := o.RedeliverAll(t.Context(), Redelivery{Endpoint: "crm"}); n != many || err != nil {
			t.Fatal(n, err)
		}
		live := event("call.incoming", "live")
		mustAppend(t, o, live)
		time.Sleep(time.Minute)
		if d, _, err := o.Delivery(live.ID + ".crm"); err != nil || d.State != "delivered" {
			t.Errorf("a minute later: %+v, %v", d, err)
		}
		stop()
	})
}

// While an endpoint has asked for a pause nothing can be sent, so nothing is overtaken: the events of a call go in order after it.
func TestOrderThroughAPause(t *testing.T) {
	c := &crm{answer: func(n int, _ received, w http.ResponseWriter) {
		if n == 1 {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.Concurrency = 1
		o, _ := openEngine(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, OrderHold: time.Minute})
		stop := run(t, o)
		mustAppend(t, o, event("call.outgoing", "5"), event("call.outgoing_answered", "5"), event("call.completed", "5"))
		time.Sleep(10 * time.Minute)
		stop()
		var sequences []int
		for _, r := range c.received() {
			_, n := callOf(t, r)
			sequences = append(sequences, n)
		}
		if !slices.Equal(sequences, []int{1, 1, 2, 3}) {
			t.Errorf("sent: %v", sequences)
		}
	})
}
