package outbox

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// heardLate is a router whose exchange takes three seconds, and which notes what it is asked for too late.
type heardLate struct {
	nobody
	mu   sync.Mutex
	over bool
	late []string
}

func (h *heardLate) note(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		h.late = append(h.late, s)
	}
}
func (h *heardLate) Out(_ context.Context, call, _, by, why string) { h.note("out " + by) }
func (h *heardLate) Answer(_ context.Context, call, _, by, to string) error {
	time.Sleep(3 * time.Second) // the exchange's reply
	h.note("answered " + by)
	return nil
}

// A question that a stop has withdrawn is not withdrawn once more when its time is up: Run returns when
// nothing is under way any more.
func TestWithdrawnOnce(t *testing.T) {
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) {
		time.Sleep(3 * time.Second)
		_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
	}}
	bubble(t, c, func(t *testing.T) {
		var log lockedBuffer
		a, b := endpoint("a"), endpoint("b")
		a.Timeout = time.Minute
		o, err := Open(withDefaults(t, Options{
			DialContext: c.net.Dial, Endpoints: []Endpoint{a, b}, RoutingTimeout: 4 * time.Second, Grace: 20 * time.Second,
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		}))
		if err != nil {
			t.Fatal(err)
		}
		o.lanes[1].places.limit = func() int { return 0 } // all places are taken
		router := &heardLate{}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { _ = o.Run(ctx, router); close(done) }()
		mustAppend(t, o, event("call.transfer_requested", "1"))
		time.Sleep(time.Second)
		synctest.Wait()
		cancel() // the exchange answers at 6 s, the time is up at 4 s
		<-done
		router.mu.Lock()
		router.over = true
		router.mu.Unlock()
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(30 * time.Second)
		if len(router.late) > 0 {
			t.Errorf("after Run has ended: %v\n%s", router.late, log.String())
		}
		if s := log.String(); strings.Contains(s, "cannot be recorded") {
			t.Error(s)
		}
	})
}

// A place is for an attempt, not for what the exchange does with its answer: where that takes seconds all
// are asked nevertheless.
func TestStormWithASlowExchange(t *testing.T) {
	var made atomic.Int64
	c := &crm{forget: true, answer: func(_ int, _ received, w http.ResponseWriter) {
		made.Add(1)
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
	}}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}, Logger: slog.New(slog.DiscardHandler)})
		stop := runWith(t, o, slowExchange{})
		var list []telephony.Event
		for i := range 3000 {
			list = append(list, event("call.transfer_requested", strconv.Itoa(1000+i)))
		}
		mustAppend(t, o, list...)
		time.Sleep(time.Minute)
		stop()
		if made.Load() != 3000 {
			t.Errorf("the CRM answers in 100 ms, and was asked %d of 3000 (RoutingTimeout %s)", made.Load(), o.opts.RoutingTimeout)
		}
	})
}
