package alert

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// world is a bridge to be watched.
type world struct {
	mu        sync.Mutex
	state     telephony.ConnectionState
	endpoints []outbox.EndpointStatus
	inUse     int64
	stored    string
	alerts    []string // as "type endpoint recovered"
	texts     []string
}

func (w *world) Connection() telephony.Connection {
	w.mu.Lock()
	defer w.mu.Unlock()
	return telephony.Connection{State: w.state, LastError: "connection refused"}
}

func (w *world) EndpointsOfAll(context.Context) ([]outbox.EndpointStatus, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.endpoints), nil
}

func (w *world) InUse(context.Context) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inUse, nil
}

func (w *world) AlertsSent(context.Context) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stored, nil
}

func (w *world) SetAlertsSent(_ context.Context, sent string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stored = sent
	return nil
}

// set changes the world.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) Alert(_ context.Context, events []telephony.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		w.alerts = append(w.alerts, strings.TrimSpace(fmt.Sprint(e.Type, " ", e.Endpoint, " ", e.Recovered)))
		w.texts = append(w.texts, e.Text)
	}
}

// take returns the alerts since the last call.
func (w *world) take() (alerts []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	alerts, w.alerts = w.alerts, nil
	return alerts
}

// watch runs a Watch over a world in fake time.
func watch(t *testing.T, w *world, russian bool) (watch *Watch, stop func()) {
	t.Helper()
	a, err := New(Options{
		Exchange: w,
		Outbox:   w,
		MaxBytes: 1000,
		Russian:  russian,
		Logger:   slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		_ = a.Run(ctx)
		close(done)
	}()
	return a, func() {
		cancel()
		<-done
	}
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func check(t *testing.T, w *world, when string, want ...string) {
	t.Helper()
	if got := w.take(); !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// A connection that is away for a minute is an alert, and its end another; one that was switched
// off, or is back sooner, is none. Of one that comes and goes there is one an hour, also across a
// restart.
func TestDisconnectionIsAnAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{state: telephony.Connected}
		_, stop := watch(t, w, false)
		pass(time.Minute)
		w.set(func() { w.state = telephony.Disabled })
		pass(time.Hour)
		w.set(func() { w.state = telephony.Disconnected })
		pass(50 * time.Second)
		w.set(func() { w.state = telephony.Connected })
		pass(10 * time.Second)
		check(t, w, "before it lasts")
		w.set(func() { w.state = telephony.Disconnected })
		pass(55 * time.Second)
		check(t, w, "after 55 s")
		w.set(func() { w.state = telephony.Connecting }) // it dials
		pass(15 * time.Second)
		check(t, w, "after 70 s", "alert.disconnected  false")
		w.set(func() { w.state = telephony.Connected })
		pass(10 * time.Second)
		check(t, w, "once it is back", "alert.disconnected  true")
		w.set(func() { w.state = telephony.Disconnected })
		pass(10 * time.Minute)
		check(t, w, "a second time within the hour")
		stop()
		_, stop = watch(t, w, false)
		pass(40 * time.Minute)
		check(t, w, "after a restart within the hour")
		pass(15 * time.Minute)
		check(t, w, "once the hour is over", "alert.disconnected  false")
		pass(5 * time.Hour)
		check(t, w, "while it lasts")
		stop()
	})
}

// What was wrong before a restart and is wrong still is not over, nor is a broken connection that
// the operator pauses.
func TestARestartEndsNoAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{state: telephony.Disconnected, inUse: 900}
		a, stop := watch(t, w, false)
		a.CommandRefused("crm", telephony.CommandCall, "to")
		pass(2 * time.Minute)
		check(t, w, "at first",
			"alert.commands_refused  false", "alert.outbox_full  false", "alert.disconnected  false")
		stop()
		w.set(func() { w.inUse = 760 })
		_, stop = watch(t, w, false)
		pass(30 * time.Second)
		check(t, w, "after a restart")
		w.set(func() { w.state = telephony.Disabled })
		pass(5 * time.Minute)
		check(t, w, "while it is paused")
		w.set(func() { w.state = telephony.Connected })
		pass(10 * time.Second)
		check(t, w, "once it is connected", "alert.disconnected  true")
		pass(time.Hour)
		check(t, w, "without refusals", "alert.commands_refused  true")
		stop()
	})
}

