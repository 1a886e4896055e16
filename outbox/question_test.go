package outbox

import (
	"context"
	"sync"
	"testing"
	"time"
)

// settles notes when the time of a question is up.
type settles struct {
	nobody
	mu sync.Mutex
	at []time.Time
}

func (s *settles) Settle(_ context.Context, _, _ string, timeUp bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if timeUp {
		s.at = append(s.at, time.Now())
	}
}

// A question is open no longer than RoutingTimeout, also if the clock is set back meanwhile.
func TestQuestionAndClockSetBack(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.AnswersLater = true
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
		router := &settles{}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = o.Run(ctx, router) })
		q := event("call.transfer_requested", "5")
		q.Time = time.Now().Add(time.Hour) // it was read, then the clock was set back by an hour
		began := time.Now()
		mustAppend(t, o, q)
		time.Sleep(3 * time.Hour)
		cancel()
		running.Wait()
		if len(router.at) != 1 || router.at[0].Sub(began) > 11*time.Second {
			t.Errorf("ROUTING_TIMEOUT is 10s, its time was up after %s", router.at[0].Sub(began))
		}
	})
}
