// Package telephony holds the terms that the rest of the bridge shares: what happens to a call
// (Event), what a CRM may request from the exchange (Command), and how that can fail.
//
// It imports the standard library only and contains neither the wire format of the exchange nor the
// form of a webhook.
package telephony

import (
	"fmt"
	"slices"
	"time"
)

// EventType is the kind of an event, as webhooks name it.
type EventType string

// The types of events. An event of the exchange of any other kind is an EventOther: new kinds are
// passed on, never dropped.
const (
	EventTransferRequested EventType = "call.transfer_requested" // a call has come in and waits for its target
	EventIncoming          EventType = "call.incoming"           // the call rings a manager
	EventIncomingAnswered  EventType = "call.incoming_answered"  // the manager picked up
	EventOutgoing          EventType = "call.outgoing"           // an outgoing call rings
	EventOutgoingAnswered  EventType = "call.outgoing_answered"  // the client picked up
	EventCompleted         EventType = "call.completed"          // the call is over
	EventRecordingReady    EventType = "call.recording_ready"    // the bridge has fetched its recording
	EventSMSSent           EventType = "sms.sent"                // an SMS was handed to the user's phone
	EventSMSStatus         EventType = "sms.status"              // the status of an SMS has changed
	EventOther             EventType = "pz.event"
)

// The operational types: what happens to the bridge itself. Only endpoints that name them get them.
const (
	EventConnected    EventType = "bridge.connected"    // to the exchange
	EventDisconnected EventType = "bridge.disconnected" // from the exchange; Reason is the cause
	// EventEndpointFailing means that attempts at Endpoint fail; Reason is the outcome of the last
	// one.
	EventEndpointFailing   EventType = "endpoint.failing"
	EventEndpointRecovered EventType = "endpoint.recovered"
	EventDeliveryDead      EventType = "delivery.dead" // the delivery DeliveryID to Endpoint is not tried any more
)

// The alerts: what an administrator must know. Text is a sentence for a person, Recovered says that
// it is over, and Endpoint which endpoint it is about, if any.
const (
	EventAlertDisconnected    EventType = "alert.disconnected" // from the exchange, for a minute
	EventAlertEndpointFailing EventType = "alert.endpoint_failing"
	EventAlertDeliveryDead    EventType = "alert.delivery_dead"    // some deliveries to Endpoint are dead
	EventAlertOutboxFull      EventType = "alert.outbox_full"      // four fifths of its limit are in use
	EventAlertCommandsRefused EventType = "alert.commands_refused" // by the limits on calls and SMS
)

// AlertTypes lists the alerts.
var AlertTypes = []EventType{
	EventAlertDisconnected, EventAlertEndpointFailing, EventAlertDeliveryDead, EventAlertOutboxFull,
	EventAlertCommandsRefused,
}

// IsAlert reports whether events of a type are alerts.
func IsAlert(t EventType) bool { return slices.Contains(AlertTypes, t) }

// OperationalTypes lists the operational types, the alerts among them.
var OperationalTypes = slices.Concat([]EventType{
	EventConnected, EventDisconnected, EventEndpointFailing, EventEndpointRecovered, EventDeliveryDead,
}, AlertTypes)

// IsType reports whether there is such a type.
func IsType(t EventType) bool { return slices.Contains(EventTypes, t) || IsOperational(t) }

// IsOperational reports whether events of a type are about the bridge itself.
func IsOperational(t EventType) bool { return slices.Contains(OperationalTypes, t) }

// EventTypes lists every type of event about what happens at the exchange, in the order in which a
// call produces them.
var EventTypes = []EventType{
	EventTransferRequested, EventIncoming, EventIncomingAnswered,
	EventOutgoing, EventOutgoingAnswered, EventCompleted, EventRecordingReady,
	EventSMSSent, EventSMSStatus, EventOther,
}

// Direction is the direction of the call as a whole, seen from the company.
type Direction string

// The directions. What is not a call (an SMS, an unknown event) has none.
const (
	Incoming Direction = "incoming"
	Outgoing Direction = "outgoing"
)

// Outcome is how a call ended.
type Outcome string

// The outcomes. The exchange tells the seconds of talk alone: whether the line was busy, or the
// call was declined, cannot be known.
const (
	OutcomeAnswered Outcome = "answered"
	OutcomeMissed   Outcome = "missed"    // an incoming call that was not answered
	OutcomeNoAnswer Outcome = "no_answer" // an outgoing one
)

