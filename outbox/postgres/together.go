package postgres

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/dustin/go-humanize"

	"pzbridge/outbox/store"
)

// appends combines the appends that wait: those that come while one transaction runs are stored
// together by the next.
type appends struct {
	mu       sync.Mutex
	waiting  []*appending
	busy     bool
	expected int // how many may come at once: those that were stored together last, and those that wait
}

// appending is one call of Append.
type appending struct {
	events []store.NewEvent
	slot   int // of the listener that has read the events; 0: they need no pairing
	// followed is up to which number the listener knows what others have stored.
	followed uint64
	out      store.Appended
	err      error
	done     chan struct{} // closed when it is over
	lead     chan struct{} // receives if this one is to store those that wait
}

// maxTogether is how many events are stored in one transaction, unless one append has more.
const maxTogether = 1024

// appendWithOthers stores events together with those of the calls that come at the same time.
func (s *Engine) appendWithOthers(ctx context.Context, mine *appending) (store.Appended, error) {
	mine.done, mine.lead = make(chan struct{}), make(chan struct{}, 1)
	a := &s.appends
	a.mu.Lock()
	a.waiting = append(a.waiting, mine)
	if a.busy {
		a.mu.Unlock()
		select {
		case <-mine.done:
			return mine.out, mine.err
		case <-mine.lead:
		}
		a.mu.Lock()
	}
	a.busy = true
	expected := a.expected
	a.mu.Unlock()

	together := a.gather(expected)
	s.appendTogether(context.WithoutCancel(ctx), together) // others wait for it, too

	a.mu.Lock()
	a.expected = len(together) + len(a.waiting)
	if a.busy = len(a.waiting) > 0; a.busy {
		a.waiting[0].lead <- struct{}{}
	}
	a.mu.Unlock()
	return mine.out, mine.err
}

// gather takes the appends that wait. While fewer do than are expected, it lets the callers run
// that were just released, since they may be preparing the next one: else one half of them would
// wait for the transaction of the other.
func (a *appends) gather(expected int) []*appending {
	const patience = 64 // rounds without a new one: others may be preparing theirs on another processor
	for seen, idle := 0, 0; ; runtime.Gosched() {
		a.mu.Lock()
		if n := len(a.waiting); n > seen {
			seen, idle = n, 0
		}
		if idle++; seen >= expected || idle > patience {
			list := a.take()
			a.mu.Unlock()
			return list
		}
		a.mu.Unlock()
	}
}

// take takes the first of the appends that wait: as many as go into one transaction. The caller
// holds mu.
func (a *appends) take() (list []*appending) {
	n := 0
	for len(a.waiting) > 0 && (len(list) == 0 || n+len(a.waiting[0].events) <= maxTogether) {
		n += len(a.waiting[0].events)
		list, a.waiting = append(list, a.waiting[0]), a.waiting[1:]
	}
	return list
}

func (s *Engine) appendTogether(ctx context.Context, list []*appending) {
	err := s.change(ctx, func(tx *txn) error {
		var events []*store.NewEvent
		for _, a := range list {
			a.out = store.Appended{}
			for i := range a.events {
				events = append(events, &a.events[i])
			}
		}
		used, err := tx.prepareAppend(events)
		if err != nil {
			return err
		}
		for _, a := range list {
			a.err, a.out.NearlyFull = nil, s.nearlyFull(used)
			if err := s.refuse(tx, a, used); err != nil {
				return err
			} else if a.err != nil {
				continue
			}
			tx.slot = a.slot
			for i := range a.events {
				n, asks, err := s.appendOne(tx, &a.events[i])
				if err != nil {
					return err
				}
				if asks {
					a.out.Questions = append(a.out.Questions, n)
				}
			}
		}
		return nil
	})
	if err == nil {
		s.notifyReaders()
	}
	for _, a := range list {
		if err != nil {
			a.err, a.out = err, store.Appended{}
		}
		close(a.done)
	}
}

// refuse sets the error of an append that is not to be done.
func (s *Engine) refuse(tx *txn, a *appending, used int64) error {
	isBehind, err := tx.isBehind(a)
	if err != nil {
		return err
	}
	if isBehind {
		a.err = store.ErrBehind
		return nil
	}
	if used < s.maxBytes {
		return nil
	}
	isRepeated, err := tx.isRepeated(a)
	if !isRepeated {
		a.err = full(used, s.maxBytes)
	}
	return err
}

// full is store.ErrFull with the bytes that are in use, and how many may be.
func full(used, allowed int64) error {
	inUse, limit := humanize.IBytes(uint64(used)), humanize.IBytes(uint64(allowed))
	return store.ErrFull.With(fmt.Sprintf(": it holds events that a CRM has not taken yet; about %s of it are in use, "+
		"%s are allowed", inUse, limit), inUse, limit)
}
