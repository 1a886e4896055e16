package megafon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/pipenet"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/sendertest"
	"pzbridge/outbox/store/storetest"
)

func TestMegaFonIsASender(t *testing.T) {
	body := `{"data":{"client_number":"+73430112233","extension":"101","direction":"incoming"}}`
	sendertest.Run(t, sendertest.Sender{
		New: func(e store.Endpoint, dial func(context.Context, string, string) (net.Conn, error)) store.Sender {
			return New(e, Options{Settings: settings(t), UserAgent: "pzbridge/test", Questions: 4, DialContext: dial})
		},
		Job: store.Job{
			EventID: "01a22e15-c33e-7845-bf34-74493ad93b91",
			Event:   store.Event{Type: telephony.EventIncoming, Call: "7", Body: []byte(body)},
		},
		Verdict: func(status int) store.Verdict {
			switch {
			case status < 300:
				return store.Done
			case status == http.StatusUnauthorized, status == http.StatusForbidden:
				return store.Misconfigured
			case status == http.StatusTooManyRequests:
				return store.Pause
			case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity:
				return store.Refused
			}
			return store.Again
		},
	})
}

const (
	crmKey = "k3y-of-the-crm"
	client = "83430112233"
)

// bench is a fake CRM, and an outbox on a file that sends to it.
type bench struct {
	t    *testing.T
	box  *storetest.Box
	stop func()
	opts storetest.Options
	dial func(context.Context, string, string) (net.Conn, error)
	with crm.Settings

	servesRecordings bool
}

// notes are those of an engine that is opened later.
type notes struct{ store.Notes }

// inBubble runs f in fake time with a fake CRM.
func inBubble(t *testing.T, fake http.Handler, with crm.Settings, f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(12 * time.Hour) // noon
		l := pipenet.Listen()
		server := &http.Server{Handler: fake}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(l) })
		b := &bench{t: t, dial: l.Dial, with: with}
		e := storetest.Endpoint("crm")
		e.Secrets, e.Events, e.RingingTTL = [][]byte{[]byte(crmKey)}, store.Filter{"call.*"}, 5*time.Minute
		b.opts = storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
			Endpoints:     []store.Endpoint{e},
			RetrySchedule: []time.Duration{time.Second, time.Minute, time.Hour},
		})
		b.open()
		f(b)
		b.close()
		_ = server.Close()
		serving.Wait()
	})
}

func (b *bench) open() {
	b.t.Helper()
	late := &notes{}
	b.opts.Senders = map[string]store.Sender{"crm": New(b.opts.Endpoints[0], Options{
		Settings: b.with, Notes: late, UserAgent: "pzbridge/test", Questions: 4, DialContext: b.dial,
		ServesRecordings: b.servesRecordings,
	})}
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

// says appends an event of a call.
func (b *bench) says(kind telephony.EventType, call, from, to string, talk ...time.Duration) {
	b.t.Helper()
	e := storetest.Event(kind, call)
	e.From, e.To, e.Line, e.Direction = from, to, "73432000000", telephony.Incoming
	if from == "101" {
		e.Direction = telephony.Outgoing
	}
	for _, d := range talk {
		seconds := int64(d.Seconds())
		e.Duration, e.EndedAt, e.StartedAt = &seconds, e.Time, e.Time.Add(-d)
		e.RecordingURL = "https://office.example/" + call + ".mp3"
	}
	storetest.MustAppend(b.t, b.box, e)
	time.Sleep(2 * time.Second)
}

// rings a group of three, of which one picks up and talks for a minute.
func (b *bench) rings(call string) {
	b.t.Helper()
	for _, extension := range []string{"101", "102", "103"} {
		b.says(telephony.EventIncoming, call, client, extension)
	}
	b.says(telephony.EventIncomingAnswered, call, client, "102")
	b.says(telephony.EventCompleted, call, client, "102", time.Minute)
}

// delivered fails the test unless so many deliveries are done and nothing else is.
func (b *bench) delivered(want int) {
	b.t.Helper()
	states := storetest.States(b.t, b.box, "crm")
	if states[store.Delivered] != want || states[store.Pending]+states[store.Dead]+states[store.Expired] > 0 {
		b.t.Errorf("the deliveries are %v, want %d delivered", states, want)
	}
}

// told is what a CRM was told, in words.
func told(c *megafontest.CRM) (list []string) {
	requests, _ := c.Requests()
	for _, r := range requests {
		what := r.Form.Get("cmd") + " " + r.Form.Get("type") + " " + r.Form.Get("status")
		list = append(list, strings.Join(strings.Fields(what+" "+r.Form.Get("ext")), " "))
	}
	return list
}

func wantNoFaults(t *testing.T, c *megafontest.CRM) {
	t.Helper()
	for _, fault := range c.Faults() {
		t.Error(fault)
	}
}

// fakes are one CRM of each kind.
type fakes struct {
	webasyst    *megafontest.Webasyst
	salesman    *megafontest.SalesMan
	rukovoditel *megafontest.Rukovoditel
	strict      *megafontest.Strict
}

// atEach runs f with each CRM, which must be told what is wanted, and find no fault with it.
func atEach(t *testing.T, want []string, f func(b *bench)) fakes {
	t.Helper()
	c := fakes{
		megafontest.NewWebasyst(crmKey), megafontest.NewSalesMan(crmKey),
		megafontest.NewRukovoditel(crmKey), megafontest.NewStrict(crmKey),
	}
	for name, fake := range map[string]struct {
		http.Handler
		*megafontest.CRM
	}{
		"webasyst":    {c.webasyst, &c.webasyst.CRM},
		"salesman":    {c.salesman, &c.salesman.CRM},
		"rukovoditel": {c.rukovoditel, &c.rukovoditel.CRM},
		"strict":      {c.strict, &c.strict.CRM},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, fake, settings(t), func(b *bench) {
				f(b)
				if got := told(fake.CRM); !slices.Equal(got, want) {
					t.Errorf("it was told\n%q, want\n%q", got, want)
				}
				wantNoFaults(t, fake.CRM)
			})
		})
	}
	return c
}

