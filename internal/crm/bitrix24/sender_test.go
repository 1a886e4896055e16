package bitrix24

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/crm/bitrix24/bitrix24test"
	"pzbridge/internal/phone"
	"pzbridge/internal/pipenet"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/sendertest"
	"pzbridge/outbox/store/storetest"
)

func settings(t testing.TB) crm.Settings {
	t.Helper()
	plan, err := phone.New(phone.Options{Region: "RU", InternalDigits: 4})
	if err != nil {
		t.Fatal(err)
	}
	return crm.Settings{
		Preset: crm.Bitrix24,
		People: crm.People{Missed: crm.MissedResponsible, Plan: plan},
		Create: crm.CreateIncoming,
	}
}

func TestBitrix24IsASender(t *testing.T) {
	with := settings(t)
	with.People.Users = map[string]string{"101": "15"}
	body := `{"data":{"client_number":"+73430112233","extension":"101","direction":"incoming"}}`
	sendertest.Run(t, sendertest.Sender{
		New: func(e store.Endpoint, dial func(context.Context, string, string) (net.Conn, error)) store.Sender {
			return New(e, Options{
				Settings: with, Portals: NewPortals(), UserAgent: "pzbridge/test", Questions: 4, DialContext: dial,
			})
		},
		Job: store.Job{
			EventID: "01a22e15-c33e-7845-bf34-74493ad93b91",
			Event:   store.Event{Type: telephony.EventIncoming, Call: "7", Body: []byte(body)},
			Kept:    []byte(`{"id":"externalCall.1","shown":[16],"known":true}`), // so that it makes a show
		},
		Verdict: func(status int) store.Verdict {
			switch {
			case status < 300:
				return store.Done
			case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusNotFound:
				return store.Misconfigured
			case status == http.StatusTooManyRequests:
				return store.Pause
			case status == http.StatusBadRequest: // to show a card: there is none then
				return store.Done
			}
			return store.Again
		},
	})
}

const (
	code   = "s3cretcode"
	client = "83430112233"
	known  = "+73430112233"
)

// bench is a fake portal, and an outbox on a file that sends to it.
type bench struct {
	t      *testing.T
	portal *bitrix24test.Portal
	sender *Sender
	box    *storetest.Box
	stop   func()
	opts   storetest.Options
	dial   func(context.Context, string, string) (net.Conn, error)
	with   crm.Settings
	// proxy takes the requests in place of the portal; nil: it gets them.
	proxy         http.HandlerFunc
	ignoresFaults bool
	recordings    kept
	hookURL       string
}

// notes are those of an engine that is opened later.
type notes struct{ store.Notes }

// inBubble runs f in fake time with a fake portal.
func inBubble(t *testing.T, with crm.Settings, f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(12 * time.Hour) // noon
		portal := bitrix24test.New(code)
		l := pipenet.Listen()
		b := &bench{t: t, portal: portal, dial: l.Dial, with: with, recordings: kept{}}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case b.proxy != nil:
				b.proxy(w, r)
			case strings.HasPrefix(r.URL.Path, "/oauth/"):
				portal.OAuth().ServeHTTP(w, r)
			default:
				portal.ServeHTTP(w, r)
			}
		})}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(l) })
		e := storetest.Endpoint("crm")
		e.Tokens = []string{token}
		e.URL, e.Events, e.RingingTTL = "http://firm.bitrix24.ru"+portal.Path(), store.Filter{"call.*"}, 5*time.Minute
		if with.Application.ID != "" {
			e.URL, e.Tokens = "http://firm.bitrix24.ru", nil
		}
		e.Concurrency = 4 // more than a portal takes, with no rate: the bucket alone holds
		b.opts = storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: []time.Duration{time.Second, time.Minute, time.Hour},
		})
		b.open()
		f(b)
		b.close()
		_ = server.Close()
		serving.Wait()
		for _, fault := range portal.Faults() {
			if !b.ignoresFaults {
				t.Error(fault)
			}
		}
	})
}

