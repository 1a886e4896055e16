package outbox

import (
	"fmt"
	"sync"
	"time"
)

const (
	// maxQuestions is how many questions are under way at an endpoint at once, so that a storm of
	// calls does not take all descriptors and all memory; maxQuestionsFailing at one that is failing.
	maxQuestions        = 500
	maxQuestionsFailing = 8
)

// places are those for questions at one endpoint. A question that finds none waits in line.
type places struct {
	limit func() int // how many there are now

	mu    sync.Mutex
	taken int
	line  []*inquiry
}

// waitingState is where a question stands in the line for a place.
type waitingState int

const (
	inLine waitingState = iota
	begun
	withdrawn
)

// put asks a question in a goroutine of its own, once there is a place. The caller waits until its ask
// has returned, or withdraws it.
func (p *places) put(i *inquiry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line = append(p.line, i)
	p.fill()
}

// fill gives places to the first in line. The caller holds mu.
func (p *places) fill() {
	limit, now := p.limit(), time.Now()
	for len(p.line) > 0 {
		next := p.line[0]
		isOver := next.line == withdrawn || !now.Before(next.answerBy) // it will be withdrawn at once
		if p.taken >= limit && !isOver {
			return
		}
		p.line[0] = nil // so that it can be forgotten
		p.line = p.line[1:]
		if isOver {
			continue
		}
		next.line = begun
		p.taken++
		go func() {
			next.ask()
			p.mu.Lock()
			defer p.mu.Unlock()
			p.taken--
			p.fill()
		}()
	}
}

// withdraw takes a question out of the line, and says why it was not asked. It is false where the
// question has got its place.
func (p *places) withdraw(i *inquiry) (why string, isWithdrawn bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i.line == begun {
		return "", false
	}
	i.line = withdrawn
	p.fill()
	return fmt.Sprintf("not asked: %d other questions were under way at it", p.taken), true
}
