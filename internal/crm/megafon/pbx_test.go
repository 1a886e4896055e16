package megafon

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

const token = "t0ken-of-the-endpoint"

// gate is an API that knows one token, and an exchange that answers with err.
type gate struct {
	commands []telephony.Command
	wait     time.Duration
	err      error
}

func (g *gate) Bearer(_ *http.Request, given string) (string, time.Duration, bool) {
	return "crm", g.wait, given == token
}

func (g *gate) Command(_ context.Context, _ string, cmd telephony.Command) error {
	g.commands = append(g.commands, cmd)
	return g.err
}

// events reads those of a bench's outbox.
type events struct{ b *bench }

func (e events) Events(_ context.Context, q store.EventQuery) (store.EventPage, error) {
	return e.b.box.Events(q)
}

// handler is the PBX on a bench's outbox.
func handler(b *bench, g *gate) *PBX {
	return NewPBX(PBXOptions{
		Gate: g, Events: events{b}, Notes: b.box.Engine, Settings: map[string]crm.Settings{"crm": b.with},
		Logger: slog.New(slog.DiscardHandler),
	})
}

// asking is an HTTP client whose requests go to a handler, without a network.
func asking(h http.Handler) *http.Client {
	return &http.Client{Transport: transport{h}}
}

type transport struct{ http.Handler }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	t.ServeHTTP(w, r)
	return w.Result(), nil
}

const bridge = "https://bridge.example"

// A click in the CRM rings the employee, and the call that follows has the ID that the CRM was
// given, in its events and in the list of calls.
func TestClickIsOneCall(t *testing.T) {
	fake := megafontest.NewWebasyst(crmKey)
	inBubble(t, fake, settings(t), func(b *bench) {
		g := &gate{}
		id, err := fake.Click(b.t.Context(), asking(handler(b, g)), bridge, token, "anna", client)
		if err != nil || id == "" {
			t.Fatalf("the click is answered with %q (%v)", id, err)
		}
		again, err := fake.Click(b.t.Context(), asking(handler(b, g)), bridge, token, "anna", client)
		if err != nil || again != id {
			t.Errorf("a second click is answered with %q (%v), want %q", again, err, id)
		}
		want := []telephony.Command{{Kind: telephony.CommandCall, From: "101", To: client}}
		if !slices.Equal(g.commands, want) {
			t.Errorf("the commands are %+v", g.commands)
		}
		b.says(telephony.EventOutgoing, "7", "101", client)
		b.says(telephony.EventOutgoingAnswered, "7", "101", client)
		b.says(telephony.EventCompleted, "7", "101", client, time.Minute)
		time.Sleep(time.Minute)
		b.says(telephony.EventOutgoing, "8", "101", client) // of nobody's click
		b.says(telephony.EventCompleted, "8", "101", client, time.Second)
		calls := fake.Calls()
		if len(calls) != 2 || calls[0].CallID != id || calls[1].CallID != "8" ||
			calls[0].State != megafontest.Completed {
			t.Errorf("Webasyst has %+v", calls)
		}
		wantNoFaults(t, &fake.CRM)
		list, err := fake.History(b.t.Context(), asking(handler(b, g)), bridge, token)
		if err != nil || len(list) != 2 || list[0].UID != id || list[1].UID != "8" {
			t.Errorf("the list of calls is %+v (%v)", list, err)
		}
	})
}

// A click after which nothing rang leads to no call, and the next one is made.
func TestClickThatFailsIsForgotten(t *testing.T) {
	fake := megafontest.NewSalesMan(crmKey)
	inBubble(t, fake, settings(t), func(b *bench) {
		g := &gate{err: telephony.ErrNotConnected}
		if _, err := fake.Click(b.t.Context(), asking(handler(b, g)), bridge, token, "101", client); err == nil {
			t.Error("a click without a connection succeeds")
		}
		g.err = nil
		if _, err := fake.Click(b.t.Context(), asking(handler(b, g)), bridge, token, "101", client); err != nil {
			t.Error(err)
		}
		if len(g.commands) != 2 {
			t.Errorf("the commands are %+v", g.commands)
		}
	})
}

