package storetest

import (
	"testing"
	"testing/synctest"

	"pzbridge/outbox/store"
)

// TestDelivers checks that an event that was appended is delivered, and that this is recorded.
func (s suite) TestDelivers(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		b := s.open(t, Options{DialContext: c.Net.Dial})
		defer RunBox(t, b)()
		MustAppend(t, b, Event("call.incoming", "5"), Event("call.completed", "5"), Event("call.completed", "6"))
		synctest.Wait()
		if n := c.Count(); n != 3 {
			t.Errorf("%d webhooks", n)
		}
		if got := States(t, b, "crm"); got[store.Delivered] != 3 {
			t.Errorf("%v", got)
		}
	})
}
