package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// sent is a job as a scripted sender got it.
type sent struct {
	store.Job
	at time.Duration // since the sender was made
}

// scripted is a sender that answers as a test says: a store.CallSender.
type scripted struct {
	answer func(n int, j store.Job) store.Outcome // n counts from 1

	began time.Time
	mu    sync.Mutex
	jobs  []sent
}

func newScripted(answer func(n int, j store.Job) store.Outcome) *scripted {
	return &scripted{answer: answer, began: time.Now()}
}

// NeedsCall makes it a store.CallSender.
func (s *scripted) NeedsCall() {}

// Close does nothing.
func (s *scripted) Close() {}

// Send answers.
func (s *scripted) Send(_ context.Context, j store.Job) store.Outcome {
	s.mu.Lock()
	s.jobs = append(s.jobs, sent{j, time.Since(s.began)})
	n := len(s.jobs)
	s.mu.Unlock()
	return s.answer(n, j)
}

// times says when jobs came, by their event's place in its call.
func (s *scripted) times() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, j := range s.jobs {
		list = append(list, fmt.Sprintf("%d@%s", j.Event.Sequence, j.at.Round(100*time.Millisecond)))
	}
	return strings.Join(list, " ")
}

func (s *scripted) got() []sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.jobs)
}

// inOutcomes runs a test with a scripted sender in fake time.
func (s suite) inOutcomes(
	t *testing.T, o Options, answer func(n int, j store.Job) store.Outcome, f func(t *testing.T, b *Box, crm *scripted),
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		crm := newScripted(answer)
		o.Senders = map[string]store.Sender{"crm": crm}
		b := s.open(t, o)
		stop := RunBox(t, b)
		f(t, b, crm)
		stop()
	})
}

