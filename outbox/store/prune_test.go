package store

import (
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
)

// latest is an event that is the latest of its call, and that no endpoint waits for.
type latest struct{ route *telephony.Route }

func (latest) IsLatest() bool            { return true }
func (l latest) Route() *telephony.Route { return l.route }
func (latest) Pending() iter.Seq[string] { return slices.Values([]string(nil)) }

// TestCallGoesOnUntilItIsSilentForHours checks that the latest event of a call is kept from going
// early only until then, and until nothing else makes room.
func TestCallGoesOnUntilItIsSilentForHours(t *testing.T) {
	e := Event{Call: "5", Type: telephony.EventIncoming}
	for age, want := range map[time.Duration]bool{0: true, 4 * time.Hour: true, 4*time.Hour + 1: false} {
		p := Pruning{Age: func(time.Time) time.Duration { return age }}
		early, last := p.Sooner(false), p.Sooner(true)
		if got := early.IsWaitedFor(&e, latest{}); got != want {
			t.Errorf("after %s it goes on: %v", age, got)
		}
		if p.IsWaitedFor(&e, latest{}) || last.IsWaitedFor(&e, latest{}) {
			t.Errorf("after %s it stays, though it is old or nothing else makes room", age)
		}
	}
}

// TestQuestionOfALiveCallStays checks that the event that says who has won a call stays until the
// call is over.
func TestQuestionOfALiveCallStays(t *testing.T) {
	now := time.Now()
	e := Event{ID: uuid.New(), Call: "5", Type: telephony.EventTransferRequested, At: now.Add(-time.Hour)}
	p := Pruning{Age: func(at time.Time) time.Duration { return now.Sub(at) }}
	for _, c := range []struct {
		route *telephony.Route
		want  bool
	}{
		{nil, false},
		{&telephony.Route{EventID: e.ID.String(), AskedAt: e.At}, true},
		{&telephony.Route{EventID: e.ID.String(), AskedAt: e.At, OverAt: now}, false},
		{&telephony.Route{EventID: e.ID.String(), AskedAt: e.At.Add(-24 * time.Hour)}, false},
		{&telephony.Route{EventID: uuid.NewString(), AskedAt: e.At}, false},
	} {
		if got := p.IsWaitedFor(&e, latest{c.route}); got != c.want {
			t.Errorf("with the route %+v it stays: %v", c.route, got)
		}
	}
}

// TestUndatedEventsGoWithTheNextDatedOne checks which events may go, where a wrong clock has dated
// some of them.
func TestUndatedEventsGoWithTheNextDatedOne(t *testing.T) {
	first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := first.Add(100 * time.Hour)
	p := Pruning{
		Retention: Retention{MaxAge: 24 * time.Hour},
		Age:       func(at time.Time) time.Duration { return now.Sub(at) },
		IsDated:   func(at time.Time) bool { return !at.Before(first) },
	}
	var gone []uint64
	for i, at := range []time.Duration{-1, -1, 200, 1, -1, 90, 1} { // hours since the first
		old, done := p.Next(uint64(i+1), &Event{At: first.Add(at * time.Hour)}, latest{})
		if gone = append(gone, old...); done {
			break
		}
	}
	if want := []uint64{1, 2, 4}; !slices.Equal(gone, want) {
		t.Errorf("%v may go, want %v", gone, want)
	}
}
