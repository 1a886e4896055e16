package bolt

import (
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// openUnchecked opens an outbox whose file is going to be damaged, so that it is not checked when
// the test ends.
func openUnchecked(t *testing.T, o storetest.Options) *storetest.Box {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	box, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, o))
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// overwrite writes something else in place of a record.
func overwrite(t *testing.T, box *storetest.Box, record func(tx *txn) error) {
	t.Helper()
	if err := box.Engine.(*Engine).commit(record); err != nil {
		t.Fatal(err)
	}
}

// badDelivery overwrites the record of a delivery to the endpoint "crm".
func badDelivery(n uint64) func(tx *txn) error {
	return func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(n), []byte("x")) }
}

func mustClose(t *testing.T, box *storetest.Box) {
	t.Helper()
	if err := box.Close(); err != nil {
		t.Fatal(err)
	}
}

// dueKeys is how many keys the due index of the endpoint "crm" has.
func dueKeys(t *testing.T, box *storetest.Box) (n int) {
	t.Helper()
	err := box.Engine.(*Engine).view(func(tx *txn) error {
		n = tx.queue("crm").due.Stats().KeyN
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestDamagedRecordHoldsNothing checks that a delivery which cannot be made, since a record is
// damaged, is dead and holds nothing of its call.
func TestDamagedRecordHoldsNothing(t *testing.T) {
	for name, damage := range map[string]func(tx *txn) error{
		"the event's":    func(tx *txn) error { return tx.events.Put(number(1), []byte("x")) },
		"the delivery's": badDelivery(1),
	} {
		t.Run(name, func(t *testing.T) {
			c := &storetest.CRM{}
			storetest.Bubble(t, c, func(t *testing.T) {
				opts := storetest.Options{Place: harness{}.Place(t), DialContext: c.Net.Dial}
				before := openUnchecked(t, opts)
				storetest.MustAppend(t, before,
					storetest.Event("call.incoming", "5"),
					storetest.Event("call.completed", "5"))
				overwrite(t, before, damage)
				mustClose(t, before)
				box := openUnchecked(t, opts) // nothing new comes that would wake the lane
				stop := storetest.RunBox(t, box)
				time.Sleep(2 * time.Second)
				stop()
				got := storetest.States(t, box, "crm")
				if got[store.Pending] != 0 || got[store.Delivered] != 1 || got[store.Dead] != 1 {
					t.Errorf("states: %v", got)
				}
				if n := dueKeys(t, box); n != 0 {
					t.Errorf("%d are left in the due index", n)
				}
				mustClose(t, box)
			})
		})
	}
}

// TestDamagedDeliveryIsRedeliveredOnce damages its record while it waits for its next attempt.
func TestDamagedDeliveryIsRedeliveredOnce(t *testing.T) {
	c := &storetest.CRM{Answer: func(n int, _ storetest.Received, w http.ResponseWriter) {
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}}
	storetest.Bubble(t, c, func(t *testing.T) {
		opts := storetest.Options{
			Place:         harness{}.Place(t),
			DialContext:   c.Net.Dial,
			Logger:        slog.New(slog.DiscardHandler),
			RetrySchedule: []time.Duration{time.Minute},
		}
		before := openUnchecked(t, opts)
		e := storetest.Event("call.completed", "5")
		storetest.MustAppend(t, before, e)
		stop := storetest.RunBox(t, before)
		time.Sleep(time.Second)
		stop()
		overwrite(t, before, badDelivery(1))
		mustClose(t, before)
		box := storetest.OpenBox(t, harness{}, opts)
		if _, err := box.Redeliver(e.ID + ".crm"); err != nil {
			t.Fatal(err)
		}
		stop = storetest.RunBox(t, box)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		got := storetest.States(t, box, "crm")
		if got[store.Delivered] != 1 || got[store.Pending] != 0 || got[store.Dead] != 0 {
			t.Errorf("states: %v", got)
		}
		if n := dueKeys(t, box); n != 0 {
			t.Errorf("%d are left in the due index", n)
		}
		stop()
	})
}

// TestRedeliveredAfterDamageIsNotGivenUp checks that a delivery which had ended, and whose record
// was then damaged, stays pending once it is redelivered, though the lane has found the damage and
// gives it up after that.
func TestRedeliveredAfterDamageIsNotGivenUp(t *testing.T) {
	box := openUnchecked(t, storetest.Options{})
	defer box.Close()
	e := storetest.Event("call.completed", "5")
	storetest.MustAppend(t, box, e, storetest.Event("call.completed", "6"))
	queue, err := box.Engine.Lane(t.Context(), "crm", false)
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := queue.Claim(t.Context(), time.Now(), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	j := claimed.Jobs[0]
	ended := store.Result{Job: j, Now: j.Delivery.Ended(store.Delivered, time.Now())}
	if err := queue.Record(t.Context(), []store.Result{ended}); err != nil {
		t.Fatal(err)
	}
	overwrite(t, box, badDelivery(1))
	if _, err := box.Redeliver(e.ID + ".crm"); err != nil {
		t.Fatal(err)
	}
	if err := queue.(*lane).giveUp([]uint64{1}, time.Now()); err != nil {
		t.Fatal(err)
	}
	got := storetest.States(t, box, "crm")
	if got[store.Pending] != 2 || got[store.Dead] != 0 || dueKeys(t, box) != 2 {
		t.Errorf("states: %v, %d in the due index", got, dueKeys(t, box))
	}
}

func TestDamagedAndHeldDeliveryIsRedelivered(t *testing.T) {
	box := storetest.OpenBox(t, harness{}, storetest.Options{})
	first, second := storetest.Event("call.incoming", "5"), storetest.Event("call.completed", "5")
	storetest.MustAppend(t, box, first, second)
	overwrite(t, box, badDelivery(2))
	if _, err := box.Redeliver(second.ID + ".crm"); err != nil {
		t.Fatal(err)
	}
	if got := storetest.States(t, box, "crm"); got[store.Pending] != 2 || dueKeys(t, box) != 1 {
		t.Errorf("states: %v, %d in the due index", got, dueKeys(t, box))
	}
}
