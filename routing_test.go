package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/demo"
	"pzbridge/internal/pipenet"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/relay"
)

// office is a bridge between a simulated server and three CRMs, in fake time: the real session,
// outbox and router.
type office struct {
	t      *testing.T
	server *pztest.Server
	box    *storetest.Box
	router *routing.Router
	stop   func()

	outbox  storetest.Options
	decline bool
	pbx     atomic.Pointer[pipenet.Listener]

	mu    sync.Mutex
	hooks map[string][]demo.Webhook // by CRM
	// answers are what the CRMs answer to questions. Without an entry the answer is 204.
	answers map[string]func(w http.ResponseWriter, hook demo.Webhook)
	// takes are what they answer to other events.
	takes map[string]func(w http.ResponseWriter)
}

var crms = []string{"a", "b", "c"}

// inOffice runs f in a bubble of fake time. The CRM "c" has no token, the others have one.
func inOffice(t *testing.T, change func(*office), f func(o *office)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := &office{
			t:       t,
			server:  pztest.New(pztest.Options{}),
			decline: true,
			hooks:   map[string][]demo.Webhook{},
			answers: map[string]func(http.ResponseWriter, demo.Webhook){},
			takes:   map[string]func(http.ResponseWriter){},
		}
		crmNet := pipenet.Listen()
		crm := &http.Server{Handler: o}
		var serving sync.WaitGroup
		serving.Go(func() { _ = crm.Serve(crmNet) })
		o.serve()
		var endpoints []store.Endpoint
		for _, name := range crms {
			e := store.Endpoint{
				Name:        name,
				URL:         "http://" + name,
				Secrets:     [][]byte{make([]byte, 24)},
				Events:      store.Filter{"call.*"},
				Timeout:     15 * time.Second,
				Concurrency: 1,
				RingingTTL:  5 * time.Minute,
			}
			if name != "c" {
				e.Tokens = []string{"the token of " + name}
			}
			endpoints = append(endpoints, e)
		}
		o.outbox = storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
			Endpoints:     endpoints,
			RetrySchedule: []time.Duration{time.Second, time.Minute},
			Grace:         time.Second,
			DialContext:   crmNet.Dial,
		})
		if change != nil {
			change(o)
		}
		o.start()
		f(o)
		o.stop()
		o.server.Close()
		_ = crm.Close()
		serving.Wait()
		time.Sleep(time.Hour) // what a CRM was still busy with ends
	})
}

// serve makes the server listen, also after it was closed.
func (o *office) serve() {
	l := pipenet.Listen()
	o.pbx.Store(l)
	o.server.Start(l)
}

// start starts the bridge on its file.
func (o *office) start() {
	o.t.Helper()
	box, err := storetest.Open(bolttest.Harness{}, o.outbox)
	if err != nil {
		o.t.Fatal(err)
	}
	session, err := relay.New(relay.Options{
		URL:      &url.URL{Scheme: "ws", Host: "pbx:10150"},
		Identity: pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2},
		Grace:    time.Second,
		Sink:     box,
		Logger:   o.outbox.Logger,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return o.pbx.Load().Dial(ctx, network, address)
		},
	})
	if err != nil {
		o.t.Fatal(err)
	}
	router, err := routing.NewRouter(routing.RouterOptions{
		Exchange:         session,
		Routes:           box.Engine,
		DeclineOnSilence: o.decline,
		Timeout:          10 * time.Second,
		Logger:           o.outbox.Logger,
	})
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(o.t.Context())
	var parts sync.WaitGroup
	parts.Go(func() {
		deliver := func(ctx context.Context) error { return box.Run(ctx, router) }
		if err := runAll(ctx, func() {}, session.Run, deliver); err != nil {
			o.t.Error(err)
		}
	})
	synctest.Wait()
	o.box, o.router = box, router
	o.stop = func() {
		cancel()
		parts.Wait()
		if err := box.Close(); err != nil {
			o.t.Error(err)
		}
	}
}

