package cluster

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/pairing"
	"pzbridge/internal/repeat"
	"pzbridge/internal/sleep"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/store"
)

// SlotOptions configures a Slot.
type SlotOptions struct {
	Engine *postgres.Engine
	// ClientGUID returns the identity at the exchange that belongs to a slot. The first call stores
	// generated as that identity.
	ClientGUID func(ctx context.Context, slot int, generated string) (string, error)
	// Listener stores what this bridge reads beside another one, with two Listeners; else nil.
	Listener *pairing.Listener
	// Listeners is how many bridges are connected to the exchange at a time.
	Listeners int
	Name      string // of this bridge
	Logger    *slog.Logger
}

// Slot is what a bridge is connected by, and another one takes over when it dies: it implements
// relay.Slot. Its methods but Number and IsFirst are called by one goroutine.
type Slot struct {
	opts      SlotOptions
	leases    []*postgres.Lease // see acquire
	guid      string
	takenAt   time.Time
	patience  time.Duration // how long this bridge tries to connect before it leaves the slot to another one
	notBefore time.Time     // when it takes one again
	stop      func()        // ends what runs while it has the slot

	number atomic.Int32 // 0: none
	first  atomic.Bool  // of two listeners, this one stores at once
}

// A bridge that cannot connect leaves its slot after minPatience, and after twice as long each time
// that it has not been connected meanwhile: the server may be away for all bridges.
const (
	minPatience = 15 * time.Second
	maxPatience = 4 * time.Minute

	// awayFor is for how long it then takes none: the others look each second.
	awayFor = 3 * time.Second
	// heldAgainWait is how often a bridge looks whether it may connect again.
	heldAgainWait = 500 * time.Millisecond
	// retryWait is the wait after a failed read of the outbox.
	retryWait = time.Second
)

// NewSlot returns a slot that is still to be taken.
func NewSlot(opts SlotOptions) *Slot { return &Slot{opts: opts, patience: minPatience} }

// Number is that of the slot which this bridge has, 0 if it has none.
func (s *Slot) Number() int { return int(s.number.Load()) }

// IsFirst reports whether this bridge is the one of two listeners that stores events at once.
func (s *Slot) IsFirst() bool { return s.first.Load() && s.opts.Engine.Held().Err() == nil }

// Take waits until this bridge has a slot: see relay.Slot. While another one may have taken that,
// it waits too: to connect then would take the connection from the other.
func (s *Slot) Take(ctx context.Context) (guid string, ok bool) {
	if s.Number() == 0 && !s.acquire(ctx) {
		return "", false
	}
	for s.opts.Engine.Held().Err() != nil {
		if !sleep.For(ctx, heldAgainWait) {
			return "", false
		}
	}
	return s.guid, true
}

// acquire takes one of the leases of two slots, or both if there is to be one listener: so no
// bridge that was told of two listens beside one that was told of one, which would not know of it.
func (s *Slot) acquire(ctx context.Context) bool {
	s.opts.Logger.Info("this bridge waits until it can connect to the server in place of another")
	if !sleep.For(ctx, time.Until(s.notBefore)) {
		return false
	}
	names := []string{"slot:1", "slot:2"}
	wishes := [][]string{names}
	if s.opts.Listeners == 1 {
		wishes = [][]string{names[:1], names[1:]}
	}
	for _, wish := range wishes {
		lease, err := s.opts.Engine.Take(ctx, wish...)
		if err != nil { // ctx has ended
			s.Leave(ctx)
			return false
		}
		s.leases = append(s.leases, lease)
	}
	s.takenAt = time.Now()
	number := slices.Index(names, s.leases[0].Name) + 1
	s.logGap(ctx, number)
	s.number.Store(int32(number))
	if !s.identify(ctx, number) {
		return false
	}
	if s.opts.Listener != nil {
		var first sync.WaitGroup
		// Until Leave, and not until ctx ends: what was read before that is to be stored at once.
		listening, stop := context.WithCancel(context.WithoutCancel(ctx))
		first.Go(func() { s.takeFirst(listening) })
		s.stop = func() {
			stop()
			first.Wait()
		}
	}
	return true
}

// takeFirst makes this bridge the one that stores at once, as soon as no other is, until ctx ends.
func (s *Slot) takeFirst(ctx context.Context) {
	lease, err := s.opts.Engine.Take(ctx, "first-listener")
	if err != nil {
		return // ctx has ended
	}
	s.first.Store(true)
	<-ctx.Done()
	s.first.Store(false)
	release(ctx, s.opts.Engine, lease, s.opts.Logger)
}

// identify finds out the identity of a slot. It returns false if ctx ends before the outbox can be
// read.
func (s *Slot) identify(ctx context.Context, number int) bool {
	failures := repeat.New(s.opts.Logger)
	for {
		guid, err := s.opts.ClientGUID(ctx, number, uuid.NewString())
		if err == nil && s.opts.Listener != nil {
			err = s.opts.Listener.Begin(ctx, number)
		}
		if err == nil {
			s.guid = guid
			s.opts.Logger.Info("this bridge listens to the server from now on", "slot", number, "client_guid", guid)
			failures.Recovered("the outbox is read again")
			return true
		}
		failures.Failed("how to connect to the server cannot be read from the outbox", err)
		if !sleep.For(ctx, retryWait) {
			return false
		}
	}
}

// Failed leaves the slot to another bridge once this one has tried to connect for too long: see
// relay.Slot.
func (s *Slot) Failed(ctx context.Context, since time.Time) (left bool) {
	if since.After(s.takenAt) {
		s.patience = minPatience // it was connected
	} else {
		since = s.takenAt
	}
	if time.Since(since) < s.patience || !s.isWanted(ctx) {
		return false
	}
	s.opts.Logger.Warn("this bridge leaves the connection to another one, which may reach the server",
		"slot", s.Number(), "not_connected_for", time.Since(since).Round(time.Second).String())
	s.patience = min(2*s.patience, maxPatience)
	s.Leave(ctx)
	s.notBefore = time.Now().Add(awayFor)
	return true
}

// isWanted reports whether another bridge waits for a slot.
func (s *Slot) isWanted(ctx context.Context) bool {
	bridges, err := s.opts.Engine.Bridges(ctx, time.Now().Add(-seenOfLate))
	return err == nil && slices.ContainsFunc(bridges, func(b store.Bridge) bool {
		return b.Slot == 0 && b.Name != s.opts.Name
	})
}

// Leave gives the slot up, if this bridge has one.
func (s *Slot) Leave(ctx context.Context) {
	if s.stop != nil {
		s.stop()
	}
	for _, lease := range s.leases {
		release(ctx, s.opts.Engine, lease, s.opts.Logger)
	}
	s.leases, s.stop = nil, nil
	s.number.Store(0)
}

// logGap logs for how long nobody was connected in a slot, as far as the bridge that had it has
// said that it was.
func (s *Slot) logGap(ctx context.Context, number int) {
	bridges, err := s.opts.Engine.Bridges(ctx, time.Now().Add(-time.Hour))
	if err != nil {
		return // it is only told
	}
	var last store.Bridge
	for _, b := range bridges {
		if b.Slot == number && b.Connected && b.Seen.After(last.Seen) {
			last = b
		}
	}
	if last.Name != "" {
		s.opts.Logger.Info("this bridge takes the place of another at the server", "slot", number, "of", last.Name,
			"nobody_listened_for", time.Since(last.Seen).Round(time.Second).String())
	}
}
