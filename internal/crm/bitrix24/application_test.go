package bitrix24

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

const (
	clientID     = "local.0123456789"
	clientSecret = "s3cret-of-the-application"
	eventToken   = "t0ken-of-the-applications-events"
	installURL   = "https://bridge.example/hooks/bitrix24/crm/install"
)

// app is a portal that admits applications alone, with one, and a hook of the bridge.
type app struct {
	*bench
	gate *gate
	log  logtest.Buffer
	hook *Hook
	mux  *http.ServeMux
}

// inApp runs f with an application that is installed, unless with is changed by f before.
func inApp(t *testing.T, f func(a *app)) {
	t.Helper()
	with := settings(t)
	with.Application = crm.Application{
		ID: clientID, Secret: clientSecret, OAuthURL: "http://oauth.bitrix.info/oauth/token/",
	}
	inBubble(t, with, func(b *bench) {
		b.portal.AppOnly(true)
		b.portal.Install(bitrix24test.App{
			ClientID: clientID, ClientSecret: clientSecret, Token: eventToken,
			Scopes: []string{"crm", "telephony", "user"},
		})
		a := &app{bench: b, gate: &gate{}}
		a.openHook()
		f(a)
		requests, _ := b.portal.Requests()
		if text := a.log.String() + fmt.Sprint(b.attempts()); len(requests) > 0 {
			access, refresh := b.portal.Tokens()
			for _, secret := range []string{access, refresh, clientSecret, eventToken} {
				if secret != "" && strings.Contains(text, secret) {
					b.t.Errorf("a secret is shown: %s", text)
				}
			}
		}
	})
}

func (a *app) openHook() {
	a.hook = a.bench.hook(a.gate, &a.log)
	a.mux = http.NewServeMux()
	a.mux.Handle(HookPath, a.hook)
	a.mux.HandleFunc(InstallPath, a.hook.Install)
}

// client makes requests of the portal, and of browsers, to the bridge.
func (a *app) client() *http.Client {
	return &http.Client{
		Transport:     transport{a.mux},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// install has the portal tell that the application is installed.
func (a *app) install(o bitrix24test.InstallOptions) (status int) {
	a.t.Helper()
	status, err := a.portal.PostInstall(a.t.Context(), a.client(), installURL, o)
	if err != nil {
		a.t.Fatal(err)
	}
	time.Sleep(2 * installPause)
	return status
}

// open makes a request of a browser.
func (a *app) open(query string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	a.mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, installURL+"?"+query, http.NoBody))
	time.Sleep(2 * installPause)
	return w
}

// exchanges are the grants that were exchanged.
func (a *app) exchanges() (list []string) {
	requests, _ := a.portal.TokenRequests()
	for _, r := range requests {
		list = append(list, r.Grant)
	}
	return list
}

// state is how the endpoint stands, in words.
func (a *app) state() string {
	a.t.Helper()
	list, err := a.box.Outbox.Endpoints(a.t.Context())
	if err != nil || len(list) != 1 {
		a.t.Fatalf("the endpoints are %+v (%v)", list, err)
	}
	return list[0].State + " " + list[0].LastError
}

// The portal is told of calls with the tokens of the application. One that is too old is renewed,
// once for all requests.
func TestApplicationTellsOfCalls(t *testing.T) {
	inApp(t, func(a *app) {
		if status := a.install(bitrix24test.InstallOptions{}); status != http.StatusOK {
			t.Fatalf("HTTP %d", status)
		}
		a.says(telephony.EventIncoming, "7", client, "101")
		time.Sleep(90 * time.Minute)
		storetest.MustAppend(t, a.box,
			event(telephony.EventCompleted, "7", client, "101", time.Minute),
			event(telephony.EventCompleted, "8", client, "102", time.Minute),
			event(telephony.EventCompleted, "9", client, "103", time.Minute))
		time.Sleep(time.Minute)
		a.delivered(4)
		if got := a.exchanges(); !slices.Equal(got, []string{"refresh_token", "refresh_token"}) {
			t.Errorf("it exchanged %q", got)
		}
		for _, c := range a.portal.Calls() {
			if c.App != clientID || !c.Finished {
				t.Errorf("a call is %+v", c)
			}
		}
	})
}

