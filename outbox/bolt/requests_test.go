package bolt

import (
	"testing"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// A redelivery of many that is removed as the oldest stays removed if the outcome of one of its
// deliveries is recorded in the same transaction.
func TestOldestRedeliveryIsRemovedThoughItIsCountedAtTheSameTime(t *testing.T) {
	o := storetest.OpenBox(t, harness{}, storetest.Options{})
	s := engineOf(o)
	oldest, err := s.AddRedelivery(t.Context(), store.Redelivery{Endpoint: "crm", Token: [16]byte{1}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, func(tx *txn) error {
		return tx.requests.SetSequence(uint64(oldest) + store.MaxRedeliveries - 1)
	})
	mustCommit(t, s, func(tx *txn) error {
		tx.countRedelivered(store.Delivery{Request: oldest}, store.Delivery{State: store.Delivered, Request: oldest})
		_, err := tx.addRedelivery(store.Redelivery{Endpoint: "crm", Token: [16]byte{2}}, time.Now())
		tx.countRedelivered(store.Delivery{Request: oldest}, store.Delivery{State: store.Delivered, Request: oldest})
		return err
	})
	list, err := s.Redeliveries(t.Context(), 0, 10)
	if err != nil || len(list) != 1 || list[0].Number == oldest {
		t.Errorf("%+v, %v", list, err)
	}
}
