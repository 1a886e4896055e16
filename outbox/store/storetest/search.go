package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/phone"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// callEvent is an event of a call between two numbers.
func callEvent(kind telephony.EventType, call, from, to string) telephony.Event {
	e := Event(kind, call)
	e.From, e.To, e.Direction = from, to, telephony.Incoming
	if kind == telephony.EventOutgoing || kind == telephony.EventOutgoingAnswered {
		e.Direction = telephony.Outgoing
	}
	return e
}

// completed is the end of a call with so many seconds of talk.
func completed(call, from, to string, direction telephony.Direction, talk int64) telephony.Event {
	e := callEvent(telephony.EventCompleted, call, from, to)
	e.Direction, e.Duration = direction, &talk
	return e
}

// find gives the IDs of the calls that a search finds, on all its pages.
func find(t *testing.T, b *Box, f outbox.CallFilter) (calls []string) {
	t.Helper()
	if f.Limit == 0 {
		f.Limit = 3
	}
	for range 1000 {
		found, err := b.Outbox.FindCalls(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if len(found.Calls) > f.Limit {
			t.Fatalf("%d calls on a page of %d", len(found.Calls), f.Limit)
		}
		for _, h := range found.Calls {
			calls = append(calls, h.CallID)
		}
		if found.Cursor == "" {
			return calls
		}
		f.Cursor = found.Cursor
	}
	t.Fatal("there is no end of pages")
	return nil
}

func checkFound(t *testing.T, b *Box, f outbox.CallFilter, want ...string) {
	t.Helper()
	if got := find(t, b, f); !slices.Equal(got, want) {
		t.Errorf("%+v: calls %v were found, want %v", f, got, want)
	}
}

// checkFoundByIndex is checkFound for calls that an index finds: an engine may give them in the
// order of the events at which it does.
func checkFoundByIndex(t *testing.T, b *Box, f outbox.CallFilter, want ...string) {
	t.Helper()
	got := find(t, b, f)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%+v: calls %v were found, want %v", f, got, want)
	}
}

