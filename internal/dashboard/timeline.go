package dashboard

import (
	"time"

	"pzbridge/internal/telephony"
)

// step is a point of the timeline. X is its position, from 0 to 600.
type step struct {
	X    int
	At   time.Time
	Kind string // asked, answered, transferred, rang, picked, over, other
	Text string
}

// stepKinds maps an event type to the kind of its step. Other types have the kind other.
var stepKinds = map[telephony.EventType]string{
	telephony.EventTransferRequested: "asked",
	telephony.EventIncoming:          "rang", telephony.EventOutgoing: "rang",
	telephony.EventIncomingAnswered: "picked", telephony.EventOutgoingAnswered: "picked",
	telephony.EventCompleted: "over",
}

// placeSteps sets the positions of the points in proportion to their times. It keeps them 16 apart,
// as long as all fit, so that none covers another.
func placeSteps(steps []step) {
	const width, gap, margin = 580, 16, 10
	if len(steps) == 0 {
		return
	}
	first, span := steps[0].At, steps[len(steps)-1].At.Sub(steps[0].At)
	for i := range steps {
		x := margin
		if span > 0 {
			x += int(float64(width) * float64(steps[i].At.Sub(first)) / float64(span))
		}
		if i > 0 {
			x = max(x, steps[i-1].X+gap)
		}
		steps[i].X = x
	}
	// From the end, move the points back that lie beyond it.
	for i, end := len(steps)-1, width+margin; i >= 0; i-- {
		steps[i].X = max(margin/2, min(steps[i].X, end))
		end = steps[i].X - gap
	}
}
