package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// bridge is a harness whose engines are those of a bridge with some endpoints of its own.
type bridge struct {
	harness
	name      string
	endpoints []store.Endpoint
}

func (b bridge) Open(o storetest.EngineOptions) (store.Engine, error) {
	opts := b.options(o)
	with(b.name, b.endpoints...)(&opts)
	return openStore(opts)
}

// openBridge opens the outbox of a bridge with some endpoints of its own.
func openBridge(t *testing.T, h harness, o storetest.Options) *storetest.Box {
	t.Helper()
	return storetest.OpenBox(t, bridge{h, o.Bridge, o.Endpoints}, o)
}

// TestEndpointThatOnlyAnotherBridgeHasIsConfigured checks that a bridge which starts without an
// endpoint does not take it for one that nobody has.
func TestEndpointThatOnlyAnotherBridgeHasIsConfigured(t *testing.T) {
	h := newHarness(t)
	place := h.Place(t)
	crm, second := storetest.Endpoint("crm"), storetest.Endpoint("second")
	one := openBridge(t, h, storetest.Options{
		Place: place, Bridge: "one", Endpoints: []store.Endpoint{crm, second},
	})
	storetest.MustAppend(t, one, storetest.Event("call.completed", "1"))
	warnings := func(name string) string {
		var log bytes.Buffer
		openBridge(t, h, storetest.Options{
			Place: place, Bridge: name, Endpoints: []store.Endpoint{crm},
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		return log.String()
	}
	if log := warnings("two"); strings.Contains(log, "configured no longer") {
		t.Error(log)
	}
	pgtest.SQL(t, place, `DELETE FROM pzbridge.subscription WHERE endpoint = 'second'`)
	if log := warnings("three"); !strings.Contains(log, "configured no longer") {
		t.Error("nothing tells of an endpoint that no bridge has")
	}
}

// TestOperationalEventsReachTheEndpointOfAnotherBridge checks that what a bridge has found of its
// endpoints is stored for one that only another bridge has.
func TestOperationalEventsReachTheEndpointOfAnotherBridge(t *testing.T) {
	h := newHarness(t)
	place := h.Place(t)
	crm, admin := storetest.Endpoint("crm"), storetest.Endpoint("admin")
	crm.Events, admin.Events = store.Filter{"call.*"}, store.Filter{"endpoint.*"}
	synctest.Test(t, func(t *testing.T) {
		openBridge(t, h, storetest.Options{Place: place, Bridge: "two", Endpoints: []store.Endpoint{admin}})
		one := openBridge(t, h, storetest.Options{
			Place: place, Bridge: "one", Endpoints: []store.Endpoint{crm},
			Senders: map[string]store.Sender{"crm": revoked{}},
		})
		stop := storetest.RunBox(t, one)
		storetest.MustAppend(t, one, storetest.Event("call.completed", "1"))
		time.Sleep(time.Minute)
		stop()
	})
	const failing = `SELECT count(*) FROM pzbridge.event WHERE type = 'endpoint.failing'`
	if n := pgtest.SQL(t, place, failing); n != "1" {
		t.Errorf("%s events tell the other bridge's endpoint that one is failing", n)
	}
}

// TestOneBridgeSeesTheEndpointsOfAll checks that a bridge sees how an endpoint stands that only
// another one has, also once that one is gone: it may be the one that sends the alerts.
func TestOneBridgeSeesTheEndpointsOfAll(t *testing.T) {
	h := newHarness(t)
	place := h.Place(t)
	crm, second := storetest.Endpoint("crm"), storetest.Endpoint("second")
	synctest.Test(t, func(t *testing.T) {
		one := openBridge(t, h, storetest.Options{Place: place, Bridge: "one", Endpoints: []store.Endpoint{crm}})
		two := openBridge(t, h, storetest.Options{
			Place: place, Bridge: "two", Endpoints: []store.Endpoint{second},
			Senders: map[string]store.Sender{"second": revoked{}},
		})
		stop := storetest.RunBox(t, two)
		storetest.MustAppend(t, two, storetest.Event("call.completed", "1"))
		time.Sleep(time.Minute)
		said := store.Bridge{Name: "two", Seen: time.Now(), Status: two.Outbox.LaneStatus()}
		if err := two.Engine.(*Engine).Announce(t.Context(), said); err != nil {
			t.Fatal(err)
		}
		if err := one.Engine.(*Engine).readSubscriptions(t.Context()); err != nil {
			t.Fatal(err)
		}
		seen := func() (e outbox.EndpointStatus) {
			list, err := one.Outbox.EndpointsOfAll(t.Context())
			if err != nil || len(list) != 2 {
				t.Fatalf("%+v, %v", list, err)
			}
			return list[1]
		}
		e := seen()
		if e.Name != "second" || e.State != outbox.StateFailing || e.Pending != 1 || e.DeliveredBy != "two" {
			t.Errorf("it sees %+v", e)
		}
		own, err := one.Outbox.Endpoints(t.Context())
		if err != nil || len(own) != 1 {
			t.Errorf("its own are %+v, %v", own, err)
		}
		stop()
		if e = seen(); e.Name != "second" || e.Pending != 1 || e.DeliveredBy != "" {
			t.Errorf("after the end of the other bridge it sees %+v", e)
		}
	})
}

// TestRedeliveryToTheEndpointOfAnotherBridge checks that a bridge takes a request to redeliver to
// an endpoint that only another one has, which makes the delivery, and says where the endpoint is
// when it can do nothing itself.
func TestRedeliveryToTheEndpointOfAnotherBridge(t *testing.T) {
	h := newHarness(t)
	place := h.Place(t)
	crm, second, reads := storetest.Endpoint("crm"), storetest.Endpoint("second"), storetest.Endpoint("reads")
	reads.URL = ""
	synctest.Test(t, func(t *testing.T) {
		two := openBridge(t, h, storetest.Options{
			Place: place, Bridge: "two", Endpoints: []store.Endpoint{crm, second, reads},
			Senders: map[string]store.Sender{"crm": accepting{}, "second": accepting{}},
		})
		one := openBridge(t, h, storetest.Options{Place: place, Bridge: "one", Endpoints: []store.Endpoint{crm}})
		e := storetest.Event("call.completed", "1")
		stop := storetest.RunBox(t, two)
		storetest.MustAppend(t, two, e)
		time.Sleep(time.Minute)
		d, err := one.Outbox.Redeliver(t.Context(), e.ID+".second")
		if err != nil || d.State != "pending" {
			t.Errorf("the delivery is %+v, %v", d, err)
		}
		_, n, err := one.Outbox.RedeliverAll(t.Context(), store.Redelivery{
			Endpoint: "second", States: []string{store.Missing, "delivered", "dead", "expired"}, DryRun: true,
		})
		if err != nil || n != 0 {
			t.Errorf("beside it there are %d, %v", n, err)
		}
		time.Sleep(5 * time.Minute)
		stop()
		d, _, err = one.Engine.Delivery(t.Context(), e.ID, "second")
		if err != nil || d.Attempts != 2 || d.State != "delivered" {
			t.Errorf("later the delivery is %+v, %v", d, err)
		}
		if _, err := one.Outbox.Redeliver(t.Context(), e.ID+".reads"); !errors.Is(err, store.ErrNoURL) {
			t.Errorf("one that reads its events: %v", err)
		}
		_, _, err = one.Outbox.SendTest(t.Context(), "second")
		if !errors.Is(err, store.ErrNoEndpoint) || !strings.Contains(err.Error(), "at another one") {
			t.Errorf("a test: %v", err)
		}
		_, err = one.Outbox.Redeliver(t.Context(), e.ID+".third")
		if !errors.Is(err, store.ErrNoEndpoint) || strings.Contains(err.Error(), "at another one") {
			t.Errorf("one that no bridge has: %v", err)
		}
	})
}

// accepting is the sender of an endpoint that takes all.
type accepting struct{}

func (accepting) Send(context.Context, store.Job) store.Outcome {
	return store.Outcome{Verdict: store.Done}
}

func (accepting) Close() {}

// revoked is the sender of an endpoint that is failing at once.
type revoked struct{}

func (revoked) Send(context.Context, store.Job) store.Outcome {
	return store.Outcome{Verdict: store.Misconfigured, Err: errors.New("the key was revoked")}
}

func (revoked) Close() {}

// TestWhatWaitsForTheEndpointOfAnotherBridgeIsGivenUp checks that the bridge which removes old
// events gives up those of an endpoint that has been failing for too long at another bridge, also
// if it does not have that endpoint.
func TestWhatWaitsForTheEndpointOfAnotherBridgeIsGivenUp(t *testing.T) {
	h := newHarness(t)
	place := h.Place(t)
	crm, second := storetest.Endpoint("crm"), storetest.Endpoint("second")
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		o := storetest.Options{
			Place: place, Bridge: "two", Endpoints: []store.Endpoint{second},
			Retention: time.Minute, RetrySchedule: []time.Duration{time.Second},
		}
		two := openBridge(t, h, o)
		storetest.MustAppend(t, two, storetest.Event("call.completed", "1"))
		hour := binary.BigEndian.AppendUint64(nil, uint64(time.Hour))
		if err := two.Engine.SetNote(t.Context(), "second", "failing", 0, hour, time.Time{}); err != nil {
			t.Fatal(err)
		}
		o.Bridge, o.Endpoints, o.Logger = "one", []store.Endpoint{crm}, slog.New(slog.NewTextHandler(&log, nil))
		o.Senders = map[string]store.Sender{"crm": revoked{}}
		one := openBridge(t, h, o)
		stop := storetest.RunBox(t, one)
		time.Sleep(4 * time.Minute)
		stop()
	})
	if !strings.Contains(log.String(), "events were given up") {
		t.Errorf("nothing is given up: %s", log.String())
	}
}