// ServeHTTP is the three CRMs.
func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var hook demo.Webhook
	if err := json.Unmarshal(body, &hook); err != nil {
		o.t.Error(err)
	}
	o.mu.Lock()
	o.hooks[r.Host] = append(o.hooks[r.Host], hook)
	answer, takes := o.answers[r.Host], o.takes[r.Host]
	o.mu.Unlock()
	switch {
	case hook.Type == "call.transfer_requested" && answer != nil:
		answer(w, hook)
	case hook.Type != "call.transfer_requested" && takes != nil:
		takes(w)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// says sets how, and after how long, a CRM answers questions.
func (o *office) says(crm string, after time.Duration, status int, body string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers[crm] = func(w http.ResponseWriter, _ demo.Webhook) {
		time.Sleep(after)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// happens makes the server send an event. The line is what follows "generate" in the vendor's
// Diagnostic.
func (o *office) happens(line string, args ...any) {
	o.t.Helper()
	fields, err := pz.ParseGenerate(strings.Fields("generate " + fmt.Sprintf(line, args...)))
	if err == nil {
		err = o.server.Generate(fields)
	}
	if err != nil {
		o.t.Fatal(err)
	}
	synctest.Wait()
}

// asks makes the server send the question of an incoming call.
func (o *office) asks(call string) {
	o.t.Helper()
	if err := o.server.Generate(asking(call, "73430112233")); err != nil {
		o.t.Fatal(err)
	}
	synctest.Wait()
}

// transfers lists what the server was asked to transfer, as call=number.
func (o *office) transfers() (list []string) {
	for _, r := range o.server.Requests() {
		if r.Method == pz.MethodTransfer {
			list = append(list, r.Data.Get("CallID")+"="+r.Data.Get("To"))
		}
	}
	return list
}

// wants checks that the server has got exactly these transfers so far.
func (o *office) wants(list ...string) {
	o.t.Helper()
	synctest.Wait()
	if got := o.transfers(); !slices.Equal(got, list) {
		o.t.Errorf("transfers: %q, want %q", got, list)
	}
}

// told gives how many events of a type a CRM has got.
func (o *office) told(crm, kind string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range o.hooks[crm] {
		if h.Type == kind {
			n++
		}
	}
	return n
}

// post answers a question by token.
func (o *office) post(call, by, to string) error {
	return o.router.Answer(o.t.Context(), call, "", by, to)
}

// rings makes a call ring and be answered, and checks which CRMs get these two events.
func (o *office) rings(call string, told ...string) {
	o.t.Helper()
	before := map[string]int{}
	for _, name := range crms {
		before[name] = o.told(name, "call.incoming") + o.told(name, "call.incoming_answered")
	}
	o.happens("transfer 7343 101 1 * %s", call)
	o.happens("transans 7343 101 1 * %s", call)
	time.Sleep(time.Second)
	synctest.Wait()
	for _, name := range crms {
		n := o.told(name, "call.incoming") + o.told(name, "call.incoming_answered") - before[name]
		if want := map[bool]int{true: 2}[slices.Contains(told, name)]; n != want {
			o.t.Errorf("%s was told %d times that call %s rings, want %d", name, n, call, want)
		}
	}
}

func (o *office) isOver(call string) {
	o.t.Helper()
	o.happens("history 7343 101 1385035625 1385035685 60 in http://x/1.mp3 1 %s", call)
}

// The first number wins. Other answers get an error that names the winner, and only the winner gets
// the ringing.
func TestFirstAnswerWins(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 2*time.Second, 200, `{"transfer_to":"101"}`)
		o.says("b", time.Second, 200, `{"transfer_to":"102","more":[1]}`)
		o.says("c", 0, 200, `{"transfer_to":""}`)
		o.asks("5")
		o.wants()
		time.Sleep(time.Second)
		o.wants("5=102")
		var decided *telephony.DecidedError
		if err := o.post("5", "a", "101"); !errors.As(err, &decided) || decided.Winner != "b" || decided.To != "102" {
			t.Errorf("another answers: %v", err)
		}
		if err := o.post("5", "a", ""); !errors.As(err, &decided) {
			t.Errorf("another declines: %v", err)
		}
		if err := o.post("5", "b", "102"); err != nil {
			t.Errorf("the winner says it again: %v", err)
		}
		if err := o.post("5", "b", "103"); !errors.As(err, &decided) {
			t.Errorf("the winner says something else: %v", err)
		}
		if err := o.post("6", "b", "103"); !errors.Is(err, telephony.ErrNeverAsked) {
			t.Errorf("of a call that never asked: %v", err)
		}
		time.Sleep(time.Minute)
		o.wants("5=102")
		o.rings("5", "b")
		o.rings("6", "a", "b", "c") // it never asked
		o.isOver("5")
		if err := o.post("5", "b", "102"); !errors.Is(err, telephony.ErrCallOver) {
			t.Errorf("after the end: %v", err)
		}
		o.rings("5", "a", "b", "c") // nothing holds any more
		for _, name := range crms {
			if n := o.told(name, "call.completed"); n != 1 {
				t.Errorf("%s was told %d times that it is over", name, n)
			}
		}
		o.wants("5=102")
	})
}

