package clock

import (
	"errors"
	"testing"
	"time"

	"pzbridge/internal/telephony"
)

// machine has a clock that can be set.
type machine struct {
	wall   time.Time
	passed time.Duration
}

func (m *machine) read() (time.Time, time.Duration) { return m.wall, m.passed }

func (m *machine) passes(d time.Duration) { m.wall, m.passed = m.wall.Add(d), m.passed+d }

func (m *machine) set(by time.Duration) { m.wall = m.wall.Add(by) }

const month = 30 * 24 * time.Hour

var start = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func TestAgeWhileTheClockIsSet(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(m *machine, c *Clock)
		before  time.Duration // the age of the start
		after   time.Duration // the age of the moment after the change, ten seconds later
	}{
		"nothing": {func(m *machine, _ *Clock) {
			m.passes(time.Hour)
		}, time.Hour + 10*time.Second, 10 * time.Second},
		"slow drift": {func(m *machine, c *Clock) { drift(m, c) }, 2*time.Hour + 10*time.Second, 10 * time.Second},
		"a step forward": {func(m *machine, c *Clock) {
			m.passes(time.Minute)
			c.Age(start)
			m.set(month)
		}, time.Minute + 10*time.Second, 10 * time.Second},
		"a step forward that lasts": {func(m *machine, c *Clock) {
			m.set(month)
			c.Age(start)
			m.passes(confirmAfter)
		}, month + confirmAfter + 10*time.Second, 10 * time.Second},
		"a step forward that has nearly lasted": {func(m *machine, c *Clock) {
			m.set(month)
			c.Age(start)
			m.passes(confirmAfter - time.Minute)
		}, confirmAfter - time.Minute + 10*time.Second, 10 * time.Second},
		"two steps forward": {func(m *machine, c *Clock) {
			m.set(month)
			c.Age(start)
			m.passes(50 * time.Minute)
			m.set(month)
			c.Age(start)
			m.passes(50 * time.Minute)
		}, 100*time.Minute + 10*time.Second, 10 * time.Second},
		"forward and back": {func(m *machine, c *Clock) {
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
			t.Errorf("%s: the start is %s old, want %s", name, got, c.before)
		}
		if got := clock.Age(then); got != c.after {
			t.Errorf("%s: the moment after it is %s old, want %s", name, got, c.after)
		}
		if got, want := clock.Freshness(start), m.wall.Sub(start); name == "a downtime" && got != want {
			t.Errorf("%s: the freshness of the start is %s, want %s", name, got, want)
		}
	}
}

// drift corrects the clock by a second each minute, for two hours.
func drift(m *machine, c *Clock) {
	for range 2 * 59 {
		m.passes(time.Minute)
		m.set(time.Second)
		c.Age(start)
	}
	m.passes(2*time.Hour - m.wall.Sub(start))
}

func TestClockBeforeTheBuildIsWrong(t *testing.T) {
	m := &machine{wall: time.Unix(100, 0)}
	c := Reading(start, time.Time{}, m.read)
	if err := c.Check(); !errors.As(err, new(*WrongError)) {
		t.Errorf("in 1970: %v", err)
	}
	if got := telephony.CauseOf(c.Check()); got.Code != telephony.CodeClockWrong || got.Args[0] != "1970-01-01" {
		t.Errorf("in 1970: %+v", got)
	}
	m.set(start.Sub(m.wall))
	if err := c.Check(); err != nil {
		t.Errorf("today: %v", err)
	}
}

// A clock that is set forward and back gives the same ages as before, also after a downtime.
func TestClockSetForwardAndBackAfterADowntime(t *testing.T) {
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

// A step counts only after its whole hour, however often the program is restarted meanwhile.
func TestDoubtSurvivesARestart(t *testing.T) {
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
