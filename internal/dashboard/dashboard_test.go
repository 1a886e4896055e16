package dashboard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/webhook"
)

const (
	token    = "operator-token-0123456789"
	newToken = "operator-new-token-0123456789"
)

// exchange is a session whose state Enable and the tests set.
type exchange struct {
	mu sync.Mutex
	c  telephony.Connection
}

func (e *exchange) Connection() telephony.Connection {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.c
}

func (e *exchange) Enable(enabled bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.c = telephony.Connection{State: telephony.Disabled, Since: time.Now(), LastError: "it was switched off"}
	if enabled {
		e.c = telephony.Connection{State: telephony.Connected, Since: time.Now(), ServerVersion: "Test Server v1.1.2"}
	}
}

// silence is a router that ignores all questions.
type silence struct{}

func (silence) Settle(context.Context, string, string, bool, []telephony.Reply) {}
func (silence) Answer(context.Context, string, string, string, string) error    { return nil }
func (silence) NoAnswer(context.Context, string, string, string, error)         {}

// hostile is a caller's number that contains HTML.
const hostile = `<script>document.title="owned"</script><img src=x onerror='document.title="owned"'>`

// stage is a dashboard on a real outbox that holds two calls, 5 and 6, with a hostile caller's
// number. Its CRM answers the events of call 5 with HTTP 500 and all others with 200.
type stage struct {
	*httptest.Server
	dashboard *Dashboard
	exchange  *exchange
	box       *storetest.Box
	stats     *Stats
	caller    string
}

func newStage(t testing.TB, change func(*Options)) *stage { return newStageOf(t, hostile, change) }

// newStageOf is newStage with another caller's number, and with more CRMs.
func newStageOf(t testing.TB, caller string, change func(*Options), more ...store.Endpoint) *stage {
	t.Helper()
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "&call_id=5&") {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, caller)
		}
	}))
	t.Cleanup(crm.Close)
	logger := slog.New(slog.DiscardHandler)
	stats := NewStats()
	box := bolttest.Open(t, storetest.Options{
		RetrySchedule:  []time.Duration{time.Hour},
		Retention:      time.Hour,
		RoutingTimeout: time.Second,
		OrderHold:      time.Millisecond,
		Grace:          time.Second,
		Logger:         logger,
		Observer:       observer{stats},
		Endpoints: append([]store.Endpoint{{
			Name:        "crm",
			URL:         crm.URL + "/?token=t0psecret",
			Format:      store.FormatForm,
			Secrets:     [][]byte{make([]byte, 24)},
			Events:      store.Filter{"call.*"},
			Timeout:     time.Minute,
			Concurrency: 4,
			RingingTTL:  time.Hour,
		}}, more...),
	})
	s := &stage{exchange: &exchange{}, box: box}
	s.exchange.Enable(true)
	opts := Options{
		Exchange: s.exchange,
		Outbox:   box.Outbox,
		Stats:    stats,
		Tokens:   []string{token, newToken},
		MaxBytes: 1 << 30,
		Version:  "0.0.0",
		Logger:   logger,
		Headers:  shownHeaders,
	}
	if change != nil {
		change(&opts)
	}
	d, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.dashboard = d
	s.Server = httptest.NewServer(d.Handler(http.NotFoundHandler()))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = box.Run(ctx, silence{}) })
	t.Cleanup(func() {
		d.Drain()
		s.Close()
		cancel()
		running.Wait()
	})
	s.stats, s.caller = stats, caller
	s.add(t, "5", "call.transfer_requested", "call.incoming", "call.completed")
	s.add(t, "6", "call.outgoing", "call.outgoing_answered", "call.completed")
	return s
}

// shownHeaders are the headers that a sender shows for an endpoint with a secret header.
func shownHeaders(string) http.Header {
	s := webhook.New(store.Endpoint{
		URL:         "https://crm.example/t0psecret",
		Headers:     http.Header{"Authorization": {"Bearer t0psecret"}},
		Timeout:     time.Second,
		Concurrency: 1,
	}, webhook.Options{UserAgent: "pzbridge/0.0.0"})
	defer s.Close()
	return s.Headers()
}