// Two answers at the same moment make one transfer.
func TestSimultaneousAnswersMakeOneTransfer(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		for i, name := range crms {
			o.says(name, time.Second, 200, fmt.Sprintf(`{"transfer_to":"10%d"}`, i))
		}
		o.asks("5")
		time.Sleep(time.Second)
		var posts sync.WaitGroup
		for range 5 {
			posts.Go(func() { _ = o.post("5", "operator", "200") })
		}
		posts.Wait()
		synctest.Wait()
		if got := o.transfers(); len(got) != 1 {
			t.Errorf("transfers: %q", got)
		}
	})
}

// The question closes as soon as no endpoint can win any more, whatever each of them has done.
func TestQuestionClosesOnceNoEndpointCanWin(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(o *office)
		when time.Duration
	}{
		"all decline": {func(o *office) {
			o.says("a", time.Second, 200, `{"transfer_to":""}`)
			o.says("b", 0, 200, `{"transfer_to":""}`)
			o.says("c", 0, 200, `{"transfer_to":""}`)
		}, time.Second},
		"the one without a token has no answer": {func(o *office) {
			o.says("a", 0, 200, `{"transfer_to":""}`)
			o.says("b", 0, 200, `{"transfer_to":""}`)
			o.says("c", 2*time.Second, 200, `thanks`)
		}, 2 * time.Second},
		"one is gone, one fails four times": {func(o *office) {
			o.says("a", 0, 410, "")
			o.says("b", 0, 500, "")
			o.says("c", 0, 200, `{"transfer_to":null}`)
		}, 3500 * time.Millisecond},
		"all are silent": {func(*office) {}, 10 * time.Second},
		"all hang": {func(o *office) {
			for _, name := range crms {
				o.says(name, 20*time.Second, 200, `{"transfer_to":"101"}`)
			}
		}, 10 * time.Second},
		"what they say is no number": {func(o *office) {
			o.says("a", 0, 200, `{"transfer_to":true}`)
			o.says("b", 0, 200, `{"transfer_to":"1<2"}`)
			o.says("c", 0, 200, `{"transfer_to":"`+strings.Repeat("1", 65)+`"}`)
		}, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inOffice(t, nil, func(o *office) {
				c.set(o)
				o.asks("5")
				time.Sleep(c.when - time.Millisecond)
				o.wants()
				time.Sleep(2 * time.Millisecond)
				o.wants("5=")
				if err := o.post("5", "a", "101"); !errors.Is(err, telephony.ErrRouteClosed) {
					t.Errorf("too late: %v", err)
				}
				o.rings("5", "a", "b", "c")
				time.Sleep(time.Minute)
				o.wants("5=")
			})
		})
	}
}

func TestQuestionWithoutSubscribersClosesAtOnce(t *testing.T) {
	inOffice(t, func(o *office) {
		for i := range o.outbox.Endpoints {
			o.outbox.Endpoints[i].Events = store.Filter{"call.completed"}
		}
	}, func(o *office) {
		o.asks("5")
		o.wants("5=")
	})
}

