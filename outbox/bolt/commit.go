package bolt

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"pzbridge/outbox/store"
)

// change is a part of a transaction, with a channel to the goroutine that waits for it.
type change struct {
	apply  func(*txn) error
	result chan groupResult
}

// applyTo applies the change. A panic in it is the change's own fault, or a damaged page that it
// has come upon: all others that are committed with it go on.
func (c *change) applyTo(tx *txn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damage{ErrNotOutbox, fmt.Sprint(r)}
		}
	}()
	return c.apply(tx)
}

// groupResult ends the wait of a change: it was committed, with what error, or it leads the next
// group.
type groupResult struct {
	lead bool
	err  error
}

// commit applies a change and returns when it is on the disk. Changes that come while a commit runs
// wait, and the first of them then commits all of them together: no timer is needed, and no
// goroutine has to be owned. A change that fails is left out of its group; if the disk fails, all
// have failed.
func (s *Engine) commit(apply func(*txn) error) error {
	c := &change{apply: apply, result: make(chan groupResult, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	if s.committing {
		s.mu.Unlock()
		if r := <-c.result; !r.lead {
			return r.err
		}
		s.mu.Lock()
	}
	s.committing = true
	expected := s.expectedWriters
	s.mu.Unlock()

	group, results := s.commitGroup(expected)
	var mine error
	for i, other := range group {
		if other == c {
			mine = results[i]
		} else {
			other.result <- groupResult{err: results[i]}
		}
	}
	s.mu.Lock()
	s.expectedWriters = len(s.waiting) + len(group) // a writer that was just released may bring the next change
	s.committing = len(s.waiting) > 0
	if s.committing {
		s.waiting[0].result <- groupResult{lead: true}
	}
	s.mu.Unlock()
	return mine
}

// commitGroup commits all changes that wait, and those that come while it applies them, and says
// how each ended. It waits for as many as are expected, as long as they keep coming.
func (s *Engine) commitGroup(expected int) (group []*change, results []error) {
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
				if err := s.danger.keepDamage(group[i].applyTo(t)); err != nil {
					culprit = i
					return err
				}
			}
		})
		if culprit >= 0 {
			results[culprit] = err
			continue
		}
		s.committed(time.Since(began))
		s.mu.Lock()
		if errors.Is(err, store.ErrDamaged) {
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

// arrivals takes the changes that wait. If more are expected and none waits, it lets the writers
// run that were just released, since they may be preparing the next change: else one half of the
// writers would wait for the commit of the other.
func (s *Engine) arrivals(expected bool) (list []*change) {
	const patience = 64 // rounds without a change: others may be preparing theirs on another processor
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
