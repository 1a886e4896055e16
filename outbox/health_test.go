package outbox

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// paused is the outcome of an attempt that is answered with a request to wait.
func paused(wait time.Duration) store.Outcome {
	return store.Outcome{
		Verdict:    store.Again,
		Status:     http.StatusTooManyRequests,
		RetryAfter: wait,
		Throttled:  true,
	}
}

func TestHealthFollowsFromHowAttemptsEnd(t *testing.T) {
	now := time.Unix(1e9, 0)
	const middle = 0.5
	failed := store.Outcome{Verdict: store.Again, Status: http.StatusServiceUnavailable}
	taken := store.Outcome{Verdict: store.Done, Status: http.StatusOK}
	refused := store.Outcome{Verdict: store.Again, Err: errors.New("refused")}
	tooMany := store.Outcome{Verdict: store.Again, Status: http.StatusTooManyRequests}
	later := store.Outcome{Verdict: store.Again, Status: http.StatusServiceUnavailable, RetryAfter: time.Minute}
	after := func(h health, probe bool, list ...store.Outcome) health {
		for _, o := range list {
			h = h.after(o, probe, now, middle)
		}
		return h
	}
	well := health{}
	shaky := after(well, false, slices.Repeat([]store.Outcome{failed}, 19)...)
	failing := after(shaky, false, refused)
	asksToWait := after(well, false, paused(time.Minute))
	for _, c := range []struct {
		name  string
		h     health
		state string
		slots int
		in    time.Duration // until it is tried, if it is not now
	}{
		{"well", well, StateOK, 16, 0},
		{"19 failures", shaky, StateOK, 16, 0},
		{"19 failures and a success", after(shaky, false, taken, failed), StateOK, 16, 0},
		{"20 failures", failing, StateFailing, 0, 5 * time.Second},
		{"one more that was under way", after(failing, false, failed), StateFailing, 0, 5 * time.Second},
		{"a probe failed", after(failing, true, failed), StateFailing, 0, 10 * time.Second},
		{"four probes failed", after(failing, true, failed, failed, failed, failed), StateFailing, 0, 80 * time.Second},
		{
			"many probes failed", after(failing, true, slices.Repeat([]store.Outcome{failed}, 300)...),
			StateFailing, 0, 5 * time.Minute,
		},
		{"a success that was under way", after(failing, false, taken), StateOK, 16, 0},
		{"a probe went well", after(failing, true, failed, taken), StateOK, 16, 0},
		{"429 without a time", after(well, false, tooMany), StateOK, 16, 0},
		{"429 with a time", asksToWait, StatePaused, 0, time.Minute},
		{"the longer pause counts", after(asksToWait, false, paused(time.Second)), StatePaused, 0, time.Minute},
		{"a success does not end a pause", after(asksToWait, false, taken), StatePaused, 0, time.Minute},
		{
			"429 without a time, again and again", after(well, false, slices.Repeat([]store.Outcome{tooMany}, 20)...),
			StateFailing, 0, 5 * time.Second,
		},
		{
			"no 429 with a time counts",
			after(well, false, slices.Repeat([]store.Outcome{paused(time.Second)}, 100)...),
			StatePaused, 0, time.Second,
		},
		{"503 with a time is none", after(well, false, later), StateOK, 16, 0},
	} {
		state, at := c.h.state(now)
		slots, _ := c.h.allows(now, 16)
		if state != c.state || slots != c.slots || c.in > 0 && at.Sub(now) != c.in {
			t.Errorf("%s: %s, %d attempts, in %s; want %s, %d, %s",
				c.name, state, slots, at.Sub(now), c.state, c.slots, c.in)
		}
		if slots, _ := c.h.allows(now.Add(time.Hour), 16); c.state == StateFailing && slots != 1 {
			t.Errorf("%s: an hour later %d attempts", c.name, slots)
		}
	}
}

// TestPauseKeepsItsReason checks that a success of an attempt that was under way leaves the reason
// of a pause.
func TestPauseKeepsItsReason(t *testing.T) {
	now := time.Now()
	taken := store.Outcome{Verdict: store.Done, Status: http.StatusOK}
	h := health{}.after(paused(time.Minute), false, now, 0).after(taken, false, now, 0)
	if state, _ := h.state(now); state != StatePaused || h.lastError.Error() != "HTTP 429" {
		t.Errorf("%s: %q", state, h.lastError)
	}
}

// failingTimes is an engine that only sums up for how long endpoints have been failing.
type failingTimes struct {
	store.Engine
	notes map[string][]byte // by endpoint
}

func (f failingTimes) Note(_ context.Context, endpoint, _ string, _ time.Time) ([]byte, uint64, error) {
	return f.notes[endpoint], 0, nil
}

func (f failingTimes) SetNote(_ context.Context, endpoint, _ string, _ uint64, value []byte, _ time.Time) error {
	f.notes[endpoint] = value
	return nil
}

// TestPausedEndpointIsNotAbandoned checks that a failing endpoint is abandoned, and one which only
// asks to wait is not.
func TestPausedEndpointIsNotAbandoned(t *testing.T) {
	now := time.Now()
	for want, h := range map[int]health{
		0: {pausedUntil: now.Add(time.Hour)},
		1: {failing: true, since: now, probeAt: now.Add(time.Hour)},
	} {
		opts := testOptions()
		o := &Outbox{opts: opts, engine: failingTimes{notes: map[string][]byte{}}}
		o.lanes = []*lane{newLane(opts.Endpoints[0], opts, nil, nil)}
		o.lanes[0].health = h
		if got := o.abandoned(t.Context(), 100_000*time.Hour); got["crm"] != (want == 1) {
			t.Errorf("%+v: abandoned are %v", h, got)
		}
	}
}
