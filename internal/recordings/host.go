package recordings

import (
	"context"
	"errors"
	"sync"
	"time"
)

// hosts are the places from which files are fetched, by name. Their number is bounded by what is
// allowed, but for ports and folders, which are few.
type hosts struct {
	mu   sync.Mutex
	list map[string]*health
}

func newHosts() hosts { return hosts{list: map[string]*health{}} }

func (l *hosts) get(name string) *health {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.list[name]
	if h == nil {
		h = &health{slots: make(chan struct{}, perHost)}
		l.list[name] = h
	}
	return h
}

// health is how a host stands. After a failure it is tried by one fetch at a time, after waits that
// double from firstWait to lastWait.
type health struct {
	slots chan struct{}

	mu       sync.Mutex
	failures int       // in a row
	until    time.Time // when it is tried again
	err      error     // of the last failure
	failedAt time.Time
}

const (
	// perHost is how many files are fetched from a host at a time.
	perHost = 4
	// firstWait and lastWait are the waits after failures, which double from one to the other.
	firstWait = 15 * time.Second
	lastWait  = 10 * time.Minute
	// probeTime is how long others wait for the one fetch that finds out.
	probeTime = 20 * time.Second
	// turnWait is how long a fetch waits for its turn at a host, and turnPause how long it is put
	// off then.
	turnWait, turnPause = 5 * time.Second, 20 * time.Second
)

// busyError means that a host is not tried now.
type busyError struct {
	reason error
	wait   time.Duration
}

func (e *busyError) Error() string { return e.reason.Error() }
func (e *busyError) Unwrap() error { return e.reason }

// errTaken means that enough files are being fetched from a host.
var errTaken = errors.New("other recordings are being fetched from there")

// enter waits for a turn at the host, but not for long: others wait for the same workers. It fails
// with a *busyError if there is none, or while the host is not to be tried.
func (h *health) enter(ctx context.Context) (leave func(), err error) {
	if err := h.admit(); err != nil {
		return nil, err
	}
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-timer.C:
		return nil, &busyError{errTaken, turnPause}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// admit fails with a *busyError while the host is not to be tried. After a failure one fetch finds
// out whether it is there again.
func (h *health) admit() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case h.failures == 0:
		return nil
	case now.Before(h.until):
		return &busyError{h.err, h.until.Sub(now) + time.Second}
	}
	h.until = now.Add(probeTime)
	return nil
}

// note records how a fetch has ended, and returns its error: a *busyError if the host is at fault.
func (h *health) note(err error, began time.Time) error {
	var (
		refused  *refusedError
		absent   *notYetError
		file     *fileError
		unstored *localError
	)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil || errors.As(err, &refused) || errors.As(err, &absent) || errors.As(err, &file) ||
		errors.As(err, &unstored) {
		h.failures, h.until = 0, time.Time{}
		return err
	}
	now := time.Now()
	if h.failures > 0 && began.Before(h.failedAt) { // it had begun before the last failure: the same one
		return &busyError{err, max(h.until.Sub(now), 0) + time.Second}
	}
	wait := lastWait
	if h.failures < 6 { // 15 s × 2⁶ is past ten minutes
		wait = min(wait, firstWait<<h.failures)
	}
	h.failures++
	h.until, h.err, h.failedAt = now.Add(wait), err, now
	return &busyError{err, wait}
}