// Until the application is installed, events wait, and it is said what to do.
func TestApplicationIsInstalledLater(t *testing.T) {
	inApp(t, func(a *app) {
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		if got := a.state(); !strings.Contains(got, "failing the application is not installed in the portal yet") {
			t.Errorf("the endpoint is %s", got)
		}
		a.install(bitrix24test.InstallOptions{})
		time.Sleep(10 * time.Minute)
		a.delivered(1)
	})
}

// An administrator installs the application in a browser: the bridge leads to the portal, and the
// portal back with a code. That works where the portal does not reach the bridge.
func TestApplicationIsInstalledInABrowser(t *testing.T) {
	inApp(t, func(a *app) {
		w := a.open("")
		if to := w.Header().Get("Location"); w.Code != http.StatusFound ||
			to != "http://firm.bitrix24.ru/oauth/authorize/?client_id="+clientID {
			t.Errorf("HTTP %d leads to %s", w.Code, to)
		}
		w = a.open(a.portal.RedirectQuery(a.portal.AuthorizeCode(), "").Encode())
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Приложение подключено") ||
			!strings.Contains(a.log.String(), "the application is installed") {
			t.Errorf("HTTP %d: %s; %s", w.Code, w.Body, a.log.String())
		}
		a.says(telephony.EventCompleted, "7", client, "199", time.Minute) // of nobody
		if c := a.one(); c.FinishedBy != 1 {
			t.Errorf("the call is %+v", c)
		}
	})
}

// What is not of the application, or not of an administrator, changes nothing.
func TestStrangersInstallNothing(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		if status := a.install(bitrix24test.InstallOptions{Forged: true}); status != http.StatusBadGateway {
			t.Errorf("forged tokens: HTTP %d", status)
		}
		for name, query := range map[string]string{
			"a wrong code":        "code=wrong&domain=firm.bitrix24.ru",
			"one who may not":     a.portal.RedirectQuery(a.portal.AuthorizeCodeOf(15), "").Encode(),
			"a code with mark-up": "code=<script>",
		} {
			w := a.open(query)
			if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "по-русски") ||
				strings.Contains(w.Body.String(), "<script>") {
				t.Errorf("%s: HTTP %d: %s", name, w.Code, w.Body)
			}
		}
		a.portal.Endpoint = "https://other.bitrix24.ru/rest/"
		if w := a.open(a.portal.RedirectQuery(a.portal.AuthorizeCode(), "").Encode()); w.Code != http.StatusBadGateway {
			t.Errorf("the tokens of another portal: HTTP %d", w.Code)
		}
		const form = "application/x-www-form-urlencoded"
		if r, err := a.client().Post(installURL, form, strings.NewReader("a=b")); err != nil ||
			r.StatusCode != http.StatusBadRequest {
			t.Errorf("without tokens: %v (%v)", r, err)
		}
		if r, err := a.client().Get("https://bridge.example/hooks/bitrix24/other/install"); err != nil ||
			r.StatusCode != http.StatusNotFound {
			t.Errorf("another endpoint: %v (%v)", r, err)
		}
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		a.delivered(1)
	})
}

// One tries to install at a time, and one in a second: each try asks the server of Bitrix24.
func TestInstallationsAreBounded(t *testing.T) {
	inApp(t, func(a *app) {
		statuses := map[int]int{}
		for range 5 {
			w := httptest.NewRecorder()
			a.mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, installURL+"?code=wrong", http.NoBody))
			statuses[w.Code]++
		}
		if statuses[http.StatusBadGateway] != 1 || statuses[http.StatusTooManyRequests] != 4 {
			t.Errorf("the answers are %v", statuses)
		}
		time.Sleep(2 * installPause)
	})
}