// Without DeclineOnSilence nothing is written for a call that no endpoint wants. With
// QuietWithoutWinner its ringing goes to no endpoint.
func TestNoDeclineIsWrittenWhenSwitchedOff(t *testing.T) {
	inOffice(t, func(o *office) { o.decline, o.outbox.QuietWithoutWinner = false, true }, func(o *office) {
		o.asks("5")
		time.Sleep(time.Minute)
		o.wants()
		o.rings("5") // to nobody, since nobody wanted it
		o.rings("6", "a", "b", "c")
	})
}

// While the question is open, the ringing goes to all endpoints. A decline by token counts, and so
// does a later number of the same CRM.
func TestOpenQuestionTakesANumberAfterADecline(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.asks("5")
		o.rings("5", "a", "b", "c")
		if err := o.post("5", "a", ""); err != nil {
			t.Errorf("a decline: %v", err)
		}
		if err := o.post("5", "a", "101"); err != nil {
			t.Errorf("it has thought again: %v", err)
		}
		o.wants("5=101")
	})
}

// However often a CRM declines, another's number wins.
func TestManyDeclinesLeaveRoomForANumber(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.asks("5")
		for range 300 {
			if err := o.post("5", "a", ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.post("5", "b", "102"); err != nil {
			t.Error(err)
		}
		o.wants("5=102")
	})
}

// The winner has answered by its token while its webhook fails. The ringing waits for it alone.
func TestWinnerMayAnswerByTokenWhileItsWebhookFails(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 0, 503, "")
		o.asks("5")
		time.Sleep(time.Second)
		if err := o.post("5", "a", "101"); err != nil {
			t.Error(err)
		}
		o.wants("5=101")
		time.Sleep(time.Minute)
		o.rings("5", "a")
		if n := o.told("a", "call.transfer_requested"); n != 2 {
			t.Errorf("it was asked %d times: after the decision there is nothing to ask", n)
		}
	})
}

// After a restart an open question goes on, the winner remains the winner, and a transferred call
// is not transferred again.
func TestQuestionsSurviveRestarts(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 20*time.Second, 200, "")
		o.asks("5")
		o.asks("6")
		if err := o.post("6", "b", "102"); err != nil {
			t.Error(err)
		}
		o.stop()
		o.says("a", 0, 200, `{"transfer_to":"101"}`)
		time.Sleep(2 * time.Second)
		o.start()
		time.Sleep(5 * time.Second)
		o.wants("6=102", "5=101")
		var decided *telephony.DecidedError
		if err := o.post("6", "a", "103"); !errors.As(err, &decided) || decided.Winner != "b" {
			t.Errorf("after the restart: %v", err)
		}
		o.rings("6", "b")
		o.rings("5", "a")
		o.says("a", 20*time.Second, 200, "")
		o.asks("7")
		o.stop()
		time.Sleep(12 * time.Second)
		o.start()
		time.Sleep(time.Second)
		o.wants("6=102", "5=101", "7=") // the caller may still be waiting
		o.asks("8")
		o.stop()
		time.Sleep(time.Minute)
		o.start()
		time.Sleep(time.Minute)
		for _, call := range []string{"7", "8"} {
			if err := o.post(call, "b", "102"); !errors.Is(err, telephony.ErrRouteClosed) {
				t.Errorf("call %s, long after its time: %v", call, err)
			}
		}
		o.wants("6=102", "5=101", "7=") // nobody waits a minute
	})
}

// Calls do not mix, and one that asks twice is transferred once.
func TestCallThatAsksTwiceIsTransferredOnce(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", time.Second, 200, `{"transfer_to":"101"}`)
		o.asks("5")
		o.asks("6")
		if err := o.post("6", "b", "102"); err != nil {
			t.Error(err)
		}
		o.asks("5")
		time.Sleep(2 * time.Second)
		o.asks("5")
		time.Sleep(time.Minute)
		o.wants("6=102", "5=101")
		if n := o.told("b", "call.transfer_requested"); n != 4 {
			t.Errorf("b was told of %d of the 4 events", n)
		}
	})
}

