// Package pairing stores each event once where two bridges hear one exchange. Both read every
// event, in the same order, without an ID on the wire. What the two have read is paired occurrence
// by occurrence: the first one that this bridge reads of some content belongs to the first one that
// the other has stored, and so on. No clock decides whether two are the same.
package pairing

import "time"

// Print is telephony.Event.Fingerprint: equal for what two bridges have read of one event, and for
// another event with the same content.
type Print = [16]byte

// Ledger is what one listener knows of the occurrences that it has read, and of those that the
// other one has stored. It does no I/O.
type Ledger struct {
	unconfirmed map[Print][]string // the IDs of what was read and is not stored, the oldest first
	prints      map[string]Print   // of these, by ID
	credits     map[Print][]time.Time
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{unconfirmed: map[Print][]string{}, prints: map[string]Print{}, credits: map[Print][]time.Time{}}
}

// Read notes an event that was read. It returns false if the other listener has stored its twin.
func (l *Ledger) Read(id string, p Print) (isNew bool) {
	if list := l.credits[p]; len(list) > 0 {
		setOrDelete(l.credits, p, list[1:])
		return false
	}
	l.unconfirmed[p] = append(l.unconfirmed[p], id)
	l.prints[id] = p
	return true
}

// StoredByOther notes an event that the other listener has stored. The oldest event with that
// content which is read and not stored is its twin, and no longer to be stored. If there is none,
// the next one that is read is, until Void.
func (l *Ledger) StoredByOther(p Print, now time.Time) {
	if !l.dropOldest(p) {
		l.credits[p] = append(l.credits[p], now)
	}
}

// ReplayedToOther notes an event that the other listener has stored when the exchange sent it once
// more: it was not connected at first. This one may have read it live. If not, nothing follows: a
// replay of it is left out by what is stored of its call.
func (l *Ledger) ReplayedToOther(p Print) { l.dropOldest(p) }

// dropOldest takes the oldest event with some content from those that are to be stored; false if
// there is none.
func (l *Ledger) dropOldest(p Print) bool {
	list := l.unconfirmed[p]
	if len(list) == 0 {
		return false
	}
	delete(l.prints, list[0])
	setOrDelete(l.unconfirmed, p, list[1:])
	return true
}

// IsUnconfirmed reports whether an event that was read is still to be stored.
func (l *Ledger) IsUnconfirmed(id string) bool {
	_, is := l.prints[id]
	return is
}

// Stored notes an event that this listener has stored.
func (l *Ledger) Stored(id string) {
	p, is := l.prints[id]
	if !is {
		return
	}
	delete(l.prints, id)
	list := l.unconfirmed[p]
	for i, other := range list {
		if other == id {
			setOrDelete(l.unconfirmed, p, append(list[:i:i], list[i+1:]...))
			return
		}
	}
}

// Void forgets what the other listener had stored before a time, and whose twin was not read. The
// exchange sends an event to all within a moment, and the connection is in order: once something
// has been read that was sent a while after it, the twin is not coming any more.
func (l *Ledger) Void(before time.Time) {
	for p, list := range l.credits {
		for len(list) > 0 && list[0].Before(before) {
			list = list[1:]
		}
		setOrDelete(l.credits, p, list)
	}
}

// Join forgets all that the other listener has stored: what was stored before a connection begins
// is never read on it.
func (l *Ledger) Join() { clear(l.credits) }

// setOrDelete keeps no entry for what is empty.
func setOrDelete[T any](m map[Print][]T, p Print, list []T) {
	if len(list) == 0 {
		delete(m, p)
	} else {
		m[p] = list
	}
}
