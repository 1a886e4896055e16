package outbox

import (
	"context"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// ErrNoPerson means that a text is no number of a person, of which something could be forgotten.
var ErrNoPerson = &telephony.Fault{Code: telephony.CodeNoPerson, Text: "it is no telephone number"}

// Recordings are files of calls, outside of the engine.
type Recordings interface {
	// Forget removes the recordings of a person's calls, or with dryRun only counts them. Key is of
	// the number: see store.Rules.NumberKey.
	Forget(ctx context.Context, key string, dryRun bool) (int, error)
}

// Forget removes all calls with a number, which may be in any form, whole: their events,
// deliveries, attempts and routes, also those that an endpoint waits for, and what senders keep of
// the number; or with dryRun only counts the calls. It reaches neither attempts under way nor what
// has left the outbox. Fails with ErrNoPerson for an extension and for what is no number, and with
// store.ErrUnindexed. If the engine fails on the way, what was done until then stays done, and is
// counted.
func (o *Outbox) Forget(ctx context.Context, number string, dryRun bool) (sum store.Forgotten, err error) {
	const minDigits = 5 // fewer are an extension of some company, or a mistake
	key := o.opts.Numbers.Key(number)
	if o.opts.Numbers.Extension(number) != "" || len(key) < minDigits {
		return store.Forgotten{}, ErrNoPerson
	}
	for more := true; more; {
		f, err := o.engine.Forget(ctx, key, dryRun)
		if err != nil {
			return sum, err
		}
		sum.Calls += f.Calls
		sum.Events += f.Events
		sum.Deliveries += f.Deliveries
		sum.Routes += f.Routes
		sum.Pending += f.Pending
		if more = f.More; ctx.Err() != nil {
			return sum, ctx.Err()
		}
	}
	for _, l := range o.lanes {
		if sender, ok := l.sender.(store.Forgetter); ok && !dryRun {
			if err := sender.Forget(ctx, key); err != nil {
				return sum, err
			}
		}
	}
	// After the calls: a recording that is fetched meanwhile is left out, or found here.
	if o.opts.Recordings != nil {
		sum.Recordings, err = o.opts.Recordings.Forget(ctx, key, dryRun)
	}
	return sum, err
}
