package bolt

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"math"
	"slices"
	"sort"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// CallHead gives what is known of a call as a whole: see store.Archive.
func (s *Engine) CallHead(_ context.Context, callID string) (head store.CallHead, err error) {
	err = s.view(func(tx *txn) (err error) {
		head, err = s.headOf(tx, callID)
		return err
	})
	return head, err
}

func (s *Engine) headOf(tx *txn, callID string) (store.CallHead, error) {
	var events []store.Event
	var numbers []uint64
	for n, e := range tx.eventsBackwards(callID) {
		events, numbers = append(events, e), append(numbers, n)
		if len(events) == store.MaxHeadEvents {
			break
		}
	}
	if len(events) == 0 {
		return store.CallHead{}, store.ErrNoCall
	}
	slices.Reverse(events)
	head := store.HeadOf(callID, events)
	for _, name := range tx.names() {
		standing := store.CallStanding{Endpoint: name}
		for i := range events {
			n := numbers[len(numbers)-1-i]
			if d, _, ok := tx.queue(name).get(n); ok {
				d, _ = s.shown(tx, name, n, d)
				standing.Add(events[i].Type, d.State)
			}
		}
		if standing != (store.CallStanding{Endpoint: name}) {
			head.Deliveries = append(head.Deliveries, standing)
		}
	}
	return head, nil
}

// eventsBackwards gives the events of a call that can be read, with their numbers, the latest
// first.
func (tx *txn) eventsBackwards(callID string) func(yield func(uint64, store.Event) bool) {
	return func(yield func(uint64, store.Event) bool) {
		if callID == "" {
			return
		}
		next := tx.eventsBefore(callID, math.MaxUint64)
		for n, v := next(); v != nil; n, v = next() {
			if e, err := decodeEvent(v); err == nil && !yield(n, e) {
				return
			}
		}
	}
}

// Calls lists calls: see store.Archive.
func (s *Engine) Calls(_ context.Context, q store.CallQuery) (list store.CallList, err error) {
	below, err := store.ParseCallCursor(q.Cursor)
	if err != nil {
		return store.CallList{}, err
	}
	err = s.view(func(tx *txn) error {
		f := callSearch{CallQuery: q, engine: s, tx: tx, known: map[string]bool{}}
		if q.Key != "" && q.Match != store.KeyContains {
			f.lookAt(tx.numberEntries(q, below, maxCandidates), f.hasNumberAt)
			f.list.Unindexed = decodeNumber(tx.meta.Get(keyNumbered)) != filledWhole
		} else if events, ok := s.eventsInState(tx, q.State, below); ok {
			f.lookAt(events, f.hasStateAt)
		} else {
			f.byTime(below)
		}
		list = f.list
		return nil
	})
	return list, err
}

// callSearch is a search for calls under way.
type callSearch struct {
	store.CallQuery
	engine *Engine
	tx     *txn
	list   store.CallList
	known  map[string]bool // the calls that were looked at
}

// maxCandidates is how many events an index gives at once.
const maxCandidates = 256

// eventsInState returns the events below a number whose delivery to some endpoint is in a state,
// the newest first, maxCandidates at most. It is false if no index has them.
func (s *Engine) eventsInState(tx *txn, state string, below uint64) (list []uint64, ok bool) {
	if state == "" || below == 0 {
		return nil, false
	}
	for _, name := range tx.names() {
		numbers, ok := s.numbersIn(tx, name, state, below-1)
		if !ok {
			return nil, false
		}
		list = append(list, numbers...)
	}
	slices.SortFunc(list, func(a, b uint64) int { return cmp.Compare(b, a) })
	list = slices.Compact(list)
	return list[:min(len(list), maxCandidates)], true
}

// lookAt looks at the calls of events that an index gives, the newest first. IsIndexed reports
// whether the index gives an event: a call is listed at the latest of those.
func (f *callSearch) lookAt(events []uint64, isIndexed func(n uint64, entry callEntry) bool) {
	for _, n := range events {
		e, _, err := decodeEventHead(f.tx.events.Get(number(n)))
		if err != nil {
			continue
		}
		if !f.Since.IsZero() && e.At.Before(f.Since.Add(-store.ClockSlack-store.LongestFound)) {
			return // the rest is older
		}
		switch {
		case e.Call == "" || f.known[e.Call]:
		case f.isListedLater(&e, isIndexed):
			f.known[e.Call] = true // on an earlier page
		case !f.look(e.Call, n):
			return
		}
	}
	if len(events) == maxCandidates {
		f.list.Cursor = store.CallCursor(events[maxCandidates-1])
	}
}

// isListedLater reports whether an index gives a later event of the call of an event, too.
func (f *callSearch) isListedLater(e *store.Event, isIndexed func(n uint64, entry callEntry) bool) bool {
	const farthest = 1000 // a search is short; a call with more events may be listed twice
	place := callKey(e.Call)
	c := f.tx.calls.Cursor()
	k, v := c.Seek(binary.BigEndian.AppendUint64(bytes.Clone(place), e.Sequence+1))
	for i := 0; i < farthest && bytes.HasPrefix(k, place); i++ {
		if n := numberAt(v); isIndexed(n, v) {
			if _, _, err := decodeEventHead(f.tx.events.Get(number(n))); err == nil {
				return true
			}
		}
		k, v = c.Next()
	}
	return false
}

