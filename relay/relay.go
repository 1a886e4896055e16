// Package relay keeps the session with the Prostie Zvonki server: it connects, identifies the
// bridge, appends every event to the Sink, sends commands and returns their outcomes, detects a
// dead peer, and reconnects for as long as it runs.
//
// Events flow one way, commands the other. An event is read from the socket, gets its ID, and is
// appended to the Sink together with all others that wait; this protocol has no acknowledgements,
// so what was read must not be lost. A command is written at once or fails: it is never queued for
// later and never sent twice, since a person is on the line.
package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
)

// Sink stores the events that the session reads. Append returns nil only when the events are
// durable; appending an event with a known ID has no effect.
type Sink interface {
	Append(ctx context.Context, events []telephony.Event) error
}

// Twin is told what it needs to know for the pairing of events with those that another session
// reads of the same server.
type Twin interface {
	// Joining is called before the session connects.
	Joining(ctx context.Context)
	// Heard is called for each event in the order of the socket, before anything after it is read.
	// It returns false for an event that is not to be stored.
	Heard(e *telephony.Event) (isNew bool)
	// Ponged is called when the answer to a ping is read, with the time at which that was sent.
	Ponged(sent time.Time)
}

// Observer counts events and commands. Its methods must return at once and be safe for
// concurrent use.
type Observer interface {
	EventReceived(kind telephony.EventType)
	// CommandEnded gives the outcome: done, refused, not_sent or no_answer.
	CommandEnded(kind telephony.CommandKind, outcome string)
}

// unobserved is the Observer if none is configured.
type unobserved struct{}

// EventReceived does nothing.
func (unobserved) EventReceived(telephony.EventType) {}

// CommandEnded does nothing.
func (unobserved) CommandEnded(telephony.CommandKind, string) {}

// Options configures a Session.
type Options struct {
	URL      *url.URL    // ws or wss, with a host and a port
	TLS      *tls.Config // for wss; nil trusts the system's CAs
	Identity pz.Identity // its GUID may be missing if there is a Slot, which gives it

	Disabled     bool          // do not connect before Enable(true)
	Slot         Slot          // nil: no other bridge is to be connected in place of this one
	ReplayMaxAge time.Duration // replayed calls that ended longer ago are dropped; 0 drops none
	Grace        time.Duration // bounds the storing of what was read, from the beginning of a shutdown
	Sink         Sink
	Twin         Twin // of the sink, if another session reads the same events; may be nil
	Logger       *slog.Logger
	Observer     Observer     // may be nil
	Clock        *clock.Clock // computes ages for ReplayMaxAge; nil is a clock that starts now
	// Explain returns the text of an error for the Reason of an EventDisconnected; nil stands for
	// error.Error.
	Explain func(error) string

	// DialContext opens the connection below the WebSocket; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o Options) validate() error {
	switch {
	case o.URL == nil || o.URL.Host == "" || o.URL.Scheme != "ws" && o.URL.Scheme != "wss":
		return errors.New("relay: Options.URL must be a ws or wss address")
	case o.Identity.GUID == "" && o.Slot == nil:
		return errors.New("relay: Options.Identity.GUID must be set: " +
			"the server remembers by it what the bridge has missed")
	case o.Sink == nil || o.Logger == nil || o.Grace <= 0:
		return errors.New("relay: Options.Sink, Options.Logger and Options.Grace must be set")
	}
	return nil
}
