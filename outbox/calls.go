package outbox

import "sync"

// calls are those of which an attempt is under way at an endpoint, in its lane or as a question. Of
// one call there is never a second one: a sender need not be prepared for it, and an event never
// overtakes another in flight.
type calls struct {
	mu       sync.Mutex
	underWay map[string]bool
}

// enter begins an attempt of a call; it is false if one is under way. An event of no call has no
// such bound.
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
