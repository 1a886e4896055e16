package store

import (
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
)

// Event is an event as it is stored. Nothing in it belongs to an engine's transaction.
type Event struct {
	ID       uuid.UUID
	Sequence uint64    // within its call; given when it is stored
	At       time.Time // when it was read, to the millisecond
	Type     telephony.EventType
	Call     string // empty for an event of no call
	// Body is the event in the standard format, fixed once: every attempt at every endpoint is made
	// from the same bytes, after an upgrade too. A listing leaves it out.
	Body []byte
}

// NewEvent is an event on its way into the store: its body lacks the sequence, which only an engine
// can know, and beside it stands what is needed to place it.
type NewEvent struct {
	Event
	From        string    // the caller
	Replayed    bool      // the exchange sends it once more, since the bridge was away
	EndedAt     time.Time // when the call was over; zero if the event does not say it
	Fingerprint [16]byte  // the same for two events that say the same of a call
	gap         int       // where in Body the sequence goes; an event of no call has none
}

// Asks reports whether the event is a question that a person on the line waits for.
func (e *NewEvent) Asks() bool {
	return e.Type == telephony.EventTransferRequested && e.Call != "" && !e.Replayed
}

// AppendBody appends the body with a sequence.
func (e *NewEvent) AppendBody(buf []byte, sequence uint64) []byte {
	if e.Call == "" {
		return append(buf, e.Body...)
	}
	buf = append(buf, e.Body[:e.gap]...)
	buf = strconv.AppendUint(buf, sequence, 10)
	return append(buf, e.Body[e.gap:]...)
}

// Encode gives an event as it is going to be stored. A question says until when an answer is of
// use: that long after it was read. It fails if the event's ID is no UUID.
func Encode(e *telephony.Event, answerWithin time.Duration) (NewEvent, error) {
	id, err := uuid.Parse(e.ID)
	if err != nil {
		return NewEvent{}, fmt.Errorf("its ID is no UUID: %w", err)
	}
	n := NewEvent{
		Event:       Event{ID: id, At: e.Time, Type: e.Type, Call: e.CallID},
		From:        e.From,
		Replayed:    e.Replayed,
		EndedAt:     e.EndedAt,
		Fingerprint: e.Fingerprint,
	}
	n.Body, n.gap = encodeBody(e, n.Asks(), answerWithin)
	return n, nil
}