func TestAnswersToCRMs(t *testing.T) {
	limited := &telephony.NotAllowedError{Text: "too many calls", RetryAfter: 1500 * time.Millisecond}
	fake := megafontest.NewRukovoditel(crmKey)
	inBubble(t, fake, settings(t), func(b *bench) {
		const to = "&token=" + token
		const history = "cmd=history&token=" + token + "&"
		const call = "cmd=makeCall&phone=1&user=101&token=" + token
		forbidden := &telephony.NotAllowedError{Text: "forbidden"}
		refused := &telephony.RefusedError{Code: "2", Details: "busy"}
		problem := func(text string) string { return `{"error":"` + text + `"}` }
		for name, c := range map[string]struct {
			query      string
			gate       gate
			wantStatus int
			want       string
			wantAfter  string
		}{
			"no token":        {"cmd=accounts", gate{}, 401, problem("Invalid token"), ""},
			"wrong token":     {"cmd=accounts&token=guess", gate{}, 401, problem("Invalid token"), ""},
			"too many":        {call, gate{wait: time.Second}, 429, problem("Too many requests: see API_RATE"), "1"},
			"no command":      {"token=" + token, gate{}, 400, problem("Invalid parameters: [cmd]"), ""},
			"not connected":   {call, gate{err: telephony.ErrNotConnected}, 503, problem("PBX is not connected"), ""},
			"not allowed":     {call, gate{err: forbidden}, 403, problem("forbidden"), ""},
			"over the limit":  {call, gate{err: limited}, 429, problem("too many calls"), "2"},
			"refused":         {call, gate{err: refused}, 502, problem(refused.Error()), ""},
			"groups":          {"cmd=groups&token=" + token, gate{}, 200, `[]`, ""},
			"do not disturb":  {"cmd=set_dnd&token=" + token, gate{}, 400, problem("Not supported"), ""},
			"history of none": {"cmd=history&period=today&token=" + token, gate{}, 200, ``, ""},
			"accounts": {
				"cmd=accounts&token=" + token,
				gate{},
				200,
				`[{"name":"anna","realName":"anna","ext":"101","telnum":"","email":""}]`,
				"",
			},
			"no phone":     {"cmd=makeCall&user=101" + to, gate{}, 400, problem("Invalid parameters: [phone]"), ""},
			"nobody":       {"cmd=makeCall&phone=1" + to, gate{}, 400, problem("Invalid parameters: [user]"), ""},
			"a bad period": {history + "period=ever", gate{}, 400, problem("Invalid parameters: [period]"), ""},
			"a bad time":   {history + "start=soon", gate{}, 400, problem("Invalid parameters: [start]"), ""},
			"a bad limit":  {history + "limit=0", gate{}, 400, problem("Invalid parameters: [limit]"), ""},
			"a bad type":   {history + "type=lost", gate{}, 400, problem("Invalid parameters: [type]"), ""},
		} {
			h := handler(b, &c.gate)
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				r := httptest.NewRequest(method, Path+"?"+c.query, nil)
				if method == http.MethodPost {
					r = httptest.NewRequest(method, Path, strings.NewReader(c.query))
					r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				got := strings.TrimSpace(w.Body.String())
				if w.Code != c.wantStatus || got != c.want || w.Header().Get("Retry-After") != c.wantAfter {
					t.Errorf("%s, %s: %d %s, want %d %s", name, method, w.Code, got, c.wantStatus, c.want)
				}
			}
		}
		large := httptest.NewRequest(http.MethodPost, Path, strings.NewReader("a="+strings.Repeat("x", maxRequest)))
		large.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		handler(b, &gate{}).ServeHTTP(w, large)
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("a large request: %d", w.Code)
		}
	})
}

