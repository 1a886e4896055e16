package storetest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

const (
	// replyEndPatience is how long the end of an answer is waited for that says all already.
	replyEndPatience = 100 * time.Millisecond
	// maxQuestionsFailing is how many questions are under way at once at an endpoint that is
	// failing.
	maxQuestionsFailing = 8
)

// answersLater is an endpoint that can answer otherwise than in the response to its webhook.
func answersLater() store.Endpoint {
	e := Endpoint("crm")
	e.Tokens = []string{"a token"}
	return e
}

// settles notes when the time of a question is up, and counts the calls of Settle for another
// reason: a decision that was not sent is to be sent.
type settles struct {
	Silence
	mu     sync.Mutex
	at     []time.Time
	unsent int
}

// Settle notes the call.
func (s *settles) Settle(_ context.Context, _, _ string, timeUp bool, _ []telephony.Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if timeUp {
		s.at = append(s.at, time.Now())
	} else {
		s.unsent++
	}
}

// takeUnsent gives the count, and sets it to 0.
func (s *settles) takeUnsent() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, s.unsent = s.unsent, 0
	return n
}

// TestQuestionStaysOpenNoLongerAfterClockWasSetBack checks that a question is open no longer than
// RoutingTimeout.
func (s suite) TestQuestionStaysOpenNoLongerAfterClockWasSetBack(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		b := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{answersLater()}})
		router := &settles{}
		stop := RunWith(t, b, router)
		q := Event("call.transfer_requested", "5")
		q.Time = time.Now().Add(time.Hour) // it was read, then the clock was set back by an hour
		began := time.Now()
		MustAppend(t, b, q)
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
	Silence
	to string
	at time.Time
}

// Answer notes the answer.
func (a *answered) Answer(_ context.Context, _, _, _, to string) error {
	a.to, a.at = to, time.Now()
	return nil
}

// TestAnswerCountsOnceItIsWhole checks that an answer counts at once where it ends, and soon where
// it is whole and does not end: a program may send it, and work on before it ends what it sends.
func (s suite) TestAnswerCountsOnceItIsWhole(t *testing.T) {
	for name, c := range map[string]struct {
		write func(w http.ResponseWriter)
		after time.Duration
	}{
		"it ends": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"transfer_to":"101"}`) }, 0},
		"in parts": {func(w http.ResponseWriter) {
			for _, part := range []string{`{"transfer_to":`, `"101","more":"`, `"}`} {
				_, _ = io.WriteString(w, part)
				w.(http.Flusher).Flush()
				time.Sleep(time.Second)
			}
		}, 2*time.Second + replyEndPatience},
		"something comes behind it": {func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"transfer_to":"101"}<!-- footer -->`)
		}, 0},
		"something comes later": {func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
			w.(http.Flusher).Flush()
			time.Sleep(replyEndPatience / 2)
			_, _ = io.WriteString(w, `<!-- footer -->`)
		}, replyEndPatience / 2},
		"it does not end": {func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
			w.(http.Flusher).Flush()
			time.Sleep(time.Hour)
		}, replyEndPatience},
	} {
		t.Run(name, func(t *testing.T) {
			crm := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { c.write(w) }}
			Bubble(t, crm, func(t *testing.T) {
				b := s.open(t, Options{DialContext: crm.Net.Dial, Endpoints: []store.Endpoint{answersLater()}})
				router := &answered{}
				stop := RunWith(t, b, router)
				began := time.Now()
				MustAppend(t, b, Event("call.transfer_requested", "5"))
				time.Sleep(time.Minute)
				stop()
				if router.to != "101" || router.at.Sub(began) != c.after {
					t.Errorf("the answer is %q after %s", router.to, router.at.Sub(began))
				}
				if got := States(t, b, "crm"); got[store.Delivered] != 1 || crm.Count() != 1 {
					t.Errorf("states: %v, asked %d times", got, crm.Count())
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// TestUnansweredQuestionExpires checks that a question that a CRM has not taken in time has
// expired, and that the log has it once.
func (s suite) TestUnansweredQuestionExpires(t *testing.T) {
	c := &CRM{Answer: func(int, Received, http.ResponseWriter) { time.Sleep(time.Hour) }}
	Bubble(t, c, func(t *testing.T) {
		var log logtest.Buffer
		b := s.open(t, Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{answersLater()},
			Logger:      slog.New(slog.NewTextHandler(&log, nil)),
		})
		stop := RunBox(t, b)
		MustAppend(t, b, Event("call.transfer_requested", "5"))
		time.Sleep(time.Second)
		list, _, err := b.Deliveries(store.DeliveryQuery{Limit: 10})
		if err != nil || len(list) != 1 || !list[0].NextAttempt.IsZero() {
			t.Errorf("while it is being asked: %+v, %v", list, err)
		}
		time.Sleep(time.Minute)
		stop()
		got := States(t, b, "crm")
		if got[store.Expired] != 1 || strings.Count(log.String(), "delivery has expired") != 1 {
			t.Errorf("states: %v, log: %s", got, log.String())
		}
		time.Sleep(time.Hour) // lets the receiver's handler end
	})
}

// changeRoute changes the route of a call.
func changeRoute(t *testing.T, b *Box, call string, c telephony.RouteChange) {
	t.Helper()
	c.Now = time.Now()
	if _, err := b.Engine.ChangeRoute(t.Context(), call, c); err != nil {
		t.Fatal(err)
	}
}

// TestLaterDecisionThatWasNotSentIsSentAgain checks this for a decision that came by another way
// than in the response to the webhook, after all endpoints had taken the question.
func (s suite) TestLaterDecisionThatWasNotSentIsSentAgain(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		b := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{answersLater()}})
		router := &settles{}
		stop := RunWith(t, b, router)
		MustAppend(t, b, Event("call.transfer_requested", "5"))
		time.Sleep(1200 * time.Millisecond) // between two looks: the decision takes two changes here
		transferEnded := func(state telephony.TransferState) {
			changeRoute(t, b, "5", telephony.RouteChange{Kind: telephony.RouteTransferEnded, Transfer: state})
		}
		router.takeUnsent()
		changeRoute(t, b, "5", telephony.RouteChange{
			Kind:    telephony.RouteAnswer,
			Replies: []telephony.Reply{{By: "crm", Kind: telephony.ReplyNumber, To: "101"}},
		})
		transferEnded(telephony.TransferNotSent)
		time.Sleep(2 * time.Second)
		if n := router.takeUnsent(); n < 2 {
			t.Errorf("in 2 s it was to be sent %d times", n)
		}
		transferEnded(telephony.TransferDone)
		time.Sleep(time.Second)
		router.takeUnsent()
		time.Sleep(time.Minute)
		if n := router.takeUnsent(); n != 0 {
			t.Errorf("once it was sent it was to be sent %d times more", n)
		}
		stop()
	})
}