func TestGroupRingIsOneCall(t *testing.T) {
	crms := atEach(t, []string{
		"event INCOMING 101", "event INCOMING 102", "event INCOMING 103",
		"event CANCELLED 101", "event CANCELLED 103", "event ACCEPTED 102",
		"event COMPLETED 102", "history in Success 102",
	}, func(b *bench) {
		b.rings("7")
		b.delivered(5)
	})
	if calls := crms.webasyst.Calls(); len(calls) != 1 || calls[0].State != megafontest.Completed ||
		calls[0].Duration != time.Minute || calls[0].Link != "https://office.example/7.mp3" {
		t.Errorf("Webasyst has %+v", calls)
	}
	if records := crms.salesman.Records(); len(records) != 1 || records[0].Ext != "102" ||
		records[0].Duration != time.Minute || records[0].Link == "" {
		t.Errorf("SalesMan has %+v", records)
	}
}

// Who has picked up hands the call on: the CRM is told so, and has the call of the other.
func TestTransferIsOneCall(t *testing.T) {
	crms := atEach(t, []string{
		"event INCOMING 101", "event ACCEPTED 101",
		"event INCOMING 102", "event TRANSFERRED 101", "event ACCEPTED 102",
		"event COMPLETED 102", "history in Success 102",
	}, func(b *bench) {
		for _, extension := range []string{"101", "102"} {
			b.says(telephony.EventIncoming, "7", client, extension)
			b.says(telephony.EventIncomingAnswered, "7", client, extension)
		}
		b.says(telephony.EventCompleted, "7", client, "102", time.Minute)
		b.delivered(5)
	})
	if calls := crms.webasyst.Calls(); len(calls) != 1 || calls[0].State != megafontest.Completed {
		t.Errorf("Webasyst has %+v", calls)
	}
	if records := crms.salesman.Records(); len(records) != 1 || records[0].Ext != "102" {
		t.Errorf("SalesMan has %+v", records)
	}
}

// Whose a missed call is, the CRM says, and the attempt says what it said.
func TestMissedCallIsOfWhoIsResponsible(t *testing.T) {
	for responsible, want := range map[string]string{
		"103": "contact · responsible user: 103", "": "contact · nobody is responsible",
	} {
		fake := megafontest.NewSalesMan(crmKey)
		if responsible != "" {
			fake.Assign("7"+client[1:], responsible)
		}
		inBubble(t, fake, settings(t), func(b *bench) {
			b.says(telephony.EventIncoming, "7", client, "101")
			b.says(telephony.EventCompleted, "7", client, "101")
			page, err := b.box.Outbox.Deliveries(b.t.Context(), store.DeliveryQuery{Limit: 1})
			if err != nil || len(page.Deliveries) != 1 {
				b.t.Fatalf("the deliveries are %+v (%v)", page, err)
			}
			_, attempts, err := b.box.Outbox.Delivery(b.t.Context(), page.Deliveries[0].ID)
			if err != nil || len(attempts[0].Steps) != 1 || attempts[0].Steps[0].What != want {
				b.t.Errorf("the attempts are %+v (%v), want %q", attempts, err, want)
			}
		})
	}
}

