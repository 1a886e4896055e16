// Package relay holds the session with the Prostie Zvonki server: it dials, says who it is, hands every event to the
// Sink, carries commands and their answers, notices a dead peer, and dials again for ever.
//
// Events go one way, commands the other. An event is read from the socket, given its ID, and appended to the Sink together with
// whatever else was waiting; nothing on this socket is acknowledged, so what was read must not be lost. A command is written at
// once or fails: it is never queued for later and never sent twice, since a person is on the line.
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

// Sink takes what the session reads. Append returns nil only when the events are durable; appending an event
// whose ID is known does nothing.
type Sink interface {
	Append(ctx context.Context, events []telephony.Event) error
}

// Observer is told what happens, to count it. Its methods return at once and may be called at the same time.
type Observer interface {
	EventReceived(kind telephony.EventType)
	// CommandEnded says how: done, refused, not_sent or no_answer.
	CommandEnded(kind telephony.CommandKind, outcome string)
	Decided(outcome telephony.RouteOutcome, took time.Duration) // where a call goes
}

// unobserved is the observer where there is none.
type unobserved struct{}

// EventReceived does nothing.
func (unobserved) EventReceived(telephony.EventType) {}

// CommandEnded does nothing.
func (unobserved) CommandEnded(telephony.CommandKind, string) {}

// Decided does nothing.
func (unobserved) Decided(telephony.RouteOutcome, time.Duration) {}

// Options says where the server is and who the bridge is to it.
type Options struct {
	URL      *url.URL    // ws or wss, with a host and a port
	TLS      *tls.Config // for wss; nil trusts what the system trusts
	Identity pz.Identity

	Disabled     bool          // do not connect until Enable says so
	ReplayMaxAge time.Duration // replayed calls that ended earlier are left out; 0 leaves out none
	Grace        time.Duration // how long what was read may take to be stored once a shutdown has begun
	Sink         Sink
	Logger       *slog.Logger
	Observer     Observer     // may be nil
	Clock        *clock.Clock // by which ReplayMaxAge is counted; nil is one that begins now

	// DialContext opens the connection below the WebSocket; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o Options) validate() error {
	switch {
	case o.URL == nil || o.URL.Host == "" || o.URL.Scheme != "ws" && o.URL.Scheme != "wss":
		return errors.New("relay: Options.URL must be a ws or wss address")
	case o.Identity.GUID == "":
		return errors.New("relay: Options.Identity.GUID must be set: the server remembers by it what the bridge has missed")
	case o.Sink == nil || o.Logger == nil || o.Grace <= 0:
		return errors.New("relay: Options.Sink, Options.Logger and Options.Grace must be set")
	}
	return nil
}