// TestEndOfOldQuestionClosesNoNewOne checks that a question after which the call has asked again,
// as it is after a crash in between, closes nothing when its own time is up.
func (s suite) TestEndOfOldQuestionClosesNoNewOne(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		opts := Options{
			Place:       s.Place(t),
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{answersLater()},
		}
		b, closeBox := s.openAgain(t, opts)
		MustAppend(t, b, Event("call.transfer_requested", "5"))
		changeRoute(t, b, "5", telephony.RouteChange{
			Kind:    telephony.RouteSettle,
			Replies: []telephony.Reply{{By: "crm", Kind: telephony.ReplyNone}},
		})
		time.Sleep(6 * time.Second)
		MustAppend(t, b, Event("call.transfer_requested", "5"))
		closeBox()
		b = s.open(t, opts)
		router := &settles{}
		stop := RunWith(t, b, router)
		began := time.Now()
		time.Sleep(time.Minute)
		stop()
		if len(router.at) != 1 || router.at[0].Sub(began) != 10*time.Second {
			t.Errorf("the time of a question that is asked for 10 s was up at %v, asked at %s", router.at, began)
		}
	})
}

// TestSecondQuestionIsAskedAfterClockWasSetBack checks that two questions of a call are asked,
// whatever the clock has done between them.
func (s suite) TestSecondQuestionIsAskedAfterClockWasSetBack(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		b := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{answersLater()}})
		stop := RunBox(t, b)
		first := Event("call.transfer_requested", "5")
		first.Time = time.Now().Add(20 * time.Millisecond)
		MustAppend(t, b, first)
		MustAppend(t, b, Event("call.transfer_requested", "5"))
		time.Sleep(time.Second)
		if n := c.Count(); n != 2 {
			t.Errorf("%d of the two were asked", n)
		}
		stop()
	})
}

// noAnswers notes why no answer is to be expected of endpoints.
type noAnswers struct {
	Silence
	mu    sync.Mutex
	why   []string
	codes []telephony.Code
}

// NoAnswer notes why.
func (n *noAnswers) NoAnswer(_ context.Context, _, _, _ string, why error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.why, n.codes = append(n.why, why.Error()), append(n.codes, telephony.CauseOf(why).Code)
}

