package outbox

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"pzbridge/internal/telephony"
)

// answersLater is an endpoint that can answer otherwise than in the response to its webhook.
func answersLater() Endpoint {
	e := endpoint("crm")
	e.Token = "a token"
	return e
}

// settles notes when the time of a question is up, and counts how often a decision that was not sent is to be sent.
type settles struct {
	nobody
	mu     sync.Mutex
	at     []time.Time
	unsent int
}

func (s *settles) Settle(_ context.Context, _, _ string, timeUp bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if timeUp {
		s.at = append(s.at, time.Now())
	} else {
		s.unsent++
	}
}

// sent gives the count, and begins it anew.
func (s *settles) sent() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, s.unsent = s.unsent, 0
	return n
}

// A question is open no longer than RoutingTimeout, also if the clock is set back meanwhile.
func TestQuestionAndClockSetBack(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}})
		router := &settles{}
		stop := runWith(t, o, router)
		q := event("call.transfer_requested", "5")
		q.Time = time.Now().Add(time.Hour) // it was read, then the clock was set back by an hour
		began := time.Now()
		mustAppend(t, o, q)
		time.Sleep(3 * time.Hour)
		stop()
		if len(router.at) != 1 {
			t.Fatalf("its time was up %d times", len(router.at))
		}
		if router.at[0].Sub(began) > 11*time.Second {
			t.Errorf("ROUTING_TIMEOUT is 10s, its time was up after %s", router.at[0].Sub(began))
		}
	})
}

// answered notes when an answer came.
type answered struct {
	nobody
	to string
	at time.Time
}

func (a *answered) Answer(_ context.Context, _, _, _, to string) error {
	a.to, a.at = to, time.Now()
	return nil
}

// An answer counts once it is whole: a program may send it, and work on before it ends what it sends. One that ends counts at once.
func TestAnswerThatDoesNotEnd(t *testing.T) {
	for name, c := range map[string]struct {
		say   func(w http.ResponseWriter)
		after time.Duration
	}{
		"it ends": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"transfer_to":"101"}`) }, 0},
		"in parts": {func(w http.ResponseWriter) {
			for _, part := range []string{`{"transfer_to":`, `"101","more":"`, `"}`} {
				_, _ = io.WriteString(w, part)
				w.(http.Flusher).Flush()
				time.Sleep(time.Second)
			}
		}, 2*time.Second + answerEnds},
		"something comes behind it": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"transfer_to":"101"}<!-- footer -->`) }, 0},
		"something comes later": {func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
			w.(http.Flusher).Flush()
			time.Sleep(answerEnds / 2)
			_, _ = io.WriteString(w, `<!-- footer -->`)
		}, answerEnds / 2},
		"it does not end": {func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
			w.(http.Flusher).Flush()
			time.Sleep(time.Hour)
		}, answerEnds},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { c.say(w) }}
			bubble(t, c2, func(t *testing.T) {
				o := openOutbox(t, Options{DialContext: c2.net.Dial, Endpoints: []Endpoint{answersLater()}})
				router := &answered{}
				stop := runWith(t, o, router)
				began := time.Now()
				mustAppend(t, o, event("call.transfer_requested", "5"))
				time.Sleep(time.Minute)
				stop()
				if router.to != "101" || router.at.Sub(began) != c.after {
					t.Errorf("the answer is %q after %s", router.to, router.at.Sub(began))
				}
				if got := states(t, o, "crm"); got[delivered] != 1 || c2.count() != 1 {
					t.Errorf("states: %v, asked %d times", got, c2.count())
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// A question that a CRM has not taken in time has expired, which the log says once.
func TestQuestionExpires(t *testing.T) {
	c := &crm{answer: func(int, received, http.ResponseWriter) { time.Sleep(time.Hour) }}
	bubble(t, c, func(t *testing.T) {
		var log lockedBuffer
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, o)
		mustAppend(t, o, event("call.transfer_requested", "5"))
		time.Sleep(time.Second)
		if list, _, err := o.Deliveries(DeliveryQuery{Limit: 10}); err != nil || len(list) != 1 || !list[0].NextAttempt.IsZero() {
			t.Errorf("while it is being asked: %+v, %v", list, err)
		}
		time.Sleep(time.Minute)
		stop()
		if got := states(t, o, "crm"); got[expired] != 1 || strings.Count(log.String(), "delivery has expired") != 1 {
			t.Errorf("states: %v, log: %s", got, log.String())
		}
		time.Sleep(time.Hour) // lets the receiver's handler end
	})
}

// A decision that was made with POST /v1/transfers after all endpoints had taken the question, and that could not be sent, is sent again like any other.
func TestDecidedLaterAndNotSent(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}})
		router := &settles{}
		stop := runWith(t, o, router)
		mustAppend(t, o, event("call.transfer_requested", "5"))
		time.Sleep(time.Second)
		decide := func(state telephony.TransferState) {
			err := o.ChangeRoute("5", func(r *telephony.Route) {
				r.Outcome, r.Winner, r.To, r.Transfer = telephony.RouteWon, "crm", "101", state
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		router.sent()
		decide(telephony.TransferNotSent)
		time.Sleep(2 * time.Second)
		if sent := router.sent(); sent < 2 {
			t.Errorf("in 2 s it was to be sent %d times", sent)
		}
		decide(telephony.TransferDone)
		time.Sleep(time.Second)
		router.sent()
		time.Sleep(time.Minute)
		if sent := router.sent(); sent != 0 {
			t.Errorf("once it was sent it was to be sent %d times more", sent)
		}
		stop()
	})
}