// hasNumberAt reports whether the index by number gives an event.
func (f *callSearch) hasNumberAt(n uint64, entry callEntry) bool {
	for _, key := range entry.keys() {
		matches := bytes.HasPrefix(key, []byte(f.Key)) && (f.Match == store.KeyBegins || len(key) == len(f.Key))
		if matches && f.tx.numbers.Get(numberKey(key, n)) != nil {
			return true
		}
	}
	return false
}

// hasStateAt reports whether the delivery of an event to some endpoint is in the state.
func (f *callSearch) hasStateAt(n uint64, _ callEntry) bool {
	return slices.ContainsFunc(f.tx.names(), func(name string) bool {
		d, _, ok := f.tx.queue(name).get(n)
		return ok && d.State.String() == f.State
	})
}

// byTime looks at all calls whose latest event is below a number, the newest first.
func (f *callSearch) byTime(below uint64) {
	if !f.Until.IsZero() {
		below = min(below, f.tx.firstSince(f.Until.Add(store.ClockSlack)))
	}
	if below == 0 {
		return
	}
	c := f.tx.events.Cursor()
	looked := 0
	for k, v := seekBack(c, below-1); k != nil; k, v = c.Prev() {
		n := binary.BigEndian.Uint64(k)
		if looked == store.MaxLooked {
			f.list.Cursor = store.CallCursor(n + 1)
			return
		}
		looked++
		e, body, err := decodeEventHead(v)
		switch {
		case err != nil || e.Call == "":
		case e.At.Before(f.Since.Add(-store.ClockSlack)):
			return
		case !f.tx.isLatest(&e, n):
		case f.isOther(&e, body):
			f.list.Looked++
		case !f.look(e.Call, n):
			return
		}
	}
}

// isOther reports that the search is certainly not for a call, by the event that has ended it and
// is its latest: that is known without its other events.
func (f *callSearch) isOther(latest *store.Event, body []byte) bool {
	if f.Outcome == "" || latest.Type != telephony.EventCompleted {
		return false
	}
	has := func(outcome telephony.Outcome) bool {
		return bytes.Contains(body, []byte(`,"outcome":"`+outcome+`"`)) // no text holds that: its quotes are escaped
	}
	return has(telephony.OutcomeAnswered) && f.Outcome != telephony.OutcomeAnswered ||
		has(telephony.OutcomeMissed) && f.Outcome != telephony.OutcomeMissed ||
		has(telephony.OutcomeNoAnswer) && f.Outcome != telephony.OutcomeNoAnswer
}

// isLatest reports whether an event is the latest of its call, at which a list has it.
func (tx *txn) isLatest(e *store.Event, n uint64) bool {
	_, last := tx.lastOf(callKey(e.Call))
	return numberAt(last) == n
}

// firstSince gives the number of the first event that was read at a time or later, one above all
// if there is none. Events are numbered in the order in which they were read.
func (tx *txn) firstSince(at time.Time) uint64 {
	c := tx.events.Cursor()
	k, _ := c.First()
	first, last := decodeNumber(k), tx.events.Sequence()
	if k == nil {
		return 0
	}
	return first + uint64(sort.Search(int(last-first+1), func(i int) bool {
		k, v := c.Seek(number(first + uint64(i)))
		e, _, err := decodeEventHead(v)
		return k == nil || err == nil && !e.At.Before(at)
	}))
}

// look adds a call, which was found at an event, if the search is for it. It is false once the page
// was full before: only then is it known that another call follows.
func (f *callSearch) look(callID string, n uint64) bool {
	if f.known[callID] {
		return true
	}
	f.known[callID] = true
	f.list.Looked++
	if f.Match == store.KeyContains && !f.containsKey(callID) {
		return true
	}
	head, err := f.engine.headOf(f.tx, callID)
	switch {
	case err != nil || !f.Matches(&head):
	case len(f.list.Calls) == f.Limit:
		f.list.Cursor = store.CallCursor(n + 1)
		return false
	default:
		f.list.Calls = append(f.list.Calls, head)
	}
	return true
}

// containsKey reports whether a number of a call's latest event contains the digits of the query.
func (f *callSearch) containsKey(callID string) bool {
	_, entry := f.tx.lastOf(callKey(callID))
	list := entry.keys()
	if !entry.isIndexed() { // an older version has stored it
		if e, err := decodeEvent(f.tx.events.Get(number(numberAt(entry)))); err == nil {
			from, to := store.NumbersIn(e.Body)
			list = [2][]byte{[]byte(f.engine.rules.NumberKey(from)), []byte(f.engine.rules.NumberKey(to))}
		}
	}
	return bytes.Contains(list[0], []byte(f.Key)) || bytes.Contains(list[1], []byte(f.Key))
}