// observer adds the methods that Stats lacks to be an observer of the outbox.
type observer struct{ *Stats }

func (observer) Expired(string)          {}
func (observer) GivenUp(string, int)     {}
func (observer) Committed(time.Duration) {}

// add appends events of the given types to a call.
func (s *stage) add(t testing.TB, call string, kinds ...telephony.EventType) {
	t.Helper()
	for _, kind := range kinds {
		s.stats.EventReceived(kind)
		e := telephony.Event{
			ID:     uuid.Must(uuid.NewV7()).String(),
			Type:   kind,
			Time:   time.Now(),
			CallID: call,
			From:   s.caller,
			To:     "101",
		}
		if err := s.box.Append(t.Context(), []telephony.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
}

// client returns a signed-in HTTP client.
func (s *stage) client(t testing.TB) *http.Client {
	t.Helper()
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.PostForm(s.URL+"/login", url.Values{"token": {token}})
	if err != nil || resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 {
		t.Fatalf("signing in: %v, %v", resp, err)
	}
	cookie := resp.Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Secure ||
		strings.Contains(cookie.Value, token) {
		t.Errorf("the cookie is %+v", cookie)
	}
	c.Transport = withCookie{cookie}
	return c
}

type withCookie struct{ cookie *http.Cookie }

func (w withCookie) RoundTrip(r *http.Request) (*http.Response, error) {
	r.AddCookie(w.cookie)
	return http.DefaultTransport.RoundTrip(r)
}

func text(t testing.TB, resp *http.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// Without the token, or from another site, no page can be read and no action is carried out.
func TestPagesRequireTheToken(t *testing.T) {
	s := newStage(t, nil)
	signedIn := s.client(t)
	s.dashboard.wrongLogins = rate.NewLimiter(0, 5) // five attempts, however long the test takes
	stranger := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 303},
		{"GET", "/calls/5", 303},
		{"GET", "/live", 401},
		{"POST", "/actions/connection", 303},
		{"POST", "/actions/redeliver", 303},
		{"POST", "/actions/test", 303},
		{"GET", "/assets/dashboard.css", 200},
		{"GET", "/assets/", 404},
		{"GET", "/assets", 404},
		{"GET", "/assets/none", 404},
		{"GET", "/assets/%2e%2e/templates/pages.html", 404},
		{"GET", "/other", 404},
	} {
		r, _ := http.NewRequest(c.method, s.URL+c.path, nil)
		resp, err := stranger.Do(r)
		body := text(t, resp, err)
		if resp.StatusCode != c.want || strings.Contains(body, "crm") {
			t.Errorf("%s %s: %d %s", c.method, c.path, resp.StatusCode, body)
		}
	}
	if s.exchange.Connection().State != telephony.Connected {
		t.Error("a stranger has switched the connection")
	}
	for i, try := range []struct {
		token string
		want  int
	}{
		{"", 401},
		{"x", 401},
		{token + "x", 401},
		{token, 303},
		{"y", 401},
		{"z", 401},
		{"x", 429},
		{token, 303}, // the limit does not apply to the right token
	} {
		resp, err := stranger.PostForm(s.URL+"/login", url.Values{"token": {try.token}})
		if text(t, resp, err); resp.StatusCode != try.want {
			t.Errorf("attempt %d: %d", i, resp.StatusCode)
		}
	}
	r, _ := http.NewRequest("POST", s.URL+"/actions/connection", strings.NewReader("enabled=false"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := signedIn.Do(r)
	if text(t, resp, err); resp.StatusCode != http.StatusForbidden ||
		s.exchange.Connection().State != telephony.Connected {
		t.Errorf("from another site: %d", resp.StatusCode)
	}
}

// While the operator's token is being replaced, both tokens are valid. A session of the old token
// ends when that token is removed.
func TestSessionEndsWithItsToken(t *testing.T) {
	s := newStage(t, nil)
	old := &Dashboard{opts: Options{Tokens: []string{token}, Outbox: s.box.Outbox}}
	fresh := &Dashboard{opts: Options{Tokens: []string{newToken}, Outbox: s.box.Outbox}}
	for _, shown := range []string{token, newToken} {
		form := strings.NewReader(url.Values{"token": {shown}}.Encode())
		r, _ := http.NewRequest("POST", s.URL+"/login", form)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultTransport.RoundTrip(r)
		if text(t, resp, err); resp.StatusCode != 303 || len(resp.Cookies()) != 1 {
			t.Fatalf("got %d, %v", resp.StatusCode, resp.Cookies())
		}
		r, _ = http.NewRequest("GET", s.URL+"/", nil)
		r.AddCookie(resp.Cookies()[0])
		resp, err = http.DefaultTransport.RoundTrip(r)
		if text(t, resp, err); resp.StatusCode != 200 {
			t.Errorf("signed in: %d", resp.StatusCode)
		}
		if old.Knows(r) != (shown == token) || fresh.Knows(r) != (shown == newToken) {
			t.Error("a cookie is good for another token than its own")
		}
	}
}

func TestCookieIsSecureBehindHTTPSProxy(t *testing.T) {
	for _, c := range []struct {
		behind bool
		proto  string
		want   bool
	}{
		{true, "https", true},
		{true, "https, http", true},
		{true, "http,https", false},
		{true, "", false},
		{false, "https", false},
	} {
		s := newStage(t, func(o *Options) { o.BehindProxy = c.behind })
		r, _ := http.NewRequest("POST", s.URL+"/login", strings.NewReader("token="+token))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("X-Forwarded-Proto", c.proto)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if text(t, resp, err); resp.Cookies()[0].Secure != c.want {
			t.Errorf("behind a proxy %v, %q: %+v", c.behind, c.proto, resp.Cookies()[0])
		}
	}
	s := newStage(t, func(o *Options) { o.Tokens = nil })
	resp, err := http.PostForm(s.URL+"/login", url.Values{"token": {""}})
	if body := text(t, resp, err); resp.StatusCode != 401 || !strings.Contains(body, "no API_TOKEN") {
		t.Errorf("without a token: %d %s", resp.StatusCode, body)
	}
}

// The pages show the state in both languages, and their forms work without JavaScript.
func TestPagesShowStateAndFormsWork(t *testing.T) {
	s := newStage(t, nil)
	c := s.client(t)
	get := func(path, lang string) string {
		r, _ := http.NewRequest("GET", s.URL+path, nil)
		r.Header.Set("Accept-Language", lang)
		resp, err := c.Do(r)
		body := text(t, resp, err)
		if !strings.Contains(resp.Header.Get("Content-Security-Policy"), "default-src 'none'") ||
			resp.StatusCode != 200 {
			t.Errorf("%s: %d, headers %v", path, resp.StatusCode, resp.Header)
		}
		if strings.Contains(body, "t0psecret") || strings.Contains(body, token) ||
			strings.Contains(body, "<script>document") || strings.Contains(body, "<img src=x") {
			t.Errorf("%s shows what it must not:\n%s", path, body)
		}
		return body
	}
	eventually(t, "the CRM has refused", func() bool { return strings.Contains(get("/calls/5", "en"), "HTTP 500") })
	for lang, list := range map[string][]string{
		"en": {
			"Phone system", "connected", "Test Server v1.1.2", "Pause the connection", "crm",
			"counted since", "Events received: 6", "/calls/5", "missed", `action="/calls"`,
			`href="/deliveries?endpoint=crm&amp;state=delivered"`,
		},
		"ru-RU,en;q=0.5": {
			"АТС", "соединение есть", "Приостановить соединение", "считается с", "Последние звонки",
			`lang="ru"`,
		},
		"fr": {"Phone system", "UTC"},
	} {
		body := get("/", lang)
		for _, want := range list {
			if !strings.Contains(body, want) {
				t.Errorf("%s: the page does not say %q", lang, want)
			}
		}
	}
	body := get("/calls/5", "en")
	for _, want := range []string{
		"<title>Call · &lt;script&gt;", " · missed – pzbridge</title>", "not live: reload the page",
		"call.transfer_requested", "HTTP 500", "asks where to go", "rings",
		"&lt;script&gt;", "Redeliver", "Attempts: 1",
		// the request as the CRM receives it
		"Content-Type: application/x-www-form-urlencoded", "webhook-id: ", "&amp;call_id=5&amp;sequence=1&amp;",
		"webhook-signature: made for each attempt", "Authorization: (hidden)", "User-Agent: ", "Content-Length: ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the call's page does not say %q:\n%s", want, body)
		}
	}
	resp, err := c.PostForm(s.URL+"/actions/test", url.Values{"endpoint": {"crm"}})
	if body := text(t, resp, err); !strings.Contains(body, "It was taken.") {
		t.Errorf("the test: %s", body)
	}
	resp, err = c.PostForm(s.URL+"/actions/test", url.Values{"endpoint": {"nobody"}})
	if body := text(t, resp, err); resp.StatusCode != 400 ||
		!strings.Contains(body, "There is no endpoint of that name") &&
			!strings.Contains(body, "there is no endpoint of that name") {
		t.Errorf("the test of nobody: %d %s", resp.StatusCode, body)
	}
	resp, err = c.PostForm(s.URL+"/actions/connection", url.Values{})
	if text(t, resp, err); resp.StatusCode != 400 || s.exchange.Connection().State != telephony.Connected {
		t.Errorf("a form that says nothing: %d, the connection is %s", resp.StatusCode, s.exchange.Connection().State)
	}
	resp, err = c.PostForm(s.URL+"/actions/connection", url.Values{"enabled": {"false"}})
	text(t, resp, err)
	if kept, err := s.box.Outbox.IsToConnect(t.Context()); kept || err != nil ||
		s.exchange.Connection().State != telephony.Disabled ||
		!strings.Contains(get("/", "en"), "Resume the connection") {
		t.Errorf("pausing: %v, %v", kept, err)
	}
	list, _, err := s.box.Deliveries(store.DeliveryQuery{CallID: "6", Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	resp, err = c.PostForm(s.URL+"/actions/redeliver", url.Values{"id": {list[0].ID}})
	text(t, resp, err)
	if d, _, err := s.box.Delivery(list[0].ID); resp.Header.Get("Location") != "/calls/6?again="+list[0].ID ||
		!d.Redelivered || err != nil {
		t.Errorf("redelivering: %v, %+v, %v", resp.Header, d, err)
	}
	for path, says := range map[string]string{
		resp.Header.Get("Location"):    "Sent again: call.completed → crm: delivered · HTTP 200",
		"/calls/6":                     "",
		"/calls/5?again=" + list[0].ID: "", // a delivery of another call
		"/calls/6?again=nothing":       "",
	} {
		body := get(path, "en")
		if strings.Contains(body, "Sent again") != (says != "") || !strings.Contains(body, says) ||
			strings.Contains(body, ` open>`) != (says != "") {
			t.Errorf("%s: the page does not say %q:\n%s", path, says, body)
		}
	}
	if list, _, err = s.box.Deliveries(store.DeliveryQuery{CallID: "5", Limit: 1}); err != nil ||
		list[0].State != "pending" {
		t.Fatal(list, err)
	}
	if _, err = s.box.Redeliver(list[0].ID); err != nil {
		t.Fatal(err)
	}
	body = get("/calls/5?again="+list[0].ID+"&waits=true", "en")
	if !strings.Contains(body, "Waits to be sent again: call.completed → crm<") ||
		strings.Contains(body, "Sent again") {
		t.Errorf("while it waits the page says:\n%s", body)
	}
	s.stats.began = time.Now().Add(-time.Hour) // no page is rendered meanwhile
	if body := get("/", "en"); !strings.Contains(body, "The last hour") || strings.Contains(body, "counted since") {
		t.Errorf("after an hour the page does not say that it shows the last one:\n%s", body)
	}
	s.caller = strings.Repeat("я", 10_000)
	s.add(t, "7", "call.incoming")
	if body := get("/", "en"); !strings.Contains(body, "яяя…") || strings.Count(body, "я") > 100 {
		t.Errorf("a long caller's number is %d characters on the first page", strings.Count(body, "я"))
	}
	if resp, err := c.Get(s.URL + "/calls/none"); err != nil || resp.StatusCode != 404 {
		t.Errorf("no such call: %v, %v", resp.StatusCode, err)
	}
}

// Signing out ends the sessions of all browsers and their live pages, and they stay ended after a
// restart. A stranger ends none.
func TestSigningOutEndsAllSessions(t *testing.T) {
	s := newStage(t, nil)
	mine, stolen := s.client(t), s.client(t)
	code := func(c *http.Client, method, url string) int {
		r, _ := http.NewRequest(method, url, nil)
		resp, err := c.Do(r)
		text(t, resp, err)
		return resp.StatusCode
	}
	stranger := &http.Client{CheckRedirect: mine.CheckRedirect}
	if out, in := code(stranger, "POST", s.URL+"/logout"), code(stolen, "GET", s.URL+"/"); out != 303 || in != 200 {
		t.Fatalf("a stranger signs out: %d, and then the page is %d", out, in)
	}
	watched, err := stolen.Get(s.URL + "/live")
	if err != nil {
		t.Fatal(err)
	}
	if got := code(mine, "POST", s.URL+"/logout"); got != 303 {
		t.Errorf("signing out: %d", got)
	}
	page, live := code(stolen, "GET", s.URL+"/"), code(stolen, "GET", s.URL+"/live")
	if action := code(stolen, "POST", s.URL+"/actions/connection"); page != 303 || live != 401 || action != 303 {
		t.Errorf("with a cookie of before: %d, %d, %d", page, live, action)
	}
	text(t, watched, nil) // returns when the live page ends
	restarted, err := New(s.dashboard.opts)
	if err != nil {
		t.Fatal(err)
	}
	again := httptest.NewServer(restarted.Handler(http.NotFoundHandler()))
	defer again.Close()
	if got := code(stolen, "GET", again.URL+"/"); got != 303 {
		t.Errorf("after a restart: %d", got)
	}
	signedIn := s.client(t)
	if before, after := code(signedIn, "GET", s.URL+"/"), code(signedIn, "GET", again.URL+"/"); before != 200 ||
		after != 200 {
		t.Errorf("who has signed in since: %d, after a restart %d", before, after)
	}
}

// If the generation cannot be stored, only this browser is signed out, and the page shows that.
func TestSigningOutOnAFullDisk(t *testing.T) {
	s := newStage(t, func(o *Options) { o.Outbox = fullDisk{o.Outbox} })
	c := s.client(t)
	resp, err := c.PostForm(s.URL+"/logout", nil)
	if body := text(t, resp, err); resp.StatusCode != 400 ||
		!strings.Contains(body, "only this browser is signed out") || len(resp.Cookies()) != 1 ||
		resp.Cookies()[0].MaxAge >= 0 {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Cookies(), body)
	}
}

type fullDisk struct{ Outbox }

func (fullDisk) EndSessions(context.Context) (uint64, error) {
	return 0, errors.New("no space left on device")
}

// Each sign-in with a wrong token is counted. The log has one line for many of them, without the
// token.
func TestWrongTokensAreCountedAndRarelyLogged(t *testing.T) {
	var log bytes.Buffer
	wrong := 0
	s := newStage(t, func(o *Options) {
		o.Logger, o.WrongToken = slog.New(slog.NewTextHandler(&log, nil)), func() { wrong++ }
	})
	for range 9 {
		resp, err := http.PostForm(s.URL+"/login", url.Values{"token": {"wrong-token-0123456789"}})
		text(t, resp, err)
	}
	s.client(t)
	s.Close()
	if wrong != 9 || strings.Count(log.String(), "\n") != 1 || strings.Contains(log.String(), "0123456789") {
		t.Errorf("%d are counted, the log: %s", wrong, log.String())
	}
}

// The pages are bounded in bytes, whatever the exchange has sent: a call's events are paged, and of
// long requests and values only the beginning is shown.
func TestPagesAreBounded(t *testing.T) {
	s := newStageOf(t, "1", nil)
	c := s.client(t)
	page := func(path string) string {
		resp, err := c.Get(s.URL + path)
		body := text(t, resp, err)
		if resp.StatusCode != 200 || len(body) > 4<<20 {
			t.Errorf("%s: %d, %d bytes", path, resp.StatusCode, len(body))
		}
		return body
	}
	const events = 120
	long := strings.Repeat("9", 260<<10)
	var batch []telephony.Event
	for i := range events {
		e := telephony.Event{
			ID:     uuid.Must(uuid.NewV7()).String(),
			Type:   "call.outgoing",
			Time:   time.Now(),
			CallID: "77",
			From:   fmt.Sprintf("from-%d-", i),
			To:     "101",
		}
		e.Text = strings.Repeat("<", 100<<10)
		batch = append(batch, e)
	}
	batch = append(batch, telephony.Event{
		ID:     uuid.Must(uuid.NewV7()).String(),
		Type:   "call.outgoing",
		Time:   time.Now(),
		CallID: long,
		From:   "1",
	})
	if err := s.box.Append(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	s.exchange.mu.Lock()
	s.exchange.c.ServerVersion = long
	s.exchange.mu.Unlock()
	if body := page("/"); strings.Count(body, "9") > 2000 || !strings.Contains(body, long[:64]+"…") {
		t.Errorf("the first page has %d characters of long values:\n%.3000s", strings.Count(body, "9"), body)
	}
	body := page("/calls/77")
	for _, want := range []string{"The request is too long to be shown whole.", "Later events", "from-0-"} {
		if !strings.Contains(body, want) {
			t.Errorf("the call's page does not say %q", want)
		}
	}
	pages, shown := 1, strings.Count(body, `<section class="event card">`)
	for next := regexp.MustCompile(`/calls/77\?after=\d+`); next.MatchString(body); pages++ {
		body = page(next.FindString(body))
		shown += strings.Count(body, `<section class="event card">`)
	}
	if shown != events || !strings.Contains(body, "From the beginning") || strings.Contains(body, "Later events") {
		t.Errorf("%d events on %d pages", shown, pages)
	}
}

// At most maxWatchers pages are live, since each is rendered every second.
func TestLivePagesAreBounded(t *testing.T) {
	s := newStage(t, nil)
	c := s.client(t)
	watch := func() *http.Response {
		resp, err := c.Get(s.URL + "/live")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	var watching []*http.Response
	for range maxWatchers {
		watching = append(watching, watch())
	}
	if resp := watch(); watching[maxWatchers-1].StatusCode != 200 || resp.StatusCode != http.StatusTooManyRequests ||
		resp.Header.Get("Retry-After") == "" {
		t.Errorf("the last is %d, one too many is %d %v",
			watching[maxWatchers-1].StatusCode, resp.StatusCode, resp.Header)
	}
	watching[0].Body.Close()
	eventually(t, "there is a place again", func() bool { return watch().StatusCode == 200 })
}

// eventually waits up to 20 s until a condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s it is not so: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// browser starts Chromium and returns a tab of it. Without Chromium, and with -short, it skips the
// test.
func browser(t *testing.T) context.Context {
	t.Helper()
	if testing.Short() {
		t.Skip("a browser takes its time")
	}
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium on this machine")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.Flag("no-sandbox", true),
		chromedp.Flag("disable-quic", true),
		// A browser treats 127.0.0.1 like HTTPS. The operator's browser reaches the bridge under
		// another name.
		chromedp.Flag("host-resolver-rules", "MAP bridge.test 127.0.0.1"))
	allocated, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	tab, cancel := chromedp.NewContext(allocated)
	t.Cleanup(cancel)
	return tab
}

// In a real browser, the operator signs in by keyboard, the overview updates without reloading, and
// a hostile caller's number has no effect.
func TestPagesInABrowser(t *testing.T) {
	tab := browser(t)
	s := newStage(t, nil)
	office := strings.Replace(s.URL, "127.0.0.1", "bridge.test", 1)
	var dialogs atomic.Int64
	err := chromedp.Listen(tab, func(event any) {
		if _, ok := event.(*cdppage.EventJavascriptDialogOpening); ok {
			dialogs.Add(1)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	tab, cancel := context.WithTimeout(tab, time.Minute)
	defer cancel()
	do := func(actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(tab, actions...); err != nil {
			t.Fatal(err)
		}
	}
	do(
		chromedp.EmulateViewport(1200, 900),
		chromedp.Navigate(office),
		chromedp.SendKeys("#token", token+"\n"),
		chromedp.WaitVisible("#c-6"),
	)
	await(t, tab, `document.getElementById("live").textContent === "live"`)
	// by its ID, since an update may replace the node meanwhile
	evaluate[bool](t, tab, `!document.getElementById("b-connection").focus()`)
	s.exchange.Enable(false) // as from another browser
	await(t, tab, `document.getElementById("b-connection")?.textContent === "Resume the connection"`)
	if focused := evaluate[string](t, tab, `document.activeElement.id`); focused != "b-connection" {
		t.Errorf("the focus went to %q", focused)
	}
	evaluate[bool](t, tab, `window.before = true`)
	do(chromedp.KeyEvent("\r")) // reloads the page, maybe later than the update of its effect
	await(t, tab, `window.before !== true && document.getElementById("live")?.textContent === "live"`)
	await(t, tab, `document.getElementById("b-connection")?.textContent === "Pause the connection"`)
	// While a button is pressed or text is selected, the overview is not replaced. The update
	// follows at once after that.
	pointer := func(kind string) string {
		event := `new PointerEvent("` + kind + `", {bubbles: true})`
		return `document.getElementById("b-connection").dispatchEvent(` + event + `)`
	}
	for _, use := range []struct{ begin, end string }{
		{pointer("pointerdown"), pointer("pointerup")},
		{`!getSelection().selectAllChildren(document.getElementById("h-pbx"))`, `!getSelection().removeAllRanges()`},
	} {
		evaluate[bool](t, tab, use.begin)
		evaluate[bool](t, tab, `document.getElementById("h-hour").kept = true`)
		s.add(t, "8", "call.incoming")
		await(t, tab, `news !== null`)
		if !evaluate[bool](t, tab, `document.getElementById("h-hour").kept === true`) {
			t.Errorf("in the middle of %s the page was replaced", use.begin)
		}
		evaluate[bool](t, tab, use.end)
		await(t, tab, `news === null && document.getElementById("h-hour").kept !== true`)
	}
	do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile))
	if wide := evaluate[bool](t, tab, `document.documentElement.scrollWidth > window.innerWidth`); wide {
		t.Error("the page is wider than a phone")
	}
	do(chromedp.EmulateViewport(1200, 900), chromedp.Navigate(office+"/calls/5"), chromedp.WaitVisible("details"))
	evaluate[int](t, tab, `document.querySelectorAll("details").forEach(d => d.open = true) ?? 0`)
	if n := evaluate[int](t, tab, `document.querySelectorAll("main img, main script").length`); n != 0 ||
		dialogs.Load() != 0 {
		t.Errorf("a caller's name became %d elements and %d dialogs", n, dialogs.Load())
	}
	if title := evaluate[string](t, tab, `document.title`); !strings.HasPrefix(title, "Call · <script>") {
		t.Errorf("a caller's name has set the title to %q", title)
	}
	nameless := `[...document.querySelectorAll("button, a, input:not([type=hidden])")]` +
		`.filter(e => !e.textContent.trim() && !(e.labels && e.labels.length)).length`
	if n := evaluate[int](t, tab, nameless); n != 0 {
		t.Errorf("%d buttons, links or fields have no name for a screen reader", n)
	}
	result := evaluate[string](t, tab, `(async () => {
		try { await fetch("http://127.0.0.1:1/"); return "sent" } catch (e) {
			return await new Promise(done => {
				document.addEventListener("securitypolicyviolation", v => done("forbidden by " + v.effectiveDirective));
				fetch("http://127.0.0.1:1/").catch(() => {});
			});
		}
	})()`)
	if result != "forbidden by connect-src" {
		t.Errorf("a request to another host is %s", result)
	}
}

// evaluate returns the value of an expression in the page. It awaits a promise.
func evaluate[T any](t *testing.T, tab context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(tab, chromedp.Evaluate[T](expression, func(p *runtime.EvaluateParams) {
		yes := true
		p.AwaitPromise = &yes
	}))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// await waits until an expression is true in the page.
func await(t *testing.T, tab context.Context, expression string) {
	t.Helper()
	eventually(t, expression, func() bool {
		isTrue, err := chromedp.Run(tab, chromedp.Evaluate[bool](expression))
		return err == nil && isTrue // between two pages, the evaluation fails
	})
}

// For a CRM that reads its events, the pages show the last read and the unread events instead of
// health and deliveries, and no button for a test event or a redelivery.
func TestPagesOfAReadingEndpoint(t *testing.T) {
	box := bolttest.Open(t, storetest.Options{
		Retention:      time.Hour,
		RoutingTimeout: time.Second,
		Logger:         slog.New(slog.DiscardHandler),
		Endpoints: []store.Endpoint{{
			Name:        "poller",
			Events:      store.Filter{"call.*"},
			Timeout:     time.Minute,
			Concurrency: 1,
			RingingTTL:  time.Hour,
		}},
	})
	s := newStage(t, func(o *Options) { o.Outbox = box.Outbox })
	s.box = box
	s.add(t, "8", "call.incoming", "call.completed")
	c := s.client(t)
	page := func(path string) string {
		resp, err := c.Get(s.URL + path)
		return text(t, resp, err)
	}
	body := page("/")
	for _, want := range []string{
		"reads its events itself", "<dt>Last read</dt><dd>never</dd>", "<dt>Not read yet</dt><dd>2</dd>",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not say %q:\n%s", want, body)
		}
	}
	for _, wrong := range []string{"<dt>Delivered</dt>", "Send a test", "isbad"} {
		if strings.Contains(body, wrong) {
			t.Errorf("the page says %q:\n%s", wrong, body)
		}
	}
	if body := page("/calls/8"); strings.Contains(body, "Redeliver") ||
		strings.Count(body, `<summary><span class="chip s-unread">`) != 2 {
		t.Errorf("the call's page:\n%s", body)
	}
	if _, err := box.Events(store.EventQuery{Endpoint: "poller", Limit: 1}); err != nil {
		t.Fatal(err)
	}
	if body := page("/"); strings.Contains(body, "<dd>never</dd>") ||
		!strings.Contains(body, "<dt>Not read yet</dt><dd>1</dd>") {
		t.Errorf("after it has read one:\n%s", body)
	}
}
