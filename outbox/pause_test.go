package outbox_test

import (
	"log/slog"
	"testing"
	"time"

	"pzbridge/outbox"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store/storetest"
)

// A pause of the connection is kept with its time and with who has made it. A second pause does not
// change the first, and one that an older version has stored has neither time nor name.
func TestPauseOfTheConnectionIsKept(t *testing.T) {
	box := bolttest.Open(t, storetest.Options{
		Retention:      time.Hour,
		RoutingTimeout: time.Second,
		Logger:         slog.New(slog.DiscardHandler),
	})
	paused := func() outbox.Pause {
		t.Helper()
		p, err := box.Outbox.Paused(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	connect := func(enabled bool, by string) {
		t.Helper()
		if err := box.Outbox.Connect(t.Context(), enabled, by); err != nil {
			t.Fatal(err)
		}
		if is, err := box.Outbox.IsToConnect(t.Context()); is != enabled || err != nil {
			t.Fatalf("after switching to %t it is %t, %v", enabled, is, err)
		}
	}
	if p := paused(); p != (outbox.Pause{}) {
		t.Errorf("at first: %+v", p)
	}
	before := time.Now().Truncate(time.Microsecond)
	connect(false, "the operator of 192.0.2.1")
	first := paused()
	if first.By != "the operator of 192.0.2.1" || first.Since.Before(before) || first.Since.After(time.Now()) {
		t.Errorf("paused: %+v", first)
	}
	connect(false, "API")
	if p := paused(); p != first {
		t.Errorf("paused twice: %+v", p)
	}
	connect(true, "API")
	if p := paused(); p != (outbox.Pause{}) {
		t.Errorf("resumed: %+v", p)
	}
	if err := box.Engine.SetSetting(t.Context(), "disconnected", "\x01"); err != nil {
		t.Fatal(err)
	}
	isOn, err := box.Outbox.IsToConnect(t.Context())
	if p := paused(); p != (outbox.Pause{}) || isOn || err != nil {
		t.Errorf("paused by an older version: %+v, connected %t, %v", p, isOn, err)
	}
}