func (b *bench) open() {
	b.t.Helper()
	late := &notes{}
	b.sender = New(b.opts.Endpoints[0], Options{
		Settings: b.with, Notes: late, Portals: NewPortals(), UserAgent: "pzbridge/test", Questions: 4,
		DialContext: b.dial, Recordings: b.recordings, HookURL: b.hookURL,
	})
	b.opts.Senders = map[string]store.Sender{"crm": b.sender}
	var err error
	if b.box, err = storetest.Open(bolttest.Harness{}, b.opts); err != nil {
		b.t.Fatal(err)
	}
	late.Notes = b.box.Engine
	b.stop = storetest.RunBox(b.t, b.box)
}

func (b *bench) close() {
	b.t.Helper()
	b.stop()
	if err := b.box.Close(); err != nil {
		b.t.Error(err)
	}
}

// event is one of a call. Talk is of one that is over.
func event(kind telephony.EventType, call, from, to string, talk ...time.Duration) telephony.Event {
	e := storetest.Event(kind, call)
	e.From, e.To, e.Line, e.Direction = from, to, "73432000000", telephony.Incoming
	if len(from) == 3 {
		e.Direction = telephony.Outgoing
	}
	for _, d := range talk {
		seconds := int64(d.Seconds())
		e.Duration, e.EndedAt, e.StartedAt = &seconds, e.Time, e.Time.Add(-d)
	}
	return e
}

// says appends an event of a call, and gives the portal time for it.
func (b *bench) says(kind telephony.EventType, call, from, to string, talk ...time.Duration) {
	b.t.Helper()
	storetest.MustAppend(b.t, b.box, event(kind, call, from, to, talk...))
	time.Sleep(5 * time.Second)
}

// delivered fails the test unless so many deliveries are done and nothing else is.
func (b *bench) delivered(want int) {
	b.t.Helper()
	states := storetest.States(b.t, b.box, "crm")
	if states[store.Delivered] != want || states[store.Pending]+states[store.Dead]+states[store.Expired] > 0 {
		b.t.Errorf("the deliveries are %v, want %d delivered", states, want)
	}
}

// one returns the portal's only call.
func (b *bench) one() bitrix24test.Call {
	b.t.Helper()
	calls := b.portal.Calls()
	if len(calls) != 1 {
		b.t.Fatalf("the portal has %d calls: %+v", len(calls), calls)
	}
	return calls[0]
}

// made are the methods that were called, without reads of users.
func (b *bench) made() (list []string) {
	requests, _ := b.portal.Requests()
	for _, r := range requests {
		if r.Method != "user.get" {
			list = append(list, r.Method[strings.LastIndex(r.Method, ".")+1:])
		}
	}
	return list
}

func (b *bench) wantMade(want ...string) {
	b.t.Helper()
	if got := b.made(); !slices.Equal(got, want) {
		b.t.Errorf("it made %q, want %q", got, want)
	}
}

// A call that rings at three is registered once, each sees its card, and only the one who picks up
// keeps it until the end.
func TestGroupRingIsOneCall(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		for _, extension := range []string{"101", "102", "103"} {
			b.says(telephony.EventIncoming, "7", client, extension)
		}
		if got := b.one().ShownTo; !slices.Equal(got, []int{15, 16, 17}) {
			t.Errorf("the card is shown to %v", got)
		}
		b.says(telephony.EventIncomingAnswered, "7", client, "102")
		if got := b.one().ShownTo; !slices.Equal(got, []int{16}) {
			t.Errorf("after one has picked up, it is shown to %v", got)
		}
		b.says(telephony.EventCompleted, "7", client, "102", time.Minute)
		b.delivered(5)
		b.wantMade("register", "show", "show", "hide", "finish")
		c := b.one()
		if !c.Finished || c.FinishedBy != 16 || c.Duration != time.Minute || c.StatusCode != "200" ||
			c.ExternalCallID != "7" || c.Lead == 0 || c.Phone != known || len(c.ShownTo) > 0 {
			t.Errorf("the call is %+v", c)
		}
	})
}