// TestTheOutcomeIsDecidedWhenACallEnds checks that the end of a call says how it ended, by the time
// of talk and by what is stored of it, in the webhook as in the list of calls.
func (s suite) TestTheOutcomeIsDecidedWhenACallEnds(t *testing.T) {
	const in, out = telephony.Incoming, telephony.Outgoing
	cases := []struct {
		name   string
		events []telephony.EventType
		end    telephony.Event
		want   telephony.Outcome
	}{
		{"talk", nil, completed("", "", "", in, 5), telephony.OutcomeAnswered},
		{"nothing else is known", nil, completed("", "", "", in, 0), telephony.OutcomeMissed},
		{"missed", []telephony.EventType{"call.incoming"}, completed("", "", "", in, 0), telephony.OutcomeMissed},
		{
			"no seconds of talk",
			[]telephony.EventType{"call.incoming", "call.incoming_answered"},
			completed("", "", "", in, 0), telephony.OutcomeAnswered,
		},
		{"no answer", []telephony.EventType{"call.outgoing"}, completed("", "", "", out, 0), telephony.OutcomeNoAnswer},
		{
			"client answered",
			[]telephony.EventType{"call.outgoing", "call.outgoing_answered"},
			completed("", "", "", out, 0), telephony.OutcomeAnswered,
		},
		{
			"direction from before",
			[]telephony.EventType{"call.transfer_requested"},
			completed("", "", "", "", 0), telephony.OutcomeMissed,
		},
		{"no direction", nil, completed("", "", "", "", 0), ""},
		{
			"second leg",
			[]telephony.EventType{"call.incoming", "call.incoming_answered", "call.completed"},
			completed("", "", "", in, 0), telephony.OutcomeAnswered,
		},
	}
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, o)
		for _, tc := range cases {
			for _, kind := range tc.events {
				MustAppend(t, o, Event(kind, tc.name))
			}
			tc.end.CallID, tc.end.ID, tc.end.Time = tc.name, Event("", "").ID, time.Now()
			MustAppend(t, o, tc.end)
		}
		// The ID of an answered call is used again by the server after a restart.
		MustAppend(t, o, Event("call.incoming_answered", "again"), completed("again", "", "", in, 60))
		time.Sleep(time.Hour)
		MustAppend(t, o, Event("call.incoming", "again"), completed("again", "", "", in, 0))
		// That of an answered call whose end was lost, since the server was restarted.
		MustAppend(t, o, Event("call.incoming_answered", "lost"))
		time.Sleep(24 * time.Hour)
		MustAppend(t, o, Event("call.incoming", "lost"), completed("lost", "", "", in, 0))
		// A recording that is ready between two calls is no part of either, and one after the end
		// begins nothing anew.
		MustAppend(t, o, Event("call.incoming_answered", "recorded"), completed("recorded", "", "", in, 60))
		time.Sleep(35 * time.Second)
		MustAppend(t, o, Event("call.recording_ready", "recorded"))
		time.Sleep(45 * time.Second)
		MustAppend(t, o, Event("call.incoming", "recorded"), completed("recorded", "", "", in, 0))
		ready := Event("call.recording_ready", "recorded")
		ready.RecordingURL = "https://bridge.example/2.mp3"
		MustAppend(t, o, ready)
		time.Sleep(time.Minute)
		stop()
		told := map[string]telephony.Outcome{}
		for _, r := range c.Received() {
			var body struct {
				Type telephony.EventType
				Data struct {
					CallID  string `json:"call_id"`
					Outcome telephony.Outcome
				}
			}
			if err := json.Unmarshal(r.Body, &body); err != nil {
				t.Fatal(err)
			}
			if body.Type != telephony.EventCompleted && body.Data.Outcome != "" {
				t.Errorf("%s has an outcome", body.Type)
			}
			if body.Type == telephony.EventCompleted {
				told[body.Data.CallID] = body.Data.Outcome
			}
		}
		for _, tc := range cases {
			h, err := o.Outbox.CallHead(t.Context(), tc.name)
			if err != nil || h.Outcome != tc.want || told[tc.name] != tc.want || !h.Completed {
				t.Errorf("%s: %q in the webhook, %q in the head, %v; want %q",
					tc.name, told[tc.name], h.Outcome, err, tc.want)
			}
		}
		if told["again"] != telephony.OutcomeMissed {
			t.Errorf("the second call with an ID: %q", told["again"])
		}
		h, err := o.Outbox.CallHead(t.Context(), "recorded")
		if err != nil || told["recorded"] != telephony.OutcomeMissed || h.Outcome != telephony.OutcomeMissed ||
			!h.Completed || h.RecordingURL != ready.RecordingURL {
			t.Errorf("a call after a recorded one: %q in the webhook, %+v, %v", told["recorded"], h, err)
		}
		if told["lost"] != telephony.OutcomeMissed {
			t.Errorf("the second call with the ID of one without an end: %q", told["lost"])
		}
	})
}

// TestNumbersOfACallAreNamed checks that a webhook says which number is the client's, in E.164, and
// which the employee's, beside the numbers as they came.
func (s suite) TestNumbersOfACallAreNamed(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial})
		stop := RunBox(t, o)
		MustAppend(t, o,
			callEvent("call.incoming", "1", "83430112233", "101"),
			callEvent("call.outgoing", "2", "102", "8 (343) 011-22-33"),
			callEvent("call.incoming", "3", "101", "102"))
		time.Sleep(time.Second)
		stop()
		for _, r := range c.Received() {
			var body struct{ Data map[string]any }
			if err := json.Unmarshal(r.Body, &body); err != nil {
				t.Fatal(err)
			}
			d := body.Data
			got := fmt.Sprint(d["from"], " ", d["to"], " ", d["client_number"], " ", d["extension"], " ", d["internal"])
			want := map[string]string{
				"1": "83430112233 101 +73430112233 101 <nil>",
				"2": "102 8 (343) 011-22-33 +73430112233 102 <nil>",
				"3": "101 102 <nil> 102 true",
			}[fmt.Sprint(d["call_id"])]
			if got != want {
				t.Errorf("call %v: %s, want %s", d["call_id"], got, want)
			}
		}
	})
}

