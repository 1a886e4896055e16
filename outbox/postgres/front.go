package postgres

import (
	"math"
	"sync/atomic"
	"time"
)

// front is where a lane's looks for what has not been tried begin: all of it up to a number is
// claimed already. To read it again, with the index entries of what has been delivered as long as
// an old snapshot keeps them, would be most of what a look costs. Whatever makes a delivery below
// the front due at once is noted, and lowers it.
type front struct {
	number uint64
	// opened is the lowest number that may have become due below it since the last look began;
	// math.MaxUint64 for none.
	opened atomic.Uint64
	whole  time.Time // when a look last began at the first delivery
	// isLate is set while the last look began behind it: another one is to follow, since not all
	// that makes a delivery due can be noted, as a change whose commit was in doubt.
	isLate atomic.Bool
}

// begin returns the number behind which a look begins, which must see all that was committed
// before. Now and then it begins at the first delivery.
func (f *front) begin(every time.Duration) uint64 {
	if opened := f.opened.Swap(math.MaxUint64); opened <= f.number {
		f.lower(opened)
	}
	if f.number == 0 || time.Since(f.whole) >= every {
		f.number, f.whole = 0, time.Now()
	}
	f.isLate.Store(f.number > 0)
	return f.number
}

// lower makes the next look see a number; nothing looks meanwhile.
func (f *front) lower(n uint64) { f.number = min(f.number, max(n, 1)-1) }

// open is lower at any time.
func (f *front) open(n uint64) {
	for {
		opened := f.opened.Load()
		if opened <= n || f.opened.CompareAndSwap(opened, n) {
			return
		}
	}
}

// open notes that a delivery may be due at once.
func (tx *txn) open(k deliveryKey) {
	if lowest, noted := tx.opened[k.endpoint]; !noted || k.n < lowest {
		tx.opened[k.endpoint] = k.n
	}
}

// openLanes tells the lanes of this process what a transaction has made due, once that is
// committed, or may be.
func (s *Engine) openLanes(opened map[int16]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for endpoint, n := range opened {
		if l := s.lanes[endpoint]; l != nil {
			l.front.open(n)
		}
	}
}

// hasLateLane reports whether the last look of a lane did not begin at the first delivery.
func (s *Engine) hasLateLane() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		if l.front.isLate.Load() {
			return true
		}
	}
	return false
}

// followOthers makes lanes and readers look for what other processes have stored.
func (s *Engine) followOthers() {
	s.mu.Lock()
	for _, l := range s.lanes {
		l.front.open(0)
	}
	s.mu.Unlock()
	s.notifyReaders()
}
