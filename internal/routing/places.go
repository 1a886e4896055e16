package routing

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// MaxQuestions is how many questions are under way at an endpoint at once, so that a storm of
	// calls does not take all descriptors and all memory; maxQuestionsFailing at one that is
	// failing.
	MaxQuestions        = 500
	maxQuestionsFailing = 8
)

// places are those for attempts of questions at one endpoint. An attempt that finds none waits in
// line.
type places struct {
	limit func() int // how many there are now

	mu    sync.Mutex
	taken int
	line  []*ticket
}

// ticket is a place in line.
type ticket struct {
	begin func()    // is called once, and does not wait, when there is a place
	until time.Time // when it is of no use any more
	state ticketState
}

type ticketState int

const (
	inLine ticketState = iota
	begun
	withdrawn
)

// put begins a turn once there is a place. That is given back with leave, unless withdraw has taken
// the turn out of the line before.
func (p *places) put(t *ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line = append(p.line, t)
	p.fill()
}

// enter waits for a place, which leave gives back. It is false if there was none until a time, or
// if ctx ended.
func (p *places) enter(ctx context.Context, until time.Time) bool {
	ready := make(chan struct{})
	t := &ticket{begin: func() { close(ready) }, until: until}
	p.put(t)
	timeUp := time.NewTimer(time.Until(until))
	defer timeUp.Stop()
	select {
	case <-ready:
		return true
	case <-timeUp.C:
	case <-ctx.Done():
	}
	if _, isWithdrawn := p.withdraw(t); !isWithdrawn { // its turn came in between
		p.leave()
	}
	return false
}

// leave gives a place back.
func (p *places) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	p.fill()
}

// fill gives places to the first in line. The caller holds mu.
func (p *places) fill() {
	limit, now := p.limit(), time.Now()
	for len(p.line) > 0 {
		next := p.line[0]
		isOver := next.state == withdrawn || !now.Before(next.until) // it will be withdrawn at once
		if p.taken >= limit && !isOver {
			return
		}
		p.line[0] = nil // so that it can be forgotten
		p.line = p.line[1:]
		if isOver {
			continue
		}
		next.state = begun
		p.taken++
		next.begin()
	}
}

// withdraw takes a turn out of the line, and says why it did not come. It is false where it has
// begun, or was withdrawn before.
func (p *places) withdraw(t *ticket) (why string, isWithdrawn bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.state != inLine {
		return "", false
	}
	t.state = withdrawn
	p.fill()
	return fmt.Sprintf("not asked: %d other questions were under way at it", p.taken), true
}