// What is wrong with the tokens is said with what to do, nothing is lost, and once it is mended all
// is delivered.
func TestWhatIsWrongWithTheTokensIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		breaks, mends func(a *app)
		want          string
	}{
		"a plan without": {
			func(a *app) { a.portal.RequirePayment(true) }, func(a *app) { a.portal.RequirePayment(false) },
			"failing the portal denies the request: it says «PAYMENT_REQUIRED»",
		},
		"another key": {
			func(a *app) { a.portal.WrongClient(true) }, func(a *app) { a.portal.WrongClient(false) },
			"failing Bitrix24 does not know the application: it says «wrong_client»",
		},
		"a server that fails": {
			func(a *app) { a.portal.FailToken(1) }, func(*app) {}, "the server of Bitrix24 has renewed no tokens",
		},
		"a lost answer": {
			func(a *app) { a.portal.LoseToken(1) }, func(a *app) { a.install(bitrix24test.InstallOptions{}) },
			"failing the application is to be installed anew: it says «invalid_grant»",
		},
		"it is gone": {
			func(a *app) { a.portal.Uninstall() },
			func(a *app) {
				a.portal.Install(bitrix24test.App{
					ClientID: clientID, ClientSecret: clientSecret, Scopes: []string{"crm", "telephony", "user"},
				})
				a.install(bitrix24test.InstallOptions{})
			},
			"failing the application is to be installed anew: it says «invalid_grant»",
		},
	} {
		t.Run(name, func(t *testing.T) {
			inApp(t, func(a *app) {
				a.install(bitrix24test.InstallOptions{})
				a.portal.ExpireTokens()
				c.breaks(a)
				a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
				time.Sleep(2 * time.Minute)
				said := a.state() + fmt.Sprint(a.attempts())
				if !strings.Contains(said, c.want) {
					t.Errorf("it says %s, want %s", said, c.want)
				}
				c.mends(a)
				time.Sleep(10 * time.Minute)
				a.delivered(1)
				if got := a.one(); !got.Finished {
					t.Errorf("the call is %+v", got)
				}
			})
		})
	}
}

// A question is answered in time also when its token is too old; when the server of Bitrix24 hangs,
// it is declined in time.
func TestQuestionRenewsTheTokenInTime(t *testing.T) {
	question := func(a *app) (o store.Outcome, took time.Duration) {
		began := time.Now()
		body := `{"data":{"client_number":"` + known + `","direction":"incoming"}}`
		o = a.sender.Send(a.t.Context(), store.Job{
			Event: store.Event{Type: telephony.EventTransferRequested, Call: "7", Body: []byte(body)}, IsQuestion: true,
		})
		return o, time.Since(began)
	}
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.portal.Assign(known, "CONTACT", 5, 16, "")
		a.portal.ExpireTokens()
		if o, took := question(a); o.Reply == nil || o.Reply.To != "102" || took > searchTimeout {
			t.Errorf("after %v: %+v", took, o)
		}
		a.portal.ExpireTokens()
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/oauth/") {
				<-r.Context().Done()
				return
			}
			a.portal.ServeHTTP(w, r)
		}
		o, took := question(a)
		if o.Reply == nil || o.Reply.To != "" || took != searchTimeout || o.Verdict != store.Again {
			t.Errorf("after %v: %+v", took, o)
		}
		time.Sleep(time.Minute)
	})
}

// New tokens are stored also if the one who has asked for them is cut off meanwhile.
func TestRenewalOutlivesItsRequest(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.portal.ExpireTokens()
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/oauth/") {
				time.Sleep(5 * time.Second)
				a.portal.OAuth().ServeHTTP(w, r)
				return
			}
			a.portal.ServeHTTP(w, r)
		}
		ctx, cancel := context.WithTimeout(a.t.Context(), time.Second)
		defer cancel()
		if found := a.sender.Check(ctx); len(found) != 1 || found[0].Err == nil {
			t.Errorf("the check found %+v", found)
		}
		a.sender.Close() // as at the end of the process
		access, refresh := a.portal.Tokens()
		if kept, _, o := a.sender.app.read(a.t.Context()); o.Verdict != store.Done || kept.Access != access ||
			kept.Refresh != refresh {
			t.Errorf("the tokens are %+v, want %s and %s", kept, access, refresh)
		}
	})
}

