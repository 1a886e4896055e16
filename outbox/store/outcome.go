package store

import (
	"cmp"
	"iter"
	"time"

	"pzbridge/internal/telephony"
)

// maxLegGap is the longest time between the end of one leg of a call and the beginning of the next,
// for instance after a transfer. What is further apart are two calls: servers use the IDs of calls
// again after a restart.
const maxLegGap = time.Minute

// maxSilence is the longest time between two events of one call. The end of a call may be lost, for
// instance when the server is restarted, so its ID alone does not make the next one part of it.
const maxSilence = 4 * time.Hour

// OutcomeOf returns how a call ended, for an event that ends it: "" for any other event, and for an
// unanswered call of unknown direction. Earlier are the events of the call that are stored, the
// latest first, without their bodies.
//
// A call was answered if there is a time of talk or an event that says so. The mark of a missed
// call that the exchange sends means something else: that the bridge was not connected.
func OutcomeOf(e *NewEvent, earlier iter.Seq[Event]) telephony.Outcome {
	if e.Type != telephony.EventCompleted {
		return ""
	}
	answered, direction, next := e.Talked, e.Direction, e.At
	for before := range earlier {
		if before.Type == telephony.EventRecordingReady {
			continue // it says nothing of when the leg before it has ended
		}
		gap := next.Sub(before.At)
		if answered || gap > maxSilence || before.Type == telephony.EventCompleted && gap > maxLegGap {
			break
		}
		switch before.Type {
		case telephony.EventIncomingAnswered, telephony.EventOutgoingAnswered:
			answered = true
		case telephony.EventTransferRequested, telephony.EventIncoming:
			direction = cmp.Or(direction, telephony.Incoming)
		case telephony.EventOutgoing:
			direction = cmp.Or(direction, telephony.Outgoing)
		}
		next = before.At
	}
	switch {
	case answered:
		return telephony.OutcomeAnswered
	case direction == telephony.Incoming:
		return telephony.OutcomeMissed
	case direction == telephony.Outgoing:
		return telephony.OutcomeNoAnswer
	}
	return ""
}
