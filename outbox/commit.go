package outbox

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// change is a part of a transaction, and who waits for it.
type change struct {
	apply func(*txn) error
	turn  chan turn
}

// applyTo applies the change. A panic in it is the change's own fault, or a damaged page that it has
// come upon: all others that are committed with it go on.
func (c *change) applyTo(tx *txn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damage{ErrNotOutbox, fmt.Sprint(r)}
		}
	}()
	return c.apply(tx)
}

// turn is what a waiting change is told: that it was committed, with what error, or that it is its turn to commit.
type turn struct {
	lead bool
	err  error
}

// commit applies a change and returns when it is on the disk. Changes that come while a commit runs wait and are then committed
// together by the first of them: nobody waits for a timer, and no goroutine has to be owned. A change that fails is left out of its group;
// if the disk fails, all have failed.
func (s *store) commit(apply func(*txn) error) error {
	c := &change{apply: apply, turn: make(chan turn, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	if s.committing {
		s.mu.Unlock()
		if t := <-c.turn; !t.lead {
			return t.err
		}
		s.mu.Lock()
	}
	s.committing = true
	expected := s.crowd
	s.mu.Unlock()

	group, results := s.commitGroup(expected)
	var mine error
	for i, other := range group {
		if other == c {
			mine = results[i]
		} else {
			other.turn <- turn{err: results[i]}
		}
	}
	s.mu.Lock()
	s.crowd = len(s.waiting) + len(group) // who was told just now may bring the next change
	s.committing = len(s.waiting) > 0
	if s.committing {
		s.waiting[0].turn <- turn{lead: true}
	}
	s.mu.Unlock()
	return mine
}

// commitGroup commits all changes that wait, and those that come while it applies them, and says how each ended. Up to as many as are expected are waited for,
// as long as they keep coming.
func (s *store) commitGroup(expected int) (group []*change, results []error) {
	group = s.arrivals(false) // also if no transaction can be begun
	if broken := s.brokenErr(); broken != nil {
		return group, slices.Repeat([]error{broken}, len(group))
	}
	results = make([]error, len(group))
	for closed := false; ; closed = true {
		culprit := -1 // the change that failed, not the disk
		began := time.Now()
		err := s.update(func(t *txn) error {
			for i := 0; ; i++ {
				if i == len(group) && !closed {
					group = append(group, s.arrivals(i < expected)...)
					results = append(results, make([]error, len(group)-len(results))...)
				}
				if i == len(group) {
					return t.putCounts()
				}
				if results[i] != nil {
					continue
				}
				if err := s.danger.note(group[i].applyTo(t)); err != nil {
					culprit = i
					return err
				}
			}
		})
		if culprit >= 0 {
			results[culprit] = err
			continue
		}
		s.observer.Committed(time.Since(began))
		s.mu.Lock()
		if errors.Is(err, ErrDamaged) {
			s.broken = err
		}
		s.failed = err
		s.mu.Unlock()
		for i := range results {
			if results[i] == nil {
				results[i] = err
			}
		}
		return group, results
	}
}

// arrivals takes the changes that wait. If more are expected and none does, it lets those run that have just been told how their last one ended, and may be
// preparing the next: else one half of a crowd would wait for the commit of the other.
func (s *store) arrivals(expected bool) (list []*change) {
	const patience = 64 // rounds in which nobody comes: others may be preparing theirs on another processor
	for range patience {
		s.mu.Lock()
		list, s.waiting = s.waiting, nil
		s.mu.Unlock()
		if len(list) > 0 || !expected {
			return list
		}
		runtime.Gosched()
	}
	return nil
}
