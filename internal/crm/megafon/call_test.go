package megafon

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/phone"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

func settings(t testing.TB) crm.Settings {
	t.Helper()
	plan, err := phone.New(phone.Options{Region: "RU", InternalDigits: 4})
	if err != nil {
		t.Fatal(err)
	}
	return crm.Settings{
		Preset: crm.MegaFon,
		People: crm.People{Users: map[string]string{"101": "anna"}, Missed: crm.MissedResponsible, Plan: plan},
		Domain: "pzbridge",
	}
}

// words is a plan in words: the requests, or why there are none.
func words(p plan) string {
	if p.why != "" {
		return "nothing: " + p.why
	}
	var list []string
	for _, r := range p.requests {
		kind := r.form.Get("type")
		if r.form.Get("cmd") == "history" {
			kind = "history " + kind + " " + r.form.Get("status")
		}
		login, _, _ := strings.Cut(r.form.Get("user"), "@")
		list = append(list, kind+" "+login)
	}
	return strings.Join(list, ", ")
}

func TestPlanOfEachEvent(t *testing.T) {
	const (
		in, inAnswered   = telephony.EventIncoming, telephony.EventIncomingAnswered
		out, outAnswered = telephony.EventOutgoing, telephony.EventOutgoingAnswered
		over             = telephony.EventCompleted
	)
	nobody, of103 := "", "103"
	with := func(e crm.Event, change func(e *crm.Event)) crm.Event {
		change(&e)
		return e
	}
	ev := func(kind telephony.EventType, extension string) crm.Event {
		e := crm.Event{Type: kind, CallID: "7", Client: "+73430112233", Extension: extension, Line: "73432000000"}
		e.Direction = telephony.Incoming
		if kind == out || kind == outAnswered {
			e.Direction = telephony.Outgoing
		}
		return e
	}
	talked := func(e crm.Event) crm.Event {
		return with(e, func(e *crm.Event) { e.Duration = time.Minute })
	}
	toClient := func(e crm.Event) crm.Event {
		return with(e, func(e *crm.Event) { e.Direction = telephony.Outgoing })
	}
	replayed := func(e crm.Event) crm.Event { return with(e, func(e *crm.Event) { e.Replayed = true }) }
	var isOver bool // of a later event that is stored
	for name, c := range map[string]struct {
		event   crm.Event
		before  call
		later   bool
		missed  crm.Missed
		noUser  bool   // without a default user
		user    string // the default user; else 109
		want    string
		rang    string
		outcome string // what is kept besides: answered, over
	}{
		"it rings": {event: ev(in, "101"), want: "INCOMING anna", rang: "101"},
		"it rings a second": {
			event: ev(in, "102"), before: call{Rang: []string{"101"}},
			want: "INCOMING 102", rang: "101 102",
		},
		"it rings a group": {event: ev(in, ""), want: "INCOMING 109", rang: "109"},
		"it rings a default without a telephone": {
			event: ev(in, ""), user: "director",
			want: "INCOMING director", rang: "director",
		},
		"over, of a default without a telephone": {
			event: ev(over, ""), before: call{Rang: []string{"director"}}, user: "director", missed: crm.MissedDefault,
			want: "CANCELLED director, history in Missed director", outcome: "over",
		},
		"nobody is known": {
			event: ev(in, ""), noUser: true,
			want: "nothing: it is not known who of the company takes part",
		},
		"an internal call": {
			event: with(ev(in, "101"), func(e *crm.Event) { e.Internal = true }),
			want:  "nothing: no client takes part in the call",
		},
		"a hidden number": {
			event: with(ev(in, "101"), func(e *crm.Event) { e.Client = "" }),
			want:  "nothing: the client hides the number, and this CRM takes no call without one",
		},
		"rings once more": {
			event: ev(in, "101"), before: call{Answered: "101", Rang: []string{"101"}},
			want: "nothing: this employee has picked up already", rang: "101",
		},
		"rings after it all": {
			event: ev(in, "101"), before: call{IsOver: true},
			want: "nothing: the end of the call was sent already",
		},
		"rings too late": {
			event: ev(in, "101"), later: true,
			want: "nothing: the call is over already, and its end is sent next",
		},
		"a replayed ring": {event: replayed(ev(in, "101")), want: "nothing: the call is over already"},
		"one of three picks up": {
			event: ev(inAnswered, "102"), before: call{Rang: []string{"101", "102", "103"}},
			want: "CANCELLED anna, CANCELLED 103, ACCEPTED 102", rang: "102", outcome: "102",
		},
		"one picks up who did not ring": {
			event: ev(inAnswered, "104"), before: call{Rang: []string{"101"}},
			want: "CANCELLED anna, ACCEPTED 104", rang: "104", outcome: "104",
		},
		"it is transferred": {
			event: ev(inAnswered, "103"), before: call{Answered: "101", Rang: []string{"101", "102", "103"}},
			want: "TRANSFERRED anna, CANCELLED 102, ACCEPTED 103", rang: "103", outcome: "103",
		},
		"over after it was not transferred": {
			event: talked(ev(over, "101")), before: call{Answered: "101", Rang: []string{"101", "102"}},
			want: "CANCELLED 102, COMPLETED anna, history in Success anna", outcome: "over",
		},
		"one picks up an unknown call": {
			event: ev(inAnswered, "102"),
			want:  "INCOMING 102, ACCEPTED 102", rang: "102",
			outcome: "102",
		},
		"one picks up too late": {
			event: ev(inAnswered, "102"), later: true,
			want:    "nothing: the call is over already, and its end is sent next",
			outcome: "102",
		},
		"calls out": {event: ev(out, "101"), want: "OUTGOING anna", rang: "101"},
		"the client picks up": {
			event: ev(outAnswered, "101"), before: call{Rang: []string{"101"}},
			want: "ACCEPTED anna", rang: "101",
			outcome: "101",
		},
		"over, answered": {
			event: talked(ev(over, "101")), before: call{Rang: []string{"102"}, Answered: "102"},
			want: "COMPLETED 102, history in Success 102", outcome: "102 over",
		},
		"over, answered by somebody": {
			event: talked(ev(over, "102")), before: call{Rang: []string{"101", "102"}},
			want: "CANCELLED anna, COMPLETED 102, history in Success 102", outcome: "over",
		},
		"over, missed, of the responsible": {
			event: ev(over, ""), before: call{Rang: []string{"101", "102"}, Responsible: &of103},
			want: "CANCELLED anna, CANCELLED 102, history in Missed 103", outcome: "over",
		},
		"over, missed, of nobody": {
			event: ev(over, ""), before: call{Rang: []string{"101", "102"}, Responsible: &nobody},
			want: "CANCELLED anna, CANCELLED 102, history in Missed 102", outcome: "over",
		},
		"over, missed, of the last": {
			event: ev(over, ""), before: call{Rang: []string{"101", "102"}}, missed: crm.MissedLast,
			want: "CANCELLED anna, CANCELLED 102, history in Missed 102", outcome: "over",
		},
		"over, missed, of the default": {
			event: ev(over, "102"), before: call{Rang: []string{"102"}}, missed: crm.MissedDefault,
			want: "CANCELLED 102, history in Missed 109", outcome: "over",
		},
		"over, missed, of the exchange": {
			event: ev(over, ""), missed: crm.MissedLast, noUser: true,
			want: "INCOMING pbx, CANCELLED pbx, history in Missed pbx", outcome: "over",
		},
		"over, alone": {
			event:   talked(ev(over, "101")),
			want:    "INCOMING anna, COMPLETED anna, history in Success anna",
			outcome: "over",
		},
		"over, out, alone": {
			event:   toClient(ev(over, "101")),
			want:    "OUTGOING anna, CANCELLED anna, history out Cancel anna",
			outcome: "over",
		},
		"over, replayed": {
			event:   replayed(talked(ev(over, "101"))),
			want:    "history in Success anna",
			outcome: "over",
		},
		"over, once more": {
			event: talked(ev(over, "101")), before: call{IsOver: true, Talked: true},
			want: "nothing: the end of the call was sent already",
		},
		"over, with talk later": {
			event: talked(ev(over, "101")), before: call{IsOver: true},
			want:    "history in Success anna",
			outcome: "over",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Sender{settings: settings(t), endpoint: store.Endpoint{RingingTTL: time.Minute}}
			s.settings.People.Default = "109"
			if c.user != "" {
				s.settings.People.Default = c.user
			}
			if c.noUser {
				s.settings.People.Default = ""
			}
			if c.missed != "" {
				s.settings.People.Missed = c.missed
			}
			j := store.Job{Event: store.Event{At: time.Now()}}
			if isOver = c.later; isOver {
				j.Later = []store.Event{{Type: telephony.EventCompleted}}
			}
			p := s.plan(&c.before, j, &c.event)
			if got := words(p); got != c.want {
				t.Errorf("it sends  %s\nwant %s", got, c.want)
			}
			if got := strings.Join(p.after.Rang, " "); got != c.rang {
				t.Errorf("it keeps that %q rang, want %q", got, c.rang)
			}
			kept := p.after.Answered
			if p.after.IsOver {
				kept = strings.TrimSpace(kept + " over")
			}
			if want := c.outcome; kept != want && c.before.Answered == "" && !c.before.IsOver {
				t.Errorf("it keeps %q, want %q", kept, want)
			}
		})
	}
}

