package storetest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"pzbridge/outbox/store"
)

// TestWebhookVerifies checks that the public library verifies the signature, with the old and the
// new secret, over the bytes that were sent.
func (s suite) TestWebhookVerifies(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		// The library compares with the clock; the bubble's stands in the year 2000 and moves on
		// its own.
		e := Endpoint("crm")
		e.Secrets = [][]byte{secretA, secretB}
		e.Headers = http.Header{"X-Mine": {"7"}}
		o := s.open(t, Options{Endpoints: []store.Endpoint{e}, DialContext: c.Net.Dial})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("call.incoming", "5"))
		synctest.Wait()
		hooks := c.Received()
		if len(hooks) != 1 {
			t.Fatalf("%d webhooks", len(hooks))
		}
		h := hooks[0].Header
		for name, want := range map[string]string{
			"Content-Type": "application/json", "User-Agent": "pzbridge/test", "X-Mine": "7",
		} {
			if h.Get(name) != want {
				t.Errorf("headers: %v", h)
			}
		}
		if n := len(strings.Fields(h.Get("webhook-signature"))); n != 2 {
			t.Errorf("%d signatures", n)
		}
		for _, secret := range e.Secrets {
			w, err := standardwebhooks.NewWebhookRaw(secret)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Verify(hooks[0].Body, h); err != nil {
				t.Error(err)
			}
			if w.Verify(append(hooks[0].Body, ' '), h) == nil {
				t.Error("other bytes verify too")
			}
		}
	})
}

// TestAnswersThatAreNone checks that an answer whose head does not end takes no more memory than
// one that is allowed, and counts as none; and so does a status that is none.
func (s suite) TestAnswersThatAreNone(t *testing.T) {
	const maxHead = 64 << 10 // bytes
	for name, test := range map[string]struct{ begins, goesOn, want string }{
		"a head without end": {
			"HTTP/1.1 200 OK\r\nX: ", strings.Repeat("a", 1024), "headers exceeded",
		},
		"no status": {
			"HTTP/1.1 000 What\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "", "the answer has the status 000",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var most atomic.Int64
			c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = conn.Close() }()
				n, err := io.WriteString(conn, test.begins)
				for sent := int64(n); err == nil && test.goesOn != ""; sent += int64(n) {
					most.Store(max(most.Load(), sent))
					n, err = io.WriteString(conn, test.goesOn)
				}
			}}
			Bubble(t, c, func(t *testing.T) {
				o := s.open(t, Options{DialContext: c.Net.Dial})
				stop := RunBox(t, o)
				e := Event("call.completed", "5")
				MustAppend(t, o, e)
				time.Sleep(time.Second)
				stop()
				_, attempts, err := o.Delivery(e.ID + ".crm")
				if err != nil || len(attempts) != 1 || attempts[0].Status != 0 ||
					!strings.Contains(attempts[0].Error, test.want) {
					t.Errorf("attempts: %+v, %v", attempts, err)
				}
				if n := most.Load(); n > 2*maxHead {
					t.Errorf("%d bytes of it were taken", n)
				}
			})
		})
	}
}

// TestRedialsCountTowardsTheRate checks that a connection that is refused is not dialled again
// where the endpoint's rate does not allow another attempt.
func (s suite) TestRedialsCountTowardsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int64
		e := Endpoint("crm")
		e.Rate = 1.0 / 3600
		o := s.open(t, Options{
			Endpoints:     []store.Endpoint{e},
			DialContext:   refuse(&dials),
			RetrySchedule: []time.Duration{24 * time.Hour},
		})
		defer RunBox(t, o)()
		MustAppend(t, o, Event("call.completed", "5"))
		time.Sleep(time.Minute)
		if n := dials.Load(); n != 1 {
			t.Errorf("%d dials", n)
		}
	})
}

// TestATestGoesPastWhatWaits checks that a test webhook goes at once, though the events that are
// under way leave no connection free and more of them wait.
func (s suite) TestATestGoesPastWhatWaits(t *testing.T) {
	const takes = 14 * time.Second
	c := &CRM{Answer: func(_ int, r Received, _ http.ResponseWriter) {
		if !bytes.Contains(r.Body, []byte("pzbridge.test")) {
			time.Sleep(takes)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency = 2
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		stop := RunBox(t, o)
		defer time.Sleep(takes) // until the CRM has answered those that the stop cuts off
		defer stop()
		for i := range 10 {
			MustAppend(t, o, Event("call.completed", fmt.Sprint(i)))
		}
		time.Sleep(time.Second)
		began := time.Now()
		id, made, err := o.SendTest(t.Context(), "crm")
		if took := time.Since(began); err != nil || made.Status != http.StatusOK || took != 0 {
			t.Errorf("%+v after %s, %v", made, took, err)
		}
		hooks := c.Received()
		if len(hooks) != e.Concurrency+1 || idOf(t, hooks[len(hooks)-1]) != id {
			t.Errorf("%d webhooks came, want the test %s behind %d events", len(hooks), id, e.Concurrency)
		}
	})
}

// TestATestTakesNoConnectionOfEvents checks that an event goes at once while a test webhook is
// under way, though the endpoint gets one event at a time.
func (s suite) TestATestTakesNoConnectionOfEvents(t *testing.T) {
	c := &CRM{Answer: func(_ int, r Received, _ http.ResponseWriter) {
		if bytes.Contains(r.Body, []byte("pzbridge.test")) {
			time.Sleep(10 * time.Second)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Concurrency = 1
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		defer RunBox(t, o)()
		began := time.Now()
		var testing sync.WaitGroup
		testing.Go(func() {
			if _, made, err := o.SendTest(t.Context(), "crm"); err != nil || made.Took != 10*time.Second {
				t.Errorf("the test: %+v, %v", made, err)
			}
		})
		time.Sleep(time.Second)
		MustAppend(t, o, Event("call.completed", "A"))
		testing.Wait()
		checkArrivals(t, c, "A", began, "1 after 1s")
	})
}
