package pairing

import (
	"context"
	"errors"
	"sync"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Outbox stores what listeners have read.
type Outbox interface {
	// AppendHeard stores events in the order given that a listener has read, unless another one has
	// stored something since the number followed: then it fails with store.ErrBehind. It returns
	// the questions that the events open.
	AppendHeard(ctx context.Context, slot int, followed uint64, events []telephony.Event) ([]uint64, error)
	// HeardByOthers returns what other listeners have stored after a number, and the number to go
	// on from: the same at the end.
	HeardByOthers(ctx context.Context, slot int, after uint64) (list []store.Heard, followed uint64, err error)
	// LastNumber is the number of the event that was stored last.
	LastNumber(ctx context.Context) (uint64, error)
}

// Asker asks questions by their numbers. It does not block.
type Asker interface{ Ask(questions []uint64) }

const (
	// patience is how long a listener that is not the preferred one leaves an event to the other
	// one, from when it has read it.
	patience = 2 * time.Second
	// lookAgain is how often it looks meanwhile.
	lookAgain = 50 * time.Millisecond
	// margin is more than the time in which the exchange sends an event to all its clients.
	margin = time.Second
)

// Listener stores what one of two bridges reads: it is the sink of its session.
type Listener struct {
	outbox    Outbox
	asker     Asker
	preferred func() bool // this one stores at once, the other one after the patience

	// storing is held while the database is asked: mu is not, since the session reads on meanwhile.
	storing  sync.Mutex
	slot     int
	followed uint64          // what others have stored up to this number is in the ledger
	isBehind bool            // others have stored more
	doubtful map[string]bool // the IDs of the last append, if it may have been done
	unpaired map[string]bool // the IDs of what this call of Append has stored that is not in the ledger

	mu     sync.Mutex
	ledger *Ledger
	readAt map[string]time.Time // when events were read that are in the ledger, by ID
}

// New returns a listener that waits for a slot.
func New(outbox Outbox, asker Asker, preferred func() bool) *Listener {
	return &Listener{
		outbox:    outbox,
		asker:     asker,
		preferred: preferred,
		ledger:    NewLedger(),
		readAt:    map[string]time.Time{},
		doubtful:  map[string]bool{},
		unpaired:  map[string]bool{},
	}
}

// Begin sets the slot in which this bridge listens from now on, before its session runs.
func (l *Listener) Begin(ctx context.Context, slot int) error {
	last, err := l.outbox.LastNumber(ctx)
	if err != nil {
		return err
	}
	l.storing.Lock()
	defer l.storing.Unlock()
	l.slot, l.followed = slot, last
	return nil
}

// Joining is called before the session connects. What was stored before is not read on this
// connection. While the database is away that is not known, and some of it is taken for the twin of
// what is read, until the next pong.
func (l *Listener) Joining(ctx context.Context) {
	if l.storing.TryLock() { // an append that waits for the database must not keep it from connecting
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_ = l.follow(ctx)
		l.storing.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ledger.Join()
}

// isPaired reports whether the other listener reads an event, too: not an event of the bridge
// itself. A replay is left out by what is stored of its call, and is not paired: the other listener
// may have read the event live.
func isPaired(e *telephony.Event) bool {
	return !e.Replayed && !telephony.IsOperational(e.Type)
}

// Heard is called for each event that the session reads, in order, and before it reads on. It
// returns false for an event that is not to be stored, since the other listener has stored it.
func (l *Listener) Heard(e *telephony.Event) (isNew bool) {
	if !isPaired(e) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if isNew = l.ledger.Read(e.ID, e.Fingerprint); isNew {
		l.readAt[e.ID] = time.Now()
	}
	return isNew
}

// Ponged is called when the session reads the answer to a ping, with the time at which that was
// sent.
func (l *Listener) Ponged(sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ledger.Void(sent.Add(-margin))
}

// Append stores events that the session has read, but for those that the other listener has stored,
// and returns when that is so of each.
func (l *Listener) Append(ctx context.Context, events []telephony.Event) error {
	defer clear(l.unpaired)
	for {
		done, err := l.try(ctx, events)
		if done || err != nil {
			return err
		}
		timer := time.NewTimer(lookAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// try stores what is to be stored now. Done is false while some events are left to the other
// listener, or if it was faster.
func (l *Listener) try(ctx context.Context, events []telephony.Event) (done bool, err error) {
	l.storing.Lock()
	defer l.storing.Unlock()
	list, isAgain := l.doubtfulOf(events)
	if !isAgain {
		// The preferred one learns from a failed append that the other has stored something.
		if l.isBehind || !l.preferred() {
			if err := l.follow(ctx); err != nil {
				return false, err
			}
		}
		list, done = l.due(events, time.Now())
	}
	if len(list) == 0 {
		return done, nil
	}
	questions, err := l.outbox.AppendHeard(ctx, l.slot, l.followed, list)
	l.asker.Ask(questions)
	clear(l.doubtful)
	l.isBehind = errors.Is(err, store.ErrBehind)
	switch {
	case l.isBehind:
		return false, nil
	case err != nil:
		for i := range list {
			l.doubtful[list[i].ID] = true
		}
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range list {
		if !isPaired(&list[i]) {
			l.unpaired[list[i].ID] = true
		}
		l.ledger.Stored(list[i].ID)
		delete(l.readAt, list[i].ID)
	}
	return done && !isAgain, nil
}

// doubtfulOf returns the events of the last append if it may have been done. It is repeated as it
// was, before anything is paired: else what it has stored could be taken for still to be stored.
func (l *Listener) doubtfulOf(events []telephony.Event) (list []telephony.Event, isAgain bool) {
	for i := range events {
		if l.doubtful[events[i].ID] {
			list = append(list, events[i])
		}
	}
	return list, len(list) > 0
}

// due returns the first of the events that are to be stored now, and whether they are all that are
// still to be stored.
func (l *Listener) due(events []telephony.Event, now time.Time) (list []telephony.Event, all bool) {
	isPreferred := l.preferred()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range events {
		e := &events[i]
		if isPaired(e) {
			if !l.ledger.IsUnconfirmed(e.ID) {
				delete(l.readAt, e.ID)
				continue
			}
			if !isPreferred && now.Sub(l.readAt[e.ID]) < patience {
				return list, false
			}
		}
		if !l.unpaired[e.ID] {
			list = append(list, *e)
		}
	}
	return list, true
}

// follow brings what other listeners have stored into the ledger. The caller holds storing.
func (l *Listener) follow(ctx context.Context) error {
	for {
		list, followed, err := l.outbox.HeardByOthers(ctx, l.slot, l.followed)
		if err != nil {
			return err
		}
		l.note(list, time.Now())
		isEnd := followed == l.followed
		if l.followed = followed; isEnd {
			return nil
		}
	}
}

func (l *Listener) note(list []store.Heard, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range list {
		if h.Replayed {
			l.ledger.ReplayedToOther(h.Print)
		} else {
			l.ledger.StoredByOther(h.Print, now)
		}
	}
}
