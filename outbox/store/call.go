package store

import (
	"encoding/json"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// CallHead is what is known of a call as a whole, from its events and their deliveries.
type CallHead struct {
	CallID    string
	IsSMS     bool                // it is no call, but an SMS
	Direction telephony.Direction // empty if it is not known
	Internal  bool                // no client takes part
	// Client is the client's number, in E.164 if it is valid; Extension is that of the employee who
	// talked, or whose phone rang last. Line is the company's own number.
	Client, Extension, Line string
	// From and To are the latest numbers as the exchange sent them.
	From, To string
	Began    time.Time // when the first event was read, or the call began by the server's clock if earlier
	Latest   time.Time // when the latest event was read
	// Outcome is how the call ended; empty while it goes on, and if that is not known.
	Outcome      telephony.Outcome
	Completed    bool
	Duration     *int64 // seconds of talk; nil if they are not known
	RecordingURL string
	Deliveries   []CallStanding // for each endpoint for which there are any, by name
}

// CallStanding says how the deliveries of a call's events stand at one endpoint.
type CallStanding struct {
	Endpoint                          string
	Pending, Delivered, Expired, Dead int
	// End is the state of the delivery of the event that has ended the call, and HasEnd whether
	// there is one.
	End    State
	HasEnd bool
}

// State sums up the deliveries of a call at an endpoint. The end of the call matters most, since it
// tells the endpoint everything; before that, or without it, the worst state counts that is left.
func (s *CallStanding) State() State {
	switch {
	case s.HasEnd:
		return s.End
	case s.Dead > 0:
		return Dead
	case s.Pending > 0:
		return Pending
	case s.Delivered > 0:
		return Delivered
	}
	return Expired
}

// Add counts a delivery of an event.
func (s *CallStanding) Add(t telephony.EventType, state State) {
	switch state {
	case Pending:
		s.Pending++
	case Delivered:
		s.Delivered++
	case Expired:
		s.Expired++
	case Dead:
		s.Dead++
	}
	if t == telephony.EventCompleted {
		s.End, s.HasEnd = state, true
	}
}

// eventContent is what the head of a call takes from the body of an event.
type eventContent struct {
	Data struct {
		From         string              `json:"from"`
		To           string              `json:"to"`
		Line         string              `json:"line"`
		Direction    telephony.Direction `json:"direction"`
		Client       string              `json:"client_number"`
		Extension    string              `json:"extension"`
		Internal     bool                `json:"internal"`
		Outcome      telephony.Outcome   `json:"outcome"`
		StartedAt    time.Time           `json:"started_at"`
		Duration     *int64              `json:"duration_seconds"`
		RecordingURL string              `json:"recording_url"`
	} `json:"data"`
}

// NumbersIn returns the numbers in the body of an event as the exchange sent them.
func NumbersIn(body []byte) (from, to string) {
	var c eventContent
	_ = json.Unmarshal(body, &c) // Encode has written it; of a damaged one there are none
	return c.Data.From, c.Data.To
}

// SidesIn returns the client's number and the employee's extension in the body of an event, for
// people. Of an event that an older version has stored it returns both numbers as they came.
func SidesIn(body []byte) (client, extension string) {
	var c eventContent
	_ = json.Unmarshal(body, &c) // as in NumbersIn
	d := &c.Data
	client, extension = d.Client, d.Extension
	if client == "" && extension == "" {
		client, extension = d.From, d.To
	}
	return telephony.Brief(client), telephony.Brief(extension)
}

// HeadOf returns the head of a call, without its deliveries, from its events in their order.
func HeadOf(callID string, events []Event) CallHead {
	h := CallHead{CallID: callID, IsSMS: len(events) > 0}
	for i := range events {
		h.add(&events[i], events[:i])
	}
	return h
}

func (h *CallHead) add(e *Event, earlier []Event) {
	var c eventContent
	_ = json.Unmarshal(e.Body, &c) // as in NumbersIn
	d := &c.Data
	if h.Began.IsZero() {
		h.Began = e.At
	}
	if !d.StartedAt.IsZero() && d.StartedAt.Before(h.Began) {
		h.Began = d.StartedAt // it is a replay
	}
	if e.At.After(h.Latest) {
		h.Latest = e.At
	}
	h.IsSMS = h.IsSMS && (e.Type == telephony.EventSMSSent || e.Type == telephony.EventSMSStatus)
	replaceText(&h.From, d.From)
	replaceText(&h.To, d.To)
	replaceText(&h.Line, d.Line)
	replaceText(&h.Client, d.Client)
	replaceText(&h.Extension, d.Extension)
	replaceText(&h.RecordingURL, d.RecordingURL)
	if d.Direction != "" {
		h.Direction = d.Direction
	}
	h.Internal = h.Internal || d.Internal
	if d.Duration != nil {
		h.Duration = d.Duration
	}
	if e.Type != telephony.EventCompleted {
		h.Completed = h.Completed && (isOfEndedCall(e.Type) || isBeforeEnd(e, earlier))
		if !h.Completed {
			h.Outcome = ""
		}
		return
	}
	h.Completed, h.Outcome = true, d.Outcome
	if h.Outcome == "" { // it was stored by a version that decided none
		isNew := NewEvent{Event: *e, Direction: d.Direction, Talked: d.Duration != nil && *d.Duration > 0}
		h.Outcome = OutcomeOf(&isNew, backwards(earlier))
	}
}

// isBeforeEnd reports whether an event that was stored after the end of its call is from before it:
// a bridge that stood still stores what it had read once another one has stored the end. The times
// are those of the bridges, so this trusts that their clocks agree.
func isBeforeEnd(e *Event, earlier []Event) bool {
	for before := range backwards(earlier) {
		if before.Type == telephony.EventCompleted {
			return e.At.Before(before.At)
		}
	}
	return false
}

// isOfEndedCall reports whether an event may follow the end of its call, which it does not begin
// again.
func isOfEndedCall(t telephony.EventType) bool {
	return t == telephony.EventRecordingReady || t == telephony.EventOther ||
		t == telephony.EventSMSSent || t == telephony.EventSMSStatus
}

func replaceText(old *string, text string) {
	if text != "" {
		*old = text
	}
}

func backwards(events []Event) func(yield func(Event) bool) {
	return func(yield func(Event) bool) {
		for _, e := range slices.Backward(events) {
			if !yield(e) {
				return
			}
		}
	}
}