// A missed call belongs to the one who is responsible for the client; an unknown extension and a
// client of nobody belong to the default user, who is that of the webhook if none is set.
func TestWhoseACallIs(t *testing.T) {
	for name, c := range map[string]struct {
		responsible int
		extension   string
		policy      crm.Missed
		user        string
		byLine      map[string]string
		want        int
	}{
		"of the responsible":      {17, "101", crm.MissedResponsible, "", nil, 17},
		"of nobody, so the last":  {0, "101", crm.MissedResponsible, "", nil, 15},
		"of the last":             {17, "101", crm.MissedLast, "", nil, 15},
		"of the webhook's user":   {17, "101", crm.MissedDefault, "", nil, 1},
		"of the default user":     {17, "101", crm.MissedDefault, "16", nil, 16},
		"of the line's":           {17, "101", crm.MissedDefault, "16", map[string]string{"+73432000000": "15"}, 15},
		"of an unknown extension": {0, "199", crm.MissedLast, "16", nil, 16},
	} {
		t.Run(name, func(t *testing.T) {
			with := settings(t)
			with.People.Missed, with.People.Default, with.People.DefaultByLine = c.policy, c.user, c.byLine
			inBubble(t, with, func(b *bench) {
				if c.responsible > 0 {
					b.portal.Assign(known, "CONTACT", 797, c.responsible, "OPENED")
				}
				b.says(telephony.EventIncoming, "7", client, c.extension)
				b.says(telephony.EventCompleted, "7", client, "", 0)
				if got := b.one(); got.FinishedBy != c.want || got.StatusCode != "304" || len(got.ShownTo) > 0 {
					t.Errorf("the call is %+v, want one of user %d", got, c.want)
				}
			})
		})
	}
}

func TestOutgoingCalls(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.says(telephony.EventOutgoing, "7", "101", client)
		b.says(telephony.EventOutgoingAnswered, "7", "101", client)
		b.says(telephony.EventCompleted, "7", "101", client, time.Minute)
		if c := b.one(); c.Type != bitrix24test.Outgoing || c.Lead != 0 || c.FinishedBy != 15 || c.StatusCode != "200" {
			t.Errorf("the call is %+v", c)
		}
		b.says(telephony.EventCompleted, "8", "101", client, 0)
		if c := b.portal.Calls()[1]; c.StatusCode != "603-S" || len(c.Cards) > 0 {
			t.Errorf("one that nobody took, and of which its end alone is known, is %+v", c)
		}
		b.says(telephony.EventIncoming, "9", "101", "102") // internal
		b.says(telephony.EventIncoming, "10", "Anonymous", "102")
		b.delivered(6)
		if n := len(b.portal.Calls()); n != 2 {
			t.Errorf("the portal has %d calls", n)
		}
	})
}

// An SMS is a comment at the client, in the name of who has sent it.
func TestSMSIsAComment(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.opts.Endpoints[0].Events = append(b.opts.Endpoints[0].Events, "sms.*")
		b.close()
		b.open()
		sms := func(kind telephony.EventType, to string) {
			e := storetest.Event(kind, "1")
			e.From, e.To, e.Text = "101", to, "Спасибо за звонок!"
			storetest.MustAppend(b.t, b.box, e)
			time.Sleep(5 * time.Second)
		}
		sms(telephony.EventSMSSent, client) // of nobody
		b.portal.Assign(known, "LEAD", 5, 16, "OPENED")
		sms(telephony.EventSMSSent, client)
		sms(telephony.EventSMSStatus, client)
		b.delivered(3)
		const text = "SMS → +73430112233: Спасибо за звонок!"
		want := []bitrix24test.Comment{{EntityType: "lead", EntityID: 5, Text: text, AuthorID: 15}}
		if got := b.portal.Comments(); !slices.Equal(got, want) {
			t.Errorf("the comments are %+v", got)
		}
	})
}

// The answer to each request is lost once: the portal has one call all the same, also if it may not
// be asked for its statistics.
func TestLostAnswerMakesNoSecondCall(t *testing.T) {
	for n := 1; n <= 8; n++ {
		for _, isForbidden := range []bool{false, true} {
			t.Run(fmt.Sprint("answer ", n, " ", isForbidden), func(t *testing.T) {
				inBubble(t, settings(t), func(b *bench) {
					b.portal.ForbidStatistics(isForbidden)
					b.portal.Lose(n)
					b.says(telephony.EventIncoming, "7", client, "101")
					b.says(telephony.EventIncoming, "7", client, "102")
					b.says(telephony.EventIncomingAnswered, "7", client, "102")
					b.says(telephony.EventCompleted, "7", client, "102", time.Minute)
					time.Sleep(time.Minute)
					b.delivered(4)
					if c := b.one(); !c.Finished || c.FinishedBy != 16 {
						t.Errorf("the call is %+v", c)
					}
				})
			})
		}
	}
}

