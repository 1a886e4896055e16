package bolt

import (
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// TestWhatWaitsFollowsAClockThatWasSetBack checks which time a delivery that waits gets once the
// clock has been set back.
func TestWhatWaitsFollowsAClockThatWasSetBack(t *testing.T) {
	now := time.Unix(1e9, 0)
	const hold, longest = time.Minute, 24 * time.Hour
	s := &Engine{rules: store.Rules{Hold: hold, LongestWait: longest}}
	in := func(d time.Duration) int64 { return now.Add(d).UnixNano() }
	for name, c := range map[string]struct {
		due, failed, tried time.Duration // from now on
		untried            bool
		wantDue, wantFail  time.Duration
	}{
		"tried before now": {
			due:      time.Hour,
			failed:   -time.Hour,
			tried:    -time.Minute,
			wantDue:  time.Hour,
			wantFail: -time.Hour,
		},
		"tried after now": {due: time.Hour, failed: time.Minute, tried: time.Minute},
		"tried before and after now": {
			due:      time.Hour,
			failed:   -time.Hour,
			tried:    time.Minute,
			wantFail: -time.Hour,
		},
		"further ahead than any wait": {
			due:      25 * time.Hour,
			failed:   -time.Hour,
			tried:    -time.Minute,
			wantFail: -time.Hour,
		},
		"held for a part of the hold": {due: time.Second, untried: true, wantDue: time.Second},
		"held for longer than it may": {due: time.Hour, untried: true, wantDue: hold},
		"asked for again, and is held": {
			due:     time.Second,
			tried:   time.Hour,
			untried: true,
			wantDue: time.Second,
		},
	} {
		d := store.Delivery{
			Attempts: 3,
			Step:     2,
			Next:     7,
			Due:      in(c.due),
		}
		want := d
		want.Due = in(c.wantDue)
		if !c.untried {
			d.FailedAt, want.FailedAt = in(c.failed), in(c.wantFail)
		}
		got := s.rules.SetBack(d, now.Add(c.tried), now)
		if got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
		if again := s.rules.SetBack(got, now.Add(c.tried), now); again != got {
			t.Errorf("%s: done twice, it is %+v, once %+v", name, again, got)
		}
	}
}

// TestWhatIsPutOffKeepsItsTimeWhenTheClockIsSetBack checks that the time that a sender has set
// stays, up to the longest that it can set, and that a record keeps that it is put off.
func TestWhatIsPutOffKeepsItsTimeWhenTheClockIsSetBack(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := &Engine{rules: store.Rules{Hold: time.Minute, LongestWait: time.Hour}}
	for ahead, want := range map[time.Duration]time.Duration{
		time.Second:                   time.Second,
		5 * time.Hour:                 5 * time.Hour,
		store.MaxPutOff:               store.MaxPutOff,
		store.MaxPutOff + time.Second: 0,
	} {
		d := store.Delivery{PutOff: true, Due: now.Add(ahead).UnixNano()}
		kept, _, _, err := decodeDelivery(encodeDelivery(d, nil))
		if err != nil || kept != d {
			t.Errorf("%s: stored is %+v, %v", ahead, kept, err)
		}
		if got := time.Duration(s.rules.SetBack(kept, now.Add(time.Hour), now).Due - now.UnixNano()); got != want {
			t.Errorf("%s ahead becomes %s, want %s", ahead, got, want)
		}
	}
}
