package bitrix24test_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
)

// app is a local application on a portal.
type app struct {
	*client
	oauth           string // the address of the authorization server
	access, refresh string
	hook            string // an address of the application
	forms           []url.Values
}

func newApp(t *testing.T) *app {
	a := &app{client: newClient(t)}
	a.address = strings.TrimSuffix(a.address, strings.TrimPrefix(a.portal.Path(), "/rest/"))
	server := httptest.NewServer(a.portal.OAuth())
	t.Cleanup(server.Close)
	a.oauth = server.URL + "/oauth/token/"
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		a.forms = append(a.forms, r.PostForm)
	}))
	t.Cleanup(hook.Close)
	a.hook = hook.URL
	a.install(bitrix24test.InstallOptions{})
	return a
}

// install installs the application, and takes its tokens from the event.
func (a *app) install(o bitrix24test.InstallOptions) {
	a.Helper()
	a.portal.Install(bitrix24test.App{
		ClientID: "local.1", ClientSecret: "secret", Scopes: []string{"telephony", "user"}, Token: "token",
	})
	status, err := a.portal.PostInstall(a.Context(), http.DefaultClient, a.hook, o)
	if err != nil || status != http.StatusOK {
		a.Fatal(status, err)
	}
	form := a.forms[len(a.forms)-1]
	a.access, a.refresh = form.Get("auth[access_token]"), form.Get("auth[refresh_token]")
}

// body returns JSON with the access token.
func (a *app) body(fields string) string {
	return fmt.Sprintf(`{"auth":%q%s}`, a.access, fields)
}

