package dashboard

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// cluster lists bridges. Its zero value fails.
type cluster []store.Bridge

func (c cluster) Bridges(context.Context) ([]store.Bridge, error) {
	if c == nil {
		return nil, errors.New("the database is away")
	}
	return c, nil
}

// shared is an outbox to whose endpoints the second bridge delivers.
type shared struct{ Outbox }

func (o shared) Endpoints(ctx context.Context) ([]outbox.EndpointStatus, error) {
	list, err := o.Outbox.Endpoints(ctx)
	for i := range list {
		list[i].DeliveredBy = "bridge2"
	}
	return list, err
}

// twoBridges are bridges that live, of which the first is connected. The second lacks the endpoint
// sheet, and has crm configured in another way.
func twoBridges() cluster {
	now := time.Now()
	return cluster{
		{
			Name:      "bridge1",
			Version:   "1.4.0",
			Started:   now.Add(-50 * time.Hour),
			Seen:      now,
			Connected: true,
			Slot:      1,
			Lanes:     []string{"sheet"},
			Endpoints: map[string]string{"crm": "a", "sheet": "b"},
		},
		{
			Name:      "bridge2",
			Version:   "1.4.1",
			Started:   now.Add(-time.Hour),
			Seen:      now,
			Lanes:     []string{"crm"},
			Endpoints: map[string]string{"crm": "x"},
		},
	}
}

// pageOf gets the first page in a language.
func pageOf(t *testing.T, s *stage, lang string) string {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, s.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Language", lang)
	resp, err := s.client(t).Do(r)
	return text(t, resp, err)
}

// The page of one of several bridges says which bridge it is, and for each how it stands, to which
// CRMs it delivers and what differs.
func TestPageShowsTheBridges(t *testing.T) {
	list := twoBridges()
	gone := list[0]
	gone.Name, gone.Seen = "bridge0", time.Now().Add(-time.Minute)
	s := newStage(t, func(o *Options) {
		o.Bridge, o.Bridges, o.Outbox = "bridge1", append(cluster{gone}, list...), shared{o.Outbox}
	})
	for lang, wants := range map[string][]string{
		"en": {
			"<title>pzbridge bridge1</title>", `pzbridge<span class="here">bridge1</span></a>`,
			"<div><dt>Bridge</dt><dd>bridge2</dd></div>",
			`<b>bridge1</b> <span class="dim small">this page</span><p class="differs">` +
				"crm is configured in another way than at bridge2</p></td>",
			"<b>bridge2</b><p class=\"differs\">has no CRM sheet</p>",
			"</svg>connected</span>", "</svg>spare</span>", "</svg>gone</span>",
			"Delivers to: </span>sheet</td>", "Delivers to: </span>crm</td>", "Version </span>1.4.1</td>",
			"<strong>crm</strong> is configured in another way at bridge1 than at bridge2. Compare its URL, events,",
			"<strong>bridge0</strong> has not been seen since ",
			"<strong>bridge2</strong> has no CRM sheet, which another bridge has. Give all bridges the same " +
				"configuration.",
		},
		"ru": {
			"<dt>Мост</dt><dd>bridge2</dd>", "эта страница", "CRM crm настроена иначе, чем у bridge2</p>",
			"не знает CRM sheet</p>", "</svg>запасной</span>", "</svg>пропал</span>", "Доставляет в: </span>crm</td>",
			"<strong>bridge2</strong> не знает CRM sheet, которая есть у другого моста.",
		},
	} {
		body := pageOf(t, s, lang)
		for _, want := range wants {
			if !strings.Contains(body, want) {
				t.Errorf("%s: the page lacks %q:\n%s", lang, want, body)
			}
		}
		if n := strings.Count(body, "is configured in another way at "); n > 1 {
			t.Errorf("that crm differs is said %d times", n)
		}
	}
}

// A bridge with a file of its own says nothing of bridges, and does not ask for them.
func TestPageOfOneBridgeHasNoBridges(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Bridges = cluster(nil) })
	body := pageOf(t, s, "en")
	if strings.Contains(body, "h-bridges") || strings.Contains(body, `class="here"`) ||
		strings.Contains(body, "<dt>Bridge</dt>") || !strings.Contains(body, "<title>pzbridge</title>") {
		t.Errorf("the page is:\n%s", body)
	}
}

// The bridges cannot be listed: the page says so.
func TestPageSaysThatBridgesCannotBeListed(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Bridge, o.Bridges = "bridge1", cluster(nil) })
	if body := pageOf(t, s, "en"); !strings.Contains(body, "the database is away") {
		t.Errorf("the page is:\n%s", body)
	}
}