// Two bridges on one outbox renew the tokens once.
func TestTwoBridgesRenewOnce(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		second := New(a.opts.Endpoints[0], Options{
			Settings: a.with, Notes: a.box.Engine, Portals: NewPortals(), Questions: 4, DialContext: a.dial,
		})
		defer second.Close()
		for range 5 {
			a.portal.ExpireTokens()
			var both sync.WaitGroup
			for _, s := range []*Sender{a.sender, second} {
				both.Go(func() {
					if _, o := s.search(a.t.Context(), known, false, nil); o.Verdict != store.Done {
						t.Errorf("it fails: %+v", o)
					}
				})
			}
			both.Wait()
			time.Sleep(time.Minute)
		}
		if got := a.exchanges(); len(got) != 6 {
			t.Errorf("it exchanged %d times", len(got))
		}
	})
}

// A bridge that is killed while it renews tokens keeps the others waiting for a while only.
func TestKilledRenewalIsTakenOver(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		kept, version, _ := a.sender.app.read(a.t.Context())
		kept.Claim, kept.ClaimedUntil = "of a bridge that is gone", time.Now().Add(claimTime)
		if err := a.sender.app.write(a.t.Context(), kept, version); err != nil {
			t.Fatal(err)
		}
		a.portal.ExpireTokens()
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		time.Sleep(2 * claimTime)
		a.delivered(1)
	})
}

// listen has the portal tell of clicks, until the function that it returns is called.
func (a *app) listen() (stop func()) {
	ctx, cancel := context.WithCancel(a.t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = a.hook.Run(ctx) })
	time.Sleep(lookEvery + pollEvery)
	return func() {
		cancel()
		running.Wait()
	}
}

func (a *app) clickInApp(o bitrix24test.ClickOptions) (callID string, status int) {
	a.t.Helper()
	callID, status, err := a.portal.ClickInApp(a.t.Context(), a.client(), 16, known, o)
	if err != nil {
		a.t.Fatal(err)
	}
	time.Sleep(2 * pollEvery)
	synctest.Wait()
	return callID, status
}

// A portal that does not reach the bridge is asked for clicks.
func TestPortalIsAskedForClicks(t *testing.T) {
	for name, o := range map[string]bitrix24test.ClickOptions{"once": {}, "twice": {Twice: true}} {
		t.Run(name, func(t *testing.T) {
			inApp(t, func(a *app) {
				a.install(bitrix24test.InstallOptions{})
				stop := a.listen()
				callID, _ := a.clickInApp(o)
				stop()
				want := []telephony.Command{{Kind: telephony.CommandCall, From: "102", To: known}}
				if !slices.Equal(a.gate.commands(), want) {
					t.Errorf("the commands are %+v", a.gate.commands())
				}
				a.says(telephony.EventOutgoing, "7", "102", client)
				a.says(telephony.EventCompleted, "7", "102", client, time.Minute)
				if c := a.one(); c.CallID != callID || !c.Finished || c.Duration != time.Minute {
					t.Errorf("the call is %+v", c)
				}
				last, err := a.sender.LastClick(a.t.Context())
				if err != nil || last.At.IsZero() || last.Failure != "" {
					t.Errorf("the last click is %+v (%v)", last, err)
				}
				if !strings.Contains(a.log.String(), "the portal tells of clicks") {
					t.Errorf("the log is %s", a.log.String())
				}
			})
		})
	}
}

// A click for which nobody waits any more makes no call, and its card goes.
func TestOldClickMakesNoCall(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		defer a.listen()()
		a.clickInApp(bitrix24test.ClickOptions{Age: time.Hour})
		if c := a.one(); len(a.gate.commands()) > 0 || !c.Finished || c.StatusCode != "480" {
			t.Errorf("the commands are %+v, the call %+v", a.gate.commands(), c)
		}
	})
}

