package outbox

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// answersLater is an endpoint that can answer otherwise than in the response to its webhook.
func answersLater() Endpoint {
	e := endpoint("crm")
	e.Tokens = []string{"a token"}
	return e
}

// settles notes when the time of a question is up, and counts how often a decision that was not sent is to be sent.
type settles struct {
	nobody
	mu     sync.Mutex
	at     []time.Time
	unsent int
}

func (s *settles) Settle(_ context.Context, _, _ string, timeUp bool, _ []telephony.Reply) {
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
		`{"transfer_to":true}`:  "does not count, and it has no token to answer later: transfer_to must be a string",
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

// After an answer that is not allowed nothing is expected of an endpoint: the caller does not wait for
// it, and the call says why it does not count.
func TestAnswerThatIsNotAllowed(t *testing.T) {
	for token, want := range map[string]int{"": 1, "it may answer later": 1} {
		c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { _, _ = io.WriteString(w, `{"transfer_to":"+44 20"}`) }}
		bubble(t, c, func(t *testing.T) {
			e := endpoint("crm")
			if token != "" {
				e.Tokens = []string{token}
			}
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

// slowExchange takes long to do what an answer asks for.
type slowExchange struct{ nobody }

func (slowExchange) Answer(context.Context, string, string, string, string) error {
	time.Sleep(3 * time.Second)
	return nil
}

// How long a CRM took to answer does not include how long the exchange took to do what it said.
func TestAttemptEndsWithTheAnswer(t *testing.T) {
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) {
		time.Sleep(20 * time.Millisecond)
		_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
	}}
	bubble(t, c, func(t *testing.T) {
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}})
		stop := runWith(t, o, slowExchange{})
		e := event("call.transfer_requested", "5")
		mustAppend(t, o, e)
		time.Sleep(time.Minute)
		stop()
		d, attempts, err := o.Delivery(e.ID + ".crm")
		if err != nil || len(attempts) != 1 || attempts[0].Took != 20*time.Millisecond || d.Ended.Sub(d.EventTime) > time.Second {
			t.Errorf("%+v, %+v, %v", d, attempts, err)
		}
	})
}

// What programs answer where a call should go, and what that says.
func TestReadAnswer(t *testing.T) {
	for body, want := range map[string]struct {
		to          string
		said, wrong bool
	}{
		`{"transfer_to":"101"}`:                      {"101", true, false},
		"\uFEFF" + `{"transfer_to":"101"}`:           {"101", true, false},
		`{"transfer_to":101}`:                        {"101", true, false},
		`{"transfer_to":79161234567}`:                {"79161234567", true, false},
		`{"transfer_to":""}`:                         {"", true, false},
		`[{"transfer_to":"101"}]`:                    {"101", true, false},
		` [ {"ok":true}, {"transfer_to":102} ] `:     {"102", true, false},
		`[{"transfer_to":""},{"transfer_to":"101"}]`: {"", true, false},
		`{"transfer_to":null}`:                       {"", false, false},
		`{"transfer_to":1.5}`:                        {"", false, true},
		`{"transfer_to":-1}`:                         {"", false, true},
		`{"transfer_to":1e3}`:                        {"", false, true},
		`{"transfer_to":["101"]}`:                    {"", false, true},
		`[{"transfer_to":"1;x"}]`:                    {"", false, true},
		`[]`:                                         {"", false, false},
		`[[{"transfer_to":"101"}]]`:                  {"", false, false},
		`"101"`:                                      {"", false, false},
		`{"ok":true}`:                                {"", false, false},
		`<html>`:                                     {"", false, false},
		``:                                           {"", false, false},
		`{"transfer_to":"101"`:                       {"", false, false},
		`{"transfer_to":"101"}` + "\n<!-- footer -->": {"101", true, false},
	} {
		to, said, err := readAnswer([]byte(body))
		if to != want.to || said != want.said || (err != nil) != want.wrong {
			t.Errorf("%s: %q, %v, %v", body, to, said, err)
		}
	}
}

// dripping is a body that comes byte by byte, and counts how much was read of it.
type dripping struct {
	io.Reader
	reads int
}

func (d *dripping) Read(p []byte) (int, error) {
	d.reads++
	return d.Reader.Read(p[:min(1, len(p))])
}

// An answer that drips in is read in one pass: a long one takes no more for each byte than a short one.
func TestAnswerThatDripsIn(t *testing.T) {
	cost := func(size int) float64 {
		answer := `{"x":"` + strings.Repeat("x", size) + `","transfer_to":"101"}`
		return testing.AllocsPerRun(3, func() {
			if got := readResponse(&dripping{Reader: strings.NewReader(answer)}, true, func() {}); len(got) != len(answer) {
				t.Fatalf("%d of %d bytes were read", len(got), len(answer))
			}
		})
	}
	if short, long := cost(100), cost(58<<10); long > short+100 {
		t.Errorf("100 bytes allocate %.0f times, 58 KiB %.0f times", short, long)
	}
}

