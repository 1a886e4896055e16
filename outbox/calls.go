package outbox

import "sync"

// calls is the set of calls with an attempt in flight at an endpoint, in its lane or as a question.
// A call never has two: a sender need not be prepared for that, and an event never overtakes
// another in flight.
type calls struct {
	mu       sync.Mutex
	underWay map[string]bool
}

// enter begins an attempt of a call; it returns false if one is in flight. Events that belong to no
// call have no such limit.
func (c *calls) enter(call string) bool {
	if call == "" {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.underWay[call] {
		return false
	}
	c.underWay[call] = true
	return true
}

// leave ends an attempt of a call.
func (c *calls) leave(call string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.underWay, call)
}
