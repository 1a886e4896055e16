package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// maxPageBytes is after how many bytes one read ends; its last record may go beyond.
const maxPageBytes = 4 << 20

// reads makes an endpoint one that reads its events.
func reads(e store.Endpoint) store.Endpoint {
	e.URL, e.Secrets = "", nil
	return e
}

// readEvents reads one page.
func readEvents(b *Box, q store.EventQuery) (bodies [][]byte, cursor string, err error) {
	page, err := b.Events(q)
	return page.Events, page.Cursor, err
}

// callsIn gives the calls of events.
func callsIn(t *testing.T, bodies [][]byte) (calls []string) {
	t.Helper()
	for _, body := range bodies {
		var event struct {
			Data struct {
				CallID string `json:"call_id"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &event); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, event.Data.CallID)
	}
	return calls
}

// pruneAll removes every event that nothing waits for, and gives how many those were.
func pruneAll(t *testing.T, b *Box) int {
	t.Helper()
	pruned, err := b.Engine.Prune(t.Context(), store.Retention{MaxAge: -time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return pruned.Events
}

// TestEndpointReadsItsEvents checks that nothing is sent to an endpoint without a URL, that its
// cursor survives a restart, and that it gets to know what retention has taken.
func (s suite) TestEndpointReadsItsEvents(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		reader := reads(Endpoint("reader"))
		reader.Format = store.FormatFlat
		opts := Options{
			Place:       s.Place(t),
			Endpoints:   []store.Endpoint{Endpoint("crm"), reader},
			DialContext: c.Net.Dial,
			Retention:   time.Hour,
		}
		b, closeBox := s.openAgain(t, opts)
		stop := RunBox(t, b)
		for i := range 3 {
			MustAppend(t, b, Event("call.incoming", fmt.Sprint(i)))
		}
		MustAppend(t, b, Event("call.transfer_requested", "q"))
		synctest.Wait()
		if got := States(t, b, "reader"); got[store.Pending] != 4 || len(c.Received()) != 4 {
			t.Errorf("states of the reader: %v, %d webhooks", got, len(c.Received()))
		}
		stop()
		bodies, cursor, err := readEvents(b, store.EventQuery{Endpoint: "reader", Limit: 2})
		if err != nil || len(bodies) != 2 || cursor != "2" {
			t.Fatalf("%d events, %s, %v", len(bodies), cursor, err)
		}
		closeBox()
		b = s.open(t, opts)
		stop = RunBox(t, b)
		defer stop()
		bodies, cursor, err = readEvents(b, store.EventQuery{Endpoint: "reader", After: cursor, Limit: 9})
		if err != nil || len(bodies) != 2 || cursor != "4" {
			t.Fatalf("after a restart: %d events, %s, %v", len(bodies), cursor, err)
		}
		if _, err := b.Redeliver("019376aa-0000-7000-8000-000000000001.reader"); !errors.Is(err, store.ErrNoURL) {
			t.Errorf("redelivering to it: %v", err)
		}
		time.Sleep(30 * time.Minute)
		MustAppend(t, b, Event("call.incoming", "9"))
		time.Sleep(45 * time.Minute)
		synctest.Wait()
		var pruned *store.PrunedError
		_, _, err = readEvents(b, store.EventQuery{Endpoint: "reader", After: "2", Limit: 9})
		if !errors.As(err, &pruned) || pruned.Oldest != "3" {
			t.Fatalf("after the retention: %v", err)
		}
		bodies, cursor, err = readEvents(b, store.EventQuery{Endpoint: "reader", After: pruned.Oldest, Limit: 9})
		if err != nil || cursor != "5" || len(bodies) != 2 { // the question of a call that goes on is kept
			t.Errorf("from the oldest on: %d events, %s, %v", len(bodies), cursor, err)
		}
		bodies, _, err = readEvents(b, store.EventQuery{Endpoint: "reader", Limit: 9})
		if err != nil || len(bodies) == 0 {
			t.Errorf("from the beginning: %d events, %v", len(bodies), err)
		}
	})
}

// TestFirstCursorIsGoodForTheNextRead checks this whatever has been removed before.
func (s suite) TestFirstCursorIsGoodForTheNextRead(t *testing.T) {
	for _, first := range []string{"", store.CursorLatest} {
		t.Run("after="+first, func(t *testing.T) {
			c := &CRM{Forget: true}
			Bubble(t, c, func(t *testing.T) {
				b := s.open(t, Options{DialContext: c.Net.Dial, Retention: time.Hour})
				defer RunBox(t, b)()
				MustAppend(t, b, Event("call.completed", "1"))
				time.Sleep(3 * time.Hour)
				_, cursor, err := readEvents(b, store.EventQuery{Endpoint: "crm", After: first, Limit: 10})
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err = readEvents(b, store.EventQuery{Endpoint: "crm", After: cursor, Limit: 10}); err != nil {
					t.Errorf("the cursor %q that it has just been given: %v", cursor, err)
				}
			})
		})
	}
}

// TestReaderWithoutEventsMissesNothing checks that a reader that comes now and then, and never
// finds an event for it, gets no error that says it has missed some.
func (s suite) TestReaderWithoutEventsMissesNothing(t *testing.T) {
	c := &CRM{Forget: true}
	Bubble(t, c, func(t *testing.T) {
		reader := reads(Endpoint("reader"))
		reader.Events = store.Filter{"sms.*"}
		b := s.open(t, Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{Endpoint("crm"), reader},
			Retention:   time.Hour,
		})
		defer RunBox(t, b)()
		MustAppend(t, b, Event("sms.sent", "1"))
		_, cursor, err := readEvents(b, store.EventQuery{Endpoint: "reader", Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 { // it reads every half hour, and there is never anything for it
			MustAppend(t, b, Event("call.completed", fmt.Sprint(i)))
			time.Sleep(30 * time.Minute)
			var err error
			_, cursor, err = readEvents(b, store.EventQuery{Endpoint: "reader", After: cursor, Limit: 10})
			if err != nil {
				t.Errorf("it has missed nothing, and after %d half hours it gets: %v", i+1, err)
				return
			}
		}
	})
}

// TestWhatIsPendingCanBeReadAfterTheURLIsTakenAway checks that what was pending for an endpoint
// that reads its events from now on is there to be read, and is sent nowhere.
func (s suite) TestWhatIsPendingCanBeReadAfterTheURLIsTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := Options{Place: s.Place(t)}
		b, closeBox := s.openAgain(t, opts)
		for i := range 30 {
			MustAppend(t, b, Event("call.completed", fmt.Sprint(i)))
		}
		closeBox()
		opts.Endpoints = []store.Endpoint{reads(Endpoint("crm"))}
		b = s.open(t, opts)
		stop := RunBox(t, b)
		time.Sleep(time.Hour)
		stop()
		list, err := b.Endpoints()
		if err != nil {
			t.Fatal(err)
		}
		if list[0].State != "reads" || list[0].Pending != 30 || list[0].Dead != 0 { // it has not read them yet
			t.Errorf("an endpoint that only reads is %s (%s): pending %d, dead %d",
				list[0].State, list[0].LastError, list[0].Pending, list[0].Dead)
		}
	})
}

// TestWhatHasFailedCanBeReadAfterTheURLIsTakenAway checks that what had been tried in vain before
// is there to be read, and has not been.
func (s suite) TestWhatHasFailedCanBeReadAfterTheURLIsTakenAway(t *testing.T) {
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { w.WriteHeader(500) }}
	Bubble(t, c, func(t *testing.T) {
		opts := Options{
			Place:         s.Place(t),
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{Endpoint("crm")},
			RetrySchedule: []time.Duration{time.Hour, time.Hour},
		}
		b, closeBox := s.openAgain(t, opts)
		stop := RunBox(t, b)
		for i := range 10 {
			MustAppend(t, b, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		stop()
		closeBox()
		opts.Endpoints = []store.Endpoint{reads(Endpoint("crm"))}
		b = s.open(t, opts)
		list, err := b.Endpoints()
		if err != nil || list[0].Pending != 10 || list[0].Delivered != 0 {
			t.Errorf("none was ever taken or read: %+v %v", list, err)
		}
	})
}

// openWithGaps opens an outbox of which events between others have been removed: what is left are
// those with the numbers 3 and 6, for which an endpoint waits.
func (s suite) openWithGaps(t *testing.T) *Box {
	t.Helper()
	hook := Endpoint("hook")
	hook.Events = store.Filter{"sms.*"}
	b := s.open(t, Options{Endpoints: []store.Endpoint{hook, reads(Endpoint("reader"))}})
	MustAppend(t, b,
		Event("call.incoming", "1"), Event("call.completed", "1"), Event("sms.sent", "2"),
		Event("call.incoming", "3"), Event("call.completed", "3"), Event("sms.sent", "4"))
	if n := pruneAll(t, b); n != 4 {
		t.Fatalf("%d removed", n)
	}
	return b
}

// TestReaderMissesNothingOfWhatIsLeft checks that a reader that has missed something gets all that
// is left, and the error once: events stay for an endpoint that waits for them, between those that
// are gone.
func (s suite) TestReaderMissesNothingOfWhatIsLeft(t *testing.T) {
	b := s.openWithGaps(t)
	for after, want := range map[string]int{"": 2, "0": 2, "2": 2, "3": 1, "4": 1, "5": 1, "0.1": 2, "99": 2} {
		read, gone := 0, 0
		for cursor, more := after, true; more; {
			bodies, next, err := readEvents(b, store.EventQuery{Endpoint: "reader", After: cursor, Limit: 1})
			if pruned, ok := errors.AsType[*store.PrunedError](err); ok {
				gone++
				bodies, next, err = readEvents(b, store.EventQuery{Endpoint: "reader", After: pruned.Oldest, Limit: 1})
			}
			if err != nil {
				t.Fatalf("after %q: %v", after, err)
			}
			read, cursor, more = read+len(bodies), next, len(bodies) > 0
		}
		wantGone := 1
		if after == "" || after == "5" {
			wantGone = 0
		}
		if read != want || gone != wantGone {
			t.Errorf("after %q it reads %d and gets %d times that something is missing; want %d, %d",
				after, read, gone, want, wantGone)
		}
	}
	for _, cursor := range []string{"x", "1.", "1.x", ".", "-1", "1.1.1"} {
		_, _, err := readEvents(b, store.EventQuery{Endpoint: "reader", After: cursor, Limit: 1})
		if !errors.Is(err, store.ErrBadCursor) {
			t.Errorf("the cursor %q: %v", cursor, err)
		}
	}
}

// deliverFirst records that the first few deliveries of an endpoint were made.
func deliverFirst(t *testing.T, b *Box, endpoint string, n int) {
	t.Helper()
	lane, err := b.Engine.Lane(t.Context(), endpoint, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lane.Close(t.Context()) }()
	claimed, err := lane.Claim(t.Context(), time.Now(), n, nil)
	if err != nil {
		t.Fatal(err)
	}
	var results []store.Result
	for i, j := range claimed.Jobs {
		if j.Number != uint64(i+1) {
			t.Fatalf("the event %d is claimed as number %d of the first", j.Number, i+1)
		}
		results = append(results, store.Result{Job: j, Now: j.Delivery.Ended(store.Delivered, time.Now())})
	}
	if len(results) != n {
		t.Fatalf("%d deliveries are claimed", len(results))
	}
	if err := lane.Record(t.Context(), results); err != nil {
		t.Fatal(err)
	}
}

// TestReadBackwardsGivesEachEventOnce checks that the newest come first, page by page, to the end;
// the cursor is good in the other direction too, and what was removed is the end.
func (s suite) TestReadBackwardsGivesEachEventOnce(t *testing.T) {
	reader := reads(Endpoint("reader"))
	reader.Events = store.Filter{"call.*"}
	b := s.open(t, Options{Endpoints: []store.Endpoint{Endpoint("crm"), reader}})
	for i := range 12 {
		MustAppend(t, b, Event([]telephony.EventType{"call.completed", "sms.sent"}[i%2], fmt.Sprint(i)))
	}
	for name, want := range map[string]string{"reader": "10 8 6 4 2 0", "": "11 10 9 8 7 6 5 4 3 2 1 0"} {
		for limit := 1; limit < 14; limit++ {
			var all []string
			for cursor, pages := "", 0; ; pages++ {
				page, err := b.Events(store.EventQuery{Endpoint: name, Backwards: true, After: cursor, Limit: limit})
				if err != nil || pages > 12 || page.More != (page.Cursor != "") {
					t.Fatalf("%q by %d: %+v, %v", name, limit, page, err)
				}
				all = append(all, callsIn(t, page.Events)...)
				if cursor = page.Cursor; cursor == "" {
					break
				}
			}
			if got := strings.Join(all, " "); got != want {
				t.Errorf("%q by %d: %s", name, limit, got)
			}
		}
	}
	page, err := b.Events(store.EventQuery{
		Backwards: true,
		Types:     []telephony.EventType{"sms.sent"},
		After:     store.CursorLatest,
		Limit:     2,
	})
	if got := callsIn(t, page.Events); err != nil || !slices.Equal(got, []string{"11", "9"}) {
		t.Errorf("by type: %v, %v", got, err)
	}
	ahead, cursor, err := readEvents(b, store.EventQuery{After: page.Cursor, Limit: 100})
	got := callsIn(t, ahead)
	isRest := slices.Equal(got, []string{"9", "10", "11"}) || slices.Equal(got, []string{"8", "9", "10", "11"})
	if err != nil || !isRest || cursor != "12" {
		t.Errorf("forwards from the cursor %q: %v, %s, %v", page.Cursor, got, cursor, err)
	}
	deliverFirst(t, b, "crm", 4)
	pruneAll(t, b)
	page, err = b.Events(store.EventQuery{Backwards: true, After: "3", Limit: 9})
	if err != nil || len(page.Events) != 0 || page.Cursor != "" {
		t.Errorf("where all was removed: %+v, %v", page, err)
	}
	_, err = b.Events(store.EventQuery{Backwards: true, After: "x", Limit: 9})
	if !errors.Is(err, store.ErrBadCursor) {
		t.Errorf("a cursor that is none: %v", err)
	}
}

// TestReadIsBoundedInBytes checks this however large the events are, and that the next read goes
// on.
func (s suite) TestReadIsBoundedInBytes(t *testing.T) {
	b := s.open(t, Options{Endpoints: []store.Endpoint{reads(Endpoint("reader"))}})
	const events = 10
	for i := range events {
		e := Event("sms.sent", fmt.Sprint(i))
		e.Text = strings.Repeat("x", 1<<20)
		MustAppend(t, b, e)
	}
	read := 0
	for cursor := ""; read < events; {
		bodies, next, err := readEvents(b, store.EventQuery{Endpoint: "reader", After: cursor, Limit: 500})
		if err != nil || len(bodies) == 0 || len(bodies) > maxPageBytes>>20 {
			t.Fatalf("after %d it reads %d: %v", read, len(bodies), err)
		}
		read, cursor = read+len(bodies), next
	}
	if read != events {
		t.Errorf("it reads %d", read)
	}
}

// ReadState is how far an endpoint that reads its events has come.
type ReadState struct {
	Unread, Read           uint64
	LastRead, OldestUnread time.Time
}

// CheckReadState checks this for the endpoint "poller", as it shows everywhere. When says in a
// failure when that was.
func CheckReadState(t testing.TB, b *Box, when string, want ReadState) {
	t.Helper()
	list, err := b.Endpoints()
	if err != nil || list[0].State != "reads" || list[0].Pending != want.Unread ||
		list[0].Delivered != want.Read || !list[0].LastRead.Equal(want.LastRead) {
		t.Errorf("%s: %+v, %v", when, list, err)
	}
	for state, n := range map[string]uint64{"pending": want.Unread, "delivered": want.Read} {
		found, _, err := b.Deliveries(store.DeliveryQuery{State: state, Limit: 10})
		if err != nil || uint64(len(found)) != n {
			t.Errorf("%s: %d are listed as %s, not %d (%v)", when, len(found), state, n, err)
		}
		for _, d := range found {
			one, _, err := b.Delivery(d.ID)
			if err != nil || !reflect.DeepEqual(one, d) || d.ToBeRead != (state == "pending") ||
				!d.NextAttempt.IsZero() || d.Ended.IsZero() != d.ToBeRead {
				t.Errorf("%s: %+v, alone %+v (%v)", when, d, one, err)
			}
		}
	}
	if at, err := b.OldestPending("poller"); err != nil || !at.Equal(want.OldestUnread) {
		t.Errorf("%s: the oldest is of %s, not %s (%v)", when, at, want.OldestUnread, err)
	}
}

// TestUnreadEventsArePending checks that an endpoint that reads its events has those pending that
// it has not read, from the first on, that nothing is delivered before it has read it, and that a
// restart changes none of it.
func (s suite) TestUnreadEventsArePending(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		opts := Options{
			Place:       s.Place(t),
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{reads(Endpoint("poller"))},
		}
		b, closeBox := s.openAgain(t, opts)
		stop := RunBox(t, b)
		began := time.Now()
		for range 6 {
			MustAppend(t, b, Event("call.completed", "5"))
			time.Sleep(time.Minute)
		}
		CheckReadState(t, b, "before it has read", ReadState{Unread: 6, OldestUnread: began})
		page, err := b.Events(store.EventQuery{Endpoint: "poller", Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		CheckReadState(t, b, "after a page", ReadState{4, 2, time.Now(), began.Add(2 * time.Minute)})
		call, err := b.Call("5", 0)
		if err != nil || call.Events[1].Deliveries[0].State != "delivered" ||
			call.Events[2].Deliveries[0].State != "pending" {
			t.Errorf("of the call: %+v, %v", call, err)
		}
		time.Sleep(time.Hour)
		// This read is written down at once, and the next one is not.
		if _, err = b.Events(store.EventQuery{Endpoint: "poller", Limit: 1}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err = b.Events(store.EventQuery{Endpoint: "poller", After: page.Cursor, Limit: 1}); err != nil {
			t.Fatal(err)
		}
		last := time.Now()
		stop()
		closeBox()
		again := s.open(t, opts)
		CheckReadState(t, again, "after a restart", ReadState{3, 3, last, began.Add(3 * time.Minute)})
		_, err = again.Events(store.EventQuery{Endpoint: "poller", After: store.CursorLatest, Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		CheckReadState(t, again, "behind everything", ReadState{Read: 6, LastRead: time.Now()})
		if _, err := again.Events(store.EventQuery{Limit: 1}); err != nil { // the operator's reads are no endpoint's
			t.Fatal(err)
		}
		CheckReadState(t, again, "after the operator has read", ReadState{Read: 6, LastRead: time.Now()})
	})
}

// TestReadingBackwardsCountsAsRead checks that an endpoint that reads the newest first, and keeps
// no cursor, has read what it was given, as far as that goes back to what it had read before.
func (s suite) TestReadingBackwardsCountsAsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := s.open(t, Options{Endpoints: []store.Endpoint{reads(Endpoint("poller"))}})
		defer RunBox(t, b)()
		check := func(unread uint64) {
			t.Helper()
			list, err := b.Endpoints()
			if err != nil || !list[0].LastRead.Equal(time.Now()) || list[0].Pending != unread {
				t.Errorf("last read %s, %d are unread, want %d, %v", list[0].LastRead, list[0].Pending, unread, err)
			}
		}
		read := func(limit int, after string) store.EventPage {
			t.Helper()
			page, err := b.Events(store.EventQuery{Endpoint: "poller", Backwards: true, Limit: limit, After: after})
			if err != nil {
				t.Fatal(err)
			}
			return page
		}
		MustAppend(t, b, Event("call.completed", "1"), Event("call.completed", "2"))
		read(10, "")
		check(0)
		MustAppend(t, b, Event("call.completed", "3"), Event("call.completed", "4"), Event("call.completed", "5"))
		time.Sleep(time.Minute)
		page := read(1, "")
		check(3)
		read(10, page.Cursor)
		check(3)
		read(3, "")
		check(0)
	})
}