// The accounts are those that are configured and those that have telephoned; the list of calls has
// what the outbox has, by kind and time.
func TestListsForCRMs(t *testing.T) {
	fake := megafontest.NewStrict(crmKey)
	inBubble(t, fake, settings(t), func(b *bench) {
		began := time.Now()
		b.says(telephony.EventCompleted, "1", client, "102", time.Minute) // in
		b.says(telephony.EventCompleted, "2", client, "103", 0)           // missed
		b.says(telephony.EventCompleted, "3", "101", client, time.Second) // out
		b.says(telephony.EventCompleted, "4", "101", "102", time.Second)  // internal
		time.Sleep(48 * time.Hour)
		b.says(telephony.EventCompleted, "5", client, "102", time.Minute)
		ask := func(query url.Values) string {
			query.Set("token", token)
			r, err := asking(handler(b, &gate{})).Get(bridge + Path + "?" + query.Encode())
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			return string(body)
		}
		var accounts []struct{ Name, Ext string }
		if err := json.Unmarshal([]byte(ask(url.Values{"cmd": {"accounts"}})), &accounts); err != nil {
			t.Fatal(err)
		}
		if len(accounts) != 3 || accounts[0].Name != "anna" || accounts[1].Ext != "102" || accounts[2].Ext != "103" {
			t.Errorf("the accounts are %+v", accounts)
		}
		at := func(d time.Duration) string { return began.Add(d).UTC().Format(timeFormat) }
		for name, c := range map[string]struct {
			query url.Values
			want  string
		}{
			"all":          {url.Values{}, "1 2 3 5"},
			"in":           {url.Values{"type": {"in"}}, "1 2 5"},
			"out":          {url.Values{"type": {"out"}}, "3"},
			"missed":       {url.Values{"type": {"missed"}}, "2"},
			"the latest":   {url.Values{"limit": {"2"}}, "3 5"},
			"of today":     {url.Values{"period": {"today"}}, "5"},
			"until":        {url.Values{"end": {at(time.Hour)}}, "1 2 3"},
			"from, in ISO": {url.Values{"start": {began.Add(time.Hour).Format(time.RFC3339)}}, "5"},
			"of nothing":   {url.Values{"start": {at(time.Hour)}, "end": {at(2 * time.Hour)}}, ""},
		} {
			c.query.Set("cmd", "history")
			var ids []string
			for line := range strings.Lines(ask(c.query)) {
				id, _, _ := strings.Cut(line, ",")
				ids = append(ids, id)
			}
			if got := strings.Join(ids, " "); got != c.want {
				t.Errorf("%s: the calls are %q, want %q", name, got, c.want)
			}
		}
		line, _, _ := strings.Cut(ask(url.Values{"cmd": {"history"}, "limit": {"5"}}), "\n")
		want := "1,in,73430112233,102,73432000000," + at(-time.Minute) + ",0,60,https://office.example/1.mp3"
		if line != want {
			t.Errorf("a line is\n%s, want\n%s", line, want)
		}
	})
}

func TestPeriodsOfTheCalendar(t *testing.T) {
	moscow := time.FixedZone("MSK", 3*3600)
	day := func(month time.Month, d int) time.Time { return time.Date(2026, month, d, 0, 0, 0, 0, moscow) }
	sunday, monday := day(11, 29).Add(23*time.Hour), day(11, 30).Add(time.Hour)
	for _, c := range []struct {
		name     string
		now      time.Time
		from, to time.Time
	}{
		{"today", sunday, day(11, 29), day(11, 30)},
		{"yesterday", monday, day(11, 29), day(11, 30)},
		{"this_week", sunday, day(11, 23), day(11, 30)},
		{"this_week", monday, day(11, 30), day(12, 7)},
		{"last_week", monday, day(11, 23), day(11, 30)},
		{"this_month", monday, day(11, 1), day(12, 1)},
		{"last_month", monday, day(10, 1), day(11, 1)},
	} {
		if from, to, known := periodOf(c.name, c.now); !known || !from.Equal(c.from) || !to.Equal(c.to) {
			t.Errorf("%s of %s is from %s to %s", c.name, c.now, from, to)
		}
	}
}

// question is a job that asks where a call goes.
func question() store.Job {
	return store.Job{
		EventID: "01a22e15-c33e-7845-bf34-74493ad93b91", IsQuestion: true,
		Event: store.Event{
			Type: telephony.EventTransferRequested, Call: "7",
			Body: []byte(`{"data":{"client_number":"+73430112233","line":"73432000000"}}`),
		},
	}
}

func TestResponsibleAnswersTheQuestion(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   string
	}{
		"a login":            {`{"contact_name":"x","responsible":"anna"}`, "101"},
		"with a domain":      {`{"responsible":"anna@firm.megapbx.ru"}`, "101"},
		"an extension":       {`{"responsible":"102"}`, "102"},
		"a number":           {`{"responsible":102}`, "102"},
		"with a mark before": {"\uFEFF {\"responsible\":102}", "102"},
		"nobody":             {`{"responsible":0}`, ""},
		"nobody as text":     {`{"responsible":"0"}`, ""},
		"empty":              {`{"contact_name":"","responsible":""}`, ""},
		"null":               {`{"responsible":null}`, ""},
		"no member":          {`{}`, ""},
		"a stranger":         {`{"responsible":"maria"}`, ""},
		"no JSON":            {`<html>`, ""},
		"a list":             {`[]`, ""},
	} {
		answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.answer) })
		inBubble(t, answer, settings(t), func(b *bench) {
			o := b.opts.Senders["crm"].Send(b.t.Context(), question())
			if o.Verdict != store.Done || o.Reply == nil || o.Reply.To != c.want {
				t.Errorf("%s: %+v, want %q", name, o, c.want)
			}
		})
	}
}

