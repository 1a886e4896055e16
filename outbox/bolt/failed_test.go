package bolt

import (
	"fmt"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// A list of failed deliveries goes on where an index has given as many as one page looks at, also
// if the last of them is one that the query is for.
func TestListOfFailedDeliveriesGoesOnBehindAFullPage(t *testing.T) {
	storetest.SkipBulk(t)
	const many = store.MaxLooked + 100
	o := storetest.OpenBox(t, harness{}, storetest.Options{})
	var events []telephony.Event
	for i := range many {
		kind := telephony.EventIncoming
		if i == 0 || i == many-store.MaxLooked {
			kind = telephony.EventOutgoing
		}
		events = append(events, storetest.Event(kind, fmt.Sprint(i)))
	}
	storetest.MustAppend(t, o, events...)
	mustCommit(t, engineOf(o), func(tx *txn) error {
		q := tx.queue("crm")
		for n := range uint64(many) {
			d, history, _ := q.get(n + 1)
			if err := q.put(n+1, d.Ended(store.Dead, time.Now()), history); err != nil {
				return err
			}
		}
		return nil
	})
	list := deliveriesOf(t, o, store.DeliveryQuery{
		State: "dead",
		Types: []telephony.EventType{telephony.EventOutgoing},
		Limit: 10,
	})
	if len(list) != 2 {
		t.Errorf("%d of 2 were listed", len(list))
	}
}
