package outbox

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
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
		if len(router.at) != 1 {
			t.Fatalf("its time was up %d times", len(router.at))
		}
		if router.at[0].Sub(began) > 11*time.Second {
			t.Errorf("ROUTING_TIMEOUT is 10s, its time was up after %s", router.at[0].Sub(began))
		}
	})
}

// A question that a CRM has not taken in time has expired, which the log says once.
func TestQuestionExpires(t *testing.T) {
	c := &crm{answer: func(int, received, http.ResponseWriter) { time.Sleep(time.Hour) }}
	bubble(t, c, func(t *testing.T) {
		var log lockedBuffer
		e := endpoint("crm")
		e.AnswersLater = true
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, o)
		mustAppend(t, o, event("call.transfer_requested", "5"))
		time.Sleep(time.Minute)
		stop()
		if got := states(t, o, "crm"); got[expired] != 1 || strings.Count(log.String(), "delivery has expired") != 1 {
			t.Errorf("states: %v, log: %s", got, log.String())
		}
		time.Sleep(time.Hour) // lets the receiver's handler end
	})
}
