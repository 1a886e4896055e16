package clock

import (
	"errors"
	"testing"
	"time"
)

// machine is a machine whose clock can be set.
type machine struct {
	wall   time.Time
	passed time.Duration
}

func (m *machine) read() (time.Time, time.Duration) { return m.wall, m.passed }

func (m *machine) passes(d time.Duration) { m.wall, m.passed = m.wall.Add(d), m.passed+d }

func (m *machine) set(by time.Duration) { m.wall = m.wall.Add(by) }

const month = 30 * 24 * time.Hour

var start = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func TestAge(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(m *machine, c *Clock)
		before  time.Duration // the age of what came at the start
		after   time.Duration // and of what came after what happens, ten seconds later
	}{
		"nothing":      {func(m *machine, _ *Clock) { m.passes(time.Hour) }, time.Hour + 10*time.Second, 10 * time.Second},
		"slow drift":   {func(m *machine, c *Clock) { drift(m, c) }, 2*time.Hour + 10*time.Second, 10 * time.Second},
		"a step ahead": {func(m *machine, c *Clock) { m.passes(time.Minute); c.Age(start); m.set(month) }, time.Minute + 10*time.Second, 10 * time.Second},
		"one that lasts": {func(m *machine, c *Clock) {
			m.set(month)
			c.Age(start)
			m.passes(believedAfter)
		}, month + believedAfter + 10*time.Second, 10 * time.Second},
		"one that has nearly lasted": {func(m *machine, c *Clock) {
			m.set(month)
			c.Age(start)
			m.passes(believedAfter - time.Minute)
		}, believedAfter - time.Minute + 10*time.Second, 10 * time.Second},
		"two steps ahead": {func(m *machine, c *Clock) {
			m.set(month)
			c.Age(start)
			m.passes(50 * time.Minute)
			m.set(month)
			c.Age(start)
			m.passes(50 * time.Minute)
		}, 100*time.Minute + 10*time.Second, 10 * time.Second},
		"ahead and back": {func(m *machine, c *Clock) {
			m.set(month)
			c.Age(start)
			m.passes(time.Minute)
			m.set(-month)
		}, time.Minute + 10*time.Second, 10 * time.Second},
		"back": {func(m *machine, _ *Clock) { m.set(-month) }, 10*time.Second - month, 10 * time.Second},
		"a downtime": {func(m *machine, c *Clock) {
			c.RanAt(start)
			m.passes(2 * time.Minute)
		}, 2*time.Minute + 10*time.Second, 10 * time.Second},
	} {
		m := &machine{wall: start}
		if name == "a downtime" {
			m.wall = start.Add(month)
		}
		clock := Reading(time.Time{}, time.Time{}, m.read)
		c.happens(m, clock)
		clock.Age(start)
		then := m.wall
		m.passes(10 * time.Second)
		if got := clock.Age(start); got != c.before {
			t.Errorf("%s: what came at the start is %s old, want %s", name, got, c.before)
		}
		if got := clock.Age(then); got != c.after {
			t.Errorf("%s: what came after it is %s old, want %s", name, got, c.after)
		}
		if got, want := clock.Freshness(start), m.wall.Sub(start); name == "a downtime" && got != want {
			t.Errorf("%s: for what is of use for a while it is %s old, want %s", name, got, want)
		}
	}
}

// drift is a clock that is corrected by a second each minute, over two hours.
func drift(m *machine, c *Clock) {
	for range 2 * 59 {
		m.passes(time.Minute)
		m.set(time.Second)
		c.Age(start)
	}
	m.passes(2*time.Hour - m.wall.Sub(start))
}

func TestWrongClock(t *testing.T) {
	m := &machine{wall: time.Unix(100, 0)}
	c := Reading(start, time.Time{}, m.read)
	if err := c.Check(); !errors.Is(err, ErrWrong) {
		t.Errorf("in 1970: %v", err)
	}
	m.set(start.Sub(m.wall))
	if err := c.Check(); err != nil {
		t.Errorf("today: %v", err)
	}
}

// A clock that is set ahead and back is as it was, also after a downtime.
func TestDowntimeAheadAndBack(t *testing.T) {
	m := &machine{wall: start.Add(2 * month)}
	c := Reading(time.Time{}, time.Time{}, m.read)
	c.RanAt(start)
	m.passes(time.Minute)
	before := c.Age(start)
	m.set(month)
	c.Age(start)
	m.set(-month)
	if got := c.Age(start); got != before {
		t.Errorf("%s old before the clock was set and set back, %s after", before, got)
	}
}

// A step is doubted for the whole of its hour, however often the program is started meanwhile.
func TestDoubtOutlivesTheProgram(t *testing.T) {
	m := &machine{wall: start}
	c := Reading(time.Time{}, time.Time{}, m.read)
	m.set(month)
	c.Age(start)
	m.passes(40 * time.Minute)
	d := c.Doubt()
	c = Reading(time.Time{}, time.Time{}, m.read)
	c.Resume(d)
	m.passes(10 * time.Minute)
	if got := c.Age(start); got != 50*time.Minute {
		t.Errorf("after 50 minutes, and a start in between, it is %s old", got)
	}
	m.passes(11 * time.Minute)
	if got := c.Age(start); got != month+61*time.Minute {
		t.Errorf("after an hour it is %s old", got)
	}
}
