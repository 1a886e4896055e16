package storetest

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"pzbridge/outbox/store"
)

const (
	maxCallEvents = 50      // of one page of a call
	maxCallBytes  = 1 << 20 // that such a page takes, its last event aside
)

// TestCallComesPageByPage checks that a page holds no bodies, and the numbers as people are shown
// them.
func (s suite) TestCallComesPageByPage(t *testing.T) {
	b := s.open(t, Options{Endpoints: []store.Endpoint{Endpoint("crm"), Endpoint("other")}})
	long := strings.Repeat("ж", 100<<10) // the ID of the call
	const events = 2*maxCallEvents + 7
	for i := range events {
		for _, call := range []string{"5", long} {
			e := Event("call.incoming", call)
			e.From, e.To = strings.Repeat("1", 1000), fmt.Sprint(i)
			MustAppend(t, b, e)
		}
	}
	size := shownSize(t, b, long)
	for _, call := range []string{"5", long} {
		read, pages, largest := 0, 0, 0
		for after, more := uint64(0), true; more; pages++ {
			page, err := b.Call(call, after)
			if err != nil || len(page.Events) == 0 {
				t.Fatal(page, err)
			}
			for _, e := range page.Events {
				read++
				if e.Sequence != uint64(read) || e.From != strings.Repeat("1", 64)+"…" ||
					e.To != fmt.Sprint(read-1) || len(e.Deliveries) != 2 {
					t.Fatalf("the event %d: %.200v", read, e)
				}
			}
			after, more, largest = page.Next, page.Next != 0, max(largest, len(page.Events))
		}
		if read != events || largest > maxCallEvents || call == long && largest*2*size > 2*maxCallBytes {
			t.Errorf("%d events on %d pages of up to %d", read, pages, largest)
		}
	}
	listed := 0
	for q := (store.DeliveryQuery{CallID: long, Limit: 500}); ; {
		list, cursor, err := b.Deliveries(q)
		if err != nil || len(list) == 0 || len(list)*size > maxPageBytes+size {
			t.Fatalf("a page of %d deliveries, %v", len(list), err)
		}
		if listed += len(list); cursor == "" {
			break
		}
		q.Cursor = cursor
	}
	if listed != 2*events {
		t.Errorf("%d deliveries", listed)
	}
	if page, err := b.Call("5", events); err != nil || len(page.Events) != 0 || page.Next != 0 {
		t.Errorf("after the last one: %+v, %v", page, err)
	}
	if _, err := b.Call("6", 0); !errors.Is(err, store.ErrNoCall) {
		t.Errorf("of no call: %v", err)
	}
}

// TestHostileQueriesDoNoHarm checks that cursors, states and IDs from outside end in an answer or
// an error, whatever stands in them, and are not taken for damage of what is stored.
func (s suite) TestHostileQueriesDoNoHarm(t *testing.T) {
	b := s.open(t, Options{Endpoints: []store.Endpoint{reads(Endpoint("reader")), Endpoint("crm")}})
	for i := range 20 {
		MustAppend(t, b, Event("call.completed", fmt.Sprint(i%3)))
	}
	check := func(query ...any) {
		t.Helper()
		if err := b.Writable(); err != nil {
			t.Fatal(query, err)
		}
	}
	big := fmt.Sprint(uint64(math.MaxUint64))
	for _, cursor := range []string{
		"", "0", "0.0", big, big + "." + big, "0." + big, "1." + big, "-1", "1.", ".1", "x",
		"9223372036854775808", "20", "21", "now", "NOW", "1.2.3", big + ".", "0.crm", "20.crm", "20.zzz", "20.\x00",
	} {
		for _, back := range []bool{false, true} {
			for _, e := range []string{"", "reader", "crm", "x"} {
				_, err := b.Events(store.EventQuery{Endpoint: e, After: cursor, Backwards: back, Limit: 5})
				if errors.Is(err, store.ErrDamaged) {
					t.Error(cursor, back, e, err)
				}
				check(cursor, back, e)
			}
		}
		for _, q := range []store.DeliveryQuery{
			{},
			{CallID: "1"},
			{CallID: "nope"},
			{Endpoint: "crm"},
			{Endpoint: "x"},
			{State: "dead"},
			{State: "pending", Endpoint: "reader", CallID: "2"},
		} {
			q.Limit, q.Cursor = 3, cursor
			_, _, _ = b.Deliveries(q)
			check(cursor, q)
		}
	}
	for _, call := range []string{"", "1", "nope", string(make([]byte, 33))} {
		for _, after := range []uint64{0, 1, 1 << 63, math.MaxUint64, math.MaxUint64 - 1} {
			_, _ = b.Call(call, after)
			check(call, after)
		}
	}
	const noEvent = "00000000-0000-0000-0000-000000000000"
	for _, id := range []string{"", ".", "x.crm", noEvent + ".crm", noEvent + ".", ".crm"} {
		_, _, _ = b.Delivery(id)
		_, _ = b.Redeliver(id)
		check(id)
	}
}

// shownSize is how long the ID of a call is in answers: an engine may shorten one that no server
// sends.
func shownSize(t *testing.T, b *Box, call string) int {
	t.Helper()
	list, _, err := b.Deliveries(store.DeliveryQuery{CallID: call, Limit: 1})
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	return len(list[0].CallID)
}
