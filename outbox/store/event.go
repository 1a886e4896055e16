package store

import (
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
)

// Event is a stored event. It holds no memory of an engine's transaction.
type Event struct {
	ID       uuid.UUID
	Sequence uint64    // within its call; assigned when it is stored
	At       time.Time // when it was read, to the millisecond
	Type     telephony.EventType
	Call     string // empty for an event of no call
	// Body is the event in the standard format, fixed once: every attempt at every endpoint uses
	// the same bytes, also after an upgrade. Listings omit it.
	Body []byte
}

// NewEvent is an event that is to be stored. Its body lacks the sequence and the outcome, which the
// engine assigns; the other fields are what the engine needs for that and to place it.
type NewEvent struct {
	Event
	From, To    string
	Direction   telephony.Direction
	Talked      bool      // the event contains a time of talk
	Replayed    bool      // the exchange sends it again, because the bridge was disconnected
	EndedAt     time.Time // when the call ended; zero if the event does not contain it
	Fingerprint [16]byte  // equal for two events with the same content of the same call
	gap         int       // the position in Body of what the engine assigns; unused without a call
}

// Asks reports whether the event is a question for whose answer a caller waits on the line.
func (e *NewEvent) Asks() bool {
	return e.Type == telephony.EventTransferRequested && e.Call != "" && !e.Replayed
}

// MayRoute reports whether the event may change the route of its call.
func (e *NewEvent) MayRoute() bool {
	switch e.Type {
	case telephony.EventTransferRequested, telephony.EventIncoming, telephony.EventIncomingAnswered,
		telephony.EventCompleted:
		return e.Call != ""
	}
	return false
}

// AppendBody appends the body with a sequence and, unless it is empty, an outcome.
func (e *NewEvent) AppendBody(buf []byte, sequence uint64, outcome telephony.Outcome) []byte {
	if e.Call == "" {
		return append(buf, e.Body...)
	}
	buf = append(buf, e.Body[:e.gap]...)
	buf = strconv.AppendUint(buf, sequence, 10)
	if outcome != "" {
		buf = append(append(append(buf, `,"outcome":"`...), outcome...), '"')
	}
	return append(buf, e.Body[e.gap:]...)
}

// Encode converts an event to the form in which it is stored. The body of a question contains until
// when an answer counts: answerWithin after it was read. It fails if the ID of the event is not a
// UUID.
func Encode(e *telephony.Event, answerWithin time.Duration) (NewEvent, error) {
	id, err := uuid.Parse(e.ID)
	if err != nil {
		return NewEvent{}, fmt.Errorf("its ID is no UUID: %w", err)
	}
	n := NewEvent{
		Event:       Event{ID: id, At: e.Time, Type: e.Type, Call: e.CallID},
		From:        e.From,
		To:          e.To,
		Direction:   e.Direction,
		Talked:      e.Duration != nil && *e.Duration > 0,
		Replayed:    e.Replayed,
		EndedAt:     e.EndedAt,
		Fingerprint: e.Fingerprint,
	}
	n.Body, n.gap = encodeBody(e, n.Asks(), answerWithin)
	return n, nil
}
