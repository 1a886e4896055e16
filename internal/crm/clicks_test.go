package crm_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// A click leads to one call: the one that begins between the same two within a minute, also if it
// is looked for again.
func TestClickLeadsToOneCall(t *testing.T) {
	box := bolttest.Open(t, storetest.Options{Logger: slog.New(slog.DiscardHandler)})
	c := crm.Clicks{Notes: box.Engine, Endpoint: "crm"}
	begin := func(extension, number, id, want string, wantNew bool) {
		t.Helper()
		got, isNew, err := c.Begin(t.Context(), extension, number, id)
		if got != want || isNew != wantNew || err != nil {
			t.Errorf("click %s counts as %s, new is %t (%v)", id, got, isNew, err)
		}
	}
	begin("101", "73430112233", "first", "first", true)
	begin("101", "83430112233", "again", "first", false) // the same, in another form, within seconds
	begin("102", "73430112233", "other", "other", true)
	now := time.Now()
	event := func(kind telephony.EventType, number, call string) *crm.Event {
		return &crm.Event{Type: kind, CallID: call, Client: number, Extension: "101", Direction: telephony.Outgoing}
	}
	over := event(telephony.EventCompleted, "+73430112233", "8")
	over.Duration = 2 * time.Minute
	for _, x := range []struct {
		event *crm.Event
		after time.Duration
		want  string
	}{
		{event(telephony.EventOutgoing, "+73430112233", "early"), -time.Minute, ""},
		{event(telephony.EventOutgoing, "+73430112233", "late"), 2 * time.Minute, ""},
		{event(telephony.EventOutgoing, "+73430112234", "another"), time.Second, ""},
		{event(telephony.EventOutgoing, "", "hidden"), time.Second, ""},
		{over, 30 * time.Second, ""}, // it began before the click
		{event(telephony.EventOutgoing, "+73430112233", "7"), time.Second, "first"},
		{event(telephony.EventCompleted, "+73430112233", "7"), time.Hour, "first"},
		{event(telephony.EventOutgoing, "+73430112233", "9"), time.Second, ""},
	} {
		if got, err := c.OfCall(t.Context(), x.event, now.Add(x.after)); got != x.want || err != nil {
			t.Errorf("call %s has %q, want %q (%v)", x.event.CallID, got, x.want, err)
		}
	}
	for call, want := range map[string]string{"7": "first", "9": "9"} {
		if got, err := c.IDOf(t.Context(), call); got != want || err != nil {
			t.Errorf("the CRM knows call %s by %q (%v)", call, got, err)
		}
	}
	if err := c.Drop(t.Context(), "73430112233", "other"); err != nil {
		t.Error(err)
	}
	begin("102", "73430112233", "new", "new", true)
	broken := crm.Clicks{Notes: broken{}, Endpoint: "crm"}
	if _, err := broken.OfCall(t.Context(), event(telephony.EventOutgoing, "+73430112233", "1"), now); err == nil {
		t.Error("an error of the outbox is lost")
	}
}

// Of two clicks the later one leads to the call: the earlier one has come to nothing.
func TestLatestClickCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := bolttest.Open(t, storetest.Options{Logger: slog.New(slog.DiscardHandler)})
		c := crm.Clicks{Notes: box.Engine, Endpoint: "crm"}
		for _, id := range []string{"first", "second"} {
			if _, isNew, err := c.Begin(t.Context(), "101", "73430112233", id); !isNew || err != nil {
				t.Errorf("click %s: %t (%v)", id, isNew, err)
			}
			time.Sleep(30 * time.Second)
		}
		e := &crm.Event{Type: telephony.EventOutgoing, CallID: "7", Client: "+73430112233", Extension: "101"}
		if got, err := c.OfCall(t.Context(), e, time.Now().Add(-20*time.Second)); got != "second" || err != nil {
			t.Errorf("the call has %q (%v)", got, err)
		}
	})
}

type broken struct{ store.Notes }

func (broken) Note(context.Context, string, string, time.Time) ([]byte, uint64, error) {
	return nil, 0, errors.New("broken")
}
