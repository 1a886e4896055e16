package routing

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"pzbridge/internal/telephony"
)

const (
	// MaxQuestions is the largest number of questions in flight at an endpoint, so that a burst of
	// calls does not exhaust file descriptors and memory; maxQuestionsFailing is that at a failing
	// endpoint.
	MaxQuestions        = 500
	maxQuestionsFailing = 8
)

// slots limits the attempts at questions in flight at one endpoint. An attempt that finds no free
// slot waits in the queue.
type slots struct {
	limit func() int // the present number of slots

	mu    sync.Mutex
	inUse int
	queue []*ticket
}

// ticket is an attempt that waits for a slot.
type ticket struct {
	begin func()    // called once when there is a slot; it must not block
	until time.Time // the end of the time in which the attempt is of use
	state ticketState
}

type ticketState int

const (
	queued ticketState = iota
	begun
	withdrawn
)

// enqueue calls begin once there is a slot. The attempt returns the slot with release, unless
// withdraw has removed the ticket from the queue before.
func (s *slots) enqueue(t *ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, t)
	s.fill()
}

// acquire waits for a slot, which release returns. It returns false if there is none before until,
// or before ctx ends.
func (s *slots) acquire(ctx context.Context, until time.Time) bool {
	ready := make(chan struct{})
	t := &ticket{begin: func() { close(ready) }, until: until}
	s.enqueue(t)
	timeUp := time.NewTimer(time.Until(until))
	defer timeUp.Stop()
	select {
	case <-ready:
		return true
	case <-timeUp.C:
	case <-ctx.Done():
	}
	if _, isWithdrawn := s.withdraw(t); !isWithdrawn { // it got a slot in between
		s.release()
	}
	return false
}

// release returns a slot.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inUse--
	s.fill()
}

// fill gives free slots to the first tickets in the queue. The caller holds mu.
func (s *slots) fill() {
	limit, now := s.limit(), time.Now()
	for len(s.queue) > 0 {
		next := s.queue[0]
		isOver := next.state == withdrawn || !now.Before(next.until) // an expired one is about to be withdrawn
		if s.inUse >= limit && !isOver {
			return
		}
		s.queue[0] = nil // so that it can be collected
		s.queue = s.queue[1:]
		if isOver {
			continue
		}
		next.state = begun
		s.inUse++
		next.begin()
	}
}

// withdraw removes a ticket from the queue, and returns the reason for the route. It returns false
// if the attempt has begun, or was withdrawn before.
func (s *slots) withdraw(t *ticket) (why error, isWithdrawn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.state != queued {
		return nil, false
	}
	t.state = withdrawn
	s.fill()
	return &telephony.Fault{
		Code: telephony.CodeNotAsked,
		Args: []string{strconv.Itoa(s.inUse)},
		Text: fmt.Sprintf("not asked: %d other questions were under way at it", s.inUse),
	}, true
}