// While calls cannot be made, no click is taken from the portal.
func TestPortalIsNotAskedWhileTheExchangeIsAway(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.gate.isAway.Store(true)
		defer a.listen()()
		a.clickInApp(bitrix24test.ClickOptions{})
		if waiting, _ := a.portal.Offline(); waiting != 1 || len(a.gate.commands()) > 0 {
			t.Errorf("%d clicks wait, the commands are %+v", waiting, a.gate.commands())
		}
		a.gate.isAway.Store(false)
		time.Sleep(2 * pollEvery)
		synctest.Wait()
		if len(a.gate.commands()) != 1 {
			t.Errorf("the commands are %+v", a.gate.commands())
		}
	})
}

// A portal that reaches the bridge sends its clicks there, with the token that it has named when
// the application was installed. The handler is bound once, and again after an update.
func TestPortalSendsClicks(t *testing.T) {
	inApp(t, func(a *app) {
		a.hookURL = "https://bridge.example/hooks/bitrix24/crm"
		a.close()
		a.bench.open()
		a.openHook()
		a.install(bitrix24test.InstallOptions{})
		defer a.listen()()
		if _, status := a.clickInApp(bitrix24test.ClickOptions{Twice: true}); status != http.StatusOK ||
			len(a.gate.commands()) != 1 {
			t.Errorf("HTTP %d, the commands are %+v", status, a.gate.commands())
		}
		if _, status := a.clickInApp(bitrix24test.ClickOptions{WrongToken: true}); status != http.StatusForbidden {
			t.Errorf("a wrong token: HTTP %d", status)
		}
		time.Sleep(2*bindEvery + bindEvery/2)
		bound, asked := 0, 0
		for _, method := range a.made() {
			switch method {
			case "bind":
				bound++
			case "get":
				asked++
			}
		}
		if bound != 1 || asked < 3 {
			t.Errorf("the handler was bound %d times, and looked for %d times", bound, asked)
		}
		a.portal.Install(bitrix24test.App{
			ClientID: clientID, ClientSecret: clientSecret, Scopes: []string{"crm", "telephony", "user"},
		})
		a.install(bitrix24test.InstallOptions{})
		time.Sleep(2 * lookEvery)
		_, status := a.clickInApp(bitrix24test.ClickOptions{})
		if status != http.StatusOK || len(a.gate.commands()) != 2 {
			t.Errorf("after an update: HTTP %d, the commands are %+v", status, a.gate.commands())
		}
		before, _, _ := a.sender.app.read(a.t.Context())
		a.open(a.portal.RedirectQuery(a.portal.AuthorizeCode(), "").Encode())
		if kept, _, _ := a.sender.app.read(a.t.Context()); kept.Event != before.Event || kept.Access == before.Access {
			t.Errorf("a code, which comes without the token of events, leaves %+v", kept)
		}
	})
}

// That no clicks come is said once, and that they come again.
func TestListenerSaysWhatIsWrong(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		defer a.listen()()
		a.portal.Fail(3)
		time.Sleep(10 * pollRetry)
		synctest.Wait()
		log := a.log.String()
		if strings.Count(log, "the portal tells of no clicks") != 1 ||
			strings.Count(log, `msg="the portal tells of clicks"`) != 2 {
			t.Errorf("the log is %s", log)
		}
	})
}

// failingNotes fail to store the tokens some times, after they were claimed.
type failingNotes struct {
	store.Notes
	fails atomic.Int64
}

func (f *failingNotes) SetNote(
	ctx context.Context, endpoint, name string, version uint64, value []byte, until time.Time,
) error {
	if name == tokensNote && !strings.Contains(string(value), `"claim"`) && f.fails.Add(-1) >= 0 {
		return errors.New("the database is restarting")
	}
	return f.Notes.SetNote(ctx, endpoint, name, version, value, until)
}

// New tokens are stored also if the outbox fails for a while just then: there are no others.
func TestTokensAreStoredOnceTheOutboxCan(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		failing := &failingNotes{Notes: a.sender.app.notes}
		failing.fails.Store(50)
		a.sender.app.notes = failing
		a.portal.ExpireTokens()
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		time.Sleep(time.Minute)
		a.delivered(1)
	})
}