// The answer to each request is lost once: the request is made again, in its place, and the CRM has
// one call all the same.
func TestLostAnswerMakesNoSecondCall(t *testing.T) {
	for n := 1; n <= 8; n++ {
		t.Run(fmt.Sprint("answer ", n), func(t *testing.T) {
			fake := megafontest.NewWebasyst(crmKey)
			inBubble(t, fake, settings(t), func(b *bench) {
				fake.Lose(n)
				b.rings("7")
				b.delivered(5)
				requests, _ := fake.Requests()
				if len(requests) < 9 {
					t.Errorf("%d requests were made: none was repeated", len(requests))
				}
				if calls := fake.Calls(); len(calls) != 1 || calls[0].State != megafontest.Completed {
					t.Errorf("it has %+v", calls)
				}
			})
		})
	}
}

// A bridge that is stopped and started in every state of a call goes on where it was.
func TestRestartInEveryStateOfACall(t *testing.T) {
	fake := megafontest.NewStrict(crmKey)
	inBubble(t, fake, settings(t), func(b *bench) {
		for _, step := range []func(){
			func() { b.says(telephony.EventIncoming, "7", client, "101") },
			func() { b.says(telephony.EventIncoming, "7", client, "102") },
			func() { fake.Fail(1); b.says(telephony.EventIncomingAnswered, "7", client, "102") },
			func() { b.says(telephony.EventCompleted, "7", client, "102", time.Minute) },
		} {
			step()
			b.close()
			b.open()
			time.Sleep(time.Minute)
		}
		b.delivered(4)
		want := []string{
			"event INCOMING 101", "event INCOMING 102",
			"event CANCELLED 101", "event CANCELLED 101", // of which the first was answered with 500
			"event ACCEPTED 102", "event COMPLETED 102", "history in Success 102",
		}
		if got := told(&fake.CRM); !slices.Equal(got, want) {
			t.Errorf("it was told\n%q, want\n%q", got, want)
		}
		wantNoFaults(t, &fake.CRM)
	})
}

// A key that is revoked loses nothing: the events wait, the CRM counts as failing with the reason,
// and all arrives in order once the key is good again. No card is shown of a call that is over.
func TestRevokedKeyLosesNothing(t *testing.T) {
	for name, fake := range map[string]interface {
		http.Handler
		Revoke()
		Restore()
		Faults() []string
	}{
		"401": megafontest.NewStrict(crmKey), "200 with an error": megafontest.NewSalesMan(crmKey),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, fake, settings(t), func(b *bench) {
				fake.Revoke()
				b.rings("7")
				b.rings("8")
				list, err := b.box.Endpoints()
				if err != nil {
					t.Fatal(err)
				}
				if e := list[0]; e.Dead != 0 || e.Since.IsZero() ||
					!strings.Contains(e.LastError, "does not take the key") {
					t.Errorf("the endpoint is %+v", e)
				}
				fake.Restore()
				time.Sleep(10 * time.Minute)
				if states := storetest.States(t, b.box, "crm"); states[store.Pending]+states[store.Dead] > 0 {
					t.Errorf("the deliveries are %v", states)
				}
				for _, fault := range fake.Faults() {
					t.Error(fault)
				}
			})
		})
	}
}

// A limit is waited for, and costs no attempt; a refusal is of one call, and is told in the CRM's
// words.
func TestLimitAndRefusal(t *testing.T) {
	fake := megafontest.NewStrict(crmKey)
	with := settings(t)
	inBubble(t, fake, with, func(b *bench) {
		fake.Limit(3)
		b.says(telephony.EventIncoming, "7", client, "101")
		time.Sleep(3 * pauseForTooMany)
		b.delivered(1)
	})
	fake = megafontest.NewStrict(crmKey)
	inBubble(t, fake, with, func(b *bench) {
		e := storetest.Event(telephony.EventIncoming, "7")
		e.From, e.To, e.Direction = client, "101", telephony.Incoming // without a line, which this CRM wants
		storetest.MustAppend(t, b.box, e)
		time.Sleep(time.Second)
		list, _, err := b.box.Deliveries(store.DeliveryQuery{Limit: 10})
		if err != nil || len(list) != 1 || list[0].State != "dead" ||
			!strings.Contains(list[0].LastError, "«Invalid parameters: [diversion]»") {
			t.Errorf("the deliveries are %+v (%v)", list, err)
		}
		b.says(telephony.EventIncoming, "8", client, "101")
		if states := storetest.States(t, b.box, "crm"); states[store.Delivered] != 1 {
			t.Errorf("the next call: %v", states)
		}
	})
}
