package outbox

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// What happens to the bridge itself is told to those who name it, and to nobody else; news of news that is dead is none.
func TestOperationalEvents(t *testing.T) {
	var down atomic.Bool
	var watcherGone atomic.Bool
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		switch {
		case r.path == "/crm" && down.Load():
			w.WriteHeader(http.StatusInternalServerError)
		case r.path == "/watcher" && watcherGone.Load():
			w.WriteHeader(http.StatusGone)
		}
	}
	bubble(t, c, func(t *testing.T) {
		crm, watcher := endpoint("crm"), endpoint("watcher")
		crm.URL, watcher.URL = "http://x/crm", "http://x/watcher"
		crm.RingingTTL = time.Minute
		watcher.Events = Filter{"endpoint.*", "delivery.dead", "bridge.connected"}
		o := openOutbox(t, Options{Endpoints: []Endpoint{crm, watcher}, DialContext: c.net.Dial, RetrySchedule: []time.Duration{time.Second}})
		defer run(t, o)()
		mustAppend(t, o, event("bridge.connected", ""), event("bridge.disconnected", ""))
		down.Store(true)
		for i := range 25 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		down.Store(false)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		told := map[string]int{}
		for _, h := range c.received() {
			var hook struct {
				Type string
				Data struct {
					Endpoint, Reason string
					DeliveryID       string `json:"delivery_id"`
				}
			}
			if err := json.Unmarshal(h.body, &hook); err != nil {
				t.Fatal(err)
			}
			if operational := telephony.IsOperational(telephony.EventType(hook.Type)); operational != (h.path == "/watcher") {
				t.Errorf("%s was told of %s", h.path, hook.Type)
			}
			if h.path == "/watcher" {
				told[hook.Type]++
			}
			if hook.Type == "endpoint.failing" && (hook.Data.Endpoint != "crm" || hook.Data.Reason != "HTTP 500") || hook.Type == "delivery.dead" && hook.Data.DeliveryID == "" {
				t.Errorf("%s", h.body)
			}
		}
		if told["bridge.connected"] != 1 || told["endpoint.failing"] != 1 || told["endpoint.recovered"] != 1 || told["bridge.disconnected"] != 0 {
			t.Errorf("told: %v", told)
		}
		watcherGone.Store(true)
		before := c.count()
		mustAppend(t, o, event("bridge.connected", ""))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := c.count() - before; n != 1 {
			t.Errorf("news that was refused made %d webhooks", n)
		}
	})
}

// A delivery that is given up is told with its ID.
func TestDeadIsTold(t *testing.T) {
	c := &crm{}
	c.answer = func(_ int, r received, w http.ResponseWriter) {
		if r.path == "/crm" {
			w.WriteHeader(http.StatusGone)
		}
	}
	bubble(t, c, func(t *testing.T) {
		crm, watcher := endpoint("crm"), endpoint("watcher")
		crm.URL, watcher.URL, watcher.Events = "http://x/crm", "http://x/watcher", Filter{"delivery.dead"}
		o := openOutbox(t, Options{Endpoints: []Endpoint{crm, watcher}, DialContext: c.net.Dial})
		defer run(t, o)()
		e := event("call.completed", "5")
		mustAppend(t, o, e)
		synctest.Wait()
		hooks := c.received()
		want := fmt.Sprintf(`"data":{"endpoint":"crm","delivery_id":"%s.crm","reason":"HTTP 410","replayed":false,"pz":{}}}`, e.ID)
		if len(hooks) != 2 || string(hooks[1].body[len(hooks[1].body)-len(want):]) != want {
			t.Errorf("%d webhooks, %s", len(hooks), hooks[len(hooks)-1].body)
		}
	})
}
