package store

import (
	"context"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// Dumper is an engine whose contents can be copied into another one.
type Dumper interface {
	// Dump returns the next records after a position, about limit of them; a nil position begins.
	// Nothing may change what is stored from the first call to the last.
	//
	// The first part, up to FirstPartRecord, is all that deliveries, questions and commands need:
	// numbers, endpoints, settings, notes, keys, what operators have done, and events: of each call
	// the latest with the call's route and what senders have kept for it, all of the calls and
	// events for which an endpoint waits, and the newest events of all. Then the history follows,
	// the newest event first. An event may come twice.
	Dump(ctx context.Context, after []byte, limit int) (Dumped, error)
}

// Dumped is the result of a Dump.
type Dumped struct {
	Records []CopyRecord
	Next    []byte // the position after the records; nil if they are the last
	Damaged int    // events that cannot be read, and so are not among the records
}

// EndsFirstPart reports whether the first part is whole with these records.
func (d *Dumped) EndsFirstPart() bool {
	return slices.ContainsFunc(d.Records, func(r CopyRecord) bool {
		_, is := r.(FirstPartRecord)
		return is
	})
}

// Loader is an engine into which another one can be copied.
type Loader interface {
	// Load stores the result of a Dump as it is, numbers included, and its position, all in one
	// transaction. The same result again changes nothing more.
	Load(ctx context.Context, d Dumped) (Loaded, error)
}

// ErrStillCopied means that something needs the whole history, which is not there yet. It ends by
// itself, once all is loaded.
var ErrStillCopied = &telephony.Fault{
	Code: telephony.CodeStillCopied,
	Text: "older events are still being copied from the outbox's file",
}

// Loaded is the result of a Load.
type Loaded struct {
	Events int // that were stored; those that were there already are not counted
	// Conflicts counts events that cannot be stored, since another one has their ID, or their place
	// in their call.
	Conflicts int
	// Full means that the history ends here: there is no room for older events.
	Full bool
}

// CopyRecord is one stored thing: a value of one of the types below.
type CopyRecord interface{ isRecord() }

// NumbersRecord says which numbers events have had.
type NumbersRecord struct {
	Last   uint64 // the number of the event that was appended last
	Pruned uint64 // the highest number of an event that has been removed
}

// EndpointRecord is an endpoint that the engine knows, configured or not.
type EndpointRecord struct {
	Name    string
	Reading Reading // its zero value if it has read nothing
}

// SettingRecord is a setting.
type SettingRecord struct{ Name, Value string }

// NoteRecord is a note of an endpoint.
type NoteRecord struct {
	Endpoint, Name string
	Version        uint64
	Value          []byte
	Until          time.Time // zero for ever
}

// KeyRecord is an idempotency key.
type KeyRecord struct {
	Bearer string
	Key    [32]byte
	Claim  KeyClaim
}

// AuditRecord is something that an operator has done, with its number.
type AuditRecord struct {
	Number uint64
	Audit  Audit
}

// RedeliveryRecord is a redelivery of many, with its number.
type RedeliveryRecord struct{ RedeliveryState }

// RouteRecord is the route of a call.
type RouteRecord struct{ Route telephony.Route }

// KeptRecord is what an endpoint's sender has kept for a call.
type KeptRecord struct {
	Call, Endpoint string
	Version        uint64
	Value          []byte
}

// EventRecord is an event with its number and its deliveries.
type EventRecord struct {
	Number      uint64
	Event       Event
	Fingerprint [16]byte
	Asking      bool // endpoints are being asked about it
	Deliveries  []DeliveryRecord
}

// DeliveryRecord is a delivery of an event.
type DeliveryRecord struct {
	Endpoint string
	Delivery Delivery
	History  []byte // the record of its last attempts
}

// CompleteRecord says that every event from a number on has come.
type CompleteRecord struct{ From uint64 }

// FirstPartRecord ends the first part.
type FirstPartRecord struct{}

func (NumbersRecord) isRecord()    {}
func (EndpointRecord) isRecord()   {}
func (SettingRecord) isRecord()    {}
func (NoteRecord) isRecord()       {}
func (KeyRecord) isRecord()        {}
func (AuditRecord) isRecord()      {}
func (RedeliveryRecord) isRecord() {}
func (RouteRecord) isRecord()      {}
func (KeptRecord) isRecord()       {}
func (EventRecord) isRecord()      {}
func (CompleteRecord) isRecord()   {}
func (FirstPartRecord) isRecord()  {}