// A call without a winner may ask again, and then an endpoint may win it. After that its questions
// change nothing.
func TestCallMayAskAgainAfterNoWinner(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		for _, name := range crms {
			o.says(name, 0, 200, `{"transfer_to":""}`)
		}
		o.asks("5")
		time.Sleep(time.Second)
		o.wants("5=")
		o.asks("5")
		time.Sleep(time.Second)
		o.wants("5=", "5=")
		o.says("b", time.Second, 200, `{"transfer_to":"102"}`)
		o.asks("5")
		time.Sleep(2 * time.Second)
		o.wants("5=", "5=", "5=102")
		o.says("a", 0, 200, `{"transfer_to":"101"}`)
		o.asks("5")
		time.Sleep(time.Minute)
		o.wants("5=", "5=", "5=102")
		o.rings("5", "b")
	})
}

// A late answer to the question before is no answer to the one that the call has asked since.
func TestLateAnswerDoesNotCountForANewQuestion(t *testing.T) {
	for _, late := range []string{`{"transfer_to":""}`, `{"transfer_to":"101"}`} {
		t.Run(late, func(t *testing.T) {
			inOffice(t, func(o *office) { o.outbox.Endpoints = o.outbox.Endpoints[:1] }, func(o *office) {
				o.says("a", 3*time.Second, 200, late)
				o.asks("5")
				time.Sleep(time.Second)
				if err := o.post("5", "a", ""); err != nil {
					t.Error(err)
				}
				o.says("a", 5*time.Second, 200, `{"transfer_to":"102"}`)
				o.asks("5")
				time.Sleep(4 * time.Second)
				o.wants("5=")
				time.Sleep(4 * time.Second)
				o.wants("5=", "5=102")
			})
		})
	}
}

// A question goes ahead of everything that waits for its endpoint: for a place, the rate, the end
// of a pause, a probe, or earlier events of its call.
func TestQuestionOvertakesWhatWaitsForItsEndpoint(t *testing.T) {
	for name, takes := range map[string]func(http.ResponseWriter){
		"all its places are taken": func(http.ResponseWriter) { time.Sleep(10 * time.Second) },
		"it asked for a pause": func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "3000")
			w.WriteHeader(http.StatusTooManyRequests)
		},
		"it is failing": func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) },
	} {
		t.Run(name, func(t *testing.T) {
			inOffice(t, func(o *office) { o.outbox.Endpoints[0].Rate = 1 }, func(o *office) {
				o.says("a", 0, 200, `{"transfer_to":"101"}`)
				o.takes["a"] = takes
				for i := range 30 {
					o.happens("transfer 7343 101 1 * %d", i)
				}
				o.happens("transfer 7343 101 1 * 99")
				time.Sleep(40 * time.Second)
				asked := time.Now()
				o.asks("99")
				if o.wants("99=101"); time.Since(asked) > 0 {
					t.Errorf("it took %s", time.Since(asked))
				}
				// That it took the question says that it is well.
				if list, err := o.box.Endpoints(); err != nil || list[0].State == "failing" {
					t.Errorf("%+v, %v", list[0], err)
				}
			})
		})
	}
}

// Questions do not wait for one another.
func TestQuestionsAreAskedConcurrently(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 3*time.Second, 200, `{"transfer_to":"101"}`)
		for call := range 20 {
			o.asks(fmt.Sprint(call))
		}
		if n := o.told("a", "call.transfer_requested"); n != 20 {
			t.Errorf("a was asked about %d of 20 calls", n)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := len(o.transfers()); n != 20 {
			t.Errorf("%d of 20 calls were transferred", n)
		}
	})
}

