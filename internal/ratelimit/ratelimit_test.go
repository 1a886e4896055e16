package ratelimit

import (
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// A wait takes no token: whoever asks again in vain does not push back the next one.
func TestTakeOrWait(t *testing.T) {
	now := time.Now()
	l := rate.NewLimiter(2, 1)
	if wait := Take(l, now); wait != 0 {
		t.Errorf("the first waits %s", wait)
	}
	for range 3 {
		if wait := Take(l, now); wait != 500*time.Millisecond {
			t.Errorf("the second waits %s", wait)
		}
	}
	if wait := Take(l, now.Add(500*time.Millisecond)); wait != 0 {
		t.Errorf("after its wait it waits %s", wait)
	}
}
