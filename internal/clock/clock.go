// Package clock computes the age of things on a machine whose clock may be set while the program
// runs.
//
// A machine without a battery for its clock starts in the past and jumps forward, by years, once it
// reaches a time server; an operator's mistake does the same. By the wall clock alone everything
// would expire at that moment, and what has expired is dropped. Therefore a step forward counts
// only after it has lasted for an hour: until then, what is older than the step ages by the
// program's monotonic time. A step back makes everything younger, which harms nothing, and counts
// at once.
package clock

import (
	"fmt"
	"sync"
	"time"
)

const (
	// confirmAfter is how long a step forward must last before it counts.
	confirmAfter = time.Hour
	// tolerance is the largest difference that is no step but the gradual correction of a clock.
	tolerance = time.Minute
)

// WrongError means that the clock shows a time before the program was built.
type WrongError struct{ Shows time.Time }

func (e *WrongError) Error() string {
	return fmt.Sprintf("the clock of this machine is wrong: it says %s, which is before this program was built",
		e.date())
}

func (e *WrongError) date() string { return e.Shows.UTC().Format(time.DateOnly) }

// Code and Args name the error for those who show it: see the package telephony.
func (e *WrongError) Code() string { return "clock_wrong" }

// Args returns the date that the clock shows.
func (e *WrongError) Args() []string { return []string{e.date()} }

// Clock computes ages. Its methods are safe for concurrent use.
type Clock struct {
	built, first time.Time
	read         func() (wall time.Time, passed time.Duration)

	mu     sync.Mutex
	wall   time.Time     // at the last reading
	passed time.Duration // monotonic time since the start, at the last reading

	step     doubt // the steps forward that do not count yet
	downtime doubt // the time between the last stored record and the start
}

// doubt is a difference on the wall clock that may not be time that has passed.
type doubt struct {
	by    time.Duration // 0: none
	since time.Duration // when it arose, in monotonic time since the start
	from  time.Time     // when it arose, by the wall clock: later times are not affected
}

// New returns a clock. Built is when this version was built, first when the first version was: no
// correct clock shows a time before built, and no correct timestamp lies before first. A zero time
// disables the check.
func New(built, first time.Time) *Clock {
	start := time.Now()
	return Reading(built, first, func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(start)
	})
}

// Reading returns a clock with its own source of time: read returns the wall clock's time, and the
// monotonic time since an arbitrary moment.
func Reading(built, first time.Time, read func() (wall time.Time, passed time.Duration)) *Clock {
	c := &Clock{built: built, first: first, read: read}
	c.wall, c.passed = read()
	return c
}

// IsDated reports whether a timestamp can be correct: one before the program's first version was
// taken from a wrong clock.
func (c *Clock) IsDated(at time.Time) bool { return !at.Before(c.first) }

// Doubt is a step forward that does not count yet, in a form that survives a restart of the
// program.
type Doubt struct {
	By   time.Duration // 0: none
	From time.Time     // earlier times are affected
	Left time.Duration // until it counts
}

// Doubt returns the current doubt; its By is 0 if there is none.
func (c *Clock) Doubt() Doubt {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update()
	if c.step.by == 0 {
		return Doubt{}
	}
	return Doubt{By: c.step.by, From: c.step.from, Left: confirmAfter - (c.passed - c.step.since)}
}

// Resume restores the doubt of the program's previous run. It must be called before any other
// method.
func (c *Clock) Resume(d Doubt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update()
	if d.By > 0 && d.Left > 0 {
		c.step = doubt{by: d.By, from: d.From, since: c.passed - (confirmAfter - min(d.Left, confirmAfter))}
	}
}

// RanAt records that the program ran at a time before this start. The gap since then may be a step
// of the clock or a downtime; Age treats it as a step.
func (c *Clock) RanAt(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update()
	if gap := c.wall.Sub(at); !at.IsZero() && gap > confirmAfter {
		c.downtime = doubt{by: gap, since: c.passed, from: c.wall}
	}
}

// Age returns how long ago a time was, for decisions on what has expired: when in doubt, too small
// rather than too large. It is negative for a future time.
func (c *Clock) Age(at time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update()
	age := c.wall.Sub(at)
	for _, d := range []doubt{c.step, c.downtime} {
		if at.Before(d.from) {
			age -= d.by
		}
	}
	return age
}

// Freshness is Age for what is useful for a short time only: it counts a gap before the start as a
// downtime, by the wall clock.
func (c *Clock) Freshness(at time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update()
	age := c.wall.Sub(at)
	if at.Before(c.step.from) {
		age -= c.step.by
	}
	return age
}

// Check fails with a *WrongError while the clock shows a time before the program was built.
func (c *Clock) Check() error {
	wall, _ := c.read()
	if wall.Before(c.built) {
		return &WrongError{wall}
	}
	return nil
}

// update reads the clock and detects whether it has been set. The caller holds mu.
func (c *Clock) update() {
	wall, passed := c.read()
	step := wall.Sub(c.wall) - (passed - c.passed)
	switch {
	case step > tolerance:
		c.step = doubt{by: c.step.by + step, since: passed, from: c.wall.Add(step)}
	case step < -tolerance:
		back := -step
		undone := min(back, c.step.by) // a step back most likely undoes the last step forward
		c.step.by -= undone
		c.downtime.by -= min(back-undone, c.downtime.by)
	}
	c.wall, c.passed = wall, passed
	for _, d := range []*doubt{&c.step, &c.downtime} {
		if d.by == 0 || passed-d.since >= confirmAfter {
			*d = doubt{}
		}
	}
}