// An answer that says nothing that is known gets a line that shows it; an empty one gets none.
func TestAnswerThatSaysNothingKnown(t *testing.T) {
	for body, lines := range map[string]int{`{"status":"ok"}`: 1, "": 0, " \n": 0, `{"transfer_to":""}`: 0} {
		c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { _, _ = io.WriteString(w, body) }}
		bubble(t, c, func(t *testing.T) {
			var log strings.Builder
			o := openOutbox(t, Options{DialContext: c.net.Dial, Logger: slog.New(slog.NewTextHandler(&log, nil)), Endpoints: []Endpoint{answersLater()}})
			stop := run(t, o)
			mustAppend(t, o, event("call.transfer_requested", "5"))
			time.Sleep(time.Minute)
			stop()
			if n := strings.Count(log.String(), "says nothing that is known"); n != lines {
				t.Errorf("%q: %d lines:\n%s", body, n, log.String())
			}
		})
	}
}

// storm has so many calls ask at once, and gives how many attempts were under way at most and were made.
func storm(t *testing.T, c *crm, calls int, before func(o *Outbox), answer func(w http.ResponseWriter)) (most, made int, o *Outbox) {
	t.Helper()
	var mu sync.Mutex
	underWay := 0
	c.forget = true
	c.answer = func(_ int, _ received, w http.ResponseWriter) {
		mu.Lock()
		underWay++
		made++
		most = max(most, underWay)
		mu.Unlock()
		answer(w)
		mu.Lock()
		underWay--
		mu.Unlock()
	}
	o = openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}, Logger: slog.New(slog.DiscardHandler)})
	stop := run(t, o)
	before(o)
	mu.Lock()
	most, made = 0, 0
	mu.Unlock()
	var list []telephony.Event
	for i := range calls {
		list = append(list, event("call.transfer_requested", strconv.Itoa(1000+i)))
	}
	mustAppend(t, o, list...)
	time.Sleep(time.Minute)
	stop()
	return most, made, o
}

// Of a storm of questions 500 are under way at an endpoint, and 8 at one that is failing. Those that
// find no place in time are expired, and it is kept that they were not asked; all are where the
// endpoint answers soon enough.
func TestStormOfQuestions(t *testing.T) {
	const calls = 1200
	nothing := func(*Outbox) {}
	t.Run("it hangs", func(t *testing.T) {
		c := &crm{}
		bubble(t, c, func(t *testing.T) {
			most, made, o := storm(t, c, calls, nothing, func(http.ResponseWriter) { time.Sleep(time.Hour) })
			if most != maxQuestions || made != maxQuestions {
				t.Errorf("%d were under way at once, %d were asked", most, made)
			}
			list, _, err := o.Deliveries(DeliveryQuery{State: "expired", Limit: calls})
			notAsked := 0
			for _, d := range list {
				if d.Attempts == 0 && strings.HasPrefix(d.LastError, "not asked: ") {
					notAsked++
				}
			}
			if err != nil || len(list) != calls || notAsked != calls-maxQuestions {
				t.Errorf("%d are expired, %d were not asked, %v", len(list), notAsked, err)
			}
			if list, err := o.store.questions(); len(list) != 0 || err != nil {
				t.Errorf("%d questions are left, %v", len(list), err)
			}
			time.Sleep(time.Hour)
		})
	})
	t.Run("it answers in 100 ms", func(t *testing.T) {
		c := &crm{}
		bubble(t, c, func(t *testing.T) {
			most, made, _ := storm(t, c, calls, nothing, func(w http.ResponseWriter) {
				time.Sleep(100 * time.Millisecond)
				_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
			})
			if most != maxQuestions || made != calls {
				t.Errorf("%d were under way at once, %d were asked", most, made)
			}
		})
	})
	t.Run("it is failing", func(t *testing.T) {
		c := &crm{}
		bubble(t, c, func(t *testing.T) {
			most, _, _ := storm(t, c, calls, func(o *Outbox) {
				for i := range 20 {
					mustAppend(t, o, event("call.completed", strconv.Itoa(i)))
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}, func(w http.ResponseWriter) {
				time.Sleep(10 * time.Millisecond)
				w.WriteHeader(http.StatusServiceUnavailable)
			})
			if most > maxQuestionsFailing+1 { // and a probe
				t.Errorf("%d were under way at once", most)
			}
		})
	})
}