// TestCallsAreFoundByNumber checks that a call is found by its numbers in any form, by the last
// digits of one, and by digits in the middle of one.
func (s suite) TestCallsAreFoundByNumber(t *testing.T) {
	opts := Options{Place: s.Place(t)}
	o, closeBox := s.openAgain(t, opts)
	MustAppend(t, o,
		callEvent("call.incoming", "A", "83430112233", "101"),
		callEvent("call.outgoing", "B", "101", "+7 910 123-45-67"),
		callEvent("call.incoming", "C", "+73430112233", "7"), // another form of the number of A
		callEvent("call.incoming", "D", "+493012345678", "2233"),
		callEvent("call.incoming_answered", "A", "83430112233", "102")) // A is taken by another
	check := func() {
		t.Helper()
		for _, number := range []string{
			"+73430112233", "83430112233", "73430112233", "3430112233", "+7 (343) 011-22-33", "0112233",
		} {
			checkFoundByIndex(t, o, outbox.CallFilter{Number: number}, "C", "A")
		}
		checkFoundByIndex(t, o, outbox.CallFilter{Number: "2233"}, "D", "C", "A")
		checkFoundByIndex(t, o, outbox.CallFilter{Number: "2233", Limit: 1}, "D", "C", "A")
		checkFound(t, o, outbox.CallFilter{Number: "101"}, "B", "A")
		checkFound(t, o, outbox.CallFilter{Number: "102"}, "A")
		checkFound(t, o, outbox.CallFilter{Number: "7"}, "C")
		checkFound(t, o, outbox.CallFilter{Number: "4301"}, "A", "C")
		checkFound(t, o, outbox.CallFilter{Number: "9999"})
		checkFound(t, o, outbox.CallFilter{Number: "012"})
	}
	check()
	found, err := o.Outbox.FindCalls(t.Context(), outbox.CallFilter{Number: "4301", Limit: 5})
	if err != nil || !found.AnyDigits {
		t.Errorf("by digits in the middle of a number: %+v, %v", found, err)
	}
	_, err = o.Outbox.FindCalls(t.Context(), outbox.CallFilter{Number: "+12", Limit: 5})
	if !errors.Is(err, phone.ErrTooFewDigits) {
		t.Errorf("by two digits: %v", err)
	}
	closeBox()
	o, _ = s.openAgain(t, opts)
	check()
}

// TestCallsAreFoundByWhatTheyAre checks each filter of a search, and that they hold together.
func (s suite) TestCallsAreFoundByWhatTheyAre(t *testing.T) {
	c := &CRM{Answer: func(_ int, r Received, w http.ResponseWriter) {
		if strings.Contains(string(r.Body), `"call_id":"3"`) {
			w.WriteHeader(http.StatusGone)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{DialContext: c.Net.Dial, Logger: slog.New(slog.DiscardHandler)})
		stop := RunBox(t, o)
		defer stop()
		began := time.Now()
		const in, out = telephony.Incoming, telephony.Outgoing
		for i, e := range []telephony.Event{
			completed("1", "+73430112233", "101", in, 5),
			completed("2", "+73430112233", "101", in, 0),
			completed("3", "101", "+73430112233", out, 0),
			completed("4", "101", "+79101234567", out, 7),
			callEvent("call.incoming", "5", "+79101234567", "101"),
		} {
			e.Time = began.Add(time.Duration(i) * 5 * time.Hour)
			MustAppend(t, o, e)
			time.Sleep(5 * time.Hour)
		}
		at := func(i int) time.Time { return began.Add(time.Duration(i) * 5 * time.Hour) }
		checkFound(t, o, outbox.CallFilter{}, "5", "4", "3", "2", "1")
		checkFound(t, o, outbox.CallFilter{Direction: in}, "5", "2", "1")
		checkFound(t, o, outbox.CallFilter{Direction: out, Outcome: telephony.OutcomeAnswered}, "4")
		checkFound(t, o, outbox.CallFilter{Outcome: telephony.OutcomeMissed}, "2")
		checkFound(t, o, outbox.CallFilter{Outcome: telephony.OutcomeNoAnswer}, "3")
		checkFound(t, o, outbox.CallFilter{State: "dead"}, "3")
		checkFound(t, o, outbox.CallFilter{State: "delivered"}, "5", "4", "2", "1")
		checkFound(t, o, outbox.CallFilter{Since: at(1), Until: at(3)}, "3", "2")
		checkFound(t, o, outbox.CallFilter{Since: at(3)}, "5", "4")
		checkFound(t, o, outbox.CallFilter{Until: at(1)}, "1")
		checkFound(t, o, outbox.CallFilter{Number: "0112233", Since: at(1)}, "3", "2")
		checkFound(t, o, outbox.CallFilter{Number: "0112233", Direction: in, Until: at(1)}, "1")
		lost := outbox.CallFilter{State: "lost", Limit: 1}
		if _, err := o.Outbox.FindCalls(t.Context(), lost); !errors.Is(err, store.ErrBadState) {
			t.Errorf("a state that there is not: %v", err)
		}
		for _, cursor := range []string{"x", "-1", "any.x"} {
			f := outbox.CallFilter{Number: "0112233", Cursor: cursor, Limit: 1}
			if _, err := o.Outbox.FindCalls(t.Context(), f); !errors.Is(err, store.ErrBadCursor) {
				t.Errorf("cursor %q: %v", cursor, err)
			}
		}
	})
}

