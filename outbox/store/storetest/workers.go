package storetest

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// TestNoDeliveryWaitsForTheLane checks that no delivery waits although a lane is woken only when
// there is something to decide, and not for every attempt: neither the next one of a call whose
// last attempt was alone under way, nor one for which a worker is free. Beside an attempt that goes
// on, an outcome is logged and recorded within 2 ms.
func (s suite) TestNoDeliveryWaitsForTheLane(t *testing.T) {
	calls := func(n, each int) (list []telephony.Event) {
		for i := range n * each {
			list = append(list, Event("call.completed", fmt.Sprint(i%n)))
		}
		return list
	}
	const outcomeWait = 2 * time.Millisecond
	hanging := Event("call.completed", "hangs")
	for name, test := range map[string]struct {
		concurrency int
		events      []telephony.Event
		within      time.Duration
	}{
		"events of one call":             {16, calls(1, 5), 0},
		"one connection":                 {1, calls(100, 1), 0},
		"two connections":                {2, calls(100, 1), 0},
		"sixteen connections":            {16, calls(500, 1), 0},
		"beside one that goes on":        {2, append([]telephony.Event{hanging}, calls(100, 1)...), 0},
		"a call beside one that goes on": {16, append([]telephony.Event{hanging}, calls(1, 2)...), outcomeWait},
	} {
		t.Run(name, func(t *testing.T) {
			c := &CRM{}
			c.Answer = func(_ int, r Received, _ http.ResponseWriter) {
				if call, _ := callOf(t, r); call == "hangs" {
					time.Sleep(10 * time.Second)
				}
			}
			Bubble(t, c, func(t *testing.T) {
				e := Endpoint("crm")
				e.Concurrency = test.concurrency
				o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
				stop := RunBox(t, o)
				synctest.Wait()
				began := time.Now()
				MustAppend(t, o, test.events...)
				time.Sleep(time.Minute)
				synctest.Wait()
				stop()
				hooks := c.Received()
				if len(hooks) != len(test.events) {
					t.Fatalf("%d came of %d", len(hooks), len(test.events))
				}
				if took := hooks[len(hooks)-1].At.Sub(began); took > test.within {
					t.Errorf("the last one came after %s", took)
				}
			})
		})
	}
}
