package dashboard

import (
	"testing"
	"time"
)

// A minute's count stays in the list for an hour, whatever the pauses. Setting the clock back loses
// no count.
func TestCountsAreKeptForAnHour(t *testing.T) {
	var s series
	at := time.Unix(1_800_000_000, 0)
	sum := func(now time.Time) (n int) {
		for _, c := range s.list(now) {
			n += c
		}
		return n
	}
	s.add(at)
	s.add(at.Add(time.Minute))
	s.add(at.Add(time.Minute))
	if list := s.list(at.Add(time.Minute)); list[59] != 2 || list[58] != 1 || len(list) != 60 {
		t.Errorf("%v", list)
	}
	s.add(at.Add(-time.Hour))
	if list := s.list(at.Add(time.Minute)); list[59] != 3 {
		t.Errorf("set back: %v", list)
	}
	if n := sum(at.Add(59 * time.Minute)); n != 4 {
		t.Errorf("just before the hour is over: %d", n)
	}
	if n := sum(at.Add(60 * time.Minute)); n != 3 {
		t.Errorf("an hour later: %d", n)
	}
	if n := sum(at.Add(1000 * time.Hour)); n != 0 {
		t.Errorf("long after: %d", n)
	}
}

func TestTimelinePointsDoNotOverlap(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	for name, offsets := range map[string][]int{
		"alone": {0}, "together": {0, 0, 0, 0}, "spread": {0, 1, 50, 100}, "at the end": {0, 99, 100, 100, 100},
	} {
		var steps []step
		for _, o := range offsets {
			steps = append(steps, step{At: at.Add(time.Duration(o) * time.Second)})
		}
		placeSteps(steps)
		for i := range steps {
			if steps[i].X < 0 || steps[i].X > 600 || i > 0 && steps[i].X < steps[i-1].X+10 {
				t.Errorf("%s: %+v", name, steps)
			}
		}
	}
}
