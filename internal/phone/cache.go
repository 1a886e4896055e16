package phone

import (
	"strings"
	"sync"
)

// maxGeneration is the maximum number of entries of each half of a cache.
const maxGeneration = 1024

// cache keeps the E.164 forms of the numbers seen last, since the events of a call repeat its
// numbers. It has two halves: new entries go into the first, and when that is full, it replaces the
// second. So at least the last maxGeneration numbers are kept, without a list of when each was
// used. The zero value is empty.
type cache struct {
	mu           sync.Mutex
	young, older map[string]string // the value is empty for what is no valid number
}

// get returns what is kept for a number, and whether anything is.
func (c *cache) get(number string) (e164 string, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e164, known = c.young[number]; known {
		return e164, true
	}
	if e164, known = c.older[number]; known {
		c.add(number, e164)
	}
	return e164, known
}

// put keeps the E.164 form of a number. It copies the number, which may be a part of a long text
// that would stay in memory with it.
func (c *cache) put(number, e164 string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(strings.Clone(number), e164)
}

// add puts an entry into the first half. The caller holds mu.
func (c *cache) add(number, e164 string) {
	if c.young == nil || len(c.young) == maxGeneration {
		c.young, c.older = make(map[string]string), c.young
	}
	c.young[number] = e164
}