// A bridge whose claim was taken over, as by one with another clock, stores what it got all the
// same: the other was refused with the tokens that were spent.
func TestTokensOfATakenClaimCount(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		second := New(a.opts.Endpoints[0], Options{
			Settings: a.with, Notes: a.box.Engine, Portals: NewPortals(), Questions: 4, DialContext: a.dial,
		})
		defer second.Close()
		a.ignoresFaults = true // the tokens are spent twice
		a.portal.ExpireTokens()
		var first atomic.Bool
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/oauth/") {
				a.portal.ServeHTTP(w, r)
				return
			}
			isFirst := first.CompareAndSwap(false, true)
			a.portal.OAuth().ServeHTTP(w, r)
			if isFirst {
				time.Sleep(2 * time.Second)
			}
		}
		var both sync.WaitGroup
		both.Go(func() { a.sender.search(a.t.Context(), known, false, nil) })
		time.Sleep(time.Second)
		claimed, version, _ := second.app.read(a.t.Context())
		claimed.ClaimedUntil = time.Now() // for one whose clock is ahead
		if err := second.app.write(a.t.Context(), claimed, version); err != nil {
			t.Fatal(err)
		}
		both.Go(func() {
			if _, o := second.search(a.t.Context(), known, false, nil); o.Verdict != store.Done {
				t.Errorf("the second ends with %+v", o.Outcome)
			}
		})
		both.Wait()
		access, _ := a.portal.Tokens()
		if kept, _, _ := a.sender.app.read(a.t.Context()); kept.Access != access {
			t.Errorf("the tokens are %+v, want %s", kept, access)
		}
	})
}

// A claim that is longer than any is of a wrong clock, and holds nobody up. One that is not given
// up is no end of the process: the delivery is tried later.
func TestClaimsHoldNobodyUp(t *testing.T) {
	inApp(t, func(a *app) {
		var hangs atomic.Bool
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case !strings.HasPrefix(r.URL.Path, "/oauth/"):
				a.portal.ServeHTTP(w, r)
			case hangs.Load():
				<-r.Context().Done()
			default:
				a.portal.OAuth().ServeHTTP(w, r)
			}
		}
		a.install(bitrix24test.InstallOptions{})
		claim := func(until time.Duration) {
			kept, version, _ := a.sender.app.read(a.t.Context())
			kept.Claim, kept.ClaimedUntil = "of a bridge that is gone", time.Now().Add(until)
			if err := a.sender.app.write(a.t.Context(), kept, version); err != nil {
				t.Fatal(err)
			}
			a.portal.ExpireTokens()
		}
		claim(24 * time.Hour)
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		a.delivered(1)

		claim(claimTime)
		hangs.Store(true)
		a.says(telephony.EventCompleted, "8", client, "101", time.Minute)
		time.Sleep(2 * claimTime)
		if said := fmt.Sprint(a.attempts()); !strings.Contains(said, "no answer within 15s") {
			t.Errorf("the attempts are %s", said)
		}
		hangs.Store(false)
		time.Sleep(time.Hour)
		a.delivered(2)
	})
}

// What a server or a proxy repeats of a request is shown nowhere.
func TestRepeatedRequestIsNotShown(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		access, refresh := a.portal.Tokens()
		var answers atomic.Bool
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasPrefix(r.URL.Path, "/oauth/"):
				w.WriteHeader(http.StatusBadRequest)
				_ = json.NewEncoder(w).Encode(map[string]string{"error": "bad request " + r.URL.RawQuery})
				return
			case answers.Load():
				a.portal.ServeHTTP(w, r)
				return
			}
			body, _ := io.ReadAll(r.Body)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.Write(body) // which is no response
			_ = conn.Close()
		}
		said := a.open("code=the-code-of-a-browser").Body.String()
		_, o := a.sender.search(a.t.Context(), known, false, nil)
		said += o.Err.Error()
		answers.Store(true)
		a.portal.ExpireTokens()
		_, o = a.sender.search(a.t.Context(), known, false, nil)
		said += o.Err.Error() + a.log.String()
		for _, secret := range []string{access, refresh, clientSecret, "the-code-of-a-browser"} {
			if strings.Contains(said, secret) {
				t.Errorf("%s is shown: %s", secret, said)
			}
		}
	})
}

