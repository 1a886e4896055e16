package outbox

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// The lane is woken when there is something to decide, and not for every attempt. No delivery waits for it: neither the next one of a call whose last
// was alone under way, nor one for which a worker is free; and beside an attempt that goes on, an outcome is told and recorded within outcomeWait.
func TestNoDeliveryWaitsForTheLane(t *testing.T) {
	calls := func(n, each int) (list []telephony.Event) {
		for i := range n * each {
			list = append(list, event("call.completed", fmt.Sprint(i%n)))
		}
		return list
	}
	for name, test := range map[string]struct {
		concurrency int
		events      []telephony.Event
		within      time.Duration
	}{
		"events of one call":             {16, calls(1, 5), 0},
		"one connection":                 {1, calls(100, 1), 0},
		"two connections":                {2, calls(100, 1), 0},
		"sixteen connections":            {16, calls(500, 1), 0},
		"beside one that goes on":        {2, append([]telephony.Event{event("call.completed", "hangs")}, calls(100, 1)...), 0},
		"a call beside one that goes on": {16, append([]telephony.Event{event("call.completed", "hangs")}, calls(1, 2)...), outcomeWait},
	} {
		t.Run(name, func(t *testing.T) {
			c := &crm{}
			c.answer = func(_ int, r received, _ http.ResponseWriter) {
				if call, _ := callOf(t, r); call == "hangs" {
					time.Sleep(10 * time.Second)
				}
			}
			bubble(t, c, func(t *testing.T) {
				e := endpoint("crm")
				e.Concurrency = test.concurrency
				o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
				stop := run(t, o)
				synctest.Wait()
				began := time.Now()
				mustAppend(t, o, test.events...)
				time.Sleep(time.Minute)
				synctest.Wait()
				stop()
				hooks := c.received()
				if len(hooks) != len(test.events) {
					t.Fatalf("%d came of %d", len(hooks), len(test.events))
				}
				if took := hooks[len(hooks)-1].at.Sub(began); took > test.within {
					t.Errorf("the last one came after %s", took)
				}
			})
		})
	}
}