// A bridge that is stopped and started in every state of a call goes on where it was.
func TestRestartInEveryStateOfACall(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		for _, step := range []func(){
			func() { b.says(telephony.EventIncoming, "7", client, "101") },
			func() { b.says(telephony.EventIncoming, "7", client, "102") },
			func() { b.says(telephony.EventIncomingAnswered, "7", client, "102") },
			func() { b.says(telephony.EventCompleted, "7", client, "102", time.Minute) },
		} {
			step()
			b.close()
			b.open()
			time.Sleep(time.Minute)
		}
		b.delivered(4)
		b.wantMade("register", "show", "hide", "finish")
		if c := b.one(); !c.Finished {
			t.Errorf("the call is %+v", c)
		}
	})
}

// A call of which the end is told late is looked for in the statistics first, since the portal
// knows what was registered for half an hour only.
func TestLateEndIsLookedUp(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.portal.Lose(2) // the finish: it is done, and not known to be
		b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		time.Sleep(time.Minute)
		old := event(telephony.EventCompleted, "8", client, "101", time.Minute)
		old.StartedAt, old.EndedAt = old.StartedAt.Add(-2*time.Hour), old.EndedAt.Add(-2*time.Hour)
		old.Replayed = true
		storetest.MustAppend(t, b.box, old)
		time.Sleep(time.Minute)
		b.delivered(2)
		calls := b.portal.Calls()
		if len(calls) != 2 || !calls[1].Finished || len(calls[1].Cards) > 0 ||
			!calls[1].Started.Equal(old.StartedAt.Truncate(time.Second)) {
			t.Errorf("the calls are %+v", calls)
		}
		if got := b.made(); !slices.Contains(got[3:], "get") {
			t.Errorf("it made %q", got)
		}
	})
}

// old returns the end of a call that is told two hours late.
func old(call string) telephony.Event {
	e := event(telephony.EventCompleted, call, client, "101", time.Minute)
	e.StartedAt, e.EndedAt, e.Replayed = e.StartedAt.Add(-2*time.Hour), e.EndedAt.Add(-2*time.Hour), true
	return e
}

// Whatever of the requests for a call is lost that is told late, it is made once: it is registered
// and finished in one request, which the statistics remember.
func TestLateCallIsMadeOnce(t *testing.T) {
	for n := 1; n <= 4; n++ {
		t.Run(fmt.Sprint("answer ", n), func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				b.portal.Lose(n)
				storetest.MustAppend(b.t, b.box, old("8"))
				time.Sleep(time.Minute)
				b.close() // as if all were forgotten that was not recorded
				b.open()
				storetest.MustAppend(b.t, b.box, old("9"))
				time.Sleep(time.Minute)
				b.delivered(2)
				calls := b.portal.Calls()
				if len(calls) != 2 || !calls[0].Finished || !calls[1].Finished || len(calls[0].Cards) > 0 {
					t.Errorf("the calls are %+v", calls)
				}
			})
		})
	}
}

// A limit or a fault of the portal within a batch costs no call.
func TestLateCallOutlivesALimit(t *testing.T) {
	for _, code := range []string{
		"OPERATION_TIME_LIMIT", "QUERY_LIMIT_EXCEEDED", "OVERLOAD_LIMIT", "INTERNAL_SERVER_ERROR",
	} {
		t.Run(code, func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				var answered atomic.Int32
				b.proxy = func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/batch") && answered.Add(1) == 1 {
						_, _ = fmt.Fprintf(w, `{"result":{"result":[],"result_error":{"register":{"error":%q}}}}`, code)
						return
					}
					b.portal.ServeHTTP(w, r)
				}
				storetest.MustAppend(b.t, b.box, old("8"))
				time.Sleep(time.Hour)
				b.delivered(1)
				if c := b.one(); !c.Finished {
					t.Errorf("the call is %+v", c)
				}
			})
		})
	}
}