// A later event of the call waits until its endpoint has taken the question, and no longer.
func TestLaterEventWaitsForItsQuestion(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 3*time.Second, 200, "")
		o.asks("5")
		o.happens("transfer 7343 101 1 * 5")
		if n, others := o.told("a", "call.incoming"), o.told("b", "call.incoming"); n != 0 || others != 1 {
			t.Errorf("before a has taken the question it is told %d times that the call rings, b %d times", n, others)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := o.told("a", "call.incoming"); n != 1 {
			t.Errorf("after it has taken the question it is told %d times that the call rings", n)
		}
	})
}

// When a call asks again, an endpoint that gives no answer to that may still answer the first
// question.
func TestRepeatedQuestionTakesNoAnswerAway(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 0, 200, `{"transfer_to":""}`)
		o.says("b", 0, 200, `{"transfer_to":""}`)
		o.says("c", 3*time.Second, 200, `{"transfer_to":"103"}`)
		o.asks("5")
		o.says("c", 0, 200, "")
		o.asks("5")
		o.wants()
		time.Sleep(3 * time.Second)
		o.wants("5=103")
	})
}

// A call that ended while the bridge was disconnected is over, and no answer counts any more. The
// end of an older call with the same ID does not end it.
func TestCallThatEndedDuringAnOutageIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		ended time.Duration // after it has asked
		over  bool
	}{"this call": {2 * time.Second, true}, "an older one": {-time.Hour, false}} {
		t.Run(name, func(t *testing.T) {
			inOffice(t, nil, func(o *office) {
				o.asks("5")
				o.server.Close()
				time.Sleep(2 * time.Second)
				end := time.Now().Add(c.ended - 2*time.Second).Unix()
				o.happens("history 7343 101 %d %d 60 in http://x/1.mp3 1 5", end-60, end)
				o.serve()
				time.Sleep(3 * time.Second)
				if n := o.told("a", "call.completed"); n != 1 {
					t.Fatalf("it is told %d times that a call is over", n)
				}
				err := o.post("5", "a", "101")
				if errors.Is(err, telephony.ErrCallOver) != c.over || err != nil && !c.over {
					t.Errorf("an answer gets %v", err)
				}
				if c.over {
					o.wants()
				} else {
					o.wants("5=101")
				}
			})
		})
	}
}

// A transfer that surely has not reached the server is written when the winner repeats its number,
// once.
func TestRepeatedAnswerWritesAnUnsentTransfer(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.asks("5")
		o.server.Close()
		synctest.Wait()
		if err := o.post("5", "a", "101"); !errors.Is(err, telephony.ErrNotConnected) {
			t.Errorf("without a server: %v", err)
		}
		var decided *telephony.DecidedError
		if err := o.post("5", "b", "102"); !errors.As(err, &decided) {
			t.Errorf("another: %v", err)
		}
		o.serve()
		time.Sleep(2 * time.Minute)
		o.wants()
		var posts sync.WaitGroup
		for range 3 {
			posts.Go(func() {
				if err := o.post("5", "a", "101"); err != nil {
					t.Errorf("again: %v", err)
				}
			})
		}
		posts.Wait()
		o.wants("5=101")
	})
}

// The transfer is written when the server comes back while the caller can still be waiting.
func TestUnsentTransferIsWrittenWhenTheServerIsBack(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", time.Second, 200, `{"transfer_to":"101"}`)
		o.asks("5")
		o.server.Close()
		time.Sleep(2 * time.Second)
		o.serve()
		time.Sleep(7 * time.Second)
		o.wants("5=101")
	})
}