// TestPagesOfCallsMissNone checks that pages bring each call once, the latest first, while new
// calls come in.
func (s suite) TestPagesOfCallsMissNone(t *testing.T) {
	for _, number := range []string{"", "+73430112233", "2233", "4301"} {
		o := s.open(t, Options{})
		var want []string
		for i := range 30 {
			call := fmt.Sprint(100 + i)
			MustAppend(t, o, callEvent("call.incoming", call, "+73430112233", "101"),
				completed(call, "+73430112233", "101", telephony.Incoming, 5))
			want = append(want, call)
		}
		slices.Reverse(want)
		var got []string
		for f := (outbox.CallFilter{Number: number, Limit: 7}); ; {
			found, err := o.Outbox.FindCalls(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range found.Calls {
				got = append(got, h.CallID)
			}
			MustAppend(t, o, callEvent("call.incoming", fmt.Sprint(900+len(got)), "+73430112233", "101"))
			if f.Cursor = found.Cursor; f.Cursor == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %q: %v", number, got)
		}
	}
}

// TestPagesOfCallsBringACallOnce checks that a call stands on one page though an index has found it
// at several of its events, between those of other calls.
func (s suite) TestPagesOfCallsBringACallOnce(t *testing.T) {
	const number = "+73430112233"
	o := s.open(t, Options{})
	MustAppend(t, o,
		callEvent("call.incoming", "a", number, "101"),
		callEvent("call.incoming", "b", number, "101"),
		callEvent("call.incoming", "a", "+79101234567", "101"),
		callEvent("call.incoming", "c", number, "101"),
		callEvent("call.incoming", "a", number, "101"),
		callEvent("call.incoming", "a", "+79101234567", "101"))
	for _, f := range []outbox.CallFilter{
		{}, {Number: number}, {Number: "2233"}, {State: "pending"}, {Number: number, State: "pending"},
	} {
		for f.Limit = 1; f.Limit < 5; f.Limit++ {
			checkFound(t, o, f, "a", "c", "b")
		}
	}
}

// TestALongCallIsFoundByTheTimeOfItsLatestEvent checks that a call which an index has found at an
// event of hours before its latest is found by the time of that.
func (s suite) TestALongCallIsFoundByTheTimeOfItsLatestEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const number = "+73430112233"
		o := s.open(t, Options{})
		MustAppend(t, o, callEvent("call.incoming", "long", number, "101"))
		time.Sleep(time.Second)
		began := time.Now()
		time.Sleep(150 * time.Minute)
		MustAppend(t, o, callEvent("call.incoming", "short", number, "101"))
		time.Sleep(time.Second)
		MustAppend(t, o, completed("long", number, "101", telephony.Incoming, 9000))
		since := time.Now().Add(-time.Minute)
		checkFound(t, o, outbox.CallFilter{Since: since}, "long", "short")
		for _, n := range []string{number, "2233"} {
			checkFoundByIndex(t, o, outbox.CallFilter{Number: n, Since: since}, "short", "long")
			checkFound(t, o, outbox.CallFilter{Number: n, Until: began})
		}
	})
}