// A delivery that is put off costs nothing of its schedule and begins no hold.
func (s suite) TestLaterCostsNothing(t *testing.T) {
	o := Options{OrderHold: 5 * time.Second, RetrySchedule: []time.Duration{time.Second}}
	s.inOutcomes(t, o, func(n int, j store.Job) store.Outcome {
		if j.Event.Sequence == 1 && n <= 3 {
			return store.Outcome{Verdict: store.Later, RetryAfter: 10 * time.Second}
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.completed", "7"), Event("call.completed", "7"))
		time.Sleep(time.Minute)
		if got, want := crm.times(), "1@0s 1@10s 1@20s 1@30s 2@30s"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got := States(t, b, "crm"); got[store.Delivered] != 2 {
			t.Errorf("%v", got)
		}
	})
}

// A pause holds back everything for the endpoint, and it stays well.
func (s suite) TestPauseIsForTheEndpoint(t *testing.T) {
	s.inOutcomes(t, Options{}, func(n int, _ store.Job) store.Outcome {
		if n == 1 {
			return store.Outcome{
				Verdict: store.Pause, RetryAfter: 30 * time.Second, Err: errors.New("too many requests"),
			}
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.completed", "7"))
		synctest.Wait()
		MustAppend(t, b, Event("call.completed", "8"))
		time.Sleep(time.Second)
		list, err := b.Endpoints()
		if err != nil || list[0].State != "paused" || list[0].LastError != "too many requests" {
			t.Errorf("%+v, %v", list, err)
		}
		time.Sleep(time.Minute)
		if got := crm.times(); got != "1@0s 1@30s 1@30s" {
			t.Error(got)
		}
	})
}

// What is misconfigured makes the endpoint fail at once; everything is kept and probed.
func (s suite) TestMisconfiguredFailsAtOnce(t *testing.T) {
	var right atomic.Bool
	o := Options{RetrySchedule: []time.Duration{time.Second}}
	s.inOutcomes(t, o, func(int, store.Job) store.Outcome {
		if right.Load() {
			return store.Outcome{Verdict: store.Done, Status: 200}
		}
		return store.Outcome{Verdict: store.Misconfigured, Err: errors.New("the key was revoked: make a new one")}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.completed", "7"), Event("call.completed", "8"))
		time.Sleep(time.Hour)
		list, err := b.Endpoints()
		if err != nil || list[0].State != "failing" || list[0].LastError != "the key was revoked: make a new one" {
			t.Errorf("%+v, %v", list, err)
		}
		if list[0].Pending != 2 || len(crm.got()) > 30 {
			t.Errorf("%d pending after %d attempts", list[0].Pending, len(crm.got()))
		}
		right.Store(true)
		time.Sleep(10 * time.Minute)
		if got := States(t, b, "crm"); got[store.Delivered] != 2 {
			t.Errorf("%v", got)
		}
	})
}

// A refusal gives up this delivery alone; the endpoint is well, and the call goes on.
func (s suite) TestRefusedIsForTheDelivery(t *testing.T) {
	s.inOutcomes(t, Options{}, func(n int, j store.Job) store.Outcome {
		if j.Event.Sequence == 1 {
			return store.Outcome{Verdict: store.Refused, Status: 400, Response: "no such field"}
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		for call := range 30 { // more than it takes to fail
			MustAppend(t, b, Event("call.completed", fmt.Sprint(call)), Event("call.completed", fmt.Sprint(call)))
		}
		time.Sleep(time.Second)
		list, err := b.Endpoints()
		if err != nil || list[0].State != "ok" || list[0].Dead != 30 || list[0].Delivered != 30 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// A sender that needs several requests gets the same job again at once, with what it has kept, also
// after a restart; a later job of the call has it too.
func (s suite) TestMoreGoesOnWithWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := func(_ int, j store.Job) store.Outcome {
			kept := string(j.Kept) + "."
			o := store.Outcome{
				Verdict: store.More,
				Keep:    []byte(kept),
				Steps:   []store.Step{{What: "step " + kept, Status: 200}},
			}
			if len(kept) >= 3 {
				o.Verdict = store.Done
			}
			return o
		}
		place := s.Place(t)
		crm := newScripted(answer)
		b, closeBox := s.openAgain(t, Options{Place: place, Senders: map[string]store.Sender{"crm": crm}})
		stop := RunBox(t, b)
		MustAppend(t, b, Event("call.incoming_answered", "7"))
		synctest.Wait()
		stop()
		if got := crm.got(); len(got) != 3 || string(got[2].Kept) != ".." || got[2].at > time.Second {
			t.Errorf("%d jobs: %s", len(got), crm.times())
		}
		page, err := b.Call("7", 0)
		if err != nil {
			t.Fatal(err)
		}
		_, attempts, err := b.Delivery(page.Events[0].Deliveries[0].ID)
		if err != nil || len(attempts) != 3 || len(attempts[2].Steps) != 1 || attempts[2].Steps[0].What != "step ..." {
			t.Errorf("attempts: %+v, %v", attempts, err)
		}
		closeBox()

		crm = newScripted(answer)
		b, closeBox = s.openAgain(t, Options{Place: place, Senders: map[string]store.Sender{"crm": crm}})
		defer closeBox()
		stop = RunBox(t, b)
		MustAppend(t, b, Event("call.completed", "7"))
		synctest.Wait()
		stop()
		if got := crm.got(); len(got) != 1 || string(got[0].Kept) != "..." || got[0].KeptVersion != 3 {
			t.Errorf("after a restart: %+v", got)
		}
	})
}

// A probe of a failing endpoint that takes several requests goes on at once with the same job.
func (s suite) TestMoreInAProbe(t *testing.T) {
	o := Options{RetrySchedule: []time.Duration{time.Hour}}
	s.inOutcomes(t, o, func(n int, j store.Job) store.Outcome {
		switch {
		case n <= 20:
			return store.Outcome{Verdict: store.Again, Status: 500}
		case len(j.Kept) < 3:
			return store.Outcome{Verdict: store.More, Keep: append(j.Kept, '.')}
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		for call := range 20 {
			MustAppend(t, b, Event("call.completed", fmt.Sprint(call)))
		}
		time.Sleep(10 * time.Second) // the first probe comes after five
		got := crm.got()
		if len(got) < 24 {
			t.Fatalf("%d jobs", len(got))
		}
		for _, j := range got[20:24] {
			if j.Number != got[20].Number || j.at > got[20].at+time.Second {
				t.Errorf("delivery %d at %s, the probe began with %d at %s", j.Number, j.at, got[20].Number, got[20].at)
			}
		}
	})
}

// Events of a sender are stored in the transaction that records the attempt, and go to all who get
// them.
func (s suite) TestSenderAppendsEvents(t *testing.T) {
	other := newScripted(func(int, store.Job) store.Outcome { return store.Outcome{Verdict: store.Done} })
	synctest.Test(t, func(t *testing.T) {
		crm := newScripted(func(n int, j store.Job) store.Outcome {
			o := store.Outcome{Verdict: store.Done}
			if j.Event.Type == telephony.EventCompleted {
				o.Events = []telephony.Event{Event("pz.event", j.Event.Call)}
			}
			return o
		})
		b := s.open(t, Options{
			Endpoints: []store.Endpoint{Endpoint("crm"), Endpoint("other")},
			Senders:   map[string]store.Sender{"crm": crm, "other": other},
		})
		defer RunBox(t, b)()
		changed := b.Changed()
		MustAppend(t, b, Event("call.completed", "7"))
		<-changed
		synctest.Wait()
		if a, o := crm.times(), other.times(); len(crm.got()) != 2 || len(other.got()) != 2 {
			t.Errorf("%s; %s", a, o)
		}
	})
}

// A job comes with the call's later events that are stored already, up to a bound.
func (s suite) TestJobHasLaterEvents(t *testing.T) {
	s.inOutcomes(t, Options{}, func(int, store.Job) store.Outcome {
		return store.Outcome{Verdict: store.Done}
	}, func(t *testing.T, b *Box, crm *scripted) {
		events := make([]telephony.Event, store.MaxLater+3)
		for i := range events {
			events[i] = Event("call.completed", "7")
		}
		MustAppend(t, b, events...)
		synctest.Wait()
		for i, j := range crm.got() {
			want := min(len(events)-1-i, store.MaxLater)
			if len(j.Later) != want || want > 0 && j.Later[0].Sequence != j.Event.Sequence+1 {
				t.Errorf("job %d has %d later events, want %d", i, len(j.Later), want)
			}
		}
	})
}

// What an attempt began with may not be the newest any more when it is recorded: then nothing of it
// counts but a success.
func (s suite) TestStaleKeptBytesCountAsASuccessAlone(t *testing.T) {
	ctx := t.Context()
	b := s.open(t, Options{})
	MustAppend(t, b, Event("call.completed", "7"), Event("call.completed", "8"))
	lane, err := b.Engine.Lane(ctx, "crm", true)
	if err != nil {
		t.Fatal(err)
	}
	claim := func() store.Job {
		t.Helper()
		c, err := lane.Claim(ctx, time.Now(), 1, nil)
		if err != nil || len(c.Jobs) != 1 {
			t.Fatal(c, err)
		}
		return c.Jobs[0]
	}
	record := func(j store.Job, keep string, now store.Delivery) store.Result {
		t.Helper()
		now.Attempts = j.Delivery.Attempts + 1
		results := []store.Result{{Job: j, Now: now, Keep: []byte(keep), Attempt: &store.Attempt{At: time.Now()}}}
		for range 2 { // the same once more changes nothing
			if err := lane.Record(ctx, results); err != nil {
				t.Fatal(err)
			}
		}
		return results[0]
	}
	first := claim()
	record(first, "new", first.Delivery)
	failed := first.Delivery.Ended(store.Dead, time.Now())
	if r := record(first, "old", failed); !r.Overruled {
		t.Error("a failure counts whose kept bytes are old")
	}
	if j := claim(); j.Number != first.Number || string(j.Kept) != "new" || j.KeptVersion != 1 {
		t.Errorf("kept are %q, version %d, of %d", j.Kept, j.KeptVersion, j.Number)
	}
	record(first, "old", first.Delivery.Ended(store.Delivered, time.Now()))
	if got := States(t, b, "crm"); got[store.Delivered] != 1 || got[store.Pending] != 1 {
		t.Errorf("%v", got)
	}
	second := claim()
	too := make([]byte, store.MaxKept+1)
	err = lane.Record(ctx, []store.Result{{Job: second, Now: second.Delivery, Keep: too}})
	if !errors.Is(err, store.ErrTooLong) {
		t.Errorf("too many bytes are kept: %v", err)
	}
}

// A note is stored by compare and set, has an end and a bound, and survives a restart.
func (s suite) TestNotes(t *testing.T) {
	ctx, now, place := t.Context(), time.Now(), s.Place(t)
	b, closeBox := s.openAgain(t, Options{Place: place})
	get := func(at time.Time) string {
		t.Helper()
		v, version, err := b.Engine.Note(ctx, "crm", "token", at)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s/%d", v, version)
	}
	set := func(version uint64, value string, until time.Time) error {
		return b.Engine.SetNote(ctx, "crm", "token", version, []byte(value), until)
	}
	if got := get(now); got != "/0" {
		t.Error(got)
	}
	for range 2 { // the same once more is safe
		if err := set(0, "a", now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := set(0, "b", time.Time{}); !errors.Is(err, store.ErrChanged) {
		t.Errorf("set from an old version: %v", err)
	}
	if got := get(now); got != "a/1" {
		t.Error(got)
	}
	if got := get(now.Add(time.Hour)); got != "/1" {
		t.Errorf("after its end: %s", got)
	}
	if err := set(1, "c", time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := set(2, strings.Repeat("x", store.MaxNote+1), time.Time{}); !errors.Is(err, store.ErrTooLong) {
		t.Errorf("a long one: %v", err)
	}
	if err := b.Engine.SetNote(ctx, "nobody", "token", 0, nil, now); !errors.Is(err, store.ErrNoEndpoint) {
		t.Errorf("of no endpoint: %v", err)
	}
	closeBox()
	b, closeBox = s.openAgain(t, Options{Place: place})
	defer closeBox()
	if got := get(now.Add(1000 * time.Hour)); got != "c/2" {
		t.Errorf("after a restart: %s", got)
	}
}

// What an attempt keeps reaches the call's next one, also where that was claimed before, as an
// event or a question that waited for the end of the attempt.
func (s suite) TestKeptBytesReachTheNextAttemptOfTheCall(t *testing.T) {
	for _, next := range []telephony.EventType{telephony.EventCompleted, telephony.EventTransferRequested} {
		t.Run(string(next), func(t *testing.T) {
			o := Options{OrderHold: time.Second, RetrySchedule: []time.Duration{100 * time.Millisecond}}
			s.inOutcomes(t, o, func(n int, j store.Job) store.Outcome {
				if n == 1 {
					return store.Outcome{Verdict: store.Again, Status: 500}
				}
				if n == 2 {
					time.Sleep(5 * time.Second)
				}
				return store.Outcome{Verdict: store.Done, Status: 200, Keep: append(slices.Clone(j.Kept), '.')}
			}, func(t *testing.T, b *Box, crm *scripted) {
				MustAppend(t, b, Event("call.outgoing", "7"))
				time.Sleep(500 * time.Millisecond) // the second attempt is under way
				MustAppend(t, b, Event(next, "7")) // which no longer holds it after a second
				time.Sleep(10 * time.Second)
				MustAppend(t, b, Event("call.completed", "7"))
				synctest.Wait()
				if got, want := crm.times(), "1@0s 1@100ms 2@5.1s 3@10.5s"; got != want {
					t.Errorf("%s, want %s", got, want)
				}
				for i, j := range crm.got() {
					want := max(0, i-1)
					if string(j.Kept) != strings.Repeat(".", want) || j.KeptVersion != uint64(want) {
						t.Errorf("attempt %d begins with %q, version %d", i+1, j.Kept, j.KeptVersion)
					}
				}
			})
		})
	}
}

// Bytes that cannot be kept, be they too many or of an event of no call, are left out, which is
// logged with the reason: the attempt is recorded without them, and its lane goes on.
func (s suite) TestBytesThatCannotBeKeptStopNoLane(t *testing.T) {
	for name, c := range map[string]struct {
		kind telephony.EventType
		call string
		keep int
		want string
	}{
		"too many": {
			kind: "call.completed",
			call: "7",
			keep: store.MaxKept + 1,
			want: fmt.Sprintf("%d bytes for a call, %d are allowed", store.MaxKept+1, store.MaxKept),
		},
		"too many of a question": {
			kind: "call.transfer_requested",
			call: "7",
			keep: store.MaxKept + 1,
			want: fmt.Sprintf("%d bytes for a call, %d are allowed", store.MaxKept+1, store.MaxKept),
		},
		"of no call": {
			kind: "pz.event",
			keep: 1,
			want: "nothing can be kept for an event of no call",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log logtest.Buffer
			o := Options{
				RetrySchedule: []time.Duration{time.Second, time.Second},
				Logger:        slog.New(slog.NewTextHandler(&log, nil)),
			}
			s.inOutcomes(t, o, func(n int, j store.Job) store.Outcome {
				if j.Kept != nil || j.KeptVersion != 0 {
					t.Errorf("attempt %d begins with %d bytes, version %d", n, len(j.Kept), j.KeptVersion)
				}
				if n <= 2 {
					return store.Outcome{
						Verdict: store.Again,
						Status:  500,
						Keep:    bytes.Repeat([]byte{byte(n)}, c.keep),
					}
				}
				return store.Outcome{Verdict: store.Done, Status: 200}
			}, func(t *testing.T, b *Box, crm *scripted) {
				e := Event(c.kind, c.call)
				MustAppend(t, b, e)
				time.Sleep(time.Minute)
				MustAppend(t, b, Event("call.completed", c.call))
				synctest.Wait()
				if got := States(t, b, "crm"); got[store.Delivered] != 2 || len(crm.got()) != 4 {
					t.Errorf("%v, sent %s", got, crm.times())
				}
				_, attempts, err := b.Delivery(e.ID + ".crm")
				var statuses []int
				for _, a := range attempts {
					statuses = append(statuses, a.Status)
				}
				if err != nil || !slices.Equal(statuses, []int{500, 500, 200}) {
					t.Errorf("%+v, %v", attempts, err)
				}
				if n := strings.Count(log.String(), c.want); n != 2 {
					t.Errorf("it is logged %d times:\n%s", n, log.String())
				}
			})
		})
	}
}

// A question that takes several requests has all its tries for a failure that comes behind them.
func (s suite) TestMoreCostsAQuestionNoTry(t *testing.T) {
	s.inOutcomes(t, Options{RoutingTimeout: time.Minute}, func(n int, j store.Job) store.Outcome {
		switch {
		case n <= 2*questionAttempts:
			return store.Outcome{Verdict: store.More, Keep: append(slices.Clone(j.Kept), '.')}
		case n == 2*questionAttempts+1:
			return store.Outcome{Verdict: store.Again, Status: 500}
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.transfer_requested", "7"))
		time.Sleep(2 * time.Minute)
		want := strings.Repeat("1@0s ", 2*questionAttempts+1) + "1@500ms"
		if got := crm.times(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got := States(t, b, "crm"); got[store.Delivered] != 1 {
			t.Errorf("%v", got)
		}
	})
}

// TestForgottenCallGetsNoEventOfASender checks that nothing comes back of a call that is forgotten
// while an attempt of it is under way, not even what the sender adds to it.
func (s suite) TestForgottenCallGetsNoEventOfASender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var box *Box
		crm := newScripted(func(_ int, j store.Job) store.Outcome {
			if j.Event.Type != telephony.EventCompleted {
				return store.Outcome{Verdict: store.Done}
			}
			if _, err := box.Outbox.Forget(t.Context(), "+7 343 011-22-33", false); err != nil {
				t.Error(err)
			}
			added := Event("sms.sent", j.Event.Call)
			added.From = "73430112233"
			return store.Outcome{Verdict: store.Done, Events: []telephony.Event{added}}
		})
		box = s.open(t, Options{
			Endpoints: []store.Endpoint{Endpoint("crm")}, Senders: map[string]store.Sender{"crm": crm},
		})
		defer RunBox(t, box)()
		MustAppend(t, box, callEvent("call.completed", "7", "73430112233", "101"))
		time.Sleep(time.Minute)
		if _, err := box.Outbox.CallHead(t.Context(), "7"); !errors.Is(err, store.ErrNoCall) {
			t.Errorf("the call is there: %v", err)
		}
	})
}

// Events that come with the answer to a question go at once to all who get them, and to readers.
func (s suite) TestEventsOfAQuestionsAnswerWakeAllWhoGetThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crm := newScripted(func(_ int, j store.Job) store.Outcome {
			o := store.Outcome{Verdict: store.Done}
			if j.IsQuestion {
				time.Sleep(time.Second)
				o.Events = []telephony.Event{Event("sms.sent", "8")}
			}
			return o
		})
		other := newScripted(func(int, store.Job) store.Outcome { return store.Outcome{Verdict: store.Done} })
		e := Endpoint("other")
		e.Events = store.Filter{"sms.*"}
		b := s.open(t, Options{
			Endpoints: []store.Endpoint{Endpoint("crm"), e},
			Senders:   map[string]store.Sender{"crm": crm, "other": other},
		})
		defer RunBox(t, b)()
		MustAppend(t, b, Event("call.transfer_requested", "7"))
		synctest.Wait()
		changed := b.Changed()
		time.Sleep(2 * time.Second)
		if got := other.times(); got != "1@1s" {
			t.Errorf("the other has got %q", got)
		}
		if got := crm.times(); got != "1@0s 1@1s" {
			t.Errorf("the one that was asked has got %q", got)
		}
		select {
		case <-changed:
		default:
			t.Error("readers were not woken")
		}
	})
}
