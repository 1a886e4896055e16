package bitrix24

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// open makes a request of a browser.
func (a *app) open(query string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	a.mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, installURL+"?"+query, http.NoBody))
	time.Sleep(2 * installPause)
	return w
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

// An application with pages is installed as soon as one is opened in its frame.
func TestApplicationIsInstalledInAFrame(t *testing.T) {
	inApp(t, func(a *app) {
		status, err := a.portal.PostFrame(a.t.Context(), a.client(), installURL)
		if err != nil || status != http.StatusOK {
			t.Fatalf("HTTP %d, %v", status, err)
		}
		time.Sleep(2 * installPause)
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		a.delivered(1)
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
