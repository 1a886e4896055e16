package outbox

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/outbox/store"
)

// testOptions are those of an outbox with one endpoint.
func testOptions() Options {
	return Options{
		Endpoints:      []store.Endpoint{{Name: "crm", Concurrency: 16, RingingTTL: 1000 * time.Hour}},
		RetrySchedule:  []time.Duration{5 * time.Second, 5 * time.Minute},
		RoutingTimeout: 10 * time.Second,
		Retention:      168 * time.Hour,
		Logger:         slog.New(slog.DiscardHandler),
		Observer:       unobserved{},
		Clock:          clock.New(time.Time{}, time.Time{}),
	}
}

// wallClockQueue is a queue in which nothing is too late before a time. That time lacks a monotonic
// reading, as one from an engine does.
type wallClockQueue struct {
	store.Lane
	next time.Time
}

func (q wallClockQueue) Expire(context.Context, time.Time, int) (expired []store.Job, next time.Time, err error) {
	return nil, q.next.Round(0), nil
}

// TestExpiryIsLookedForByTheMonotonicClock checks that the next look for what is too late does not
// wait for a wall clock that was set back. It reads the form of the time, since the clock of a
// bubble cannot be set.
func TestExpiryIsLookedForByTheMonotonicClock(t *testing.T) {
	opts, now := testOptions(), time.Now()
	queue := wallClockQueue{next: now.Add(1000*time.Hour - 2*time.Second)}
	l := newLane(opts.Endpoints[0], opts, nil, nil)
	l.begin(queue)
	l.expireAt = now
	if at := l.expire(t.Context(), now); !strings.Contains(at.String(), " m=") {
		t.Errorf("the next look is at %s, by the wall clock", at)
	}
}
