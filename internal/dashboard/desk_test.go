package dashboard

import (
	"context"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// desk is a signed-in operator without JavaScript.
type desk struct {
	t *testing.T
	s *stage
	c *http.Client
}

func (d desk) do(method, path, lang string, form url.Values) (status int, location, body string) {
	d.t.Helper()
	r, err := http.NewRequest(method, d.s.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header.Set("Accept-Language", lang)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := d.c.Do(r)
	body = text(d.t, resp, err)
	return resp.StatusCode, resp.Header.Get("Location"), body
}

// get returns the text of a page that is there.
func (d desk) get(path string) string {
	d.t.Helper()
	status, _, body := d.do("GET", path, "en", nil)
	if status != http.StatusOK {
		d.t.Errorf("%s: %d", path, status)
	}
	return body
}

// says fails for each text that a page lacks, or has although it begins with "-".
func (d desk) says(where, body string, texts ...string) {
	d.t.Helper()
	for _, want := range texts {
		lacks, isWanted := strings.CutPrefix(want, "-")
		if strings.Contains(body, lacks) == isWanted {
			d.t.Errorf("%s: %q is there: %t\n%.4000s", where, lacks, isWanted, body)
		}
	}
}

func row(id string) string { return `href="/calls/` + id + `"` }

// A call is found by its number in any form, its last digits, an extension, and by each filter.
func TestCallsAreFound(t *testing.T) {
	s := office(t, nil)
	d := desk{t, s, s.client(t)}
	const answered, missed = "470657307770881", "470657307770882"
	const long, unanswered = "470657307770883", "470657307770884"
	const sms, ringing = "470657307770886", "470657307770887"
	for query, c := range map[string]struct{ has, lacks []string }{
		"":                                  {[]string{answered, sms, ringing}, nil},
		"number=8+(343)+011-22-33":          {[]string{answered}, []string{missed}},
		"number=2233":                       {[]string{answered, sms}, []string{long}},
		"number=103":                        {[]string{long}, []string{answered}},
		"outcome=missed":                    {[]string{missed}, []string{answered, unanswered}},
		"outcome=no_answer":                 {[]string{unanswered}, []string{missed}},
		"direction=outgoing":                {[]string{long}, []string{answered}},
		"direction=outgoing&number=876543":  {[]string{long}, []string{unanswered}},
		"since=2026-01-01&until=2026-01-02": {nil, []string{answered}},
		"outcome=nonsense":                  {[]string{answered}, nil},
	} {
		body := d.get("/calls?" + query)
		for _, id := range c.has {
			d.says(query, body, row(id))
		}
		for _, id := range c.lacks {
			d.says(query, body, "-"+row(id))
		}
	}
	d.says("middle", d.get("/calls?number=95987"), row("470657307770883"), "somewhere in a number")
	d.says("nothing", d.get("/calls?number=55555"), "No call is found.", "-somewhere in a number")
	for query, want := range map[string]string{
		"number=%2B99":                      "type at least the last four digits of a number",
		"since=yesterday":                   "this is no time",
		"since=2026-01-02&until=2026-01-01": "the end is not later than the beginning",
	} {
		status, _, body := d.do("GET", "/calls?"+query, "en", nil)
		d.says(query, body, want, `aria-invalid="true"`, "-<table")
		if status != http.StatusBadRequest {
			t.Errorf("%s: %d", query, status)
		}
	}
	_, _, body := d.do("GET", "/calls?number=%2B99", "ru", nil)
	d.says("in Russian", body, "введите хотя бы последние четыре цифры", `value="&#43;99"`)
}

// A call that a CRM has not got does not look like one that it has.
func TestARowShowsHowACallStandsAtEachCRM(t *testing.T) {
	endpoints := []outbox.EndpointStatus{
		{Name: "a", State: "ok", TakesCalls: true},
		{Name: "b", State: "reads", TakesCalls: true},
		{Name: "c", State: "ok", TakesCalls: true},
		{Name: "chat", State: "ok"},
	}
	head := store.CallHead{CallID: "1", Completed: true, Deliveries: []store.CallStanding{
		{Endpoint: "a", Delivered: 2, Dead: 1, End: store.Delivered, HasEnd: true},
		{Endpoint: "b", Pending: 1},
		{Endpoint: "gone", Dead: 1},
	}}
	want := []standing{{"a", "delivered", 1}, {"b", "unread", 0}, {"c", "none", 0}, {"gone", "dead", 0}}
	if got := newCallRow(&head, endpoints); !slices.Equal(got.Standing, want) || got.Nowhere {
		t.Errorf("%+v", got)
	}
	head.Deliveries = nil
	if got := newCallRow(&head, endpoints); got.Standing != nil || !got.Nowhere {
		t.Errorf("without deliveries: %+v", got)
	}
	head = store.CallHead{IsSMS: true, Completed: false, RecordingURL: "javascript:alert(1)"}
	if got := newCallRow(&head, nil); got.Kind != "sms" || got.Outcome != "" || got.Recording != "" {
		t.Errorf("an SMS: %+v", got)
	}
}

// Calls and deliveries go page by page.
func TestListsHavePages(t *testing.T) {
	s := newStageOf(t, "+73430112233", nil)
	d := desk{t, s, s.client(t)}
	for i := range 70 {
		s.add(t, fmt.Sprintf("9%03d", i), "call.incoming")
	}
	next := regexp.MustCompile(`rel="next" href="([^"]+)"`)
	for path, want := range map[string]int{"/calls?number=2233": 72, "/deliveries?endpoint=crm": 76} {
		seen := map[string]bool{}
		pages := 0
		for at := path; at != ""; pages++ {
			body := d.get(at)
			for _, link := range regexp.MustCompile(`href="/calls/\d+[^"]*"`).FindAllString(body, -1) {
				seen[link] = true
			}
			d.says(at, body, map[bool]string{true: "Newest", false: "-Newest"}[pages > 0])
			at = ""
			if m := next.FindStringSubmatch(body); m != nil {
				at = html.UnescapeString(m[1])
			}
		}
		if len(seen) != want || pages != 2 {
			t.Errorf("%s: %d entries on %d pages", path, len(seen), pages)
		}
	}
}

// Many deliveries are sent again without JavaScript: first they are counted, then sent, and a page
// says what has come of it. What was ticked goes the same way.
func TestManyAreSentAgain(t *testing.T) {
	s := office(t, nil)
	d := desk{t, s, s.client(t)}
	d.says("the first page", d.get("/"), `href="/deliveries?endpoint=crm&amp;state=delivered"`)
	list := d.get("/deliveries?endpoint=crm&state=delivered&type=call.completed")
	ids := regexp.MustCompile(`name="id" value="([^"]+)"`).FindAllStringSubmatch(list, -1)
	if len(ids) != 6 {
		t.Fatalf("%d can be ticked:\n%s", len(ids), list)
	}
	filter := url.Values{"endpoint": {"crm"}, "state": {"delivered"}, "type": {"call.completed"}}
	asked := d.get("/redeliveries/new?chosen=all&" + filter.Encode())
	d.says("the question", asked, `<strong class="count">6</strong>`, "Send again: 6", "delivered", "over")
	before, _, err := s.box.Delivery(ids[0][1])
	if err != nil || before.Redelivered {
		t.Errorf("by counting: %+v, %v", before, err)
	}
	status, location, _ := d.do("POST", "/redeliveries", "en", filter)
	if status != http.StatusSeeOther || location != "/redeliveries/1" {
		t.Fatalf("sending: %d %s", status, location)
	}
	const done = "All of them are delivered."
	eventually(t, "all are delivered", func() bool { return strings.Contains(d.get(location), done) })
	d.says("the end", d.get(location), "-http-equiv")
	d.says("the list", d.get("/deliveries"), `href="/redeliveries/1"`, "delivered: 6 of 6")

	chosen := url.Values{"id": {ids[0][1], ids[1][1], "none.crm"}}
	asked = d.get("/redeliveries/new?chosen=ticked&" + chosen.Encode())
	d.says("those that were ticked", asked, "Send again: 2", `value="`+ids[0][1]+`"`)
	_, location, _ = d.do("POST", "/redeliveries", "en", chosen)
	d.says("the address", location, "/redeliveries/ticked?id=", ids[0][1], "-none.crm")
	eventually(t, "both are delivered", func() bool { return strings.Contains(d.get(location), done) })

	// bitrix24 fails, so that what is sent again waits, and a browser without JavaScript looks
	// again.
	waiting := url.Values{"endpoint": {"bitrix24"}, "state": {"expired"}}
	asked = d.get("/redeliveries/new?chosen=all&" + waiting.Encode())
	d.says("what has expired there", asked, "Nothing matches") // these are questions
	dead, _, err := s.box.Deliveries(store.DeliveryQuery{Endpoint: "bitrix24", State: "pending", Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, location, _ = d.do("POST", "/redeliveries", "en", url.Values{"id": {dead[0].ID}})
	d.says("what waits", d.get(location), "Ended: 0 of 1", "bitrix24: failing", "compare the secret",
		`<noscript><meta http-equiv="refresh" content="3"></noscript>`)
	for query, want := range map[string]string{
		"chosen=all":                                                "Choose the CRM",
		"chosen=all&endpoint=crm&state=pending":                     "What waits is sent by itself.",
		"chosen=all&endpoint=crm&type=call.transfer_requested":      "The time of the question is over.",
		"chosen=ticked":                                             "Nothing is ticked.",
		"chosen=all&endpoint=crm&since=x":                           "this is no time",
		"chosen=all&endpoint=crm&since=2026-01-01&until=2026-01-02": "Nothing matches",
	} {
		d.says(query, d.get("/redeliveries/new?"+query), want, "-b-again")
	}
	for path, want := range map[string]int{"/redeliveries/99": 404, "/redeliveries/x": 404} {
		if status, _, _ := d.do("GET", path, "en", nil); status != want {
			t.Errorf("%s: %d", path, status)
		}
	}
}

// The verdict says the worst first, in both languages, with what to do about it.
func TestVerdict(t *testing.T) {
	since := time.Now()
	failing := outbox.EndpointStatus{
		Name:      "bitrix24",
		State:     "failing",
		Since:     since,
		LastError: "HTTP 401",
		LastCause: telephony.Cause{Code: telephony.CodeCRMRefuses, Args: []string{"401"}},
		Pending:   7,
	}
	healthy := outbox.EndpointStatus{Name: "crm", State: "ok"}
	connected := telephony.Connection{State: telephony.Connected}
	for name, c := range map[string]struct {
		o                overview
		level            string
		english, russian []string
	}{
		"all is well": {
			overview{Connection: connected, Endpoints: []endpointView{{EndpointStatus: healthy}}},
			"good",
			[]string{"All is well: the phone system is connected, and every CRM gets its events."},
			[]string{"Всё в порядке: АТС на связи, и каждая CRM получает свои события."},
		},
		"a CRM refuses": {
			overview{Connection: connected, Endpoints: []endpointView{{EndpointStatus: failing}}},
			"bad",
			[]string{
				"bitrix24 takes nothing since " + since.Format("15:04") + ": HTTP 401: compare the secret in the CRM " +
					"with its SECRET, and both clocks. Deliveries that wait: 7.",
				"The phone system is connected.",
			},
			[]string{
				"bitrix24 ничего не принимает с " + since.Format("15:04") + ": HTTP 401: сравните секрет в CRM " +
					"с её SECRET и часы на обеих сторонах. Ждут доставки: 7.",
				"АТС на связи.",
			},
		},
		"dead ones are not green": {
			overview{Connection: connected, Endpoints: []endpointView{
				{EndpointStatus: outbox.EndpointStatus{Name: "crm", State: "ok", Dead: 2}},
			}},
			"warn",
			[]string{"crm has not got everything. Dead, and not sent again: 2.", "The phone system is connected."},
			[]string{"crm получила не всё. Не доставлено и не отправлено повторно: 2.", "АТС на связи."},
		},
		"the worst first": {
			overview{
				Connection: telephony.Connection{State: telephony.Disabled},
				Trouble:    "the disk is full",
				Endpoints: []endpointView{
					{EndpointStatus: outbox.EndpointStatus{Name: "crm", State: "ok", Dead: 2}},
					{EndpointStatus: failing},
				},
			},
			"bad",
			[]string{
				"Events cannot be stored: the disk is full.", "The connection to the phone system is paused",
				"bitrix24 takes", "crm has not",
			},
			[]string{"События не сохраняются:", "Соединение с АТС приостановлено", "bitrix24 ничего", "crm получила"},
		},
	} {
		for lang, want := range map[int][]string{0: c.english, 1: c.russian} {
			list := wordsOf[lang].verdict(&c.o)
			if list[0].Level != c.level || len(list) != len(want) {
				t.Errorf("%s: %+v", name, list)
				continue
			}
			for i, f := range list {
				if got := strings.TrimSpace(f.Who + " " + f.Text); !strings.HasPrefix(got, want[i]) {
					t.Errorf("%s: %q, not %q", name, got, want[i])
				}
			}
		}
		for i, e := range c.o.Endpoints {
			if isGood := e.Level == "good"; isGood == (e.Dead > 0 || e.State == "failing") {
				t.Errorf("%s: the card %d is %s", name, i, e.Level)
			}
		}
	}
}

// A question whose time is over cannot be sent again, one that is open can.
func TestAQuestionThatIsOverIsNotSentAgain(t *testing.T) {
	now := time.Now()
	delivery := store.DeliveryView{
		ID:       "1.crm",
		EventID:  "1",
		Endpoint: "crm",
		Type:     telephony.EventTransferRequested,
		State:    "pending",
	}
	open := telephony.Route{EventID: "1", AskedAt: now, AnswerBy: now.Add(time.Minute), Outcome: telephony.RouteOpen}
	won, other, late := open, open, open
	won.Outcome, other.EventID, late.AnswerBy = telephony.RouteWon, "2", now
	d, err := New(newStage(t, nil).dashboard.opts)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		route *telephony.Route
		again bool
	}{
		"open":    {&open, true},
		"won":     {&won, false},
		"another": {&other, false},
		"late":    {&late, false},
		"none":    {nil, false},
	} {
		shown := shownCall{
			d:         d,
			t:         wordsOf[0],
			route:     c.route,
			endpoints: []outbox.EndpointStatus{{Name: "crm", State: "ok"}},
			now:       now,
		}
		if v := shown.delivery(t.Context(), &delivery); v.Again != c.again || v.TooLate == c.again {
			t.Errorf("%s: can be sent again: %t, is over: %t", name, v.Again, v.TooLate)
		}
	}
}

// The page of a call draws its routing: who was asked, who answered what after how long, who won.
func TestRoutingIsDrawn(t *testing.T) {
	asked := time.Now()
	at := func(d time.Duration) time.Time { return asked.Add(d) }
	r := &telephony.Route{
		AskedAt:   asked,
		AnswerBy:  at(2 * time.Second),
		Asked:     []string{"a", "b", "c", "d"},
		Outcome:   telephony.RouteWon,
		Winner:    "b",
		To:        "101",
		DecidedAt: at(time.Second),
		Replies: []telephony.Reply{
			{By: "a", At: at(500 * time.Millisecond), Kind: telephony.ReplyDeclined},
			{By: "b", At: at(time.Second), Kind: telephony.ReplyNumber, To: "101"},
			{By: "c", At: at(2 * time.Second), Kind: telephony.ReplyNumber, To: "101"},
		},
		Transfer:   telephony.TransferDone,
		TransferAt: at(1100 * time.Millisecond),
	}
	v := wordsOf[0].newRouteView(r, at(time.Hour))
	want := []routeRow{
		{By: "a", Kind: "declined", Text: "declined", After: "500 ms", Width: 25},
		{By: "b", Kind: "number", Text: "→ 101", After: "1.0 s", Width: 50, Won: true},
		{By: "c", Kind: "number", Text: "→ 101", After: "2.0 s", Width: 100},
		{By: "d", Kind: "late", Text: "had not answered by then", Width: 50},
	}
	if !slices.Equal(v.Rows, want) || v.Failed || v.Within != "2.0 s" ||
		v.Result != "b has won: the call goes to 101. The phone system transferred it 1.1 s after the question." {
		t.Errorf("%+v", v)
	}
	r.Outcome, r.DecidedAt, r.Transfer = telephony.RouteOpen, time.Time{}, ""
	v = wordsOf[0].newRouteView(r, at(time.Second))
	if v.Rows[3].Kind != "open" || v.Rows[3].Width != 50 || v.Rows[1].Won || v.Result != "The question is open." {
		t.Errorf("while it is open: %+v", v)
	}
}

// Pausing the connection asks first, and the page says since when and by whom it is paused.
func TestPausingAsksFirst(t *testing.T) {
	s := newStage(t, nil)
	d := desk{t, s, s.client(t)}
	d.says("the first page", d.get("/"), `href="/connection"`, `-name="enabled"`)
	asked := d.get("/connection")
	d.says("the question", asked, "Live calls are lost meanwhile", `value="false"`, "Keep the connection")
	if s.exchange.Connection().State != telephony.Connected {
		t.Error("by asking it was paused")
	}
	d.do("POST", "/actions/connection", "en", url.Values{"enabled": {"false"}})
	for lang, want := range map[string][]string{
		"en": {"live calls are lost meanwhile. Resume it.", "Resume the connection", ", by dashboard"},
		"ru": {"текущие звонки в это время теряются", "Возобновить соединение", ", кем: через страницу"},
	} {
		for _, path := range []string{"/", "/connection"} {
			_, _, body := d.do("GET", path, lang, nil)
			d.says(path, body, want[1:]...)
		}
		_, _, body := d.do("GET", "/", lang, nil)
		d.says("the verdict", body, want[0])
	}
}

// What the operator does is kept, and shown with when and whence, the latest first.
func TestWhoDidWhatIsShown(t *testing.T) {
	s := newStage(t, nil)
	d := desk{t, s, s.client(t)}
	d.do("POST", "/actions/connection", "en", url.Values{"enabled": {"false"}})
	d.do("POST", "/actions/connection", "en", url.Values{"enabled": {"true"}})
	d.do("POST", "/actions/test", "en", url.Values{"endpoint": {"crm"}})
	list, _, err := s.box.Deliveries(store.DeliveryQuery{CallID: "6", Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	d.do("POST", "/actions/redeliver", "en", url.Values{"id": {list[0].ID}})
	d.do("POST", "/redeliveries", "en", url.Values{"endpoint": {"crm"}, "state": {"dead"}})
	body := d.get("/audit")
	at := 0
	for _, want := range []string{
		"sent many deliveries again", "sent one delivery again", telephony.Brief(list[0].ID), "sent a test",
		"resumed the connection", "paused the connection", "signed in", "127.0.0.1", "dashboard",
	} {
		i := strings.Index(body[at:], want)
		if i < 0 {
			t.Fatalf("%q is not there, or not in its place:\n%s", want, body)
		}
		at += i
	}
	_, _, body = d.do("GET", "/audit", "ru", nil)
	d.says("in Russian", body, "соединение приостановлено", "через страницу")
}

// No page lacks a text: each that a template or the code names is there in both languages.
func TestNoTextIsMissing(t *testing.T) {
	names := map[string]bool{}
	for pattern, find := range map[string]*regexp.Regexp{
		"templates/*.html": regexp.MustCompile(`[{( ]t "([^"]+)"`),
		"*.go":             regexp.MustCompile(`\bt\["([^"]+)"\]`),
		"../crm/*/*.go":    regexp.MustCompile(`(?:Nothing\(|why = )"([^"]+)"`), // why nothing was sent
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range find.FindAllSubmatch(source, -1) {
				names[string(m[1])] = true
			}
		}
	}
	if len(names) < 100 {
		t.Errorf("only %d texts are found", len(names))
	}
	for _, list := range [][]string{
		typeNames, states,
		{"kind.call", "kind.sms", "kind.internal", "kind.incoming", "kind.outgoing"},
		{"outcome.answered", "outcome.missed", "outcome.no_answer", "outcome.going_on", "unread", "none"},
		{"connected", "disconnected", "connecting", "disabled", "ok", "failing", "paused", "reads", byDashboard, "API"},
		{"did.signed_in", "did.signed_out", "did.paused", "did.resumed", "did.redelivered", "did.redelivered_many"},
		{"did.tested", "did.forgot", "did.backed_up"},
		{"span.hour", "span.day", "span.week"},
		{"stands.connected", "stands.spare", "stands.unconnected", "stands.gone"},
		{errBadTime.Error(), errBadOrder.Error(), noToken, badSwitch, notSignedOut},
		crm.Remarks(),
	} {
		for _, name := range list {
			names[name] = true
		}
	}
	delete(names, "kind.") // followed by a kind, as outcome is
	delete(names, "outcome.")
	delete(names, "did.")
	delete(names, "span.")
	for name := range names {
		for i, t2 := range wordsOf {
			if t2[name] == "" {
				t.Errorf("language %d lacks %q", i, name)
			}
		}
	}
	for name := range russian {
		isOwn := strings.HasPrefix(name, "kind.") || strings.HasPrefix(name, "outcome.")
		if !names[name] && !isOwn && name != "Sign in again." && !isLoginProblem(name) && !isDigits(name) {
			t.Errorf("no page says %q", name)
		}
	}
}

func isLoginProblem(name string) bool {
	return name == "That is not the token of API_TOKEN." || name == "Too many attempts. Wait a few seconds."
}

func isDigits(name string) bool { return strings.HasPrefix(name, "type at least the last four digits") }

// In a real browser and in both languages the operator finds a call, narrows a list, sends many
// again and watches a call, whose folds stay as they are while it goes on.
func TestDeskInABrowser(t *testing.T) {
	tab, cancel := context.WithTimeout(browser(t), 2*time.Minute)
	defer cancel()
	s := office(t, nil)
	do := func(actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(tab, actions...); err != nil {
			t.Fatal(err)
		}
	}
	page := func() string { return evaluate[string](t, tab, `document.querySelector("main").innerText`) }
	do(chromedp.Navigate(s.URL), chromedp.SendKeys("#token", token+"\n"), chromedp.WaitVisible("#h-calls"))
	for _, lang := range []string{"en", "ru"} {
		number := 1 + slices.Index([]string{"en", "ru"}, lang)
		visit(t, tab, s.URL+"/", look{lang: lang, width: 1280})
		do(chromedp.SendKeys("#number", "0112233\n"), chromedp.WaitVisible("#outcome"))
		await(t, tab, `document.querySelectorAll("tbody tr").length > 0`)
		if got := page(); !strings.Contains(got, "+73430112233") || strings.Contains(got, "+79221234567") {
			t.Errorf("%s, what is found:\n%s", lang, got)
		}
		visit(t, tab, s.URL+"/calls", look{lang: lang, width: 1280})
		evaluate[bool](t, tab, `!(document.getElementById("outcome").value = "missed")`)
		do(chromedp.SendKeys("#number", "4567\n"))
		await(t, tab, `document.querySelectorAll("tbody tr").length === 1`)
		do(chromedp.Click("tbody a"), chromedp.WaitVisible("#h-route"))
		title, want := evaluate[string](t, tab, `document.title`), wordsOf[number-1]["outcome.missed"]
		if !strings.Contains(title, "+79221234567 · "+want) {
			t.Errorf("%s: the call is titled %q", lang, title)
		}

		visit(t, tab, s.URL+"/deliveries?endpoint=crm&state=delivered", look{lang: lang, width: 1280})
		do(chromedp.Click("#tick-all"))
		if n := evaluate[int](t, tab, `document.querySelectorAll("input[name=id]:checked").length`); n < 10 {
			t.Errorf("%s: %d are ticked", lang, n)
		}
		do(chromedp.Click("button[value=all]"), chromedp.WaitVisible("#b-again"), chromedp.Click("#b-again"))
		do(chromedp.WaitVisible("progress"))
		await(t, tab, `document.querySelector("progress").value === document.querySelector("progress").max`)
		await(t, tab, `document.querySelector(".isgood") !== null`)
		if path := evaluate[string](t, tab, `location.pathname`); path != fmt.Sprintf("/redeliveries/%d", number) {
			t.Errorf("%s: the progress is at %s", lang, path)
		}
	}
	visit(t, tab, s.URL+"/calls/470657307770887", look{lang: "en", width: 390})
	await(t, tab, `document.getElementById("live").textContent === "live"`)
	do(chromedp.Click("summary"))
	await(t, tab, `document.querySelector("details").open`)
	s.put(t, telephony.EventIncomingAnswered, "470657307770887",
		telephony.Event{Direction: telephony.Incoming, From: "+79012345678", To: "104"})
	await(t, tab, `document.querySelectorAll(".event").length === 2`)
	if !evaluate[bool](t, tab, `document.querySelector("details").open`) {
		t.Error("an update has closed a fold")
	}
	for _, path := range []string{
		"/", "/calls", "/deliveries", "/calls/470657307770881", "/redeliveries/1", "/connection",
	} {
		visit(t, tab, s.URL+path, look{lang: "ru", width: 390})
		if evaluate[bool](t, tab, `document.documentElement.scrollWidth > window.innerWidth`) {
			t.Errorf("%s is wider than a phone", path)
		}
	}
	nameless := `[...document.querySelectorAll("button, a, select, input:not([type=hidden])")].filter(e => ` +
		`!e.textContent.trim() && !e.getAttribute("aria-label") && !(e.labels && e.labels.length)).length`
	if n := evaluate[int](t, tab, nameless); n != 0 {
		t.Errorf("%d buttons, links or fields have no name for a screen reader", n)
	}
}

// A page whose data cannot be read says why.
func TestListsSayWhatFails(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Outbox = unreadable{o.Outbox} })
	d := desk{t, s, s.client(t)}
	for _, path := range []string{
		"/calls", "/deliveries", "/redeliveries/1", "/redeliveries/new?chosen=all&endpoint=crm",
	} {
		status, _, body := d.do("GET", path, "en", nil)
		if status != http.StatusBadRequest || !strings.Contains(body, io.ErrUnexpectedEOF.Error()) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

// unreadable is an outbox of which no list can be read.
type unreadable struct{ Outbox }

func (unreadable) FindCalls(context.Context, outbox.CallFilter) (outbox.FoundCalls, error) {
	return outbox.FoundCalls{}, io.ErrUnexpectedEOF
}

func (unreadable) Deliveries(context.Context, store.DeliveryQuery) (store.DeliveryPage, error) {
	return store.DeliveryPage{}, io.ErrUnexpectedEOF
}

func (unreadable) Redelivery(context.Context, uint32) (store.RedeliveryState, error) {
	return store.RedeliveryState{}, io.ErrUnexpectedEOF
}

func (unreadable) RedeliverAll(context.Context, store.Redelivery) (uint32, int, error) {
	return 0, 0, io.ErrUnexpectedEOF
}

// A redelivery that a stop of the bridge has cut off while it was choosing does not look as if it
// went on.
func TestACutOffRedeliverySaysSo(t *testing.T) {
	for age, want := range map[time.Duration]string{0: "choosing", time.Hour: "cut off"} {
		p := newProgress(&store.RedeliveryState{At: time.Now().Add(-age), Chosen: 3, Delivered: 3})
		got := map[bool]string{true: "choosing"}[p.IsChoosing] + map[bool]string{true: "cut off"}[p.IsCutOff]
		if got != want || p.IsDone() != (want == "cut off") {
			t.Errorf("after %s it is %q, done %v", age, got, p.IsDone())
		}
	}
}