// Each CRM that is failing is an alert of its own; deliveries that are dead are one more when there
// are more of them an hour later.
func TestCRMsAreAlerts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{state: telephony.Connected, endpoints: []outbox.EndpointStatus{{Name: "a"}, {Name: "b"}}}
		_, stop := watch(t, w, false)
		pass(time.Minute)
		check(t, w, "while all is well")
		w.set(func() {
			w.endpoints = []outbox.EndpointStatus{
				{Name: "a", State: outbox.StateFailing, LastError: "HTTP 401"},
				{Name: "b", Dead: 2},
			}
		})
		pass(10 * time.Second)
		check(t, w, "at first", "alert.delivery_dead b false", "alert.endpoint_failing a false")
		want := "a does not take its webhooks: HTTP 401. They wait, and go when it takes them again."
		if !slices.Contains(w.texts, want) {
			t.Errorf("the sentences are %q", w.texts)
		}
		w.set(func() { w.endpoints[1].Dead = 5 })
		w.set(func() { w.endpoints[0].Name = "c" })
		w.set(func() { w.endpoints = append(w.endpoints, outbox.EndpointStatus{Name: "a"}) })
		pass(10 * time.Second)
		check(t, w, "another CRM, and one of which nothing is known any more", "alert.endpoint_failing c false")
		w.set(func() { w.endpoints[2].Failures, w.endpoints[2].Dead = 1, 1 })
		pass(10 * time.Second)
		check(t, w, "a delivery to it is dead", "alert.delivery_dead a false")
		w.set(func() { w.endpoints[2].Failures, w.endpoints[2].Delivered = 0, 1 })
		pass(10 * time.Second)
		check(t, w, "it has taken one", "alert.endpoint_failing a true")
		pass(time.Hour)
		check(t, w, "more are dead", "alert.delivery_dead b false")
		pass(5 * time.Hour)
		check(t, w, "no more are dead")
		w.set(func() { w.endpoints[1].Dead = 0 })
		pass(10 * time.Second)
		check(t, w, "none is dead", "alert.delivery_dead b true")
		stop()
	})
}

// A CRM that is configured no longer has not recovered.
func TestACRMThatIsRemovedHasNotRecovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{state: telephony.Connected, endpoints: []outbox.EndpointStatus{
			{Name: "crm"}, {Name: "gone", State: outbox.StateFailing, Dead: 3},
		}}
		_, stop := watch(t, w, false)
		pass(time.Minute)
		check(t, w, "while it is there", "alert.delivery_dead gone false", "alert.endpoint_failing gone false")
		w.set(func() { w.endpoints = w.endpoints[:1] })
		pass(10 * time.Hour)
		check(t, w, "once it is not")
		stop()
	})
}

// The outbox and refused commands are alerts, which end with room and an hour without refusals.
func TestOutboxAndRefusalsAreAlerts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{state: telephony.Connected, inUse: 799}
		a, stop := watch(t, w, true)
		pass(10 * time.Second)
		check(t, w, "below the limit")
		w.set(func() { w.inUse = 830 })
		a.CommandRefused("crm", telephony.CommandCall, "to")
		pass(10 * time.Second)
		check(t, w, "at the limit", "alert.commands_refused  false", "alert.outbox_full  false")
		if got := w.texts[1]; !strings.Contains(got, "заполнено на 83 %") {
			t.Errorf("in Russian: %s", got)
		}
		w.set(func() { w.inUse = 760 })
		pass(10 * time.Second)
		check(t, w, "a little below")
		w.set(func() { w.inUse = 740 })
		pass(10 * time.Second)
		check(t, w, "well below", "alert.outbox_full  true")
		pass(2 * time.Hour)
		check(t, w, "without refusals", "alert.commands_refused  true")
		stop()
	})
}

// Every alert has a sentence in both languages, for when it begins and when it is over, without a
// place that is left.
func TestEveryAlertHasItsSentences(t *testing.T) {
	for _, kind := range telephony.AlertTypes {
		for _, recovered := range []bool{false, true} {
			for _, russian := range []bool{false, true} {
				endpoint := ""
				if kind == telephony.EventAlertEndpointFailing || kind == telephony.EventAlertDeliveryDead {
					endpoint = "crm"
				}
				n := notice{condition{key: key{kind, endpoint}, level: 3, percent: 80, text: "HTTP 500"}, recovered}
				s := n.sentence(russian)
				if s == "" || strings.Contains(s, "%!") || strings.Contains(s, "%s") || strings.HasSuffix(s, "..") {
					t.Errorf("%s, recovered %v, Russian %v: %q", kind, recovered, russian, s)
				}
			}
		}
	}
}

// What was sent is not forgotten over a text that cannot be read, and no clock that was set back
// keeps an alert from being sent.
func TestAlertsSurviveBadTextsAndClocks(t *testing.T) {
	for _, text := range []string{"", "{", `[{"Kind":1}]`} {
		if s := readSent(text); len(s) != 0 {
			t.Errorf("%q gives %v", text, s)
		}
	}
	c := []condition{{key: key{kind: telephony.EventAlertDisconnected}}}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := sent{}
	if got := s.step(now, c); len(got) != 1 {
		t.Fatalf("%d alerts", len(got))
	}
	s = readSent(s.String())
	s.step(now, nil)
	if got := s.step(now.Add(-24*time.Hour), c); len(got) != 1 {
		t.Errorf("on a clock that was set back: %d alerts", len(got))
	}
}

// What other bridges have refused that share the outbox counts with what this one has.
func TestRefusalsOfOtherBridgesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		number, at := 0, time.Time{}
		w := &Watch{sent: sent{}, opts: Options{OthersRefusals: func() (int, time.Time) { return number, at }}}
		level := func() int {
			if list := w.refusals(time.Now()); len(list) > 0 {
				return list[0].level
			}
			return 0
		}
		if got := level(); got != 0 {
			t.Errorf("with no refusals the level is %d", got)
		}
		w.CommandRefused("crm", telephony.CommandCall, "rate")
		number, at = 2, time.Now()
		if got := level(); got != 3 {
			t.Errorf("after three the level is %d", got)
		}
		time.Sleep(refusedFor + time.Second)
		if got := level(); got != 0 {
			t.Errorf("long after that the level is %d", got)
		}
	})
}