// The page of a spare says that another bridge is connected, and what is stored about a pause.
func TestPageOfASpare(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Bridge, o.Bridges = "bridge2", twoBridges() })
	s.exchange.Enable(false) // as at a spare that has not followed the switch
	body := pageOf(t, s, "en")
	for _, want := range []string{
		`class="card isgood">` + "\n" + `<h2 id="h-pbx">`, "connected at bridge1</p>",
		"This bridge is a spare: it delivers, and connects when that one ends.", "Pause the connection",
		"The phone system is connected.",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q:\n%s", want, body)
		}
	}
	if err := s.box.Outbox.Connect(t.Context(), false, "API"); err != nil {
		t.Fatal(err)
	}
	s.exchange.Enable(true)
	if body = pageOf(t, s, "en"); !strings.Contains(body, "The connection to the phone system is paused") ||
		!strings.Contains(body, "Resume the connection") {
		t.Errorf("the page of a pause is:\n%s", body)
	}
}

// The verdict at a bridge that is not connected depends on whether another one is.
func TestVerdictOfSeveralBridges(t *testing.T) {
	disconnected := telephony.Connection{
		State:     telephony.Disconnected,
		Since:     time.Now(),
		LastError: "connection refused",
	}
	now := disconnected.Since.Format("15:04")
	for name, c := range map[string]struct {
		o                overview
		level            string
		english, russian string
	}{
		"a spare beside a connected bridge": {
			overview{IsSpare: true, ConnectedAt: "bridge1"},
			levelGood,
			"The phone system is connected. No CRM is configured.", "АТС на связи. CRM не настроены.",
		},
		"a spare beside one that cannot connect": {
			overview{IsSpare: true, UnconnectedAt: "bridge1"},
			levelBad,
			"No bridge is connected to the phone system: live calls are lost meanwhile. The page of bridge1 says why.",
			"С АТС не связан ни один мост: текущие звонки в это время теряются. Причина — на странице моста bridge1.",
		},
		"spares alone": {
			overview{IsSpare: true},
			levelBad,
			"No bridge is connected to the phone system: live calls are lost until one is, in some seconds.",
			"С АТС не связан ни один мост: пока один из них не подключится, а на это уходят секунды, текущие звонки " +
				"теряются.",
		},
		"one of two listeners": {
			overview{ConnectedAt: "bridge1"},
			levelWarn,
			"This bridge has not been connected to the phone system since " + now +
				": connection refused. Events come through bridge1.",
			"У этого моста нет связи с АТС с " + now + ": connection refused. События приходят через bridge1.",
		},
		"the only listener": {
			overview{},
			levelBad,
			"The phone system has not been connected since " + now + ": connection refused.",
			"С АТС нет связи с " + now + ": connection refused.",
		},
	} {
		c.o.Connection = disconnected
		for lang, want := range map[int]string{0: c.english, 1: c.russian} {
			if list := wordsOf[lang].verdict(&c.o); len(list) != 1 || list[0].Level != c.level || list[0].Text != want {
				t.Errorf("%s: %+v, want %q", name, list, want)
			}
		}
	}
}

// Which bridge is a spare, and which other ones are connected, is taken from what they have said.
func TestStandingOfBridges(t *testing.T) {
	now := time.Now()
	list := cluster{
		{Name: "a", Seen: now, Slot: 1, Connected: true},
		{Name: "b", Seen: now, Slot: 2},
		{Name: "c", Seen: now},
		{Name: "d", Seen: now.Add(-time.Minute), Slot: 1, Connected: true},
	}
	for name, want := range map[string]overview{
		"a": {Connected: true, UnconnectedAt: "b"},
		"b": {ConnectedAt: "a"},
		"c": {IsSpare: true, ConnectedAt: "a", UnconnectedAt: "b"},
		"e": {IsSpare: true, ConnectedAt: "a", UnconnectedAt: "b"}, // has not announced itself yet
	} {
		d := &Dashboard{opts: Options{Bridge: name, Bridges: list}}
		o := overview{Connected: name == "a"}
		if err := d.addBridges(t.Context(), &o, now); err != nil {
			t.Fatal(err)
		}
		var states []string
		for _, b := range o.Bridges {
			states = append(states, b.State)
		}
		if o.IsSpare != want.IsSpare || o.ConnectedAt != want.ConnectedAt || o.UnconnectedAt != want.UnconnectedAt {
			t.Errorf("at %s: a spare %v, connected %q, not connected %q",
				name, o.IsSpare, o.ConnectedAt, o.UnconnectedAt)
		}
		if !slices.Equal(states, []string{bridgeConnected, bridgeUnconnected, bridgeSpare, bridgeGone}) {
			t.Errorf("at %s: %q", name, states)
		}
	}
}
