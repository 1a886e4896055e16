package outbox

import (
	"context"
	"sync"
)

// calls are those of which an attempt is under way at an endpoint, in its lane or as a question. Of
// one call there is never a second one: a sender need not be prepared for it, and an event never
// overtakes another in flight. A question goes before everything of its call that has not begun.
type calls struct {
	mu       sync.Mutex
	underWay map[string]chan struct{} // closed when the attempt ends
	awaited  map[string]int           // how many questions wait for that
}

func newCalls() calls {
	return calls{underWay: map[string]chan struct{}{}, awaited: map[string]int{}}
}

// isFree reports whether a lane's attempt of a call may begin.
func (c *calls) isFree(call string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return call == "" || c.underWay[call] == nil && c.awaited[call] == 0
}

// enter begins a lane's attempt of a call; it is false if an attempt is under way, or a question
// waits. An event of no call has no such bound.
func (c *calls) enter(call string) bool {
	if call == "" {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.awaited[call] == 0 && c.begin(call)
}

// enterQuestion begins an attempt at a question of a call; it is false if an attempt is under way.
func (c *calls) enterQuestion(call string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begin(call)
}

// begin begins an attempt. The caller holds mu.
func (c *calls) begin(call string) bool {
	if c.underWay[call] != nil {
		return false
	}
	c.underWay[call] = make(chan struct{})
	return true
}

// awaitQuestion begins an attempt at a question once no other of its call is under way; it is false
// if ctx ends before.
func (c *calls) awaitQuestion(ctx context.Context, call string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited[call]++
	defer func() {
		if c.awaited[call]--; c.awaited[call] == 0 {
			delete(c.awaited, call)
		}
	}()
	for !c.begin(call) {
		ended := c.underWay[call]
		c.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return false
		}
	}
	return true
}

// leave ends an attempt of a call.
func (c *calls) leave(call string) {
	if call == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.underWay[call])
	delete(c.underWay, call)
}
