package store

import (
	"context"
	"time"

	"pzbridge/internal/telephony"
)

// Shared is an engine that several processes use, each of them a bridge.
type Shared interface {
	// Held returns a context that ends when the work of this process may pass to another one. If
	// that has not happened, it later returns another context.
	Held() context.Context
	// AllRules are the rules with the endpoints of all bridges, as they were seen last.
	AllRules() Rules
	// UnwrittenTransfers returns the routes that are decided and whose Transfer nobody writes yet,
	// though there is time: the bridge at which the answer came was not connected.
	UnwrittenTransfers(ctx context.Context, now time.Time) ([]telephony.Route, error)
	// AppendHeard is Append for what one of two listeners has read, each in a slot: 1 or 2. It
	// fails with ErrBehind, and stores nothing, if the other one has stored anything after the
	// number followed; a repeated append does not. HeardByOthers returns the fingerprints of what
	// the other one has stored after a number, and the number to go on from: the same at the end.
	// Replays and events of the bridge itself do not count.
	AppendHeard(ctx context.Context, slot int, followed uint64, events []NewEvent) (Appended, error)
	HeardByOthers(ctx context.Context, slot int, after uint64) (list []Heard, followed uint64, err error)
	// LastNumber is the number of the event that was stored last.
	LastNumber(ctx context.Context) (uint64, error)
	// Announce stores how a bridge stands, in place of what one of its name has said before. What
	// others have said is removed BridgeKept later.
	Announce(ctx context.Context, b Bridge) error
	// Bridges returns the bridges that were seen since a time, by name.
	Bridges(ctx context.Context, since time.Time) ([]Bridge, error)
}

// Heard is an event that a listener has stored: its fingerprint, and whether it was a replay.
type Heard struct {
	Print    [16]byte
	Replayed bool
}

// BridgeKept is how long what a bridge has said is kept after it was seen last: longer than any
// chart that it has a part in.
const BridgeKept = 8 * 24 * time.Hour

// Bridge is a process that runs on an engine.
type Bridge struct {
	Name      string
	Version   string
	Started   time.Time
	Seen      time.Time // when it announced itself last, or was found alive by the process that lists it
	Connected bool      // to the exchange
	Slot      int       // in which it listens to the exchange; 0 if in none
	// Refused is how many commands the bridge has refused of late, and RefusedAt when the last one
	// was.
	Refused   int
	RefusedAt time.Time
	// Lanes are the endpoints to which the bridge delivers, and Status is how it has found them
	// when it announced itself.
	Lanes  []string `json:"-"`
	Status map[string]LaneStatus
	// Endpoints are the configured ones, with a hash of all that must be the same at each bridge.
	Endpoints map[string]string
}

// LaneStatus is how an endpoint stands at the bridge that delivers to it: see
// outbox.EndpointStatus.
type LaneStatus struct {
	State              string
	Since, NextAttempt time.Time
	Failures           int
	LastError          string
	LastCause          telephony.Cause
}
