package storetest

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestClockSetBack checks that deliveries that wait for their time do not wait longer because the
// clock is set back, be it while the lane is held or before it was taken.
func (s suite) TestClockSetBack(t *testing.T) {
	const again, hold = 5 * time.Minute, time.Minute
	for name, test := range map[string]struct {
		isRunning bool
		back      time.Duration
		ready     int           // deliveries
		next      time.Duration // until the next one is due
	}{
		"not, at a start":    {false, 0, 0, hold},
		"not, while it runs": {true, 0, 0, hold},
		"at a start":         {false, time.Hour, 1, hold},
		"while it runs":      {true, time.Hour, 1, hold},
	} {
		t.Run(name, func(t *testing.T) {
			c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) {
				w.WriteHeader(http.StatusServiceUnavailable)
			}}
			Bubble(t, c, func(t *testing.T) {
				o := s.open(t, Options{
					DialContext:   c.Net.Dial,
					OrderHold:     hold,
					RetrySchedule: []time.Duration{again, 24 * time.Hour},
				})
				stop := RunBox(t, o)
				MustAppend(t, o, Event("call.completed", "5"))
				synctest.Wait() // it has failed
				stop()
				MustAppend(t, o, Event("call.completed", "5")) // held for a minute
				lane, err := o.Engine.Lane(t.Context(), "crm", false)
				if err != nil {
					t.Fatal(err)
				}
				if test.isRunning {
					if _, err := lane.Claim(t.Context(), time.Now(), 64, nil); err != nil {
						t.Fatal(err)
					}
				}
				now := time.Now().Add(-test.back)
				got, err := lane.Claim(t.Context(), now, 64, nil)
				if err != nil {
					t.Fatal(err)
				}
				if len(got.Jobs) != test.ready || test.ready > 0 && got.Jobs[0].Number != 1 {
					t.Errorf("%d are ready, want %d: %+v", len(got.Jobs), test.ready, got.Jobs)
				}
				got, err = lane.Claim(t.Context(), now, 64, nil) // as if they were under way
				if err != nil {
					t.Fatal(err)
				}
				if len(got.Jobs) > 0 || got.Next.Sub(now) != test.next {
					t.Errorf("%d are ready, the next is in %s, want %s", len(got.Jobs), got.Next.Sub(now), test.next)
				}
			})
		})
	}
}
