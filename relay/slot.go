package relay

import (
	"context"
	"errors"
	"time"

	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
)

// Slot is what a bridge needs to be connected where several share one server: as many are at a
// time as there are slots.
type Slot interface {
	// Take returns once this bridge has a slot, at once if it has one already, with the GUID that
	// belongs to the slot; false if ctx ended first.
	Take(ctx context.Context) (guid string, ok bool)
	// Failed is called when this bridge is not connected after an attempt, with the time since when
	// it is not. It returns true if it has left the slot to another bridge, which may reach the
	// server: then this one is to take one again.
	Failed(ctx context.Context, since time.Time) (left bool)
}

var errSpare = &telephony.Fault{
	Code: telephony.CodeSpare,
	Text: "another bridge is connected, and this one waits as its spare",
}

// explained returns why a connection has ended, in the words that fit a bridge with others beside
// it: the client that has connected with its GUID is the one that has its slot now.
func (s *Session) explained(err error) error {
	var closed closeError
	if s.opts.Slot != nil && errors.As(err, &closed) && closed.frame.Code == pz.CloseSameGUID {
		return &telephony.Fault{
			Code: telephony.CodeTakenOver, Text: "another bridge has taken this one's place at the server", Err: err,
		}
	}
	return err
}

// slotLook is how often a bridge that is not connected looks whether to leave its slot.
const slotLook = 3 * time.Second

// takeSlot waits until this bridge may connect. It returns false if ctx ends first.
func (s *Session) takeSlot(ctx context.Context) bool {
	if s.opts.Slot == nil {
		return true
	}
	guid, ok := s.opts.Slot.Take(ctx)
	if !ok {
		return false
	}
	s.opts.Identity.GUID = guid
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isSpare = false
	if s.status.LastCause.Code == errSpare.Code {
		s.status.LastError, s.status.LastCause = "", telephony.Cause{}
	}
	return true
}

// leavesSlot leaves the slot to another bridge if this one has tried for too long. It is kept while
// events wait to be stored, since they are stored with its number.
func (s *Session) leavesSlot(ctx context.Context) bool {
	if s.opts.Slot == nil || s.intake.waiting() > 0 || !s.opts.Slot.Failed(ctx, s.Connection().Since) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isSpare, s.status.DialsAt = true, time.Time{} // the status goes on saying why it is not connected
	return true
}

// noteSpare says in the status of a bridge without a slot why it does not connect. The caller holds
// mu.
func (s *Session) noteSpare() {
	if s.isSpare && s.status.State != telephony.Disabled {
		s.status.LastError, s.status.LastCause = errSpare.Error(), telephony.CauseOf(errSpare)
		s.status.DialsAt = time.Time{}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// pause waits before the next attempt. It returns true if that is to be as the first one: it was
// asked for, or this bridge has left its slot, which may last longer than any wait.
func (s *Session) pause(ctx context.Context, switched <-chan struct{}, wait time.Duration) (afresh bool) {
	over := time.NewTimer(wait)
	defer over.Stop()
	slot := time.NewTicker(slotLook)
	defer slot.Stop()
	for {
		if s.leavesSlot(ctx) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-switched:
			return false
		case <-s.dialNow:
			return true
		case <-over.C:
			return false
		case <-slot.C:
		}
	}
}