// SMSStatus is the state of an SMS.
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
	CallID string    // an unsigned 64-bit decimal; anything else is kept as it came

	From, To, Line string
	// Client is the number of the client, in E.164 if it is valid; Extension that of the employee.
	// Internal means that no client takes part.
	Client, Extension  string
	Internal           bool
	Direction          Direction
	StartedAt, EndedAt time.Time // UTC, whole seconds
	Duration           *int64    // seconds of talk; nil when unknown, since 0 is a valid length
	RecordingURL       string
	Recording          *Recording // of an EventRecordingReady
	Text               string     // of an SMS, decoded
	Status             SMSStatus  // of an SMS
	Replayed           bool       // sent again by the exchange, because the bridge had been disconnected

	// Endpoint, DeliveryID and Reason are set in operational events only, Recovered in alerts.
	Endpoint, DeliveryID, Reason string
	Recovered                    bool

	Wire []Attr // every attribute as it came, in that order

	// Fingerprint is equal for two events with the same content of the same call, also if one of
	// them is a replay.
	Fingerprint [16]byte
}

// Recording is what the bridge keeps of a call, as a file.
type Recording struct {
	Size int64  // bytes
	Type string // its media type, such as audio/mpeg
}

// Attr is one attribute of an event as the exchange sent it.
type Attr struct{ Name, Value string }

// CommandKind is the kind of a Command.
type CommandKind string

// The kinds of commands.
const (
	CommandCall     CommandKind = "call"     // ring From, then dial To
	CommandTransfer CommandKind = "transfer" // send the call CallID to To; an empty To means "do not redirect"
	CommandSMS      CommandKind = "sms"      // send Text from From to To
)

// Command is one instruction to the exchange. Which fields are used depends on Kind.
type Command struct {
	Kind   CommandKind
	CallID string
	From   string
	To     string
	Text   string
}

// The ways in which a Command can fail. Only a RefusedError proves that the exchange received the
// command and did not carry it out.
var (
	// ErrNotConnected means that there is no connection to the exchange; nothing was sent.
	ErrNotConnected = &Fault{Code: CodeNotConnected, Text: "not connected to the Prostie Zvonki server"}
	// ErrOutboxFull means that events cannot be stored, so the connection to the exchange is not
	// read and the answer to a command could not be received. Nothing was sent.
	ErrOutboxFull = &Fault{
		Code: CodeNotListening,
		Text: "the outbox is full or cannot be written, so the Prostie Zvonki server is not listened to",
	}
	// ErrNotSent means that the command could not be written to the socket in time; the exchange
	// did not get it.
	ErrNotSent = &Fault{
		Code: CodeNotSent,
		Text: "the command could not be written to the Prostie Zvonki server in time",
	}
	// ErrNoAnswer means that the command was written and no answer came in time: it may have been
	// carried out.
	ErrNoAnswer = &Fault{
		Code: CodeNoAnswer,
		Text: "no answer from the Prostie Zvonki server in time: the command may have been carried out",
	}
)

// RefusedError is the exchange's refusal of a command.
type RefusedError struct {
	Code    string // as received: "1" is an authentication error, "2" any other
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

// Cause returns the code of the refusal.
func (e *RefusedError) Cause() Cause {
	switch {
	case e.Details != "":
		return Cause{CodeRefused, []string{e.Details, e.Code}}
	case e.Code == "1":
		return Cause{CodeRefusedIdentity, []string{e.Code}}
	}
	return Cause{CodeRefusedUnexplained, []string{e.Code}}
}

// NotAllowedError means that the operator's policy forbids a command; nothing was sent.
type NotAllowedError struct {
	Reason     string        // its name in the metrics
	Code       Code          // for a face
	Text       string        // what is not allowed
	Field      string        // the field of the command that is not allowed; empty if it is none
	Number     string        // the value of Field
	RetryAfter time.Duration // the wait until it is allowed; 0 if waiting does not help
}

func (e *NotAllowedError) Error() string { return e.Text }

// Cause returns the code of the limit.
func (e *NotAllowedError) Cause() Cause { return Cause{Code: e.Code} }

// ConnectionState is the state of the connection to the exchange.
type ConnectionState string

// The states of a connection.
const (
	Connecting   ConnectionState = "connecting"
	Connected    ConnectionState = "connected"
	Disconnected ConnectionState = "disconnected" // waiting before the next dial
	Disabled     ConnectionState = "disabled"     // switched off by the operator
)

// Connection describes the connection to the exchange at one moment.
type Connection struct {
	State         ConnectionState
	Since         time.Time // when it was connected, or when the connection was lost
	CloseCode     int       // of the last connection that the server closed; 0 if none did
	CloseMeaning  string    // CloseCode in words
	CloseCause    Cause     // CloseCode for a face
	LastError     string    // why there is no connection; empty while Connected
	LastCause     Cause     // of LastError
	EndedByClose  bool      // LastError is that the server closed the connection, with CloseCode
	DialsAt       time.Time // the time of the next dial, while Disconnected
	ServerVersion string    // as the server reports it; empty before that
	// Form is the encoding of the server's messages, "base64" or "xml"; empty while there is no
	// connection. FormOfAddress is the encoding that the scheme of its address implies. The two
	// differ behind a proxy that adds or removes TLS.
	Form, FormOfAddress string
}
