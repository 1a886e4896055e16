package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

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
		o := openOutbox(t, Options{DialContext: c.net.Dial, RetrySchedule: schedule})
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
		o := openOutbox(t, Options{DialContext: c.net.Dial})
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
			o, err := Open(opts)
			if err != nil {
				t.Fatal(err)
			}
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
			checkFile(t, o)
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
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
		o := openOutbox(t, Options{DialContext: dial, Endpoints: endpoints, Logger: slog.New(slog.DiscardHandler)})
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
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call != "taken" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.RingingTTL = 5 * time.Minute
		o := openOutbox(t, Options{
			DialContext: c.net.Dial, Endpoints: []Endpoint{e}, RetrySchedule: slices.Repeat([]time.Duration{3 * time.Second}, 1000),
		})
		began := time.Now()
		kinds := map[string]telephony.EventType{}
		for i, kind := range telephony.EventTypes {
			kinds[fmt.Sprint(i)] = kind
			mustAppend(t, o, event(kind, fmt.Sprint(i)))
		}
		stop := run(t, o)
		const beats = 20 * 60 / 5
		for range beats { // something is taken every five seconds, so that the CRM is not failing
			mustAppend(t, o, event("call.completed", "taken"))
			time.Sleep(5 * time.Second)
		}
		stop()
		last := map[telephony.EventType]time.Duration{}
		for _, h := range c.received() {
			if call, _ := callOf(t, h); call != "taken" {
				last[kinds[call]] = h.at.Sub(began)
			}
		}
		for _, kind := range telephony.EventTypes {
			end := lifetime(kind, o.opts.RoutingTimeout, e.RingingTTL)
			if end == 0 {
				end = 20 * time.Minute
			}
			if last[kind] > end || last[kind] < end-4*time.Second {
				t.Errorf("%s was tried for %s, want %s", kind, last[kind], end)
			}
		}
		if got := states(t, o, "crm"); got[expired] != 5 || got[pending] != 4 || got[delivered] != beats {
			t.Errorf("states: %v", got)
		}
	})
}