// A question that the call has asked anew since, as it is after a crash in between, closes nothing when its own time is up.
func TestTheTimeOfTheQuestionBefore(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		opts := withDefaults(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}})
		o, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, o, event("call.transfer_requested", "5"))
		if err := o.ChangeRoute("5", func(r *telephony.Route) { r.Outcome = telephony.RouteClosed }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		mustAppend(t, o, event("call.transfer_requested", "5"))
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		o = openOutbox(t, opts)
		router := &settles{}
		stop := runWith(t, o, router)
		began := time.Now()
		time.Sleep(time.Minute)
		stop()
		if len(router.at) != 1 || router.at[0].Sub(began) != 10*time.Second {
			t.Errorf("the time of a question that is asked for 10 s was up at %v, asked at %s", router.at, began)
		}
	})
}

// Two questions of a call are asked, whatever the clock has done between them.
func TestSecondQuestionAfterTheClockWasSetBack(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}})
		stop := run(t, o)
		first := event("call.transfer_requested", "5")
		first.Time = time.Now().Add(20 * time.Millisecond)
		mustAppend(t, o, first)
		mustAppend(t, o, event("call.transfer_requested", "5"))
		time.Sleep(time.Second)
		if n := c.count(); n != 2 {
			t.Errorf("%d of the two were asked", n)
		}
		stop()
	})
}

// outs notes why endpoints are out.
type outs struct {
	nobody
	mu  sync.Mutex
	why []string
}

func (o *outs) Out(_ context.Context, _, _, _, why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.why = append(o.why, why)
}

// Of an answer that does not count the call tells why, and not that there was none.
func TestAnswerThatDoesNotCount(t *testing.T) {
	for body, want := range map[string]string{
		"OK":                    "without an answer",
		`{"transfer_to":null}`:  "without an answer",
		`{"transfer_to":101}`:   "does not count, and it has no token to answer later: transfer_to must be a string",
		`{"transfer_to":"1;x"}`: "does not count, and it has no token to answer later: transfer_to",
	} {
		c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { _, _ = w.Write([]byte(body)) }}
		bubble(t, c, func(t *testing.T) {
			o := openOutbox(t, Options{DialContext: c.net.Dial})
			router := &outs{}
			stop := runWith(t, o, router)
			mustAppend(t, o, event("call.transfer_requested", "5"))
			time.Sleep(time.Second)
			stop()
			if len(router.why) != 1 || !strings.Contains(router.why[0], want) {
				t.Errorf("%s: %q", body, router.why)
			}
		})
	}
}

// refusing is a router that does not allow what it is answered.
type refusing struct{ outs }

func (*refusing) Answer(context.Context, string, string, string, string) error {
	return &telephony.NotAllowedError{Text: "it is not allowed"}
}

// Of an endpoint that cannot answer once more nothing is to be expected after an answer that is not
// allowed, so the caller does not wait for it.
func TestAnswerThatIsNotAllowed(t *testing.T) {
	for token, want := range map[string]int{"": 1, "it may answer later": 0} {
		c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { _, _ = io.WriteString(w, `{"transfer_to":"+44 20"}`) }}
		bubble(t, c, func(t *testing.T) {
			e := endpoint("crm")
			e.Token = token
			o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
			router := &refusing{}
			stop := runWith(t, o, router)
			mustAppend(t, o, event("call.transfer_requested", "5"))
			time.Sleep(time.Second)
			stop()
			if len(router.why) != want || want == 1 && !strings.Contains(router.why[0], "it is not allowed") {
				t.Errorf("token %q: %q", token, router.why)
			}
		})
	}
}

// A number in an answer is cleaned as one in a command is: what an event carries, and what was
// copied from a page, comes through.
func TestAnswerWithANumberFromAPage(t *testing.T) {
	for in, want := range map[string]string{`SIP/101`: "SIP/101", `+7\u00a0343\u2009011\u201122\u221233`: "+7 343 011-22-33"} {
		to, said, err := readAnswer([]byte(`{"transfer_to":"` + in + `"}`))
		if to != want || !said || err != nil {
			t.Errorf("%s: %q, %v, %v", in, to, said, err)
		}
	}
}

// A byte order mark before the answer is no mistake worth losing a call for.
func TestAnswerBehindAByteOrderMark(t *testing.T) {
	to, said, err := readAnswer([]byte("\uFEFF" + `{"transfer_to":"101"}`))
	if to != "101" || !said || err != nil {
		t.Errorf("%q, %v, %v", to, said, err)
	}
}
