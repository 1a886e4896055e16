package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// CallFilter selects calls to find. An empty field matches all.
type CallFilter struct {
	// Number is a number in any form, the last digits of one (at least four), or an extension. If
	// nothing is found by it, any four or more digits of a number are looked for.
	Number       string
	Since, Until time.Time // of the latest event of the call: from Since on, before Until
	Direction    telephony.Direction
	Outcome      telephony.Outcome
	State        string // of the call's deliveries at some endpoint
	Limit        int    // at least 1
	Cursor       string // as FoundCalls has given it, for the same filter
}

// FoundCalls is one page of calls.
type FoundCalls struct {
	Calls  []store.CallHead
	Cursor string // for the rest; empty if there is none
	// Searched is the number of calls that were looked at, if the search has stopped before it had
	// looked at all: at MaxSearched. Cursor then goes on from there.
	Searched int
	// AnyDigits means that no call is found by the whole number or its last digits, so that these
	// have the digits anywhere in a number.
	AnyDigits bool
	// Unindexed means that older calls are not found by their number yet: see store.CallList.
	Unindexed bool
}

// MaxSearched is after how many calls a search that no index helps stops.
const MaxSearched = 10_000

// anyDigits marks the cursor of a search for digits anywhere in a number.
const anyDigits = "any."

// FindCalls finds calls, the one with the latest event first. Fails with phone.ErrTooFewDigits,
// store.ErrBadCursor or store.ErrBadState.
func (o *Outbox) FindCalls(ctx context.Context, f CallFilter) (FoundCalls, error) {
	if f.State != "" && !slices.Contains(store.StateNames[:], f.State) {
		return FoundCalls{}, fmt.Errorf("%w as %q: there are %s",
			store.ErrBadState, f.State, strings.Join(store.StateNames[:], ", "))
	}
	q := store.CallQuery{
		Since:     f.Since,
		Until:     f.Until,
		Direction: f.Direction,
		Outcome:   f.Outcome,
		State:     f.State,
		Limit:     f.Limit,
	}
	if f.Number == "" {
		q.Cursor = f.Cursor
		return o.findCalls(ctx, q)
	}
	key, whole, err := o.opts.Numbers.Query(f.Number)
	if err != nil {
		return FoundCalls{}, err
	}
	q.Key, q.Match = key, store.KeyBegins
	if whole {
		q.Match = store.KeyEquals
	}
	cursor, isAny := strings.CutPrefix(f.Cursor, anyDigits)
	q.Cursor = cursor
	var found FoundCalls
	if !isAny {
		found, err = o.findCalls(ctx, q)
		if err != nil || len(found.Calls) > 0 || f.Cursor != "" || len(key) < minAnyDigits {
			return found, err
		}
	}
	unindexed := found.Unindexed
	q.Match = store.KeyContains
	found, err = o.findCalls(ctx, q)
	found.AnyDigits, found.Unindexed = !unindexed, unindexed
	if found.Cursor != "" {
		found.Cursor = anyDigits + found.Cursor
	}
	return found, err
}

// minAnyDigits is the least number of digits that are looked for anywhere in a number.
const minAnyDigits = 4

// findCalls reads pages of the engine until one of its own is full, or MaxSearched calls were
// looked at: each page is a short transaction.
func (o *Outbox) findCalls(ctx context.Context, q store.CallQuery) (found FoundCalls, err error) {
	limit, looked := q.Limit, 0
	for {
		q.Limit = limit - len(found.Calls)
		page, err := o.engine.Calls(ctx, q)
		if err != nil {
			return FoundCalls{}, err
		}
		looked += page.Looked
		for i := range page.Calls {
			leaveOutInner(&page.Calls[i])
		}
		found.Calls = append(found.Calls, page.Calls...)
		found.Cursor, found.Unindexed = page.Cursor, page.Unindexed
		switch {
		case page.Cursor == "" || len(found.Calls) == limit:
			return found, nil
		case looked >= MaxSearched || ctx.Err() != nil:
			found.Searched = looked
			return found, ctx.Err()
		}
		q.Cursor = page.Cursor
	}
}

// CallHead returns what is known of a call as a whole: see store.Archive.
func (o *Outbox) CallHead(ctx context.Context, callID string) (store.CallHead, error) {
	h, err := o.engine.CallHead(ctx, callID)
	leaveOutInner(&h)
	return h, err
}

// leaveOutInner removes how deliveries to the bridge itself stand.
func leaveOutInner(h *store.CallHead) {
	h.Deliveries = slices.DeleteFunc(h.Deliveries, func(s store.CallStanding) bool { return store.IsInner(s.Endpoint) })
}
