package store

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// EventCursor is where a reader of events stands: behind the event with the number After. Events
// stay while an endpoint waits for them, so some are left between those that have been removed. A
// reader that got a PrunedError goes on with the number of the last event that was removed as
// Warned, or it would get the error again.
type EventCursor struct {
	After, Warned uint64
}

func (c EventCursor) String() string {
	if c.After >= c.Warned {
		return strconv.FormatUint(c.After, 10)
	}
	return fmt.Sprintf("%d.%d", c.After, c.Warned)
}

// ParseEventCursor reads what String has returned. Fails with ErrBadCursor.
func ParseEventCursor(cursor string) (c EventCursor, err error) {
	after, warned, has := strings.Cut(cursor, ".")
	if c.After, err = strconv.ParseUint(after, 10, 64); err != nil {
		return EventCursor{}, ErrBadCursor
	}
	if c.Warned, err = strconv.ParseUint(warned, 10, 64); has && err != nil {
		return EventCursor{}, ErrBadCursor
	}
	return c, nil
}

// StoredEvents says which events are stored around a cursor. A number is 0 if there is none.
type StoredEvents struct {
	Last   uint64 // the event that was appended last, also if it has been removed
	Pruned uint64 // the highest number of an event that has been removed
	First  uint64 // the lowest number that is stored
	Before uint64 // the highest that is stored before the cursor
	Has    bool   // the event at the cursor is stored
	Next   uint64 // the lowest that is stored after the cursor
}

// CheckGap fails with a *PrunedError where events after the cursor are missing and the reader does
// not know it. A number at which there is no event, nor the next one, is of a store in whose place
// a backup was put: what comes after that is new. One that was never given is of a store of which
// nothing is known.
func (c EventCursor) CheckGap(s StoredEvents) error {
	switch {
	case c.After < s.Pruned && c.Warned >= s.Pruned:
		return nil
	case c.After < s.Pruned:
		return &PrunedError{Oldest: s.oldest(c.After, s.Next).String()}
	case c.After > s.Last:
		return &PrunedError{Oldest: s.oldest(0, s.First).String()}
	case c.After == s.Pruned, c.After == s.Last, s.Has, s.Next == c.After+1:
		return nil
	}
	return &PrunedError{Oldest: EventCursor{s.Before, s.Pruned}.String()}
}

// oldest returns where to go on behind a number to miss nothing of what is left, the first of which
// is next: at the last event that was removed, or before it where some are left.
func (s *StoredEvents) oldest(after, next uint64) EventCursor {
	if next == 0 || next > s.Pruned {
		return EventCursor{After: s.Pruned}
	}
	return EventCursor{after, s.Pruned}
}

// Position is where a list of deliveries stands: at the delivery of an event to an endpoint.
type Position struct {
	Number   uint64
	Endpoint string
}

func (p Position) String() string { return fmt.Sprintf("%d.%s", p.Number, p.Endpoint) }

// ParsePosition reads what String has returned; empty is before all deliveries. Fails with
// ErrBadCursor.
func ParsePosition(cursor string) (Position, error) {
	if cursor == "" {
		return Position{Number: math.MaxUint64}, nil
	}
	n, endpoint, ok := strings.Cut(cursor, ".")
	at, err := strconv.ParseUint(n, 10, 64)
	if !ok || err != nil {
		return Position{}, ErrBadCursor
	}
	return Position{at, endpoint}, nil
}

// ParseCallCursor reads the cursor of a list of calls: a number below which the events stand at
// which the next page finds its calls. Empty is above all events. Fails with ErrBadCursor.
func ParseCallCursor(cursor string) (below uint64, err error) {
	if cursor == "" {
		return math.MaxUint64, nil
	}
	if below, err = strconv.ParseUint(cursor, 10, 64); err != nil {
		return 0, ErrBadCursor
	}
	return below, nil
}

// CallCursor returns the cursor of the calls that are found at events below a number.
func CallCursor(below uint64) string { return strconv.FormatUint(below, 10) }