// TestCallSaysWhyAnAnswerDoesNotCount checks that it does not say that there was none.
func (s suite) TestCallSaysWhyAnAnswerDoesNotCount(t *testing.T) {
	codes := map[string]telephony.Code{
		"OK":                    telephony.CodeNoReplyNoToken,
		`{"transfer_to":null}`:  telephony.CodeNoReplyNoToken,
		`{"transfer_to":true}`:  telephony.CodeBadReplyNoToken,
		`{"transfer_to":"1;x"}`: telephony.CodeBadReplyNoToken,
	}
	for body, want := range map[string]string{
		"OK":                    "without an answer",
		`{"transfer_to":null}`:  "without an answer",
		`{"transfer_to":true}`:  "does not count, and it has no token to answer later: transfer_to must be a string",
		`{"transfer_to":"1;x"}`: "does not count, and it has no token to answer later: transfer_to",
	} {
		c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { _, _ = w.Write([]byte(body)) }}
		Bubble(t, c, func(t *testing.T) {
			b := s.open(t, Options{DialContext: c.Net.Dial})
			router := &noAnswers{}
			stop := RunWith(t, b, router)
			MustAppend(t, b, Event("call.transfer_requested", "5"))
			time.Sleep(time.Second)
			stop()
			if len(router.why) != 1 || !strings.Contains(router.why[0], want) || router.codes[0] != codes[body] {
				t.Errorf("%s: %q, %q", body, router.why, router.codes)
			}
		})
	}
}

// refusing is a router that does not allow what it is answered.
type refusing struct{ noAnswers }

// Answer allows no answer.
func (*refusing) Answer(context.Context, string, string, string, string) error {
	return &telephony.NotAllowedError{Text: "it is not allowed"}
}

