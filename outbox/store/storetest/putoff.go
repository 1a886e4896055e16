package storetest

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/store"
)

// anHourLater is the outcome of a sender that puts a delivery off.
var anHourLater = store.Outcome{Verdict: store.Later, RetryAfter: time.Hour}

// timesOf gives when the jobs of an event came, which is given by its call and its place in that.
func (s *scripted) timesOf(call string, sequence int) (list []time.Duration) {
	for _, j := range s.got() {
		if j.Event.Call == call && int(j.Event.Sequence) == sequence {
			list = append(list, j.at.Round(100*time.Millisecond))
		}
	}
	return list
}

func checkTimes(t *testing.T, got []time.Duration, want ...time.Duration) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("it came at %s, want %s", got, want)
	}
}

// TestWhatIsPutOffKeepsItsTimeThroughARestart checks that what its sender has put off is tried when
// the sender has said, though the bridge was started again meanwhile.
func (s suite) TestWhatIsPutOffKeepsItsTimeThroughARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		place := s.Place(t)
		run := func(answer store.Outcome, f func(b *Box, crm *scripted)) {
			t.Helper()
			crm := newScripted(func(int, store.Job) store.Outcome { return answer })
			b, closeBox := s.openAgain(t, Options{Place: place, Senders: map[string]store.Sender{"crm": crm}})
			defer closeBox()
			defer RunBox(t, b)()
			f(b, crm)
		}
		run(anHourLater, func(b *Box, crm *scripted) {
			MustAppend(t, b, Event("call.completed", "7"))
			time.Sleep(time.Minute)
			if got := crm.times(); got != "1@0s" {
				t.Errorf("before the restart: %s", got)
			}
		})
		run(store.Outcome{Verdict: store.Done, Status: 200}, func(b *Box, crm *scripted) {
			time.Sleep(2 * time.Hour)
			if got := crm.times(); got != "1@59m0s" {
				t.Errorf("after the restart: %s", got)
			}
			if got := States(t, b, "crm"); got[store.Delivered] != 1 {
				t.Errorf("%v", got)
			}
		})
	})
}

// TestWhatIsPutOffKeepsItsTimeBehindARetry checks that the retries of an event, and its end, change
// nothing of when a later event of its call is tried which its sender has put off.
func (s suite) TestWhatIsPutOffKeepsItsTimeBehindARetry(t *testing.T) {
	o := Options{
		OrderHold: 5 * time.Second,
		RetrySchedule: []time.Duration{
			10 * time.Second, 10 * time.Second, 10 * time.Second, 10 * time.Second,
		},
	}
	s.inOutcomes(t, o, func(_ int, j store.Job) store.Outcome {
		if j.Event.Sequence == 2 {
			return anHourLater
		}
		return store.Outcome{Verdict: store.Again, Status: 500}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.completed", "7"), Event("call.completed", "7"))
		time.Sleep(90 * time.Minute)
		checkTimes(t, crm.timesOf("7", 2), 5*time.Second, time.Hour+5*time.Second)
		if got := States(t, b, "crm"); got[store.Dead] != 1 || got[store.Pending] != 1 {
			t.Errorf("%v", got)
		}
	})
}

// TestWhatIsPutOffIsNotProbedBeforeItsTime checks that a probe whose sender puts it off is not made
// again before the time that the sender has said.
func (s suite) TestWhatIsPutOffIsNotProbedBeforeItsTime(t *testing.T) {
	s.inOutcomes(t, Options{}, func(n int, _ store.Job) store.Outcome {
		switch n {
		case 1:
			return store.Outcome{Verdict: store.Misconfigured, Err: errors.New("the key was revoked")}
		case 2:
			return anHourLater
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.completed", "7"))
		time.Sleep(2 * time.Hour)
		if got := crm.got(); len(got) != 3 || got[2].at-got[1].at != time.Hour {
			t.Errorf("sent %s", crm.times())
		}
		if got := States(t, b, "crm"); got[store.Delivered] != 1 {
			t.Errorf("%v", got)
		}
	})
}

// TestWhatIsPutOffKeepsItsTimeWhenItsEndpointFails checks that what its sender has put off stays so
// when its endpoint begins to fail, which puts all else that waits for its time into line.
func (s suite) TestWhatIsPutOffKeepsItsTimeWhenItsEndpointFails(t *testing.T) {
	s.inOutcomes(t, Options{}, func(n int, j store.Job) store.Outcome {
		switch {
		case n == 1:
			return anHourLater
		case j.Event.Call == "8" && n < 6:
			return store.Outcome{Verdict: store.Misconfigured, Err: errors.New("the key was revoked")}
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.completed", "7"))
		time.Sleep(time.Minute)
		MustAppend(t, b, Event("call.completed", "8"))
		time.Sleep(2 * time.Hour)
		checkTimes(t, crm.timesOf("7", 1), 0, time.Hour)
		if n := len(crm.timesOf("8", 1)); n != 5 {
			t.Errorf("the other was tried %d times: %s", n, crm.times())
		}
		if got := States(t, b, "crm"); got[store.Delivered] != 2 {
			t.Errorf("%v", got)
		}
	})
}

// TestWhatIsPutOffIsNotStuckBehindARedelivery checks that what its sender has put off waits for an
// earlier event of its call that is asked for again meanwhile, and goes once that is delivered.
func (s suite) TestWhatIsPutOffIsNotStuckBehindARedelivery(t *testing.T) {
	s.inOutcomes(t, Options{}, func(n int, _ store.Job) store.Outcome {
		if n == 2 {
			return anHourLater
		}
		return store.Outcome{Verdict: store.Done, Status: 200}
	}, func(t *testing.T, b *Box, crm *scripted) {
		MustAppend(t, b, Event("call.incoming", "7"), Event("call.completed", "7"))
		time.Sleep(time.Minute)
		page, _, err := b.Deliveries(store.DeliveryQuery{Endpoint: "crm", State: "delivered", Limit: 5})
		if err != nil || len(page) != 1 {
			t.Fatal(page, err)
		}
		if _, err := b.Redeliver(page[0].ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		if got := crm.times(); got != "1@0s 2@0s 1@1m0s 2@1m0s" {
			t.Errorf("sent %s", got)
		}
		if got := States(t, b, "crm"); got[store.Delivered] != 2 {
			t.Errorf("%v", got)
		}
	})
}
