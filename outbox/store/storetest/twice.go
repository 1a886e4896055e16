package storetest

import (
	"context"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Twice is a harness whose engines carry out every write twice, as a caller does that got an error
// and cannot know whether the write happened. The suite holds with it too: the second time changes
// nothing.
func Twice(h Harness) Harness { return twice{h} }

type twice struct{ Harness }

func (h twice) Open(o EngineOptions) (store.Engine, error) {
	e, err := h.Harness.Open(o)
	if err != nil {
		return nil, err
	}
	return &twiceEngine{Engine: e}, nil
}

func (h twice) Check(t testing.TB, e store.Engine) { h.Harness.Check(t, e.(*twiceEngine).Engine) }

// twiceEngine gives what the second call gives, unless that tells what the first has done.
type twiceEngine struct{ store.Engine }

func (e *twiceEngine) Append(ctx context.Context, events []store.NewEvent) (store.Appended, error) {
	if out, err := e.Engine.Append(ctx, events); err != nil {
		return out, err
	}
	return e.Engine.Append(ctx, events)
}

func (e *twiceEngine) Lane(ctx context.Context, endpoint string, withCall bool) (store.Lane, error) {
	l, err := e.Engine.Lane(ctx, endpoint, withCall)
	if err != nil {
		return nil, err
	}
	return &twiceLane{l}, nil
}

func (e *twiceEngine) RecordQuestion(ctx context.Context, endpoint string, r *store.Result) error {
	if err := e.Engine.RecordQuestion(ctx, endpoint, r); err != nil {
		return err
	}
	return e.Engine.RecordQuestion(ctx, endpoint, r)
}

func (e *twiceEngine) EndQuestion(
	ctx context.Context, n uint64, notAsked []telephony.Reply, now time.Time,
) ([]store.EndedJob, error) {
	ended, err := e.Engine.EndQuestion(ctx, n, notAsked, now)
	if err != nil {
		return nil, err
	}
	again, err := e.Engine.EndQuestion(ctx, n, notAsked, now)
	return append(ended, again...), err
}

func (e *twiceEngine) ChangeRoute(
	ctx context.Context, callID string, c telephony.RouteChange,
) (telephony.RouteResult, error) {
	first, err := e.Engine.ChangeRoute(ctx, callID, c)
	if err != nil {
		return first, err
	}
	second, err := e.Engine.ChangeRoute(ctx, callID, c)
	second.WasOpen, second.Decided = first.WasOpen, first.Decided
	return second, err
}

func (e *twiceEngine) ClaimKey(
	ctx context.Context, bearer string, key [32]byte, c store.KeyClaim,
) (*store.KeyClaim, error) {
	if taken, err := e.Engine.ClaimKey(ctx, bearer, key, c); err != nil {
		return taken, err
	}
	return e.Engine.ClaimKey(ctx, bearer, key, c)
}

func (e *twiceEngine) SettleKey(ctx context.Context, bearer string, key [32]byte, c store.KeyClaim) error {
	if err := e.Engine.SettleKey(ctx, bearer, key, c); err != nil {
		return err
	}
	return e.Engine.SettleKey(ctx, bearer, key, c)
}

func (e *twiceEngine) SetNote(
	ctx context.Context, endpoint, name string, version uint64, value []byte, until time.Time,
) error {
	if err := e.Engine.SetNote(ctx, endpoint, name, version, value, until); err != nil {
		return err
	}
	return e.Engine.SetNote(ctx, endpoint, name, version, value, until)
}

func (e *twiceEngine) Redeliver(ctx context.Context, eventID, endpoint string, now time.Time) error {
	if err := e.Engine.Redeliver(ctx, eventID, endpoint, now); err != nil {
		return err
	}
	return e.Engine.Redeliver(ctx, eventID, endpoint, now)
}

func (e *twiceEngine) AddAudit(ctx context.Context, a store.Audit) error {
	if err := e.Engine.AddAudit(ctx, a); err != nil {
		return err
	}
	return e.Engine.AddAudit(ctx, a)
}

func (e *twiceEngine) AddRedelivery(ctx context.Context, r store.Redelivery, now time.Time) (uint32, error) {
	if number, err := e.Engine.AddRedelivery(ctx, r, now); err != nil {
		return number, err
	}
	return e.Engine.AddRedelivery(ctx, r, now)
}

func (e *twiceEngine) RedeliverSome(
	ctx context.Context, r store.Redelivery, from, last uint64, now time.Time,
) (count int, next uint64, err error) {
	if count, next, err = e.Engine.RedeliverSome(ctx, r, from, last, now); err != nil || r.DryRun {
		return count, next, err
	}
	// Up to the same event, or the second call would go on behind it.
	_, _, err = e.Engine.RedeliverSome(ctx, r, from, min(last, next-1), now)
	return count, next, err
}

func (e *twiceEngine) Forget(ctx context.Context, key string, dryRun bool) (store.Forgotten, error) {
	first, err := e.Engine.Forget(ctx, key, dryRun)
	if err != nil || dryRun {
		return first, err
	}
	second, err := e.Engine.Forget(ctx, key, dryRun)
	first.Calls += second.Calls
	first.Events += second.Events
	first.Deliveries += second.Deliveries
	first.Routes += second.Routes
	first.Pending += second.Pending
	first.More = second.More
	return first, err
}

func (e *twiceEngine) Prune(ctx context.Context, r store.Retention) (store.Pruned, error) {
	first, err := e.Engine.Prune(ctx, r)
	if err != nil {
		return first, err
	}
	second, err := e.Engine.Prune(ctx, r)
	first.Events += second.Events
	first.NearlyFull = second.NearlyFull
	for name, n := range second.GivenUp {
		first.GivenUp[name] += n
	}
	return first, err
}

func (e *twiceEngine) SetSetting(ctx context.Context, name, value string) error {
	if err := e.Engine.SetSetting(ctx, name, value); err != nil {
		return err
	}
	return e.Engine.SetSetting(ctx, name, value)
}

type twiceLane struct{ store.Lane }

func (l *twiceLane) Record(ctx context.Context, results []store.Result) error {
	if err := l.Lane.Record(ctx, results); err != nil {
		return err
	}
	overruled := make([]bool, len(results))
	for i := range results {
		overruled[i] = results[i].Overruled
	}
	err := l.Lane.Record(ctx, results)
	for i := range results {
		results[i].Overruled = overruled[i]
	}
	return err
}

func (l *twiceLane) Expire(
	ctx context.Context, now time.Time, limit int,
) (expired []store.Job, next time.Time, err error) {
	if expired, _, err = l.Lane.Expire(ctx, now, limit); err != nil {
		return expired, next, err
	}
	again, next, err := l.Lane.Expire(ctx, now, limit)
	return append(expired, again...), next, err
}

func (l *twiceLane) LineUp(ctx context.Context, now time.Time) error {
	if err := l.Lane.LineUp(ctx, now); err != nil {
		return err
	}
	return l.Lane.LineUp(ctx, now)
}
