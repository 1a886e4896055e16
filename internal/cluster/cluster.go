// Package cluster is what a bridge does beside others that share its outbox: it is connected to the
// exchange while it has a slot, does alone what only one may do at a time, and says how it stands.
// A bridge with a file of its own does all that at once.
package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pzbridge/internal/repeat"
	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/store"
)

// Session is the connection to the exchange.
type Session interface {
	// Enable connects, or disconnects until it is called with true.
	Enable(enabled bool)
	Run(ctx context.Context) error
	Connection() telephony.Connection
}

// Outbox keeps what all bridges have in common.
type Outbox interface {
	// IsToConnect reports whether the connection to the exchange is switched on.
	IsToConnect(ctx context.Context) (bool, error)
	// LaneStatus returns how the endpoints stand to which this bridge delivers.
	LaneStatus() map[string]store.LaneStatus
}

// Options configures a Cluster.
type Options struct {
	Engine  store.Engine
	Outbox  Outbox
	Session Session
	Slot    *Slot // what the session is connected by; nil with a file
	// Refusals returns how many commands this bridge has refused of late, and when the last one
	// was.
	Refusals  func() (number int, last time.Time)
	Name      string // of this bridge
	Version   string
	Endpoints []store.Endpoint
	Logger    *slog.Logger
}

// Cluster is the part of one bridge in a cluster.
type Cluster struct {
	opts   Options
	engine *postgres.Engine // nil: the outbox is a file, and there is no other bridge
	me     store.Bridge
	others atomic.Pointer[[]store.Bridge] // as they were seen last
}

// New returns the part of a bridge.
func New(opts Options) *Cluster {
	c := &Cluster{opts: opts, me: store.Bridge{
		Name:      opts.Name,
		Version:   opts.Version,
		Started:   time.Now().UTC(),
		Endpoints: map[string]string{},
	}}
	c.engine, _ = opts.Engine.(*postgres.Engine)
	for i := range opts.Endpoints {
		c.me.Endpoints[opts.Endpoints[i].Name] = fingerprint(&opts.Endpoints[i])
	}
	return c
}

// fingerprint is a hash of what must be the same of an endpoint at every bridge.
func fingerprint(e *store.Endpoint) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []any{e.URL, e.Events, e.Secrets, e.Format}))
	return hex.EncodeToString(sum[:8])
}

// Alone returns a part that runs another one while no other bridge runs it.
func (c *Cluster) Alone(name string, part func(context.Context) error) func(context.Context) error {
	if c.engine == nil {
		return part
	}
	return func(ctx context.Context) error {
		lease, err := c.engine.Take(ctx, name)
		if err != nil {
			return nil // ctx has ended
		}
		defer release(ctx, c.engine, lease, c.opts.Logger)
		return part(ctx)
	}
}

// release gives a lease up.
func release(ctx context.Context, engine *postgres.Engine, lease *postgres.Lease, logger *slog.Logger) {
	err := engine.Release(context.WithoutCancel(ctx), lease)
	if err != nil && !errors.Is(err, postgres.ErrLost) {
		logger.Warn("the other bridges do not learn that this one ends, and take over some seconds later", "err", err)
	}
}

// Listen runs the session until ctx ends, and then leaves its slot to another bridge. The others
// learn that this one is not connected any more.
func (c *Cluster) Listen(ctx context.Context) error {
	err := c.opts.Session.Run(ctx)
	if c.opts.Slot != nil {
		c.opts.Slot.Leave(ctx)
	}
	if c.engine != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.engine.Announce(last, c.now()) // else they see it in some seconds
	}
	return err
}

// followSwitch switches the connection as any bridge has asked for it, until ctx ends.
func (c *Cluster) followSwitch(ctx context.Context) {
	for sleep.For(ctx, time.Second) {
		enabled, err := c.opts.Outbox.IsToConnect(ctx)
		// Not beside what was read before: between two looks it may have been switched twice.
		isOn := c.opts.Session.Connection().State != telephony.Disabled
		if err == nil && enabled != isOn {
			c.opts.Session.Enable(enabled)
		}
	}
}

// announceEvery is how often a bridge says how it stands.
const announceEvery = time.Second

// now is how this bridge stands.
func (c *Cluster) now() store.Bridge {
	me := c.me
	me.Seen = time.Now().UTC()
	me.Connected = c.opts.Session.Connection().State == telephony.Connected
	me.Status = c.opts.Outbox.LaneStatus()
	if c.opts.Slot != nil {
		me.Slot = c.opts.Slot.Number()
	}
	me.Refused, me.RefusedAt = c.opts.Refusals()
	return me
}

// Run announces this bridge again and again, until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	if c.engine == nil {
		<-ctx.Done()
		return nil
	}
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { c.followSwitch(ctx) })
	failures := repeat.New(c.opts.Logger)
	for {
		if err := c.engine.Announce(ctx, c.now()); err != nil && ctx.Err() == nil {
			failures.Failed("this bridge cannot be announced to the others", err)
		} else if err == nil {
			failures.Recovered("this bridge is announced to the others again")
		}
		c.lookAtOthers(ctx)
		if !sleep.For(ctx, announceEvery) {
			return nil
		}
	}
}

// seenOfLate is for how long after its last announcement a bridge counts as it was then.
const seenOfLate = 10 * time.Second

// lookAtOthers reads how the other bridges stand.
func (c *Cluster) lookAtOthers(ctx context.Context) {
	list, err := c.engine.Bridges(ctx, time.Now().Add(-seenOfLate))
	if err != nil {
		return // Announce says so
	}
	list = slices.DeleteFunc(list, func(b store.Bridge) bool { return b.Name == c.me.Name })
	c.others.Store(&list)
}

// seenOthers returns the other bridges as they were seen last.
func (c *Cluster) seenOthers() []store.Bridge {
	if list := c.others.Load(); list != nil {
		return *list
	}
	return nil
}

// Connection returns how this bridge is connected to the exchange, or that another one is if this
// one is not.
func (c *Cluster) Connection() telephony.Connection {
	own := c.opts.Session.Connection()
	for _, b := range c.seenOthers() {
		if b.Connected && own.State != telephony.Disabled {
			own.State = telephony.Connected
		}
	}
	return own
}

// OthersRefusals returns how many commands the other bridges have refused of late, and when the
// last one was.
func (c *Cluster) OthersRefusals() (number int, last time.Time) {
	for _, b := range c.seenOthers() {
		number += b.Refused
		if b.RefusedAt.After(last) {
			last = b.RefusedAt
		}
	}
	return number, last
}

// Bridges returns the bridges that were seen within an hour: this one alone if the outbox is a
// file.
func (c *Cluster) Bridges(ctx context.Context) ([]store.Bridge, error) {
	if c.engine == nil {
		me := c.now()
		me.Lanes = slices.Sorted(maps.Keys(me.Status))
		return []store.Bridge{me}, nil
	}
	list, err := c.engine.Bridges(ctx, time.Now().Add(-time.Hour))
	for i := range list {
		list[i].Lanes = slices.DeleteFunc(list[i].Lanes, store.IsInner)
	}
	return list, err
}