// The tokens, and the proof of events, of another application count for nothing.
func TestTokensOfAnotherApplicationAreForgotten(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.close()
		a.with.Application.ID = "local.another"
		a.bench.open()
		a.openHook()
		if _, _, o := a.sender.app.read(a.t.Context()); !errors.Is(o.Err, errNotInstalled) {
			t.Errorf("reading ends with %+v", o)
		}
		a.portal.Install(bitrix24test.App{
			ClientID: "local.another", ClientSecret: clientSecret, Scopes: []string{"crm", "telephony", "user"},
		})
		a.open(a.portal.RedirectQuery(a.portal.AuthorizeCode(), "").Encode())
		if kept, _, o := a.sender.app.read(a.t.Context()); o.Verdict != store.Done || kept.Event != "" {
			t.Errorf("the tokens are %+v (%+v)", kept, o)
		}
	})
}

// Once the process ends no exchange begins, whose tokens nobody could store; and what other bridges
// do is not waited for.
func TestNoExchangeBeginsAtTheEnd(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.portal.ExpireTokens()
		a.sender.Close()
		if _, o := a.sender.search(a.t.Context(), known, false, nil); !errors.Is(o.Err, errEnding) {
			t.Errorf("it ends with %+v", o)
		}
		if got := a.exchanges(); len(got) != 1 {
			t.Errorf("it exchanged %q", got)
		}
		kept, version, _ := a.sender.app.read(a.t.Context())
		kept.Claim, kept.ClaimedUntil = "of another bridge", time.Now().Add(claimTime)
		if err := a.sender.app.write(a.t.Context(), kept, version); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(a.t.Context(), time.Second)
		defer cancel()
		a.sender.search(ctx, known, false, nil)
		began := time.Now()
		if a.sender.Close(); time.Since(began) > 0 {
			t.Errorf("closing took %s", time.Since(began))
		}
	})
}

// An answer that is not what is documented is neither a click of now nor the end of all clicks.
func TestOddEventsOfAPortal(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		var asked atomic.Int64
		events := make(chan string, 1)
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, "event.get.json"):
				_, _ = io.WriteString(w, `{"result":{"0":{"event":"ONEXTERNALCALLSTART","offline":true}}}`)
			case strings.HasSuffix(r.URL.Path, "event.bind.json"):
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"error":"ERROR_CORE","error_description":"Unable to set event handler: `+
					`Handler already binded"}`)
			case strings.HasSuffix(r.URL.Path, "event.offline.get.json"):
				asked.Add(1)
				list := `[]`
				select {
				case list = <-events:
				default:
				}
				_, _ = io.WriteString(w, `{"result":{"events":`+list+`}}`)
			default:
				a.portal.ServeHTTP(w, r)
			}
		}
		defer a.listen()()
		for _, at := range []string{"1999-12-30 10:00:00", "", "yesterday", "1999-12-30T10:00:00+03:00"} {
			events <- `[{"EVENT_NAME":"ONEXTERNALCALLSTART","TIMESTAMP_X":"` + at + `","EVENT_DATA":` +
				`{"USER_ID":16,"PHONE_NUMBER":"` + known + `","CALL_ID":"externalCall.1"}}]`
			time.Sleep(2 * pollEvery)
		}
		synctest.Wait()
		if asked.Load() < 5 || len(a.gate.commands()) > 0 {
			t.Errorf("it asked %d times, the commands are %+v", asked.Load(), a.gate.commands())
		}
		at := time.Now().UTC().Format(time.DateTime)
		events <- `[{"EVENT_NAME":"ONEXTERNALCALLSTART","TIMESTAMP_X":"` + at + `","EVENT_DATA":` +
			`{"USER_ID":16,"PHONE_NUMBER":"` + known + `","CALL_ID":"externalCall.2"}},7,"x",null]`
		time.Sleep(2 * pollEvery)
		synctest.Wait()
		if len(a.gate.commands()) != 1 {
			t.Errorf("without a zone: the commands are %+v", a.gate.commands())
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