// A lead that the portal could not make costs no call, and the attempt says why.
func TestLeadThatIsNotMade(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.portal.RefuseLeads(true)
		b.says(telephony.EventIncoming, "7", client, "101")
		storetest.MustAppend(b.t, b.box, old("8"))
		time.Sleep(time.Minute)
		b.delivered(2)
		said := 0
		for _, a := range b.attempts() {
			for _, step := range a.Steps {
				if strings.Contains(step.What, "no client was made: Lead creation is disabled") {
					said++
				}
			}
		}
		if said != 2 {
			t.Errorf("it is said %d times: %+v", said, b.attempts())
		}
	})
}

// What the portal says of one of the two in a batch is what the call ends with.
func TestLateCallThatIsRefused(t *testing.T) {
	with := settings(t)
	with.People.Users = map[string]string{"101": "99"} // whom the portal does not know
	inBubble(t, with, func(b *bench) {
		b.ignoresFaults = true
		storetest.MustAppend(b.t, b.box, old("8"))
		time.Sleep(time.Minute)
		states := storetest.States(b.t, b.box, "crm")
		attempts := b.attempts()
		if len(b.portal.Calls()) != 0 || states[store.Dead] != 1 || len(attempts) != 1 ||
			!strings.Contains(attempts[0].Error, "User is not found") {
			t.Errorf("%v, after %+v; the portal has %+v", states, attempts, b.portal.Calls())
		}
	})
}

// A webhook that is revoked loses nothing: the events wait, the CRM counts as failing with what to
// do, and all arrives once it is back.
func TestWhatIsWrongAtThePortalIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		breaks, mends func(*bitrix24test.Portal)
		want          string
	}{
		"the webhook": {(*bitrix24test.Portal).Revoke, (*bitrix24test.Portal).Restore, "does not know the webhook"},
		"a right": {
			func(p *bitrix24test.Portal) { p.WithoutScope("telephony") },
			func(p *bitrix24test.Portal) { p.WithoutScope() }, "too few rights",
		},
		"the plan": {
			func(p *bitrix24test.Portal) { p.FreePlan(true) },
			func(p *bitrix24test.Portal) { p.FreePlan(false) }, "denies the request",
		},
		"applications alone": {
			func(p *bitrix24test.Portal) { p.AppOnly(true) },
			func(p *bitrix24test.Portal) { p.AppOnly(false) }, "lets no webhook",
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				c.breaks(b.portal)
				b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
				b.says(telephony.EventCompleted, "8", client, "101", time.Minute)
				list, err := b.box.Endpoints()
				if err != nil {
					t.Fatal(err)
				}
				if e := list[0]; e.Dead != 0 || e.Since.IsZero() || !strings.Contains(e.LastError, c.want) {
					t.Errorf("the endpoint is %+v", e)
				}
				c.mends(b.portal)
				time.Sleep(10 * time.Minute)
				b.delivered(2)
				if n := len(b.portal.Calls()); n != 2 {
					t.Errorf("the portal has %d calls", n)
				}
			})
		})
	}
}

// A call every two seconds, and twenty at once now and then, pass a portal that takes two requests
// a second: in order, none lost, none refused; and questions, of which there are seven in eight
// seconds, are answered in two.
func TestPortalIsNotOverrun(t *testing.T) {
	with := settings(t)
	with.People.Missed = crm.MissedLast
	inBubble(t, with, func(b *bench) {
		b.portal.Assign(known, "CONTACT", 797, 15, "OPENED")
		const seconds = 120
		calls := 0
		for i := range seconds {
			burst := 0
			switch {
			case i == 30:
				burst = 20
			case i%2 == 0:
				burst = 1
			}
			for range burst {
				calls++
				id := fmt.Sprint(calls)
				storetest.MustAppend(t, b.box, event(telephony.EventCompleted, id, client, "101", time.Second))
			}
			if i%8 != 0 {
				began := time.Now()
				o := b.sender.Send(b.t.Context(), question(fmt.Sprint("q", i)))
				if took := time.Since(began); o.Reply == nil || o.Reply.To != "101" || took > searchTimeout {
					t.Errorf("second %d: after %s %+v", i, took, o)
				}
			}
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
		}
		time.Sleep(10 * time.Minute)
		b.delivered(calls)
		requests, _ := b.portal.Requests()
		for _, r := range requests {
			if r.Status == http.StatusServiceUnavailable {
				t.Errorf("at %s the portal had too many requests", r.Time)
			}
		}
	})
}

