package outbox

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// TestAfterAttempt checks how a delivery stands after an attempt, by its outcome and its place in
// the schedule.
func TestAfterAttempt(t *testing.T) {
	schedule := []time.Duration{10 * time.Second, time.Minute}
	now := time.Unix(1e9, 0)
	const lowest, middle, highest = 0, 0.5, 1
	done := func(status int) store.Outcome { return store.Outcome{Verdict: store.Done, Status: status} }
	again := func(status int, retryAfter time.Duration) store.Outcome {
		return store.Outcome{
			Verdict:    store.Again,
			Status:     status,
			RetryAfter: retryAfter,
			Throttled:  status == http.StatusTooManyRequests,
		}
	}
	gone := store.Outcome{Verdict: store.Gone, Status: 410}
	unanswered := store.Outcome{Verdict: store.Again, Err: errors.New("refused")}
	for _, c := range []struct {
		name     string
		attempts int
		o        store.Outcome
		random   float64
		state    store.State
		wait     time.Duration
	}{
		{"200", 0, done(200), middle, store.Delivered, 0},
		{"299 at the last try", 2, done(299), middle, store.Delivered, 0},
		{"410", 0, gone, middle, store.Dead, 0},
		{"500, first wait", 0, again(500, 0), middle, store.Pending, 10 * time.Second},
		{"500, a fifth earlier", 0, again(500, 0), lowest, store.Pending, 8 * time.Second},
		{"500, a fifth later", 0, again(500, 0), highest, store.Pending, 12 * time.Second},
		{"404, second wait", 1, again(404, 0), middle, store.Pending, time.Minute},
		{"302", 0, again(302, 0), middle, store.Pending, 10 * time.Second},
		{"no answer", 0, unanswered, middle, store.Pending, 10 * time.Second},
		{"500, schedule used up", 2, again(500, 0), middle, store.Dead, 0},
		{"429 that asks for longer", 0, again(429, 20*time.Second), middle, store.Pending, 20 * time.Second},
		{"503 that asks for less", 0, again(503, time.Second), middle, store.Pending, 10 * time.Second},
		{"404 that asks for longer", 0, again(404, time.Minute), middle, store.Pending, time.Minute},
		{"503 that asks for a year", 0, again(503, 365*24*time.Hour), middle, store.Pending, time.Hour},
		{"503 that asks to come back when it is over", 2, again(503, time.Second), middle, store.Dead, 0},
	} {
		got := afterAttempt(store.Delivery{Attempts: c.attempts, Step: c.attempts}, c.o, schedule, now, c.random)
		want := store.Delivery{
			State:    c.state,
			Attempts: c.attempts + 1,
			Step:     c.attempts,
			Due:      now.Add(c.wait).UnixNano(),
		}
		if c.state == store.Pending {
			want.Step++
		}
		if c.o.Verdict == store.Again {
			want.FailedAt = now.UnixNano()
		}
		if c.o.Throttled { // its call is held for that much longer
			want.FailedAt = now.Add(c.o.RetryAfter).UnixNano()
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, want)
		}
	}
}

// TestAFailureInTheFutureHoldsFromNowOn checks that a delivery that failed at a time that is still
// to come, since the clock was set back, holds its call from the next failure on.
func TestAFailureInTheFutureHoldsFromNowOn(t *testing.T) {
	now := time.Unix(1e9, 0)
	d := store.Delivery{FailedAt: now.Add(time.Hour).UnixNano()}
	failed := store.Outcome{Verdict: store.Again, Status: 500}
	if d := afterAttempt(d, failed, []time.Duration{time.Minute}, now, 0); d.FailedAt != now.UnixNano() {
		t.Errorf("it holds its call from %s on", time.Unix(0, d.FailedAt))
	}
}

// TestAProbeCostsNothingOfTheSchedule checks that a probe that fails changes nothing of its
// delivery but the number of attempts, whatever the answer is, and that one that succeeds has
// delivered it.
func TestAProbeCostsNothingOfTheSchedule(t *testing.T) {
	now := time.Unix(1e9, 0)
	before := store.Delivery{
		Attempts: 3,
		Step:     2,
		Next:     7,
		Expires:  now.Add(time.Hour).UnixNano(),
	}
	after := before
	after.Attempts++
	for name, o := range map[string]store.Outcome{
		"500":       {Verdict: store.Again, Status: 500},
		"410":       {Verdict: store.Gone, Status: 410},
		"429":       {Verdict: store.Again, Status: 429, RetryAfter: time.Minute, Throttled: true},
		"no answer": {Verdict: store.Again, Err: errors.New("refused")},
	} {
		if got := afterProbe(before, o, now); got != after {
			t.Errorf("%s: got %+v, want %+v", name, got, after)
		}
	}
	delivered := after
	delivered.State, delivered.Due = store.Delivered, now.UnixNano()
	if got := afterProbe(before, store.Outcome{Verdict: store.Done, Status: 200}, now); got != delivered {
		t.Errorf("200: got %+v, want %+v", got, delivered)
	}
}
