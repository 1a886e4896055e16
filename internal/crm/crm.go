// Package crm is what the senders share that speak a CRM's own interface instead of webhooks: the
// settings of such an endpoint, the event as they read it, and who of the company takes part.
package crm

import (
	"encoding/json"
	"fmt"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Preset names the interface of an endpoint that is not told by webhook.
type Preset string

// The presets.
const (
	Bitrix24 Preset = "bitrix24"
	MegaFon  Preset = "megafon" // CRMs that have an interface for MegaFon's virtual PBX
)

// Presets lists the presets.
var Presets = []Preset{Bitrix24, MegaFon}

// Settings are those of an endpoint with a preset.
type Settings struct {
	Preset Preset
	People People
	// Create says of which unknown numbers the CRM makes a client. It is Bitrix24's.
	Create Create
	// Application is set if a local application of the portal takes the place of an inbound
	// webhook. It is Bitrix24's.
	Application Application
	// Domain stands behind the @ of an employee's login, and DefaultLine in place of the company's
	// own number where that is unknown. Both are MegaFon's.
	Domain, DefaultLine string
}

// Application is a local application of a portal of Bitrix24. The zero value is none.
type Application struct {
	ID, Secret string // as the portal shows them
	OAuthURL   string // where its tokens are exchanged
}

// Create says of which calls with an unknown number a CRM makes a client.
type Create string

// The choices.
const (
	CreateIncoming Create = "incoming"
	CreateAlways   Create = "always"
	CreateNever    Create = "never"
)

// Creates lists them.
var Creates = []Create{CreateIncoming, CreateAlways, CreateNever}

// Of reports whether a client is made of a call.
func (c Create) Of(isOutgoing bool) bool {
	return c == CreateAlways || c == CreateIncoming && !isOutgoing
}

// Event is what a sender reads of a stored event. What the event leaves out is the zero value.
type Event struct {
	Type      telephony.EventType
	CallID    string
	Client    string // the client's number: E.164, or digits if it is not valid
	Extension string // the employee's; empty if none is known
	Line      string // the company's own number
	Internal  bool   // no client takes part
	Direction telephony.Direction
	StartedAt time.Time
	EndedAt   time.Time
	Duration  time.Duration // of talk
	Outcome   telephony.Outcome
	Recording string
	Text      string // of an SMS
	Replayed  bool
}

// Read reads a stored event.
func Read(e store.Event) (Event, error) {
	var body struct {
		Data struct {
			Client    string              `json:"client_number"`
			Extension string              `json:"extension"`
			Line      string              `json:"line"`
			Internal  bool                `json:"internal"`
			Direction telephony.Direction `json:"direction"`
			StartedAt time.Time           `json:"started_at"`
			EndedAt   time.Time           `json:"ended_at"`
			Duration  int64               `json:"duration_seconds"`
			Outcome   telephony.Outcome   `json:"outcome"`
			Recording string              `json:"recording_url"`
			Text      string              `json:"text"`
			Replayed  bool                `json:"replayed"`
		} `json:"data"`
	}
	if err := json.Unmarshal(e.Body, &body); err != nil {
		return Event{}, fmt.Errorf("the stored event cannot be read: %w", err)
	}
	d := &body.Data
	return Event{
		Type:      e.Type,
		CallID:    e.Call,
		Client:    d.Client,
		Extension: d.Extension,
		Line:      d.Line,
		Internal:  d.Internal,
		Direction: d.Direction,
		StartedAt: d.StartedAt,
		EndedAt:   d.EndedAt,
		Duration:  time.Duration(d.Duration) * time.Second,
		Outcome:   d.Outcome,
		Recording: d.Recording,
		Text:      d.Text,
		Replayed:  d.Replayed,
	}, nil
}

// IsAnswered reports whether a call that is over was answered.
func (e *Event) IsAnswered() bool { return e.Duration > 0 || e.Outcome == telephony.OutcomeAnswered }

// Began returns when a call began: as the exchange has said, or else as far as it is known, given
// when the event was read.
func (e *Event) Began(read time.Time) time.Time {
	switch {
	case !e.StartedAt.IsZero():
		return e.StartedAt
	case !e.EndedAt.IsZero():
		return e.EndedAt.Add(-e.Duration)
	}
	return read.Add(-e.Duration)
}
