// Package telephony holds the words that the rest of the bridge shares: what happens to a call
// (Event), what a CRM may ask of the exchange (Command), and how that can fail.
//
// It imports the standard library only and knows neither the wire of the exchange nor the shape of
// a webhook.
package telephony

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// EventType says what happened, in the words of the webhook that tells of it.
type EventType string

// The types of events. Whatever the exchange sends that is none of the named ones is EventOther:
// new kinds are passed on, never dropped.
const (
	EventTransferRequested EventType = "call.transfer_requested" // a call came in and asks where to go
	EventIncoming          EventType = "call.incoming"           // it rings a manager
	EventIncomingAnswered  EventType = "call.incoming_answered"  // the manager picked up
	EventOutgoing          EventType = "call.outgoing"           // a call that goes out rings
	EventOutgoingAnswered  EventType = "call.outgoing_answered"  // the client picked up
	EventCompleted         EventType = "call.completed"          // the call is over
	EventSMSSent           EventType = "sms.sent"                // an SMS was handed to the user's phone
	EventSMSStatus         EventType = "sms.status"              // what became of an SMS
	EventOther             EventType = "pz.event"
)

// The operational types: what happens to the bridge itself. They go only to endpoints that name
// them.
const (
	EventConnected    EventType = "bridge.connected"    // to the exchange
	EventDisconnected EventType = "bridge.disconnected" // from it; Reason says why
	// EventEndpointFailing means that Endpoint takes nothing; Reason says how its last attempt
	// ended.
	EventEndpointFailing   EventType = "endpoint.failing"
	EventEndpointRecovered EventType = "endpoint.recovered"
	EventDeliveryDead      EventType = "delivery.dead" // the delivery DeliveryID to Endpoint is given up
)

// OperationalTypes lists them.
var OperationalTypes = []EventType{
	EventConnected, EventDisconnected, EventEndpointFailing, EventEndpointRecovered, EventDeliveryDead,
}

// IsType says whether there is such a type.
func IsType(t EventType) bool { return slices.Contains(EventTypes, t) || IsOperational(t) }

// IsOperational says whether a type tells of the bridge itself.
func IsOperational(t EventType) bool { return slices.Contains(OperationalTypes, t) }

// EventTypes lists every type that tells of the exchange, in the order in which a call goes through
// them.
var EventTypes = []EventType{
	EventTransferRequested, EventIncoming, EventIncomingAnswered,
	EventOutgoing, EventOutgoingAnswered, EventCompleted,
	EventSMSSent, EventSMSStatus, EventOther,
}

// Direction says who called whom, of the call as a whole.
type Direction string

// The two directions. A thing that is no call (an SMS, an unknown event) has none.
const (
	Incoming Direction = "incoming"
	Outgoing Direction = "outgoing"
)

// SMSStatus is what became of an SMS.
type SMSStatus string

// The states of an SMS.
const (
	SMSSending SMSStatus = "sending"
	SMSSent    SMSStatus = "sent"
	SMSFailed  SMSStatus = "failed"
)

// Event is one thing that happened to one call. It is immutable once appended to the outbox and its
// ID never changes. A field that the exchange left out, or sent blank, is the zero value.
type Event struct {
	ID     string    // UUIDv7, given before the event is appended
	Type   EventType // what happened
	Time   time.Time // when the bridge read it, UTC
	CallID string    // an unsigned 64-bit decimal; as it came when it is something else

	From, To, Line     string
	Direction          Direction
	StartedAt, EndedAt time.Time // UTC, whole seconds
	Duration           *int64    // seconds of talk; nil when unknown, since 0 is a length too
	RecordingURL       string
	Text               string    // of an SMS, decoded
	Status             SMSStatus // of an SMS
	Replayed           bool      // sent again by the exchange because the bridge had been away

	// Endpoint, DeliveryID and Reason are of operational events.
	Endpoint, DeliveryID, Reason string

	Wire []Attr // every attribute as it came, in that order

	// Fingerprint is the same for two events that say the same of the same call, whether or not one
	// of them is a replay.
	Fingerprint [16]byte
}

// Attr is one attribute of an event as the exchange sent it.
type Attr struct{ Name, Value string }

// CommandKind says what a Command asks for.
type CommandKind string

// The kinds of commands.
const (
	CommandCall     CommandKind = "call"     // ring From, then dial To
	CommandTransfer CommandKind = "transfer" // send the call CallID to To; an empty To means "do not redirect"
	CommandSMS      CommandKind = "sms"      // send Text from From to To
)

// Command is one instruction to the exchange. Which fields count depends on Kind.
type Command struct {
	Kind   CommandKind
	CallID string
	From   string
	To     string
	Text   string
}

// How a Command can fail. Only a RefusedError says that the exchange saw the command and did not do
// it.
var (
	// ErrNotConnected means that there is no connection to the exchange; nothing was sent.
	ErrNotConnected = errors.New("not connected to the Prostie Zvonki server")
	// ErrOutboxFull means that events cannot be stored and the exchange is not listened to: its
	// answer would not be heard. Nothing was sent.
	ErrOutboxFull = errors.New("the outbox is full or cannot be written, " +
		"so the Prostie Zvonki server is not listened to")
	// ErrNotSent means that the command could not be written to the socket in time; the exchange
	// did not get it.
	ErrNotSent = errors.New("the command could not be written to the Prostie Zvonki server in time")
	// ErrNoAnswer means that the command was written and no answer came in time: it may have been
	// carried out.
	ErrNoAnswer = errors.New("no answer from the Prostie Zvonki server in time: the command may have been carried out")
)

// RefusedError is the exchange's own "no".
type RefusedError struct {
	Code    string // as it came: "1" authentication error, "2" any other
	Details string // text for a person, usually empty
}

func (e *RefusedError) Error() string {
	meaning := "an error that it does not explain"
	if e.Code == "1" {
		meaning = "an authentication error"
	}
	if e.Details != "" {
		meaning = e.Details
	}
	return fmt.Sprintf("the Prostie Zvonki server refused: %s (code %s)", meaning, e.Code)
}

// NotAllowedError says that the operator has not allowed a command; nothing was sent.
type NotAllowedError struct {
	Reason     string        // as metrics name it
	Text       string        // for a person
	Field      string        // the field of the command that is to blame; empty if none is
	Number     string        // what stands there
	RetryAfter time.Duration // how long it takes until it may be given; 0 if waiting does not help
}

func (e *NotAllowedError) Error() string { return e.Text }

// ConnectionState is where the connection to the exchange stands.
type ConnectionState string

// The states of a connection.
const (
	Connecting   ConnectionState = "connecting"
	Connected    ConnectionState = "connected"
	Disconnected ConnectionState = "disconnected" // waits before it dials again
	Disabled     ConnectionState = "disabled"     // switched off by the operator
)

// Connection describes the connection to the exchange at one moment.
type Connection struct {
	State         ConnectionState
	Since         time.Time // since when it has been connected, or has not
	CloseCode     int       // of the last connection that the server closed; 0 if none did
	CloseMeaning  string    // CloseCode in plain words
	LastError     string    // why there is no connection; empty while Connected
	DialsAt       time.Time // when it dials again, while Disconnected
	ServerVersion string    // what the server calls itself; empty until it has said so
	// Form is how the server packs its messages: "base64" or "xml"; empty while there is no
	// connection. FormOfAddress is what its address lets one expect. They differ behind a proxy
	// that adds or removes TLS.
	Form, FormOfAddress string
}