// TestACallWithAnIDOfDaysAgoIsFound checks that a call to which a server gave the ID of an earlier
// one, as after a restart, is found by its number and its time.
func (s suite) TestACallWithAnIDOfDaysAgoIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := s.open(t, Options{})
		call := func(id, client string) {
			MustAppend(t, o, callEvent("call.incoming", id, client, "101"))
			time.Sleep(time.Second)
			MustAppend(t, o, completed(id, client, "101", telephony.Incoming, 5))
		}
		call("1", "+73430112233")
		time.Sleep(72 * time.Hour)
		since := time.Now()
		call("2", "+79101234567")
		call("1", "+79107654321")
		checkFound(t, o, outbox.CallFilter{Number: "101", Since: since}, "1", "2")
		checkFound(t, o, outbox.CallFilter{Number: "101", Limit: 1}, "1", "2")
	})
}

// TestACallIsFoundForAsLongAsAnythingOfItIsStored checks that removed calls are found no longer,
// and that a call of which an event waits for an endpoint is found by its number though its first
// event has gone.
func (s suite) TestACallIsFoundForAsLongAsAnythingOfItIsStored(t *testing.T) {
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if call, n := callOf(t, r); call == "waits" && n == 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Retention:     time.Hour,
			RetrySchedule: slices.Repeat([]time.Duration{time.Hour}, 1000),
			Logger:        slog.New(slog.DiscardHandler),
		})
		stop := RunBox(t, o)
		for _, call := range []string{"goes", "waits"} {
			MustAppend(t, o, callEvent("call.incoming", call, "+73430112233", "101"),
				completed(call, "+73430112233", "101", telephony.Incoming, 5))
		}
		checkFound(t, o, outbox.CallFilter{Number: "+73430112233"}, "waits", "goes")
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		for _, number := range []string{"+73430112233", "2233", "101", ""} {
			checkFound(t, o, outbox.CallFilter{Number: number}, "waits")
		}
		page, err := o.Call("waits", 0)
		if err != nil || len(page.Events) != 1 {
			t.Errorf("of the call that waits, %d events are left, %v", len(page.Events), err)
		}
		stop()
	})
}

// TestTheHeadOfACallSaysHowItsDeliveriesStand checks what the head of a call says of it.
func (s suite) TestTheHeadOfACallSaysHowItsDeliveriesStand(t *testing.T) {
	c := &CRM{}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		if _, n := callOf(t, r); r.Path == "/refuses" && n == 2 {
			w.WriteHeader(http.StatusGone)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		takes, refuses := Endpoint("takes"), Endpoint("refuses")
		refuses.URL = "http://crm.example/refuses"
		none := Endpoint("none")
		none.Events = store.Filter{"sms.*"}
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{takes, refuses, none}})
		stop := RunBox(t, o)
		began := time.Now()
		MustAppend(t, o, callEvent("call.incoming", "1", "83430112233", "101"))
		head := func() store.CallHead {
			h, err := o.Outbox.CallHead(t.Context(), "1")
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		if h := head(); h.Completed || h.Outcome != "" || h.Duration != nil {
			t.Errorf("while it rings: %+v", h)
		}
		time.Sleep(5 * time.Second)
		MustAppend(t, o, completed("1", "83430112233", "101", telephony.Incoming, 42))
		time.Sleep(time.Second)
		stop()
		h := head()
		if !h.Completed || h.Outcome != telephony.OutcomeAnswered || *h.Duration != 42 || h.IsSMS || h.Internal ||
			h.Client != "+73430112233" || h.Extension != "101" || h.From != "83430112233" ||
			h.Direction != telephony.Incoming || !h.Began.Equal(began.Truncate(time.Millisecond)) {
			t.Errorf("the head is %+v", h)
		}
		var got []string
		for _, d := range h.Deliveries {
			got = append(got, fmt.Sprintf("%s %s %d/%d", d.Endpoint, d.State(), d.Delivered, d.Dead))
		}
		if want := []string{"refuses dead 1/1", "takes delivered 2/0"}; !slices.Equal(got, want) {
			t.Errorf("its deliveries are %q, want %q", got, want)
		}
		if _, err := o.Outbox.CallHead(t.Context(), "2"); !errors.Is(err, store.ErrNoCall) {
			t.Errorf("a call that there is not: %v", err)
		}
		MustAppend(t, o, Event("sms.sent", "sms"))
		if h, err := o.Outbox.CallHead(t.Context(), "sms"); err != nil || !h.IsSMS {
			t.Errorf("an SMS: %+v, %v", h, err)
		}
	})
}