// token asks for tokens, and returns the answer.
func (a *app) token(status int, grant, name, value string) (answer map[string]any) {
	a.Helper()
	query := url.Values{"client_id": {"local.1"}, "client_secret": {"secret"}, "grant_type": {grant}, name: {value}}
	resp, err := http.Get(a.oauth + "?" + query.Encode())
	if err != nil {
		a.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != status {
		a.Errorf("got %d %v (%v), want %d", resp.StatusCode, answer, err, status)
	}
	return answer
}

// renew refreshes the tokens.
func (a *app) renew() {
	a.Helper()
	answer := a.token(http.StatusOK, "refresh_token", "refresh_token", a.refresh)
	a.access, a.refresh = fmt.Sprint(answer["access_token"]), fmt.Sprint(answer["refresh_token"])
}

// wantTokenLog compares the requests for tokens.
func (a *app) wantTokenLog(want ...string) {
	a.Helper()
	requests, _ := a.portal.TokenRequests()
	var got []string
	for _, r := range requests {
		got = append(got, strings.TrimSpace(fmt.Sprint(r.Grant, " ", r.Status, " ", r.Error)))
	}
	if !slices.Equal(got, want) {
		a.Errorf("got the requests for tokens %q, want %q", got, want)
	}
}

func TestAnAppRegistersWhereAWebhookMayNot(t *testing.T) {
	a := newApp(t)
	fields := "," + strings.Trim(register, "{}")
	webhook := &client{T: t, portal: a.portal, address: a.address + strings.TrimPrefix(a.portal.Path(), "/rest/")}
	first := webhook.does("telephony.externalCall.register", register)["CALL_ID"]
	a.portal.AppOnly(true)
	webhook.refuses("telephony.externalCall.register", register, 403, "WRONG_AUTH_TYPE", "")
	made := a.does("telephony.externalCall.register.json", a.body(fields))["CALL_ID"]
	if made == first || made != a.does("telephony.externalCall.register", a.body(fields))["CALL_ID"] {
		t.Errorf("the webhook registered %v, the application %v", first, made)
	}
	a.want(a.portal.Calls()[1].App, "local.1")

	form := strings.NewReader("halt=0&cmd[z]=scope&cmd%5Ba%5D=profile&auth=" + a.access)
	result := a.send(a.address+"batch", "application/x-www-form-urlencoded", form, 200)
	a.want(result.Result.(map[string]any)["result"],
		"map[a:map[ADMIN:true ID:1 LAST_NAME:Orlova NAME:Olga] z:[telephony user]]")
	a.wantLog("batch 200", "z scope 200", "a profile 200")
	a.send(a.address+"user.current?auth="+a.access, "", nil, 200)
	requests, _ := a.portal.Requests()
	last := requests[len(requests)-1]
	if last.Token != a.access || last.Params["AUTH"] != nil {
		t.Errorf("got the request %+v", last)
	}
	a.refuses("crm.timeline.comment.add", a.body(""), 401, "insufficient_scope", "")
	a.refuses("profile", `{"auth":"unknown"}`, 401, "invalid_token", "")
	a.refuses("profile", `{}`, 401, "NO_AUTH_FOUND", "")
	a.wantFaults()
}

func TestTheInstallation(t *testing.T) {
	a := newApp(t)
	form := a.forms[0]
	for name, want := range map[string]string{
		"event": "ONAPPINSTALL", "data[INSTALLED]": "Y", "auth[application_token]": "token", "auth[status]": "L",
		"auth[domain]": "firm.bitrix24.ru", "auth[expires_in]": "3600", "auth[scope]": "telephony user",
		"auth[client_endpoint]": "https://firm.bitrix24.ru/rest/", "ts": fmt.Sprint(a.now.Unix()),
	} {
		a.want(form.Get(name), want)
	}
	a.does("profile", a.body(""))
	old := a.access
	a.install(bitrix24test.InstallOptions{Forged: true, Domain: "other.bitrix24.ru"})
	a.want(a.forms[1].Get("auth[domain]"), "other.bitrix24.ru")
	a.refuses("profile", a.body(""), 401, "invalid_token", "")
	a.access = old
	a.refuses("profile", a.body(""), 401, "APPLICATION_NOT_FOUND", "")
}

func TestRefresh(t *testing.T) {
	a := newApp(t)
	a.now = a.now.Add(time.Hour - time.Second)
	a.does("profile", a.body(""))
	a.now = a.now.Add(time.Second)
	a.refuses("profile", a.body(""), 401, "expired_token", "The access token provided has expired")
	old := a.refresh
	a.portal.RequirePayment(true)
	a.token(400, "refresh_token", "refresh_token", old)
	a.portal.RequirePayment(false)
	answer := a.token(200, "refresh_token", "refresh_token", old)
	a.want([]any{answer["status"], answer["user_id"], answer["domain"], answer["scope"], answer["client_endpoint"]},
		"[L 1 oauth.bitrix24.tech telephony,user https://firm.bitrix24.ru/rest/]")
	a.access, a.refresh = a.portal.Tokens()
	a.want([]any{answer["access_token"], answer["refresh_token"]}, "["+a.access+" "+a.refresh+"]")
	a.does("profile", a.body(""))
	a.wantFaults()

	a.token(400, "refresh_token", "refresh_token", old)
	early := a.refresh
	a.renew()
	a.wantFaults("The refresh token "+old+" is used again.",
		"The refresh token "+early+" is used before the access token was refused as expired.")
	a.token(400, "refresh_token", "refresh_token", "unknown")
	a.token(400, "refresh_token", "", "")
	a.token(400, "password", "", "")
	a.now = a.now.Add(180 * 24 * time.Hour)
	a.token(400, "refresh_token", "refresh_token", a.refresh)
	a.wantTokenLog("refresh_token 400 PAYMENT_REQUIRED", "refresh_token 200", "refresh_token 400 invalid_grant",
		"refresh_token 200", "refresh_token 400 invalid_grant", "refresh_token 400 invalid_request",
		"password 400 invalid_request", "refresh_token 400 invalid_grant")
}

func TestALostAnswerLosesTheTokens(t *testing.T) {
	a := newApp(t)
	a.portal.ExpireTokens()
	a.refuses("profile", a.body(""), 401, "expired_token", "")
	a.portal.FailToken(1)
	a.token(500, "refresh_token", "refresh_token", a.refresh)
	a.portal.LoseToken(1)
	query := url.Values{
		"client_id": {"local.1"}, "client_secret": {"secret"}, "grant_type": {"refresh_token"},
		"refresh_token": {a.refresh},
	}
	if resp, err := http.PostForm(a.oauth, query); err == nil {
		resp.Body.Close()
		t.Error("an answer was not lost")
	}
	a.token(400, "refresh_token", "refresh_token", a.refresh)
	requests, _ := a.portal.TokenRequests()
	if len(requests) != 3 || !requests[1].Lost || requests[1].Status != 200 {
		t.Errorf("got the requests %+v", requests)
	}
	a.wantFaults() // the client could not know
}

func TestUninstall(t *testing.T) {
	a := newApp(t)
	a.portal.Uninstall()
	a.refuses("profile", a.body(""), 401, "APPLICATION_NOT_FOUND", "Application not found")
	a.portal.ExpireTokens()
	a.refuses("profile", a.body(""), 401, "expired_token", "")
	a.token(400, "refresh_token", "refresh_token", a.refresh)
	_, err := a.portal.PostInstall(t.Context(), http.DefaultClient, a.hook, bitrix24test.InstallOptions{})
	if err == nil {
		t.Error("an application that is not installed gets an event")
	}
	a.portal.WrongClient(true)
	a.token(200, "refresh_token", "refresh_token", a.refresh)
	a.wantTokenLog("refresh_token 400 invalid_grant", "refresh_token 200 wrong_client")
	a.wantFaults()
}

func TestAnAuthorizationCodeIsValidOnceFor30Seconds(t *testing.T) {
	a := newApp(t)
	code := a.portal.AuthorizeCode()
	a.want(a.portal.RedirectQuery(code, "s").Encode(), "code="+code+"&domain=firm.bitrix24.ru"+
		"&member_id=d41d8cd98f00b204e9800998ecf8427e&scope=telephony%2Cuser&server_domain=oauth.bitrix24.tech&state=s")
	a.now = a.now.Add(30 * time.Second)
	a.access = fmt.Sprint(a.token(200, "authorization_code", "code", code)["access_token"])
	a.does("profile", a.body(""))
	a.token(400, "authorization_code", "code", code)
	code = a.portal.AuthorizeCode()
	a.now = a.now.Add(31 * time.Second)
	a.token(400, "authorization_code", "code", code)
	a.wantTokenLog("authorization_code 200", "authorization_code 400 invalid_grant",
		"authorization_code 400 invalid_grant")
	a.wantFaults()
}
