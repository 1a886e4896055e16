package storetest

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/store"
)

// list gives the deliveries that match a query, page by page.
func list(t *testing.T, o *Box, q store.DeliveryQuery) (all []store.DeliveryView) {
	t.Helper()
	for {
		page, cursor, err := o.Deliveries(q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 && q.Cursor != "" {
			t.Error("nothing follows the cursor that the page before has given")
		}
		if all = append(all, page...); cursor == "" {
			return all
		}
		if len(page) != q.Limit {
			t.Fatalf("a page of %d with a cursor, the limit is %d", len(page), q.Limit)
		}
		q.Cursor = cursor
	}
}

// TestDeliveriesAreListedWithTheirAttempts checks what is listed, in which order, and the attempts
// of one delivery.
func (s suite) TestDeliveriesAreListedWithTheirAttempts(t *testing.T) {
	c := &CRM{Answer: func(n int, r Received, w http.ResponseWriter) {
		if call, _ := callOf(t, r); call == "1" {
			w.WriteHeader(http.StatusGone)
			_, _ = fmt.Fprint(w, "no POST /hook?token=t0psecret; token t0psecret; "+strings.Repeat("ж", 3000))
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		other := Endpoint("other")
		other.Events = store.Filter{"call.completed"}
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{Endpoint("crm"), other}})
		stop := RunBox(t, o)
		for i := range 5 {
			MustAppend(t, o, Event("call.incoming", fmt.Sprint(i)), Event("call.completed", fmt.Sprint(i)))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		stop()
		MustAppend(t, o, Event("call.completed", "9")) // waits
		for limit := range 17 {
			if got := list(t, o, store.DeliveryQuery{Limit: limit + 1}); len(got) != 17 {
				t.Errorf("by %d at once: %d deliveries", limit+1, len(got))
			} else if got[0].CallID != "9" || got[0].Endpoint != "crm" || got[1].Endpoint != "other" ||
				got[16].CallID != "0" || got[16].Type != "call.incoming" {
				t.Errorf("by %d at once the order is %v", limit+1, got)
			}
		}
		for want, q := range map[int]store.DeliveryQuery{
			2:  {State: "pending"},
			3:  {State: "dead"},
			12: {State: "delivered"},
			0:  {State: "expired"},
			11: {Endpoint: "crm"},
			6:  {Endpoint: "other", CallID: ""},
			1:  {Endpoint: "other", CallID: "4"},
		} {
			q.Limit = 3
			if got := list(t, o, q); len(got) != want {
				t.Errorf("%+v: %d deliveries, want %d", q, len(got), want)
			}
		}
		dead := list(t, o, store.DeliveryQuery{
			State:    "dead",
			CallID:   "1",
			Endpoint: "crm",
			Limit:    1,
		})[1]
		d, attempts, err := o.Delivery(dead.ID)
		if err != nil || !reflect.DeepEqual(d, dead) || len(attempts) != 1 {
			t.Fatalf("%+v, %v, %v", d, attempts, err)
		}
		if d.ID != d.EventID+".crm" || d.Sequence != 1 || d.Attempts != 1 || d.LastStatus != 410 ||
			d.Ended.IsZero() || !d.NextAttempt.IsZero() {
			t.Errorf("it stands as %+v", d)
		}
		a := attempts[0]
		const begins = "no POST (hidden); token (hidden); ж"
		isHidden := strings.HasPrefix(a.Response, begins) && !strings.Contains(a.Response, "t0psecret")
		if a.Status != 410 || len(a.Response) != 1<<10 || !isHidden {
			t.Errorf("the attempt: %+v", a)
		}
		for _, id := range []string{
			"", "x", ".crm", d.EventID, d.EventID + ".nobody", "019376aa-0000-7000-8000-000000000001.crm",
		} {
			if _, _, err := o.Delivery(id); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%q: %v", id, err)
			}
		}
		for _, cursor := range []string{"x", "5", "-1.crm"} {
			_, _, err := o.Deliveries(store.DeliveryQuery{Cursor: cursor, Limit: 1})
			if !errors.Is(err, store.ErrBadCursor) {
				t.Errorf("cursor %q: %v", cursor, err)
			}
		}
		if _, _, err := o.Deliveries(store.DeliveryQuery{State: "lost", Limit: 1}); !errors.Is(err, store.ErrBadState) {
			t.Errorf("a state that there is not: %v", err)
		}
	})
}

// TestLastTenAttemptsAreKept checks that those before are not.
func (s suite) TestLastTenAttemptsAreKept(t *testing.T) {
	c := &CRM{Answer: func(n int, _ Received, w http.ResponseWriter) {
		w.WriteHeader(500 + n)
		_, _ = fmt.Fprintf(w, "answer %d", n)
		time.Sleep(20 * time.Millisecond)
	}}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			RetrySchedule: slices.Repeat([]time.Duration{time.Second}, 14),
		})
		stop := RunBox(t, o)
		e := Event("call.completed", "5")
		MustAppend(t, o, e)
		time.Sleep(time.Minute)
		stop()
		d, attempts, err := o.Delivery(e.ID + ".crm")
		if err != nil || d.Attempts != 15 || len(attempts) != 10 {
			t.Fatalf("%+v, %d attempts, %v", d, len(attempts), err)
		}
		for i, a := range attempts {
			n := 6 + i
			isKept := a.Status == 500+n && a.Response == fmt.Sprintf("answer %d", n) && a.Took == 20*time.Millisecond
			if !isKept || a.Error != "" {
				t.Errorf("attempt %d: %+v", n, a)
			}
		}
	})
}
