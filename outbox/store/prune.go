package store

import (
	"iter"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// CallEndsAfter is after how long without an event a call counts as over, so that its numbering may
// begin again.
const CallEndsAfter = 4 * time.Hour

// Pruning decides which events Prune removes, in one pass through them in the order of their
// numbers. It reads nothing itself.
type Pruning struct {
	Retention
	Endpoints []string                      // those that are configured
	Age       func(time.Time) time.Duration // how long ago a time was
	IsDated   func(time.Time) bool          // false for a time that a wrong clock has given
	Early     bool                          // see Sooner

	latest  bool
	undated []uint64 // events that are as old as the next dated one
}

// Stored is what an engine has stored about an event that may go.
type Stored interface {
	// IsLatest reports whether it is the latest event of its call. Only an early pass needs it.
	IsLatest() bool
	// Route returns the route of its call; nil if there is none, or if it cannot be read. Only a
	// call.transfer_requested needs it.
	Route() *telephony.Route
	// Pending returns the endpoints to which its delivery is pending.
	Pending() iter.Seq[string]
}

// Sooner returns the decisions of a pass through an engine that is nearly full: events of any age
// go if no endpoint waits for them. The latest event of a call that may go on stays, unless latest
// is true: rather its numbering begins again than that nothing can be stored any more.
func (p Pruning) Sooner(latest bool) Pruning {
	p.Early, p.latest, p.MaxAge, p.undated = true, latest, 0, nil
	return p
}

// Next looks at the next event. It returns the events that may go, up to this one, and true if this
// one and all after it are too young. An event that came while the clock was wrong is as old as the
// next one that did not: it goes with that one.
func (p *Pruning) Next(n uint64, e *Event, s Stored) (old []uint64, done bool) {
	age := p.Age(e.At)
	isUndated := !p.IsDated(e.At) && !p.Early
	switch {
	case age < 0: // of the future, until the clock is there again
	case isUndated && !p.IsWaitedFor(e, s):
		p.undated = append(p.undated, n)
	case isUndated:
	case age <= p.MaxAge:
		return nil, true
	case !p.IsWaitedFor(e, s):
		old, p.undated = append(p.undated, n), nil
	default:
		old, p.undated = p.undated, nil
	}
	return old, false
}

// IsWaitedFor reports whether an event has to stay: it would go early while its call goes on, it
// says who has won its call, or an endpoint still waits for it. What waits for an endpoint that is
// configured no longer waits as long as the retention.
func (p *Pruning) IsWaitedFor(e *Event, s Stored) bool {
	if p.Early && !p.latest && p.mayGoOn(e) && s.IsLatest() {
		return true
	}
	if e.Type == telephony.EventTransferRequested {
		r := s.Route()
		if r != nil && r.EventID == e.ID.String() && r.Live(r.AskedAt.Add(p.Age(r.AskedAt))) {
			return true // the winner must be known until the call is over
		}
	}
	for name := range s.Pending() {
		counts := p.Early || slices.Contains(p.Endpoints, name)
		if counts && (!p.Abandoned[name] || p.Age(e.At) <= p.AbandonedAge) {
			return true
		}
	}
	return false
}

// mayGoOn reports whether the call of an event may go on after it: the sequence of the next one
// follows from the latest.
func (p *Pruning) mayGoOn(e *Event) bool {
	isOver := e.Type == telephony.EventCompleted || e.Type == telephony.EventRecordingReady
	return e.Call != "" && !isOver && p.Age(e.At) <= CallEndsAfter
}
