package storetest

import (
	"fmt"
	"testing"

	"pzbridge/outbox/store"

	"github.com/google/uuid"
)

// TestClientGUIDIsMadeOnce checks that the identity at the exchange is stored, and stays the same
// whatever is generated at the next start.
func (s suite) TestClientGUIDIsMadeOnce(t *testing.T) {
	place := s.Place(t)
	var guids [2]string
	for i := range guids {
		o, closeBox := s.openAgain(t, Options{Place: place})
		var err error
		if guids[i], err = o.ClientGUID(uuid.NewString()); err != nil {
			t.Fatal(err)
		}
		closeBox()
	}
	if guids[0] == "" || guids[0] != guids[1] {
		t.Errorf("got %q", guids)
	}
}

// TestWhatOperatorsDoIsKept checks that entries come back, the latest first, across a restart, each
// once, and that the oldest go.
func (s suite) TestWhatOperatorsDoIsKept(t *testing.T) {
	SkipBulk(t)
	opts := Options{Place: s.Place(t)}
	o, closeBox := s.openAgain(t, opts)
	for i := range store.MaxAudits + 5 {
		o.Outbox.Audit(t.Context(), store.Audit{Action: store.AuditTested, Subject: fmt.Sprint(i), Through: "API"})
	}
	closeBox()
	o, closeBox = s.openAgain(t, opts)
	defer closeBox()
	list, err := o.Outbox.Audits(t.Context(), 2*store.MaxAudits)
	if err != nil || len(list) != store.MaxAudits {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	for i, e := range list {
		want := fmt.Sprint(store.MaxAudits + 4 - i)
		if e.Subject != want || e.Action != store.AuditTested || e.Through != "API" || e.At.IsZero() {
			t.Fatalf("entry %d is %+v, want subject %s", i, e, want)
		}
	}
}