// TestFewDeliveriesAreListedAmongMany checks that the few deliveries that are dead, expired or
// pending are all on the first page, however many delivered ones lie between them.
func (s suite) TestFewDeliveriesAreListedAmongMany(t *testing.T) {
	SkipBulk(t)
	const many = 5000 // more than one request looks at
	c := &CRM{Forget: true}
	c.Answer = func(_ int, r Received, w http.ResponseWriter) {
		switch call, _ := callOf(t, r); {
		case strings.HasPrefix(call, "dead"):
			w.WriteHeader(http.StatusGone)
		case strings.HasPrefix(call, "late"), strings.HasPrefix(call, "waits"):
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.RingingTTL = time.Minute
		o := s.open(t, Options{
			DialContext:   c.Net.Dial,
			Endpoints:     []store.Endpoint{e, Endpoint("other")},
			RetrySchedule: slices.Repeat([]time.Duration{time.Hour}, 100),
			Logger:        slog.New(slog.DiscardHandler),
		})
		stop := RunBox(t, o)
		began := time.Now()
		MustAppend(t, o, Event("call.completed", "dead1"), Event("call.incoming", "late1"),
			Event("call.completed", "waits"), Event("sms.sent", "waits"))
		for i := range many / 100 {
			var events []telephony.Event
			for j := range 100 {
				events = append(events, Event("call.completed", fmt.Sprint(100*i+j)))
			}
			MustAppend(t, o, events...)
			time.Sleep(100 * time.Millisecond)
		}
		MustAppend(t, o, Event("call.completed", "dead2"))
		time.Sleep(5 * time.Minute)
		stop()
		check := func(q store.DeliveryQuery, want ...string) {
			t.Helper()
			q.Limit = 10
			page, cursor, err := o.Deliveries(q)
			var got []string
			for _, d := range page {
				got = append(got, d.CallID+"."+d.Endpoint)
			}
			if err != nil || cursor != "" || !slices.Equal(got, want) {
				t.Errorf("%+v: %v, cursor %q, %v; want %v", q, got, cursor, err, want)
			}
		}
		check(store.DeliveryQuery{State: "dead"}, "dead2.crm", "dead2.other", "dead1.crm", "dead1.other")
		check(store.DeliveryQuery{State: "dead", Endpoint: "crm"}, "dead2.crm", "dead1.crm")
		check(store.DeliveryQuery{State: "expired"}, "late1.crm")
		check(store.DeliveryQuery{State: "pending", Endpoint: "crm"}, "waits.crm", "waits.crm")
		sms := []telephony.EventType{"sms.sent"}
		check(store.DeliveryQuery{State: "pending", Endpoint: "crm", Types: sms}, "waits.crm")
		check(store.DeliveryQuery{State: "dead", Endpoint: "crm", Since: began.Add(time.Second)}, "dead2.crm")
		check(store.DeliveryQuery{State: "dead", Endpoint: "crm", Until: began.Add(time.Second)}, "dead1.crm")
		first, cursor, err := o.Deliveries(store.DeliveryQuery{State: "dead", Limit: 3})
		if err != nil || len(first) != 3 || cursor == "" {
			t.Fatalf("%d deliveries, cursor %q, %v", len(first), cursor, err)
		}
		rest, cursor, err := o.Deliveries(store.DeliveryQuery{State: "dead", Limit: 3, Cursor: cursor})
		if err != nil || len(rest) != 1 || rest[0].CallID != "dead1" || rest[0].Endpoint != "other" || cursor != "" {
			t.Errorf("on the second page: %+v, cursor %q, %v", rest, cursor, err)
		}
	})
}
