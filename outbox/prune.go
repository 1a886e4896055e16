package outbox

import (
	"context"
	"encoding/binary"
	"time"

	"pzbridge/outbox/store"
)

const (
	// pruneEvery is the interval between removals of old events.
	pruneEvery = time.Minute
	// nearlyFullWait is the pause in early removals after one has found nothing to remove.
	nearlyFullWait = 10 * time.Second
)

// prune removes, until ctx ends, events that are older than the retention and for which no endpoint
// waits; while the engine is nearly full, also younger ones.
func (o *Outbox) prune(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	var fruitless time.Time // when it last found nothing to remove early
	last := time.Now()      // the time of the last pass
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-o.nearlyFull:
			if time.Since(fruitless) < nearlyFullWait {
				continue
			}
		}
		passed := time.Since(last)
		last = time.Now()
		pruned, err := o.engine.Prune(ctx, store.Retention{
			MaxAge:       o.opts.Retention,
			Abandoned:    o.abandoned(ctx, passed),
			AbandonedAge: o.opts.Retention + lifespan(o.opts.RetrySchedule),
		})
		if pruned.NearlyFull && pruned.Events == 0 {
			fruitless = time.Now()
		}
		if err != nil {
			o.failures.Failed("old events cannot be removed from the outbox", err)
			continue
		}
		o.failures.Recovered("old events are removed again")
		if pruned.Events > 0 {
			o.opts.Logger.Debug("old events removed from the outbox", "events", pruned.Events)
		}
		if len(pruned.GivenUp) > 0 {
			o.wakeLanes() // they may have held deliveries that are due now
		}
		for name, n := range pruned.GivenUp {
			o.opts.Observer.GivenUp(name, n)
			o.opts.Logger.Error("events were given up: "+
				"their endpoint has been failing for longer than OUTBOX_RETENTION",
				"endpoint", name, "deliveries", n)
		}
	}
}

// abandoned returns the endpoints that have been failing for longer than the retention and the
// whole schedule together. Their deliveries of that age are given up: an endpoint that never
// recovers must not fill the disk. Passed is the time since the last call. While the engine cannot
// be written, no endpoint is abandoned. Of an endpoint to which another bridge delivers, that one
// records the time; this one may not even have it.
func (o *Outbox) abandoned(ctx context.Context, passed time.Duration) map[string]bool {
	list := map[string]bool{}
	for _, name := range o.endpointsOfAll() {
		failing, succeeded, isMine := o.findings(name)
		if isMine && !failing && !succeeded {
			continue
		}
		total, err := o.failingFor(ctx, name, failing, succeeded, passed)
		if err != nil {
			o.failures.Failed("for how long endpoints have been failing cannot be recorded", err)
		}
		list[name] = err == nil && total > o.opts.Retention+lifespan(o.opts.RetrySchedule)
	}
	return list
}

// findings returns how this bridge has found an endpoint since the last call. IsMine is false if
// another bridge delivers to it.
func (o *Outbox) findings(endpoint string) (failing, succeeded, isMine bool) {
	if o.endpoint(endpoint) == nil {
		return false, false, false
	}
	l := o.lane(endpoint)
	failing, succeeded = l.currentHealth().failing, l.succeeded.Swap(false)
	if o.shared() != nil && !l.isMine.Load() {
		return false, false, false
	}
	return failing, succeeded, true
}

// noteFailing is the name of the note of an endpoint that holds for how long it has been failing,
// in nanoseconds during which the bridge ran. Neither a clock that is set nor a time in which the
// bridge was down, and could not know, adds to it.
const noteFailing = "failing"

// failingFor adds to the time for which an endpoint has been failing, or resets it after a success,
// and returns the sum.
func (o *Outbox) failingFor(
	ctx context.Context, endpoint string, failing, succeeded bool, passed time.Duration,
) (total time.Duration, err error) {
	value, version, err := o.engine.Note(ctx, endpoint, noteFailing, time.Now())
	if err != nil {
		return 0, err
	}
	if len(value) == 8 {
		total = time.Duration(binary.BigEndian.Uint64(value))
	}
	if !failing && (!succeeded || total == 0) {
		return total, nil
	}
	if succeeded {
		total = 0
	}
	if failing {
		total += passed
	}
	value = binary.BigEndian.AppendUint64(nil, uint64(total))
	return total, o.engine.SetNote(ctx, endpoint, noteFailing, version, value, time.Time{})
}