// As long as an event is being told, its plan is the same: also once it is too late to begin it.
func TestPlanDoesNotChangeWhileItIsTold(t *testing.T) {
	s := &Sender{settings: settings(t), endpoint: store.Endpoint{RingingTTL: time.Minute}}
	e := crm.Event{Type: telephony.EventCompleted, CallID: "7", Client: "+73430112233", Extension: "101"}
	late := store.Job{Event: store.Event{At: time.Now().Add(-time.Hour)}}
	for made, want := range []string{"history in Missed 101", "INCOMING 101, CANCELLED 101, history in Missed 101"} {
		s.settings.People.Users = nil
		p := s.plan(&call{Made: made}, late, &e)
		if got := words(p); got != want {
			t.Errorf("after %d requests the plan is %q, want %q", made, got, want)
		}
	}
}

func TestFormOfTheHistory(t *testing.T) {
	s := &Sender{settings: settings(t)}
	e := crm.Event{
		Type: telephony.EventCompleted, CallID: "7", Client: "+73430112233", Extension: "101", Line: "8 343 200-00-00",
		Direction: telephony.Incoming, Duration: time.Minute, Recording: "https://office.example/7.mp3",
		StartedAt: time.Date(2026, 11, 23, 11, 25, 5, 0, time.FixedZone("", 5*3600)),
	}
	p := s.plan(&call{ID: "of-a-click", Rang: []string{"101"}}, store.Job{}, &e)
	got := p.requests[len(p.requests)-1].form
	want := url.Values{
		"cmd":       {"history"},
		"type":      {"in"},
		"status":    {"Success"},
		"phone":     {"73430112233"},
		"user":      {"anna@pzbridge"},
		"ext":       {"101"},
		"callid":    {"of-a-click"},
		"diversion": {"73432000000"},
		"start":     {"20261123T062505Z"},
		"duration":  {"60"},
		"link":      {"https://office.example/7.mp3"},
	}
	if got.Encode() != want.Encode() {
		t.Errorf("it is  %s\nwant %s", got.Encode(), want.Encode())
	}
	e.Recording, e.Line = "ftp://office/7.mp3", ""
	s.settings.DefaultLine = "+73432999999"
	p = s.plan(&call{Rang: []string{"101"}}, store.Job{}, &e)
	got = p.requests[len(p.requests)-1].form
	if got.Has("link") || got.Get("diversion") != "73432999999" {
		t.Errorf("with a recording that no browser opens, and no line, it is %s", got.Encode())
	}
}

// What was kept by another version, or is damaged, counts as nothing.
func TestKeptBytesAreRead(t *testing.T) {
	c := call{
		ID: "x", IsKnown: true, Rang: []string{"101"}, Answered: "101", IsOver: true, Talked: true, Made: 2, Event: "e",
	}
	if got := readCall(c.encode()); string(got.encode()) != string(c.encode()) {
		t.Errorf("read %+v, want %+v", got, c)
	}
	for _, kept := range []string{"", "{", `{"rang":5}`} {
		if got := readCall([]byte(kept)); len(got.Rang) > 0 || got.IsOver {
			t.Errorf("%q is read as %+v", kept, got)
		}
	}
	many := call{Rang: make([]string, 0, maxRang)}
	for range maxRang {
		many.Rang = append(many.Rang, strings.Repeat("x", maxKey))
	}
	if n := len(many.encode()); n > store.MaxKept {
		t.Errorf("a call at which %d ring takes %d bytes", maxRang, n)
	}
}
