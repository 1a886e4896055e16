package store

import (
	"context"
	"sync"
	"time"
)

// Reading is how far an endpoint without a URL has read: up to the event with a number, which its
// last read has gone to, and when that was. Its zero value has read nothing.
type Reading struct {
	UpTo uint64
	At   time.Time
}

// After returns the reading after another read: see Archive.SetRead. The last read counts, also if
// it goes back: an endpoint that reads once more from an earlier cursor has lost what came after
// it.
func (r Reading) After(q EventQuery, p EventPage, newest uint64, at time.Time) Reading {
	if !q.Backwards {
		return Reading{p.Last, at}
	}
	isFirst := q.After == "" || q.After == CursorLatest
	if isFirst && (p.Cursor == "" || p.Last <= r.UpTo) {
		return Reading{newest, at}
	}
	return Reading{r.UpTo, at}
}

// IsUnread reports whether a delivery is there to be read and has not been. What an endpoint was
// sent while it had a URL, it has.
func (r Reading) IsUnread(n uint64, d Delivery) bool {
	return n > r.UpTo && d.State == Delivered && d.Attempts == 0
}

// Shown returns a delivery of an endpoint that reads as people see it: one that is there to be read
// is stored as delivered, for them it is pending until it was read.
func (r Reading) Shown(n uint64, d Delivery) (shown Delivery, toBeRead bool) {
	if !r.IsUnread(n, d) {
		return d, false
	}
	d.State, d.Due = Pending, Asking // no attempt is to come
	return d, true
}

// Readers has the reads since the start. They are recorded within ReadsWait, so that a restart does
// not lose them; a crash may. Its zero value is not ready: use NewReaders. Its methods are safe for
// concurrent use.
type Readers struct {
	wake chan struct{} // something is to be recorded

	mu       sync.Mutex
	latest   map[string]Reading // by endpoint
	recorded map[string]Reading
}

// ReadsWait is how long a read may wait to be recorded: an endpoint may read many times a second,
// and each commit takes the disk some time.
const ReadsWait = 2 * time.Second

// NewReaders returns readers that have read nothing.
func NewReaders() *Readers {
	return &Readers{
		wake:     make(chan struct{}, 1),
		latest:   map[string]Reading{},
		recorded: map[string]Reading{},
	}
}

// Set notes a read of an endpoint.
func (r *Readers) Set(endpoint string, last Reading) {
	r.mu.Lock()
	r.latest[endpoint] = last
	r.mu.Unlock()
	r.wakeUp()
}

// Get returns the last read of an endpoint, and false if there was none.
func (r *Readers) Get(endpoint string) (last Reading, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known = r.latest[endpoint]
	return last, known
}

// Keep has write record the reads, until ctx ends and what there is then is recorded. A write that
// fails is repeated. Report gets the result of each.
func (r *Readers) Keep(ctx context.Context, write func(map[string]Reading) error, report func(error)) {
	for {
		err := r.record(write)
		report(err)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.wakeUp()
		}
		select {
		case <-time.After(ReadsWait):
		case <-ctx.Done():
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
		}
	}
}

func (r *Readers) record(write func(map[string]Reading) error) error {
	list := r.unrecorded()
	if len(list) == 0 {
		return nil
	}
	if err := write(list); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, last := range list {
		r.recorded[name] = last
	}
	return nil
}

func (r *Readers) unrecorded() map[string]Reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := map[string]Reading{}
	for name, last := range r.latest {
		if r.recorded[name] != last {
			list[name] = last
		}
	}
	return list
}

func (r *Readers) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}