// The bridge is killed again and again while calls ask where to go and a CRM answers at once. No
// call is transferred twice, those that ask while the bridge runs are transferred, and every
// transfer goes to the number that the CRM gave.
func TestKilledBridgeTransfersNoCallTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the bridge again and again")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var hook demo.Webhook
		if json.NewDecoder(r.Body).Decode(&hook) == nil {
			_, _ = fmt.Fprintf(w, `{"transfer_to":"%s0"}`, hook.Data.CallID)
		}
	}))
	defer crm.Close()
	vars := variables(t, server, &receiver{Server: crm})
	call := 0
	for range 6 {
		p := start(t, vars)
		eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
		before := len(server.Requests())
		stop := make(chan struct{})
		var emitting sync.WaitGroup
		emitting.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				call++
				err := server.Generate(asking(fmt.Sprint(call), "7343"))
				if err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
		})
		eventually(t, "calls are transferred", func() bool { return len(server.Requests()) > before+30 })
		if err := p.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait()
		close(stop)
		emitting.Wait()
		// Or the connection of the one that was killed would be taken for that of the next, and a
		// question be asked of nobody.
		eventually(t, "the server knows that it is gone", func() bool { return server.Connected() == 0 })
	}
	start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	last := fmt.Sprint(call + 1)
	if err := server.Generate(asking(last, "7343")); err != nil {
		t.Fatal(err)
	}
	times := map[string]int{}
	eventually(t, "the last call is transferred", func() bool {
		clear(times)
		for _, r := range server.Requests() {
			id, to := r.Data.Get("CallID"), r.Data.Get("To")
			times[id]++
			if to != id+"0" && to != "" {
				t.Fatalf("call %s went to %q", id, to)
			}
		}
		return times[last] > 0
	})
	for id, n := range times {
		if n > 1 {
			t.Errorf("call %s was transferred %d times", id, n)
		}
	}
	t.Logf("%d of %d calls were transferred", len(times), call+1)
}

func TestSendTestReportsTheStatus(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	var status atomic.Int64
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(status.Load()))
	}))
	defer crm.Close()
	vars := variables(t, server, &receiver{Server: crm}, "API_TOKEN=operator-token-0123456789")
	start(t, vars)
	eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
	for _, c := range []struct {
		status, code int
		name, says   string
	}{
		{204, 0, "crm", "crm took the test with 204"},
		{500, 1, "crm", "crm refused the test with 500"},
		{200, 1, "nobody", `There is no endpoint of that name: "nobody".`},
	} {
		status.Store(int64(c.status))
		p := start(t, vars, "send-test", c.name)
		if code := p.exitCode(); code != c.code || !strings.Contains(p.log.String(), c.says) {
			t.Errorf("%d: exit code %d: %s", c.status, code, p.log)
		}
	}
}

// A CRM answers while the bridge shuts down, when the connection to the server has ended already.
// The next start writes the transfer while the answer is of use.
func TestAnswerDuringShutdownIsTransferredAfterARestart(t *testing.T) {
	for _, to := range []string{"101", ""} {
		inOffice(t, nil, func(o *office) {
			o.outbox.Grace = 5 * time.Second
			o.stop()
			o.start()
			for _, name := range []string{"a", "b", "c"} {
				o.says(name, time.Second, 200, fmt.Sprintf(`{"transfer_to":%q}`, to))
			}
			o.asks("5")
			o.stop()
			o.start()
			time.Sleep(30 * time.Second)
			synctest.Wait()
			o.wants("5=" + to)
		})
	}
}

// The end of a call's first question is not the end of the second one, which the call has asked
// after it was over.
func TestEndOfAnOldQuestionLeavesTheNewOneOpen(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.asks("5")
		time.Sleep(time.Second)
		o.isOver("5")
		time.Sleep(8 * time.Second)
		o.asks("5")
		time.Sleep(3 * time.Second)
		if err := o.post("5", "a", "101"); err != nil {
			t.Errorf("the answer 3 s after the question: %v", err)
		}
		o.wants("5=101")
	})
}

// A call of the simulation rings at the number to which it was transferred.
func TestSimulatedCallsRingWhereTheyAreSent(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 0, http.StatusOK, `{"transfer_to":"555"}`)
		o.server.Simulate(true)
		time.Sleep(time.Minute)
		o.server.Simulate(false)
		synctest.Wait()
		o.mu.Lock()
		defer o.mu.Unlock()
		rang := 0
		for _, h := range o.hooks["a"] {
			if h.Type == "call.incoming" {
				rang++
				if h.Data.To != "555" {
					t.Errorf("a call rings at %s", h.Data.To)
				}
			}
		}
		if rang == 0 {
			t.Error("no call rings")
		}
	})
}