// question is a job that asks where a call goes.
func question(call string) store.Job {
	return store.Job{
		EventID: "01a22e15-c33e-7845-bf34-74493ad93b91", IsQuestion: true,
		Event: store.Event{
			Type: telephony.EventTransferRequested, Call: call,
			Body: []byte(`{"data":{"client_number":"+73430112233","line":"73432000000"}}`),
		},
	}
}

// The answer to register was lost behind a proxy, and the call is over meanwhile, with another
// employee: the portal has one call, and no card is left.
func TestLostRegisterIsTheSameCall(t *testing.T) {
	for _, to := range []string{"", "101", "102"} {
		inBubble(t, settings(t), func(b *bench) {
			lost := false
			b.proxy = func(w http.ResponseWriter, r *http.Request) {
				if !lost && strings.Contains(r.URL.Path, "register") {
					lost = true
					b.portal.ServeHTTP(httptest.NewRecorder(), r)
					w.WriteHeader(http.StatusGatewayTimeout)
					return
				}
				b.portal.ServeHTTP(w, r)
			}
			storetest.MustAppend(b.t, b.box, event(telephony.EventIncoming, "7", client, "101"))
			time.Sleep(time.Second / 2)
			over := event(telephony.EventCompleted, "7", client, to, time.Minute)
			over.Line = "" // which is a part of what the portal compares
			storetest.MustAppend(b.t, b.box, over)
			time.Sleep(time.Minute)
			synctest.Wait()
			if c := b.one(); !c.Finished || len(c.ShownTo) > 0 {
				t.Errorf("to %q the call is %+v", to, c)
			}
		})
	}
}

// A card that the portal refuses, as of a user who is gone, costs no call.
func TestRefusedCardCostsNoCall(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.proxy = func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, ".hide") || strings.Contains(r.URL.Path, ".show") {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			b.portal.ServeHTTP(w, r)
		}
		for _, extension := range []string{"101", "102"} {
			b.says(telephony.EventIncoming, "7", client, extension)
		}
		b.says(telephony.EventIncomingAnswered, "7", client, "102")
		b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		b.delivered(4)
		if c := b.one(); !c.Finished {
			t.Errorf("the call is %+v", c)
		}
		b.ignoresFaults = true // the card of 101 is not hidden
	})
}

// A portal that says nothing has no answer after two seconds, and that counts as its failure.
func TestSilentPortalFails(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.proxy = func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}
		began := time.Now()
		o := b.sender.Send(b.t.Context(), question("7"))
		took := time.Since(began)
		if o.Verdict != store.Again || o.Reply == nil || o.Reply.To != "" || took != searchTimeout ||
			!strings.Contains(o.Text(), "no answer within 2s") {
			t.Errorf("after %s %+v", took, o)
		}
	})
}

// What a portal has in its fields is of several types, and may be wrong: it costs nobody else a
// call.
func TestOddFieldsAreRead(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		answers := map[string]string{
			"user.get": `[{"ID":"15","UF_PHONE_INNER":"101"},{"ID":16,"UF_PHONE_INNER":102,"EMAIL":false},
				{"ID":"","UF_PHONE_INNER":false},{"ID":"17","UF_PHONE_INNER":"8 900 123-45-67"},7]`,
			"searchCrmEntities": `[{"ASSIGNED_BY_ID":"","ASSIGNED_BY":false},
				{"ASSIGNED_BY_ID":17,"ASSIGNED_BY":{"USER_PHONE_INNER":"8 900 123-45-67"}},
				{"ASSIGNED_BY_ID":"16","ASSIGNED_BY":{"USER_PHONE_INNER":" 102 "}}]`,
		}
		registered := 0
		b.proxy = func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "register") {
				registered++
			}
			for method, result := range answers {
				if strings.Contains(r.URL.Path, method) {
					_, _ = io.WriteString(w, `{"result":`+result+`}`)
					return
				}
			}
			b.portal.ServeHTTP(w, r)
		}
		if o := b.sender.Send(b.t.Context(), question("7")); o.Reply == nil || o.Reply.To != "102" {
			t.Errorf("the reply is %+v", o)
		}
		b.says(telephony.EventIncoming, "7", client, "102")
		if c := b.one(); c.UserID != 16 {
			t.Errorf("the call is %+v", c)
		}
		answers["register"] = `{"CALL_ID":"` + strings.Repeat("x", 5000) + `"}`
		b.says(telephony.EventCompleted, "8", client, "101", time.Minute)
		if synctest.Wait(); registered > 4 {
			t.Errorf("with an ID that is too long it registered %d times", registered)
		}
	})
}

func TestBucketHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewPortals().bucketOf("firm.bitrix24.ru")
		taken := 0
		for taken <= atOnce && b.take(time.Now(), forQuestions) == 0 {
			taken++
		}
		if taken != atOnce-forQuestions {
			t.Errorf("%d events were let through at once", taken)
		}
		if wait := b.take(time.Now(), 0); wait != 0 {
			t.Errorf("a question waits for %s", wait)
		}
		if wait := b.take(time.Now(), 0); wait != time.Second/perSecond {
			t.Errorf("the second one waits for %s", wait)
		}
		time.Sleep(time.Hour)
		b.empty(time.Now())
		if wait := b.take(time.Now(), 0); wait != time.Second/perSecond {
			t.Errorf("after the portal has refused one, the next waits for %s", wait)
		}
		if NewPortals().bucketOf("a") == b {
			t.Error("two processes share a bucket")
		}
		shared := NewPortals()
		if first := shared.bucketOf("a"); shared.bucketOf("a") != first || shared.bucketOf("b") == first {
			t.Error("the endpoints of one portal have not one bucket")
		}
	})
}

// While its users cannot be read, no call is entered for somebody else.
func TestCallWaitsForTheUsers(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.portal.Fail(1)
		b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		time.Sleep(2 * time.Hour)
		b.delivered(1)
		if c := b.one(); c.FinishedBy != 15 {
			t.Errorf("the call is %+v", c)
		}
	})
}

func TestQuestionIsAnsweredByTheFirstWithAnExtension(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		ask := func() string {
			o := b.sender.Send(b.t.Context(), question("7"))
			if o.Reply == nil {
				t.Fatalf("there is no reply: %+v", o)
			}
			return o.Reply.To
		}
		if to := ask(); to != "" {
			t.Errorf("a client of nobody goes to %q", to)
		}
		b.portal.Assign(known, "CONTACT", 797, 1, "OPENED") // who has no extension
		b.portal.Assign(known, "LEAD", 5, 16, "CLOSED")
		if to := ask(); to != "102" {
			t.Errorf("the call goes to %q, want 102", to)
		}
		b.sender.settings.People.Users = map[string]string{"110": "1"}
		if to := ask(); to != "110" {
			t.Errorf("with an extension from the configuration the call goes to %q, want 110", to)
		}
		b.portal.Fail(1)
		if to := ask(); to != "" {
			t.Errorf("a portal that fails sends the call to %q", to)
		}
	})
}

// A list that is longer than most answers is read whole, and one that cannot be read is not empty.
func TestLongListOfUsersIsRead(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		page := func() string {
			var users []map[string]any
			for i := range 50 {
				id, extension := fmt.Sprint(i+1), fmt.Sprint(1000+i)
				users = append(users, map[string]any{
					"ID": id, "UF_PHONE_INNER": extension, "ABOUT": strings.Repeat("x", 4<<10),
				})
			}
			text, _ := json.Marshal(map[string]any{"result": users})
			return string(text)
		}()
		isCut := false
		b.proxy = func(w http.ResponseWriter, r *http.Request) {
			text := page
			if isCut {
				text = text[:len(text)/2]
			}
			_, _ = io.WriteString(w, text)
		}
		if users, a := b.sender.readUsers(b.t.Context()); len(users) != 50 || a.Verdict != store.Done {
			t.Errorf("%d users were read: %v", len(users), a.Err)
		}
		isCut = true
		if users, a := b.sender.readUsers(b.t.Context()); len(users) > 0 || a.Verdict != store.Again {
			t.Errorf("of half a list %d users were read: verdict %v", len(users), a.Verdict)
		}
	})
}
