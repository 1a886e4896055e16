package storetest

import (
	"encoding/json"
	"fmt"
	"log/slog"
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

// TestOperationalEventsGoToThoseThatNameThem checks that what happens to the bridge itself goes to
// the endpoints whose filter names it, and to no other, and that there is no news of news that is
// dead.
func (s suite) TestOperationalEventsGoToThoseThatNameThem(t *testing.T) {
	var down atomic.Bool
	var watcherGone atomic.Bool
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		switch {
		case r.Path == "/crm" && down.Load():
			w.WriteHeader(http.StatusInternalServerError)
		case r.Path == "/watcher" && watcherGone.Load():
			w.WriteHeader(http.StatusGone)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		crm, watcher := Endpoint("crm"), Endpoint("watcher")
		crm.URL, watcher.URL = "http://x/crm", "http://x/watcher"
		crm.RingingTTL = time.Minute
		watcher.Events = store.Filter{"endpoint.*", "delivery.dead", "bridge.connected"}
		o := s.open(t, Options{
			Endpoints:     []store.Endpoint{crm, watcher},
			DialContext:   c.Net.Dial,
			RetrySchedule: []time.Duration{time.Second},
		})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("bridge.connected", ""), Event("bridge.disconnected", ""))
		down.Store(true)
		for i := range 25 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		down.Store(false)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		told := map[string]int{}
		for _, h := range c.Received() {
			var hook struct {
				Type string
				Data struct {
					Endpoint, Reason string
					DeliveryID       string `json:"delivery_id"`
				}
			}
			if err := json.Unmarshal(h.Body, &hook); err != nil {
				t.Fatal(err)
			}
			isOperational := telephony.IsOperational(telephony.EventType(hook.Type))
			if isOperational != (h.Path == "/watcher") {
				t.Errorf("%s was sent %s", h.Path, hook.Type)
			}
			if h.Path == "/watcher" {
				told[hook.Type]++
			}
			data := hook.Data
			if hook.Type == "endpoint.failing" && (data.Endpoint != "crm" || data.Reason != "HTTP 500") ||
				hook.Type == "delivery.dead" && data.DeliveryID == "" {
				t.Errorf("%s", h.Body)
			}
		}
		for kind, want := range map[string]int{
			"bridge.connected":    1,
			"endpoint.failing":    1,
			"endpoint.recovered":  1,
			"bridge.disconnected": 0,
		} {
			if told[kind] != want {
				t.Errorf("%s was sent %d times, want %d", kind, told[kind], want)
			}
		}
		watcherGone.Store(true)
		before := c.Count()
		MustAppend(t, o, Event("bridge.connected", ""))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := c.Count() - before; n != 1 {
			t.Errorf("news that was refused made %d webhooks", n)
		}
	})
}

// TestNewsOfADeadDeliveryHasItsID checks that of a delivery that is dead there is news with its ID.
func (s suite) TestNewsOfADeadDeliveryHasItsID(t *testing.T) {
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if r.Path == "/crm" {
			w.WriteHeader(http.StatusGone)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		crm, watcher := Endpoint("crm"), Endpoint("watcher")
		crm.URL, watcher.URL, watcher.Events = "http://x/crm", "http://x/watcher", store.Filter{"delivery.dead"}
		o := s.open(t, Options{Endpoints: []store.Endpoint{crm, watcher}, DialContext: c.Net.Dial})
		defer RunBox(t, o)()
		e := Event("call.completed", "5")
		MustAppend(t, o, e)
		synctest.Wait()
		hooks := c.Received()
		want := `"data":{"endpoint":"crm","delivery_id":"` + e.ID +
			`.crm","reason":"HTTP 410","replayed":false,"pz":{}}}`
		if len(hooks) != 2 || !strings.HasSuffix(string(hooks[1].Body), want) {
			t.Errorf("%d webhooks, %s", len(hooks), hooks[len(hooks)-1].Body)
		}
	})
}

// TestAlertsGoToThoseThatNameThem checks that an alert goes to the endpoints whose filter names it,
// as one sentence in the format text; and past the outbox, once, while that can store nothing.
func (s suite) TestAlertsGoToThoseThatNameThem(t *testing.T) {
	for name, maxBytes := range map[string]int64{"stored": 0, "past a full outbox": 1} {
		c := &CRM{}
		Bubble(t, c, func(t *testing.T) {
			crm, chat, reader := Endpoint("crm"), Endpoint("chat"), Endpoint("reader")
			crm.URL, chat.URL, reader.URL = "http://x/crm", "http://x/chat", ""
			chat.Events, chat.Format, reader.Events = store.Filter{"alert.*"}, store.FormatText, chat.Events
			o := s.open(t, Options{
				Endpoints:   []store.Endpoint{crm, chat, reader},
				DialContext: c.Net.Dial,
				MaxBytes:    maxBytes,
				Logger:      slog.New(slog.DiscardHandler),
			})
			stop := RunBox(t, o)
			o.Outbox.Alert(t.Context(), []telephony.Event{
				{Type: telephony.EventAlertOutboxFull, Text: `It is "full".`},
				{Type: telephony.EventAlertOutboxFull, Text: "It has room again.", Recovered: true},
			})
			time.Sleep(time.Minute)
			stop()
			var got []string
			for _, h := range c.Received() {
				if h.Path != "/chat" {
					t.Errorf("%s: %s was sent %s", name, h.Path, h.Body)
				}
				got = append(got, string(h.Body))
			}
			slices.Sort(got)
			want := []string{`{"text":"It has room again."}`, `{"text":"It is \"full\"."}`}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q came", name, got)
			}
		})
	}
}
