package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"pzbridge/outbox/store"
)

// Redeliver makes one delivery again, in whatever state it is, and returns its new state. The event
// keeps its ID, does not expire, and is queued behind the pending events before it in its call.
// Fails with store.ErrNotFound, store.ErrNoEndpoint or store.ErrNoURL.
func (o *Outbox) Redeliver(ctx context.Context, id string) (store.DeliveryView, error) {
	eventID, endpoint, isWhole := strings.Cut(id, ".")
	if !isWhole {
		return store.DeliveryView{}, store.ErrNotFound
	}
	if err := o.checkRedeliverable(endpoint); err != nil {
		return store.DeliveryView{}, err
	}
	if err := o.engine.Redeliver(ctx, eventID, endpoint, time.Now()); err != nil {
		return store.DeliveryView{}, err
	}
	o.wakeLanes()
	d, _, err := o.engine.Delivery(ctx, eventID, endpoint)
	return d, err
}

// RedeliverAll makes many deliveries again, or with DryRun only counts them. It returns the number
// by which Redelivery finds what comes of them, and how many they are. Events that are appended
// meanwhile are not among them. Fails with store.ErrNoEndpoint, store.ErrNoURL or
// store.ErrBadState. If the engine fails on the way, what was done until then stays done, and is
// counted.
func (o *Outbox) RedeliverAll(ctx context.Context, r store.Redelivery) (number uint32, count int, err error) {
	if err := o.checkRedeliverable(r.Endpoint); err != nil {
		return 0, 0, err
	}
	for _, s := range r.States {
		if s != store.Missing && (!slices.Contains(store.StateNames[:], s) || s == store.Pending.String()) {
			return 0, 0, fmt.Errorf("%w as %q: there are delivered, expired, dead and %s",
				store.ErrBadState, s, store.Missing)
		}
	}
	last, err := o.engine.LastNumber(ctx)
	if err != nil {
		return 0, 0, err
	}
	if !r.DryRun {
		r.Token = uuid.New()
		if r.Number, err = o.engine.AddRedelivery(ctx, r, time.Now()); err != nil {
			return 0, 0, err
		}
	}
	for from := uint64(0); from <= last; {
		if ctx.Err() != nil {
			return r.Number, count, ctx.Err()
		}
		var n int
		if n, from, err = o.engine.RedeliverSome(ctx, r, from, last, time.Now()); err != nil {
			return r.Number, count, err
		}
		if count += n; n > 0 && !r.DryRun {
			o.wakeLanes() // so that the first need not wait for the last
		}
	}
	return r.Number, count, nil
}

// Redelivery returns a redelivery of many, and what has come of it. Fails with
// store.ErrNoRedelivery.
func (o *Outbox) Redelivery(ctx context.Context, number uint32) (store.RedeliveryState, error) {
	if number == 0 {
		return store.RedeliveryState{}, store.ErrNoRedelivery
	}
	list, err := o.engine.Redeliveries(ctx, number, 1)
	if err != nil {
		return store.RedeliveryState{}, err
	}
	return list[0], nil
}

// Redeliveries returns the latest redeliveries of many, the newest first.
func (o *Outbox) Redeliveries(ctx context.Context, limit int) ([]store.RedeliveryState, error) {
	return o.engine.Redeliveries(ctx, 0, limit)
}

// checkRedeliverable fails with store.ErrNoEndpoint or store.ErrNoURL if nothing can be redelivered
// to an endpoint. It may be one that only another bridge has, which then makes the deliveries.
func (o *Outbox) checkRedeliverable(name string) error {
	err := o.checkWebhookEndpoint(name)
	if !errors.Is(err, store.ErrNoEndpoint) || !slices.Contains(o.endpointsOfAll(), name) {
		return err
	}
	if o.shared().AllRules().Reads(name) {
		return errNoURL(name)
	}
	return nil
}

// checkWebhookEndpoint fails with store.ErrNoEndpoint or store.ErrNoURL if this bridge can send
// nothing to an endpoint.
func (o *Outbox) checkWebhookEndpoint(name string) error {
	switch e := o.endpoint(name); {
	case e == nil:
		return o.errNoEndpoint(name)
	case e.Reads():
		return errNoURL(name)
	}
	return nil
}

func (o *Outbox) errNoEndpoint(name string) error {
	if slices.Contains(o.endpointsOfAll(), name) {
		return store.ErrNoEndpoint.With(fmt.Sprintf(" at this bridge, but at another one: %q", name), name)
	}
	return store.ErrNoEndpoint.With(fmt.Sprintf(": %q", name), name)
}

func errNoURL(name string) error { return store.ErrNoURL.With(fmt.Sprintf(": %q", name), name) }

// Tester is a Sender that can send a test.
type Tester interface {
	// Test sends the endpoint an event that is neither stored nor retried. Fails only with the
	// error of ctx.
	Test(ctx context.Context) (eventID string, made store.Attempt, err error)
}

// SendTest sends a test to an endpoint, ahead of all deliveries that wait for it, and returns the
// outcome. Fails with store.ErrNoEndpoint, store.ErrNoURL or the error of ctx.
func (o *Outbox) SendTest(ctx context.Context, endpoint string) (eventID string, made store.Attempt, err error) {
	if err := o.checkWebhookEndpoint(endpoint); err != nil {
		return "", store.Attempt{}, err
	}
	l := o.lane(endpoint)
	tester, ok := l.sender.(Tester)
	if !ok {
		return "", store.Attempt{}, errNoURL(endpoint)
	}
	if eventID, made, err = tester.Test(ctx); err != nil {
		return "", store.Attempt{}, err
	}
	args := []any{"event_id", eventID, "status", made.Status}
	if made.Error != "" {
		args = []any{"event_id", eventID, "err", made.Failure()}
	}
	l.logger.Info("test sent", append(args, "took", made.Took.Round(time.Microsecond).String())...)
	return eventID, made, nil
}
