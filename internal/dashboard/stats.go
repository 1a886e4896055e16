package dashboard

import (
	"slices"
	"sync"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

const (
	plotted = 60  // minutes
	sampled = 500 // of the latest attempts of each endpoint
)

// Stats remembers the last hour, or what there has been of it since the start: how much happened in
// each minute, and how long attempts took. It is an observer of the session and of the outbox.
type Stats struct {
	began     time.Time
	mu        sync.Mutex
	events    series
	delivered series
	failed    series
	took      map[string][]time.Duration // by endpoint, the latest last
}

// NewStats gives stats of nothing.
func NewStats() *Stats { return &Stats{began: time.Now(), took: map[string][]time.Duration{}} }

// series counts by minute.
type series struct {
	counts [plotted]int
	minute int64 // of the last entry, since 1970
}

func (s *series) add(now time.Time) {
	s.moveTo(now)
	s.counts[s.minute%plotted]++
}

// moveTo empties the minutes in which nothing was counted. A clock that was set back goes on in the last minute.
func (s *series) moveTo(now time.Time) {
	minute := now.Unix() / 60
	for n := 0; s.minute < minute && n < plotted; n++ {
		s.minute = max(s.minute+1, minute-plotted+1)
		s.counts[s.minute%plotted] = 0
	}
}

// list gives the counts, the oldest first.
func (s *series) list(now time.Time) (list []int) {
	s.moveTo(now)
	for i := int64(1); i <= plotted; i++ {
		list = append(list, s.counts[(s.minute+i)%plotted])
	}
	return list
}

// EventReceived counts an event.
func (s *Stats) EventReceived(telephony.EventType) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events.add(time.Now())
}

// AttemptEnded counts an attempt.
func (s *Stats) AttemptEnded(endpoint, outcome string, took, _ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if outcome == outbox.OutcomeDelivered {
		s.delivered.add(time.Now())
	} else {
		s.failed.add(time.Now())
	}
	list := append(s.took[endpoint], took)
	if len(list) > 2*sampled {
		list = slices.Clone(list[len(list)-sampled:])
	}
	s.took[endpoint] = list
}

// hour gives what happened in each of the last sixty minutes, the oldest first.
func (s *Stats) hour(now time.Time) (events, delivered, failed []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events.list(now), s.delivered.list(now), s.failed.list(now)
}

// start is when it began to count, if that is less than an hour ago; else zero.
func (s *Stats) start(now time.Time) time.Time {
	if now.Sub(s.began) < plotted*time.Minute {
		return s.began
	}
	return time.Time{}
}

// quantiles gives the median and the 99th percentile of the latest attempts at an endpoint; ok is false if there were none.
func (s *Stats) quantiles(endpoint string) (p50, p99 time.Duration, ok bool) {
	s.mu.Lock()
	list := slices.Clone(s.took[endpoint])
	s.mu.Unlock()
	if len(list) == 0 {
		return 0, 0, false
	}
	list = list[max(0, len(list)-sampled):]
	slices.Sort(list)
	return list[len(list)/2], list[len(list)*99/100], true
}
