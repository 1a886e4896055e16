package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// stress is two bridges that do everything at once.
type stress struct {
	t    *testing.T
	a, b *Engine
	seed uint64
	end  time.Time

	parts sync.WaitGroup
	mu    sync.Mutex
	ids   []string // of the events that were appended
}

// TestEverythingAtOnceLeavesNoContradiction checks that whatever two bridges do at the same time
// fails nowhere, and that what is stored then does not contradict itself. Few calls and numbers
// make the bridges meet often.
func TestEverythingAtOnceLeavesNoContradiction(t *testing.T) {
	took := 10 * time.Second
	if testing.Short() {
		took = 3 * time.Second
	}
	url := pgtest.Shared(t).Database(t)
	s := &stress{t: t, a: mustOpen(t, url), b: mustOpen(t, url), seed: rand.Uint64(), end: time.Now().Add(took)}
	s.loop("append at a", 0, s.appendTo(s.a))
	s.loop("append at b", 0, s.appendTo(s.b))
	s.deliver()
	s.loop("redeliver", 5*time.Millisecond, s.redeliver)
	s.loop("questions", time.Millisecond, s.endQuestions)
	s.remove()
	s.loop("add up", 30*time.Millisecond, func(ctx context.Context, _ *rand.Rand) error { return s.b.addUp(ctx) })
	s.parts.Wait()
	checkTables(t, s.a)
}

// loop calls f until the end, with a pause after each call. Its numbers at random come from a seed
// that is printed.
func (s *stress) loop(name string, pause time.Duration, f func(context.Context, *rand.Rand) error) {
	s.seed++
	seed := s.seed
	s.t.Logf("%s has the seed %d", name, seed)
	s.parts.Go(func() {
		random := rand.New(rand.NewPCG(seed, 0))
		for ctx := s.t.Context(); time.Now().Before(s.end) && sleep.For(ctx, pause); {
			if err := f(ctx, random); err != nil {
				s.t.Errorf("%s: %v", name, err)
				return
			}
		}
	})
}

// oneOf chooses at random.
func oneOf[T any](random *rand.Rand, list ...T) T { return list[random.IntN(len(list))] }

// someNumber is one of a few phone numbers.
func someNumber(random *rand.Rand) string { return fmt.Sprintf("+7343011%04d", random.IntN(20)) }

// someEvent is an event of one of a few calls, of many, or of none.
func someEvent(random *rand.Rand) telephony.Event {
	kind := oneOf(random, telephony.EventIncoming, telephony.EventIncomingAnswered, telephony.EventCompleted,
		telephony.EventTransferRequested, "pz.event")
	e := storetest.Event(kind, oneOf(random, "", "1", "2", "3", "4", fmt.Sprint(random.IntN(100))))
	e.From, e.To = someNumber(random), "101"
	return e
}

func (s *stress) appendTo(to *Engine) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, random *rand.Rand) error {
		var list []store.NewEvent
		var ids []string
		for range 1 + random.IntN(5) {
			e := someEvent(random)
			n, err := store.Encode(&e, time.Second)
			if err != nil {
				return err
			}
			list, ids = append(list, n), append(ids, e.ID)
		}
		_, err := to.Append(ctx, list)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ids = append(s.ids, ids...)
		return err
	}
}

// deliver begins to deliver to both endpoints, to one of them from both bridges, as while a lease
// changes hands.
func (s *stress) deliver() {
	crm, other := laneOf(s.a, "crm"), laneOf(s.b, "other")
	s.loop("deliver to crm", 0, s.work(crm))
	s.loop("deliver to crm from b", 0, s.work(laneOf(s.b, "crm")))
	s.loop("deliver to other", 0, s.work(other))
	s.loop("line up", 50*time.Millisecond, func(ctx context.Context, _ *rand.Rand) error {
		return other.LineUp(ctx, time.Now())
	})
	s.loop("expire", 10*time.Millisecond, func(ctx context.Context, _ *rand.Rand) error {
		_, _, err := crm.Expire(ctx, time.Now().Add(time.Hour), 100)
		return err
	})
}

// work claims deliveries and records how they have ended.
func (s *stress) work(l store.Lane) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, random *rand.Rand) error {
		c, err := l.Claim(ctx, time.Now(), 16, nil)
		if err != nil || len(c.Jobs) == 0 {
			return err
		}
		var results []store.Result
		for _, j := range c.Jobs {
			r := store.Result{Job: j, Now: someEnd(random, j.Delivery), Attempt: &store.Attempt{At: time.Now()}}
			if random.IntN(10) == 0 {
				r.Events = newEvents(s.t, "x")
			}
			results = append(results, r)
		}
		return l.Record(ctx, results)
	}
}

// someEnd is a delivery after an attempt: half of them succeed.
func someEnd(random *rand.Rand, d store.Delivery) store.Delivery {
	now := time.Now()
	d.Attempts++
	switch random.IntN(4) {
	case 0:
		d.Due = now.Add(time.Duration(random.IntN(500)) * time.Millisecond).UnixNano()
		if d.FailedAt == 0 {
			d.FailedAt = now.UnixNano()
		}
		return d
	case 1:
		return d.Ended(store.Dead, now)
	}
	return d.Ended(store.Delivered, now)
}

func (s *stress) redeliver(ctx context.Context, random *rand.Rand) error {
	s.mu.Lock()
	id := ""
	if len(s.ids) > 0 {
		id = oneOf(random, s.ids...)
	}
	s.mu.Unlock()
	err := s.b.Redeliver(ctx, id, oneOf(random, "crm", "other"), time.Now())
	if errors.Is(err, store.ErrNotFound) { // it was removed
		return nil
	}
	return err
}

func (s *stress) endQuestions(ctx context.Context, random *rand.Rand) error {
	list, err := s.b.TakeQuestions(ctx)
	for _, n := range list {
		if random.IntN(2) == 0 {
			continue
		}
		if _, err := s.b.EndQuestion(ctx, n, nil, time.Now()); err != nil {
			return err
		}
	}
	return err
}

// remove begins to remove events, for their numbers and for their age.
func (s *stress) remove() {
	s.loop("forget", 100*time.Millisecond, func(ctx context.Context, random *rand.Rand) error {
		_, err := s.a.Forget(ctx, s.a.rules.NumberKey(someNumber(random)), false)
		return err
	})
	s.loop("prune", 100*time.Millisecond, func(ctx context.Context, _ *rand.Rand) error {
		_, err := s.b.Prune(ctx, store.Retention{
			MaxAge: time.Second, Abandoned: map[string]bool{"crm": true}, AbandonedAge: 2 * time.Second,
		})
		return err
	})
}
