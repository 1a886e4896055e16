package bolt

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// TestDamagedRecordHoldsUpNoOther checks that a record of an event or of a delivery that is damaged
// holds up no other.
func TestDamagedRecordHoldsUpNoOther(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		o, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, storetest.Options{
			Grace:          time.Second,
			Retention:      time.Hour,
			RoutingTimeout: time.Hour,
			Logger:         slog.New(slog.DiscardHandler),
			DialContext:    c.Net.Dial,
		}))
		if err != nil {
			t.Fatal(err)
		}
		s := o.Engine.(*Engine)
		storetest.MustAppend(t, o, storetest.Event("call.incoming", "5"), storetest.Event("call.incoming", "6"))
		err = s.commit(func(tx *txn) error { return tx.events.Put(number(1), []byte("x")) })
		if err != nil {
			t.Fatal(err)
		}
		stop := storetest.RunBox(t, o)
		storetest.MustAppend(t, o, storetest.Event("call.incoming", "7"))
		synctest.Wait()
		err = s.commit(func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(3), []byte("x")) })
		if err != nil {
			t.Fatal(err)
		}
		storetest.MustAppend(t, o, storetest.Event("call.completed", "7"))
		synctest.Wait()
		stop()
		if n := len(c.Received()); n != 3 {
			t.Errorf("%d of the 3 events that can be read arrived", n)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestDamagedDeliveryShowsItsCause checks that a delivery whose record is damaged is dead, and says
// why by a code.
func TestDamagedDeliveryShowsItsCause(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		o, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, storetest.Options{
			Logger:      slog.New(slog.DiscardHandler),
			DialContext: c.Net.Dial,
		}))
		if err != nil {
			t.Fatal(err)
		}
		s := o.Engine.(*Engine)
		storetest.MustAppend(t, o, storetest.Event("call.incoming", "5"))
		err = s.commit(func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(1), []byte("x")) })
		if err != nil {
			t.Fatal(err)
		}
		stop := storetest.RunBox(t, o)
		synctest.Wait()
		page, err := o.Engine.Deliveries(t.Context(), store.DeliveryQuery{State: "dead", Limit: 1})
		if err != nil || len(page.Deliveries) != 1 || page.Deliveries[0].LastCause.Code != telephony.CodeBadRecord {
			t.Errorf("%+v, %v", page.Deliveries, err)
		}
		stop()
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzDecode checks that no record, however damaged, is met with a panic.
func FuzzDecode(f *testing.F) {
	f.Add(encodeDelivery(store.Delivery{
		Attempts: 3,
		Step:     2,
		Due:      5,
		Next:     7,
		Expires:  9,
	}, nil))
	f.Add(encodeDelivery(store.Delivery{}, nil)[:headSize0])
	busy := store.AppendAttempt(nil, nil, store.Attempt{Status: 503, Response: "busy"})
	f.Add(store.AppendAttempt(nil, busy, store.Attempt{Error: "refused"}))
	cause := telephony.Cause{Code: "c", Args: []string{"1", ""}}
	f.Add(store.AppendAttempt(nil, busy, store.Attempt{Error: "no", Cause: cause}))
	event := telephony.Event{ID: uuid.NewString(), Type: "call.incoming", CallID: "5"}
	e, err := store.Encode(&event, time.Second)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeEvent(&e, 1, ""))
	f.Fuzz(func(_ *testing.T, v []byte) {
		_, _, _, _ = decodeDelivery(v)
		_, _ = decodeEvent(v)
		_ = store.Attempts(v)
	})
}