// A CRM that does not answer within two seconds has no answer: a caller waits on the line.
func TestQuestionEndsInTime(t *testing.T) {
	slow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	inBubble(t, slow, settings(t), func(b *bench) {
		began := time.Now()
		o := b.opts.Senders["crm"].Send(b.t.Context(), question())
		took := time.Since(began)
		if o.Reply == nil || o.Reply.To != "" || o.Verdict != store.Again || took != 2*time.Second {
			t.Errorf("after %s: %+v", took, o)
		}
	})
}

// decider takes the answers to questions.
type decider struct {
	storetest.Silence
	answers []string
	at      time.Time
}

func (d *decider) Answer(_ context.Context, _, _, _, to string) error {
	d.answers, d.at = append(d.answers, "to "+to), time.Now()
	return nil
}

// A CRM that does not answer where a call goes, or has another key, declines the call at once, is
// asked once, and its failure counts.
func TestFailureDeclinesTheCall(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"no answer": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
		"another key": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			counting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				answer(w, r)
			})
			inBubble(t, counting, settings(t), func(b *bench) {
				b.stop()
				d := &decider{}
				b.stop = storetest.RunWith(b.t, b.box, d)
				e := storetest.Event(telephony.EventTransferRequested, "7")
				e.From, e.Direction = client, telephony.Incoming
				began := time.Now()
				storetest.MustAppend(b.t, b.box, e)
				time.Sleep(time.Minute)
				synctest.Wait()
				took := d.at.Sub(began)
				if !slices.Equal(d.answers, []string{"to "}) || took > 3*time.Second || asked != 1 {
					t.Errorf("asked %d times, it answers %q after %s", asked, d.answers, took)
				}
				states := storetest.States(b.t, b.box, "crm")
				list, err := b.box.Endpoints()
				if err != nil || states[store.Expired] != 1 || list[0].LastError == "" {
					t.Errorf("the delivery is %v, the endpoint %+v (%v)", states, list, err)
				}
			})
		})
	}
}

// What is sent again long after a call ends in the history alone, and opens no card.
func TestOldCallOpensNoCard(t *testing.T) {
	fake := megafontest.NewStrict(crmKey)
	fake.Revoke()
	inBubble(t, fake, settings(t), func(b *bench) {
		b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		time.Sleep(time.Hour)
		fake.Restore()
		time.Sleep(time.Hour)
		requests, _ := fake.Requests()
		last := requests[len(requests)-1]
		if got := last.Form.Get("cmd"); got != "history" || last.Status != http.StatusOK {
			t.Errorf("the last request is %s with status %d", got, last.Status)
		}
		b.delivered(1)
		wantNoFaults(t, &fake.CRM)
	})
}

// A missed call belongs to the one whom the CRM names, who need not be one of those that rang.
func TestMissedCallBelongsToTheResponsible(t *testing.T) {
	for name, c := range map[string]struct {
		responsible any
		want        string
	}{"an employee": {"anna", "101"}, "nobody": {nil, "103"}} {
		t.Run(name, func(t *testing.T) {
			fake := megafontest.NewSalesMan(crmKey)
			fake.Assign("73430112233", c.responsible)
			inBubble(t, fake, settings(t), func(b *bench) {
				b.says(telephony.EventIncoming, "7", client, "102")
				b.says(telephony.EventIncoming, "7", client, "103")
				b.says(telephony.EventCompleted, "7", client, "", 0)
				b.delivered(3)
				want := []string{
					"event INCOMING 102", "event INCOMING 103", "contact", "event CANCELLED 102", "event CANCELLED 103",
					"history in Missed " + c.want,
				}
				if got := told(&fake.CRM); !slices.Equal(got, want) {
					t.Errorf("it was told\n%q, want\n%q", got, want)
				}
				wantNoFaults(t, &fake.CRM)
			})
		})
	}
}

// The test of a key changes nothing at the CRM.
func TestTestIsAQuestion(t *testing.T) {
	fake := megafontest.NewStrict(crmKey)
	inBubble(t, fake, settings(t), func(b *bench) {
		_, made, err := b.box.SendTest(b.t.Context(), "crm")
		if err != nil || made.Status != http.StatusOK || made.Error != "" {
			t.Errorf("%+v (%v)", made, err)
		}
		fake.Revoke()
		_, made, err = b.box.SendTest(b.t.Context(), "crm")
		if err != nil || !strings.Contains(made.Error, "does not take the key") {
			t.Errorf("with a wrong key %+v (%v)", made, err)
		}
		if got := told(&fake.CRM); !slices.Equal(got, []string{"contact", "contact"}) {
			t.Errorf("it was told %q", got)
		}
	})
}
