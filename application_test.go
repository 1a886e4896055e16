package main

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// An administrator installs a local application with a browser. From then on the portal is told of
// calls, also after a kill and when the tokens are too old, and is asked for clicks. Doctor asks
// the running bridge, and says what to do where there is something.
func TestPortalWithALocalApplication(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the bridge and doctor again and again")
	}
	onBoth(t, func(t *testing.T, more ...string) {
		server := pztest.NewServer(pztest.Options{})
		defer server.Close()
		portal := bitrix24test.New("s3cretcode")
		portal.AppOnly(true)
		portal.Install(bitrix24test.App{
			ClientID: "local.1", ClientSecret: crmKey, Scopes: []string{"crm", "telephony", "user"},
		})
		address := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/oauth/") {
				portal.OAuth().ServeHTTP(w, r)
				return
			}
			portal.ServeHTTP(w, r)
		}))
		defer address.Close()
		portal.Endpoint = address.URL + "/rest/"
		portal.Domain = address.Listener.Addr().String()
		vars := variables(t, server, &receiver{Server: address}, append([]string{
			"ENDPOINT_0_PRESET=bitrix24", "ENDPOINT_0_URL=" + address.URL, "ENDPOINT_0_SECRET=",
			"ENDPOINT_0_CLIENT_ID=local.1", "ENDPOINT_0_CLIENT_SECRET=" + crmKey,
			"ENDPOINT_0_OAUTH_URL=" + address.URL + "/oauth/token/",
			"API_TOKEN=operator-token-0123456789", "RETRY_SCHEDULE=100ms",
		}, more...)...)
		bridge := start(t, vars)
		eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })

		ends := func(id string, calls int) {
			t.Helper()
			for _, e := range []pz.Attrs{ringing(id, "73430112233"), history(id, "73430112233", "101", "0", "63")} {
				if err := server.Generate(e); err != nil {
					t.Fatal(err)
				}
			}
			has := func() bool {
				isOpen := func(c bitrix24test.Call) bool { return !c.Finished }
				return len(slices.DeleteFunc(portal.Calls(), isOpen)) == calls
			}
			// A bridge that was killed while it renewed its tokens keeps them from others for 45 s.
			for began := time.Now(); !has() && time.Since(began) < time.Minute; {
				time.Sleep(5 * time.Millisecond)
			}
			eventually(t, "the portal has the call", has)
		}
		doctor := func(args ...string) (out string, code int) {
			p := start(t, vars, append([]string{"doctor"}, args...)...)
			code = p.exitCode()
			return p.log.String(), code
		}

		if out, code := doctor(); code != 1 || !strings.Contains(out, "✗ crm: the application is not installed in the "+
			"portal yet: open the address of this bridge and /hooks/bitrix24/NAME/install") {
			t.Errorf("doctor ends with %d: %s", code, out)
		}
		install := "http://" + vars["LISTEN_ADDR"] + "/hooks/bitrix24/crm/install"
		browser := &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		get := func(query url.Values) *http.Response {
			t.Helper()
			r, err := browser.Get(install + "?" + query.Encode())
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			return r
		}
		if r := get(nil); r.StatusCode != http.StatusFound ||
			!strings.HasPrefix(r.Header.Get("Location"), address.URL+"/oauth/authorize/") {
			t.Errorf("HTTP %d leads to %s", r.StatusCode, r.Header.Get("Location"))
		}
		if r := get(portal.RedirectQuery(portal.AuthorizeCode(), "")); r.StatusCode != http.StatusOK {
			t.Fatalf("the installation: HTTP %d", r.StatusCode)
		}
		ends("1", 1)

		if err := bridge.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		bridge.exitCode()
		portal.ExpireTokens()
		bridge = start(t, vars)
		eventually(t, "the bridge runs again", func() bool { return server.Connected() == 1 })
		ends("2", 2)

		out, code := doctor("-try", "83430112233")
		if code != 0 || !strings.Contains(out, "✓ crm: the portal knows the application") ||
			!strings.Contains(out, "a missed call of 83430112233 is entered") {
			t.Errorf("doctor ends with %d: %s", code, out)
		}
		waiting := start(t, vars, "doctor", "-click")
		eventually(t, "doctor asks for a click", func() bool {
			return strings.Contains(waiting.log.String(), "→ crm: now click")
		})
		var usual bitrix24test.ClickOptions
		if _, _, err := portal.ClickInApp(t.Context(), browser, 15, "+73430112233", usual); err != nil {
			t.Error(err)
		}
		code, out = waiting.exitCode(), waiting.log.String()
		if code != 0 || !strings.Contains(out, "✓ crm: the click has come") {
			t.Errorf("doctor ends with %d: %s", code, out)
		}
		made := slices.ContainsFunc(server.Requests(), func(r pz.Request) bool {
			return r.Method == pz.MethodCall && r.Data.Get("From") == "101"
		})
		if !made {
			t.Errorf("the exchange has got %+v", server.Requests())
		}
		access, refresh := portal.Tokens()
		for _, secret := range []string{crmKey, access, refresh} {
			if log := bridge.log.String() + out; strings.Contains(log, secret) {
				t.Errorf("a secret is shown: %s", log)
			}
		}
		for _, fault := range portal.Faults() {
			t.Error(fault)
		}
	})
}
