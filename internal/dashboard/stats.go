package dashboard

import (
	"slices"
	"sync"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

const (
	plotMinutes = 60  // length of the plot
	maxSamples  = 500 // durations of the latest attempts, for each endpoint
)

// Stats holds the counts of each minute of the last hour, and the durations of the latest attempts.
// It is an observer of the session and of the outbox; a restart clears it. Its methods may be
// called concurrently.
type Stats struct {
	began     time.Time
	mu        sync.Mutex
	events    series
	delivered series
	failed    series
	took      map[string][]time.Duration // by endpoint, the latest last
}

// NewStats returns empty Stats.
func NewStats() *Stats { return &Stats{began: time.Now(), took: map[string][]time.Duration{}} }

// series is a ring of counts by minute.
type series struct {
	counts [plotMinutes]int
	minute int64 // the newest minute of counts, since 1970
}

func (s *series) add(now time.Time) {
	s.advance(now)
	s.counts[s.minute%plotMinutes]++
}

// advance moves the ring to now and clears the minutes without counts. If the clock was set back,
// the counts continue in the newest minute.
func (s *series) advance(now time.Time) {
	minute := now.Unix() / 60
	for n := 0; s.minute < minute && n < plotMinutes; n++ {
		s.minute = max(s.minute+1, minute-plotMinutes+1)
		s.counts[s.minute%plotMinutes] = 0
	}
}

// list returns the counts, the oldest first.
func (s *series) list(now time.Time) (list []int) {
	s.advance(now)
	for i := int64(1); i <= plotMinutes; i++ {
		list = append(list, s.counts[(s.minute+i)%plotMinutes])
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
	if len(list) > 2*maxSamples {
		list = slices.Clone(list[len(list)-maxSamples:])
	}
	s.took[endpoint] = list
}

// hour returns the counts of the last sixty minutes, the oldest first.
func (s *Stats) hour(now time.Time) (events, delivered, failed []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events.list(now), s.delivered.list(now), s.failed.list(now)
}

// start returns when counting began if that is less than an hour ago, else the zero time.
func (s *Stats) start(now time.Time) time.Time {
	if now.Sub(s.began) < plotMinutes*time.Minute {
		return s.began
	}
	return time.Time{}
}

// quantiles returns the median and the 99th percentile of the latest attempts' durations at an
// endpoint. ok is false if there were no attempts.
func (s *Stats) quantiles(endpoint string) (p50, p99 time.Duration, ok bool) {
	s.mu.Lock()
	list := slices.Clone(s.took[endpoint])
	s.mu.Unlock()
	if len(list) == 0 {
		return 0, 0, false
	}
	list = list[max(0, len(list)-maxSamples):]
	slices.Sort(list)
	return list[len(list)/2], list[len(list)*99/100], true
}
