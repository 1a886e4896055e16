// Package clock says how old things are on a machine whose clock may be set while the program runs.
//
// A machine without a battery for its clock starts in the past and is set forward, by years, once it
// reaches a time server; a slip of the hand does the same. By the wall clock alone everything would be
// too old from one moment to the next, and what is too old is dropped. A step forward is therefore not
// believed before it has lasted for an hour: until then what came before it is aged by the time that
// has passed while the program ran. A step back makes everything younger, harms nothing, and is
// believed at once.
package clock

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// believedAfter is how long a step must have lasted.
	believedAfter = time.Hour
	// tolerance is the largest step that is none: a clock that is corrected now and then.
	tolerance = time.Minute
)

// ErrWrong means that the clock stands before the day on which the program was built.
var ErrWrong = errors.New("the clock of this machine is wrong")

// Clock ages things. Several goroutines may use it.
type Clock struct {
	built, first time.Time
	read         func() (wall time.Time, passed time.Duration)

	mu     sync.Mutex
	wall   time.Time     // at the last look
	passed time.Duration // likewise, since the start

	step     doubt // the steps forward that are not believed yet
	downtime doubt // what lies between what was stored last and the start
}

// doubt is a part of the time that may not have passed.
type doubt struct {
	by    time.Duration // 0: there is none
	since time.Duration // that has passed since the start when it arose
	// from is what the clock showed then: what bears a later time came after it.
	from time.Time
}

// New gives a clock. Before the day on which this version was built no clock is right, and before that
// of the first version none was; zero is unknown.
func New(built, first time.Time) *Clock {
	start := time.Now()
	return Reading(built, first, func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(start)
	})
}

// Reading gives a clock that is read by a function: what the wall clock shows, and how much time has
// passed since some moment whatever that does.
func Reading(built, first time.Time, read func() (wall time.Time, passed time.Duration)) *Clock {
	c := &Clock{built: built, first: first, read: read}
	c.wall, c.passed = read()
	return c
}

// IsDated says whether a time can be right: what came before there was any version of the program came
// while the clock was wrong.
func (c *Clock) IsDated(at time.Time) bool { return !at.Before(c.first) }

// Doubt is a step forward that is not believed yet, for a program that is started anew meanwhile.
type Doubt struct {
	By   time.Duration // 0: there is none
	From time.Time     // what bears an earlier time came before it
	Left time.Duration // after which it is believed
}

// Doubt gives the doubt that there is.
func (c *Clock) Doubt() Doubt {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	if c.step.by == 0 {
		return Doubt{}
	}
	return Doubt{By: c.step.by, From: c.step.from, Left: believedAfter - (c.passed - c.step.since)}
}

// Resume takes the doubt that there was when the program ran last. It must be called first.
func (c *Clock) Resume(d Doubt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	if d.By > 0 && d.Left > 0 {
		c.step = doubt{by: d.By, from: d.From, since: c.passed - (believedAfter - min(d.Left, believedAfter))}
	}
}

// RanAt says that the program ran at a time, before this start. What lies between may be a step of the
// clock as well as a downtime, and is treated as one by Age.
func (c *Clock) RanAt(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	if gap := c.wall.Sub(at); !at.IsZero() && gap > believedAfter {
		c.downtime = doubt{by: gap, since: c.passed, from: c.wall}
	}
}

// Age is how long ago a time was, of what is dropped when it is too old: rather too little than too
// much. It is negative for a time to come.
func (c *Clock) Age(at time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	age := c.wall.Sub(at)
	for _, d := range []doubt{c.step, c.downtime} {
		if at.Before(d.from) {
			age -= d.by
		}
	}
	return age
}

// Freshness is Age for what is of use for a short time only: what is from before a downtime is as old
// as the clock says.
func (c *Clock) Freshness(at time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	age := c.wall.Sub(at)
	if at.Before(c.step.from) {
		age -= c.step.by
	}
	return age
}

// Check fails with ErrWrong while the clock stands before the day on which the program was built.
func (c *Clock) Check() error {
	wall, _ := c.read()
	if wall.Before(c.built) {
		return fmt.Errorf("%w: it says %s, which is before this program was built; set it, by NTP if you can",
			ErrWrong, wall.UTC().Format(time.DateOnly))
	}
	return nil
}

// look reads the clock, and sees whether it has been set. The caller holds mu.
func (c *Clock) look() {
	wall, passed := c.read()
	step := wall.Sub(c.wall) - (passed - c.passed)
	switch {
	case step > tolerance:
		c.step = doubt{by: c.step.by + step, since: passed, from: c.wall.Add(step)}
	case step < -tolerance:
		back := -step
		taken := min(back, c.step.by) // most likely it takes the last step back
		c.step.by -= taken
		c.downtime.by -= min(back-taken, c.downtime.by)
	}
	c.wall, c.passed = wall, passed
	for _, d := range []*doubt{&c.step, &c.downtime} {
		if d.by == 0 || passed-d.since >= believedAfter {
			*d = doubt{}
		}
	}
}