// TestCallDoesNotWaitAfterAnAnswerThatIsNotAllowed checks that nothing is expected of an endpoint
// after such an answer, and that the call says why it does not count.
func (s suite) TestCallDoesNotWaitAfterAnAnswerThatIsNotAllowed(t *testing.T) {
	for token, want := range map[string]int{"": 1, "it may answer later": 1} {
		c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"transfer_to":"+44 20"}`)
		}}
		Bubble(t, c, func(t *testing.T) {
			e := Endpoint("crm")
			if token != "" {
				e.Tokens = []string{token}
			}
			b := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
			router := &refusing{}
			stop := RunWith(t, b, router)
			MustAppend(t, b, Event("call.transfer_requested", "5"))
			time.Sleep(time.Second)
			stop()
			if len(router.why) != want || want == 1 && !strings.Contains(router.why[0], "it is not allowed") {
				t.Errorf("token %q: %q", token, router.why)
			}
		})
	}
}

// slowExchange takes long to do what an answer asks for.
type slowExchange struct{ Silence }

// Answer returns when the exchange has replied.
func (slowExchange) Answer(context.Context, string, string, string, string) error {
	time.Sleep(3 * time.Second)
	return nil
}

// TestAttemptAtAQuestionEndsWithTheAnswer checks that how long a CRM took to answer does not
// include how long the exchange took to do what was answered.
func (s suite) TestAttemptAtAQuestionEndsWithTheAnswer(t *testing.T) {
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) {
		time.Sleep(20 * time.Millisecond)
		_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
	}}
	Bubble(t, c, func(t *testing.T) {
		b := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{answersLater()}})
		stop := RunWith(t, b, slowExchange{})
		e := Event("call.transfer_requested", "5")
		MustAppend(t, b, e)
		time.Sleep(time.Minute)
		stop()
		d, attempts, err := b.Delivery(e.ID + ".crm")
		if err != nil || len(attempts) != 1 || attempts[0].Took != 20*time.Millisecond ||
			d.Ended.Sub(d.EventTime) > time.Second {
			t.Errorf("%+v, %+v, %v", d, attempts, err)
		}
	})
}

// TestUnknownAnswerIsLogged checks that an answer that says nothing that is known gets a line that
// shows it, and that an empty one gets none.
func (s suite) TestUnknownAnswerIsLogged(t *testing.T) {
	for body, lines := range map[string]int{`{"status":"ok"}`: 1, "": 0, " \n": 0, `{"transfer_to":""}`: 0} {
		c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) { _, _ = io.WriteString(w, body) }}
		Bubble(t, c, func(t *testing.T) {
			var log strings.Builder
			b := s.open(t, Options{
				DialContext: c.Net.Dial,
				Logger:      slog.New(slog.NewTextHandler(&log, nil)),
				Endpoints:   []store.Endpoint{answersLater()},
			})
			stop := RunBox(t, b)
			MustAppend(t, b, Event("call.transfer_requested", "5"))
			time.Sleep(time.Minute)
			stop()
			if n := strings.Count(log.String(), "says nothing that is known"); n != lines {
				t.Errorf("%q: %d lines:\n%s", body, n, log.String())
			}
		})
	}
}

// TestRoutesArePruned checks that a route goes with the event that has asked, but not while the
// call goes on.
func (s suite) TestRoutesArePruned(t *testing.T) {
	c := &CRM{}
	Bubble(t, c, func(t *testing.T) {
		b := s.open(t, Options{DialContext: c.Net.Dial, Retention: time.Hour})
		defer RunBox(t, b)()
		MustAppend(t, b, Event("call.transfer_requested", "1"), Event("call.transfer_requested", "2"))
		time.Sleep(time.Minute)
		MustAppend(t, b, Event("call.completed", "2"))
		isKnown := func(call string) bool {
			_, err := b.Engine.ChangeRoute(t.Context(), call, telephony.RouteChange{})
			if err != nil && !errors.Is(err, telephony.ErrNeverAsked) {
				t.Error(err)
			}
			return err == nil
		}
		time.Sleep(2 * time.Hour)
		if !isKnown("1") || isKnown("2") {
			t.Errorf("after the retention: of a call that goes on %v, of one that is over %v",
				isKnown("1"), isKnown("2"))
		}
		time.Sleep(24 * time.Hour)
		if isKnown("1") {
			t.Error("a day later the first is still known")
		}
	})
}

// askManyAtOnce lets so many calls ask at once, and gives how many attempts were under way at most
// and were made.
func (s suite) askManyAtOnce(
	t *testing.T, c *CRM, calls int, before func(b *Box), answer func(w http.ResponseWriter),
) (maxUnderWay, made int, b *Box) {
	t.Helper()
	var mu sync.Mutex
	underWay := 0
	c.Forget = true
	c.Answer = func(_ int, _ Received, w http.ResponseWriter) {
		mu.Lock()
		underWay++
		made++
		maxUnderWay = max(maxUnderWay, underWay)
		mu.Unlock()
		answer(w)
		mu.Lock()
		underWay--
		mu.Unlock()
	}
	b = s.open(t, Options{
		DialContext: c.Net.Dial,
		Endpoints:   []store.Endpoint{answersLater()},
		Logger:      slog.New(slog.DiscardHandler),
	})
	stop := RunBox(t, b)
	before(b)
	mu.Lock()
	maxUnderWay, made = 0, 0
	mu.Unlock()
	var list []telephony.Event
	for i := range calls {
		list = append(list, Event("call.transfer_requested", strconv.Itoa(1000+i)))
	}
	MustAppend(t, b, list...)
	time.Sleep(time.Minute)
	stop()
	return maxUnderWay, made, b
}

// TestManyQuestionsAtOnceAreBounded checks that of a storm of questions 500 are under way at an
// endpoint, and 8 at one that is failing. Those that find no place in time are expired, and it is
// stored that they were not asked; all are asked where the endpoint answers soon enough.
func (s suite) TestManyQuestionsAtOnceAreBounded(t *testing.T) {
	const calls = 1200
	nothing := func(*Box) {}
	t.Run("it hangs", func(t *testing.T) {
		c := &CRM{}
		Bubble(t, c, func(t *testing.T) {
			maxUnderWay, made, b := s.askManyAtOnce(t, c, calls, nothing, func(http.ResponseWriter) {
				time.Sleep(time.Hour)
			})
			if maxUnderWay != routing.MaxQuestions || made != routing.MaxQuestions {
				t.Errorf("%d were under way at once, %d were asked", maxUnderWay, made)
			}
			list, _, err := b.Deliveries(store.DeliveryQuery{State: "expired", Limit: calls})
			notAsked := 0
			for _, d := range list {
				if d.Attempts == 0 && d.LastCause.Code == telephony.CodeNotAsked {
					notAsked++
				}
			}
			if err != nil || len(list) != calls || notAsked != calls-routing.MaxQuestions {
				t.Errorf("%d are expired, %d were not asked, %v", len(list), notAsked, err)
			}
			if list, err := b.Engine.TakeQuestions(t.Context()); len(list) != 0 || err != nil {
				t.Errorf("%d questions are left, %v", len(list), err)
			}
			time.Sleep(time.Hour)
		})
	})
	t.Run("it answers in 100 ms", func(t *testing.T) {
		c := &CRM{}
		Bubble(t, c, func(t *testing.T) {
			maxUnderWay, made, _ := s.askManyAtOnce(t, c, calls, nothing, func(w http.ResponseWriter) {
				time.Sleep(100 * time.Millisecond)
				_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
			})
			if maxUnderWay != routing.MaxQuestions || made != calls {
				t.Errorf("%d were under way at once, %d were asked", maxUnderWay, made)
			}
		})
	})
	t.Run("it is failing", func(t *testing.T) {
		c := &CRM{}
		Bubble(t, c, func(t *testing.T) {
			maxUnderWay, _, _ := s.askManyAtOnce(t, c, calls, func(b *Box) {
				for i := range 20 {
					MustAppend(t, b, Event("call.completed", strconv.Itoa(i)))
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}, func(w http.ResponseWriter) {
				time.Sleep(10 * time.Millisecond)
				w.WriteHeader(http.StatusServiceUnavailable)
			})
			if maxUnderWay > maxQuestionsFailing+1 { // and a probe
				t.Errorf("%d were under way at once", maxUnderWay)
			}
		})
	})
}
