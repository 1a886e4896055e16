package transferapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/telephony"
)

const (
	crmToken      = "crm-token-0123456789"
	operatorToken = "operator-token-0123456789"
)

// exchange takes commands and answers as it is told.
type exchange struct {
	got        []telephony.Command
	err        error
	connection telephony.Connection
}

func (e *exchange) Do(ctx context.Context, cmd telephony.Command) error {
	if _, ok := ctx.Deadline(); !ok {
		return errors.New("the command has no deadline")
	}
	e.got = append(e.got, cmd)
	return e.err
}

func (e *exchange) Connection() telephony.Connection { return e.connection }

type outbox struct{ err error }

func (o *outbox) Writable() error { return o.err }

func newAPI(t *testing.T, e *exchange, o *outbox, log *bytes.Buffer) *API {
	t.Helper()
	a, err := New(Options{
		Exchange: e, Outbox: o, Tokens: map[string]string{"crm": crmToken, Operator: operatorToken},
		CommandTimeout: time.Second, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func post(a *API, path, token, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

func asProblem(t *testing.T, w *httptest.ResponseRecorder) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code || p.Detail == "" ||
		w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("no problem: %d %s (%v)", w.Code, w.Body, err)
	}
	return p
}

func TestCommands(t *testing.T) {
	long := strings.Repeat("1", 64)
	for _, c := range []struct {
		path, body string
		want       telephony.Command // of a request that is right
		field      string            // of one that is wrong; "-" if no field is to blame
	}{
		{"/v1/calls", `{"from":"101","to":"+7 343 0112233"}`, telephony.Command{Kind: "call", From: "101", To: "+7 343 0112233"}, ""},
		{"/v1/calls", `{"from":"иван","to":"*8(101)-#"}`, telephony.Command{Kind: "call", From: "иван", To: "*8(101)-#"}, ""},
		{"/v1/calls", `{"from":"101","to":"` + long + `"}`, telephony.Command{Kind: "call", From: "101", To: long}, ""},
		{"/v1/calls", `{"from":"101","to":"` + long + `1"}`, telephony.Command{}, "to"},
		{"/v1/calls", `{"from":"101"}`, telephony.Command{}, "to"},
		{"/v1/calls", `{"from":"","to":"5"}`, telephony.Command{}, "from"},
		{"/v1/calls", `{"from":" ","to":"5"}`, telephony.Command{}, "from"},
		{"/v1/calls", `{"from":null,"to":"5"}`, telephony.Command{}, "from"},
		{"/v1/calls", `{"from":101,"to":"5"}`, telephony.Command{}, "from"},
		{"/v1/calls", `{"from":"1<2","to":"5"}`, telephony.Command{}, "from"},
		{"/v1/calls", `{"from":"1\n","to":"5"}`, telephony.Command{}, "from"},
		{"/v1/calls", `{"from":"1","to":"5","form":"7"}`, telephony.Command{}, "form"},
		{"/v1/calls", `{"from":"1","to":"5","x":1}`, telephony.Command{}, "x"},
		{"/v1/calls", `{"from":"1","to":"5"} {}`, telephony.Command{}, "-"},
		{"/v1/calls", `["1","5"]`, telephony.Command{}, "-"},
		{"/v1/calls", `null`, telephony.Command{}, "-"},
		{"/v1/calls", ``, telephony.Command{}, "-"},
		{"/v1/transfers", `{"call_id":"18446744073709551615","to":"101"}`, telephony.Command{Kind: "transfer", CallID: "18446744073709551615", To: "101"}, ""},
		{"/v1/transfers", `{"call_id":"5","to":""}`, telephony.Command{Kind: "transfer", CallID: "5"}, ""},
		{"/v1/transfers", `{"call_id":"5"}`, telephony.Command{}, "to"},
		{"/v1/transfers", `{"call_id":"5","to":" "}`, telephony.Command{}, "to"},
		{"/v1/transfers", `{"to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/transfers", `{"call_id":"18446744073709551616","to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/transfers", `{"call_id":"-1","to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/transfers", `{"call_id":5,"to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/sms", `{"from":"101","to":"102","text":"Привет <&>\n"}`, telephony.Command{Kind: "sms", From: "101", To: "102", Text: "Привет <&>\n"}, ""},
		{"/v1/sms", `{"from":"101","to":"102","text":" "}`, telephony.Command{}, "text"},
		{"/v1/sms", `{"from":"101","to":"102"}`, telephony.Command{}, "text"},
		{"/v1/sms", "{\"from\":\"101\",\"to\":\"102\",\"text\":\"\xff\"}", telephony.Command{}, "-"},
	} {
		e := &exchange{}
		w := post(newAPI(t, e, &outbox{}, &bytes.Buffer{}), c.path, crmToken, c.body)
		if c.field == "" {
			if w.Code != http.StatusOK || len(e.got) != 1 || e.got[0] != c.want {
				t.Errorf("%s %s: %d %s, the exchange got %+v", c.path, c.body, w.Code, w.Body, e.got)
			}
			continue
		}
		p := asProblem(t, w)
		if w.Code != http.StatusBadRequest || len(e.got) != 0 || p.Field != strings.Trim(c.field, "-") || !strings.Contains(p.Detail, p.Field) {
			t.Errorf("%s %s: %d %s", c.path, c.body, w.Code, w.Body)
		}
	}
}

func TestHowACommandCanEnd(t *testing.T) {
	for status, err := range map[int]error{
		http.StatusOK:                 nil,
		http.StatusBadGateway:         &telephony.RefusedError{Code: "2", Details: "no such extension"},
		http.StatusServiceUnavailable: telephony.ErrNotConnected,
		http.StatusGatewayTimeout:     telephony.ErrNoAnswer,
	} {
		w := post(newAPI(t, &exchange{err: err}, &outbox{}, &bytes.Buffer{}), "/v1/calls", crmToken, `{"from":"1","to":"2"}`)
		if w.Code != status {
			t.Errorf("%v: %d", err, w.Code)
		}
		if (w.Header().Get("Retry-After") != "") != (status == http.StatusServiceUnavailable) {
			t.Errorf("%v: Retry-After is %q", err, w.Header().Get("Retry-After"))
		}
		if err != nil && !strings.Contains(strings.ToLower(asProblem(t, w).Detail), strings.ToLower(err.Error())) {
			t.Errorf("%v: %s", err, w.Body)
		}
	}
}

func TestWhoMayCall(t *testing.T) {
	for _, c := range []struct {
		name, method, path string
		header             http.Header
		body               string
		want               int
	}{
		{"no token", "POST", "/v1/calls", http.Header{"Content-Type": {"application/json"}}, `{}`, 401},
		{"unknown token", "GET", "/v1/connection", http.Header{"Authorization": {"Bearer " + crmToken + "x"}}, "", 401},
		{"no bearer", "GET", "/v1/connection", http.Header{"Authorization": {"Basic " + crmToken}}, "", 401},
		{"empty token", "GET", "/v1/connection", http.Header{"Authorization": {"Bearer "}}, "", 401},
		{"the CRM's", "GET", "/v1/connection", http.Header{"Authorization": {"Bearer " + crmToken}}, "", 200},
		{"the operator's", "GET", "/v1/connection", http.Header{"Authorization": {"bearer " + operatorToken}}, "", 200},
		{"health needs none", "GET", "/healthz", nil, "", 200},
		{"readiness needs none", "GET", "/readyz", nil, "", 503},
		{"another method", "GET", "/v1/calls", nil, "", 405},
		{"another path", "GET", "/v1/nothing", nil, "", 404},
		{"no JSON", "POST", "/v1/calls", http.Header{"Authorization": {"Bearer " + crmToken}, "Content-Type": {"application/x-www-form-urlencoded"}}, "from=1", 415},
		{"too large", "POST", "/v1/calls", http.Header{"Authorization": {"Bearer " + crmToken}, "Content-Type": {"application/json"}}, strings.Repeat(" ", 64<<10+1), 413},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		if c.header != nil {
			r.Header = c.header
		}
		w := httptest.NewRecorder()
		newAPI(t, &exchange{}, &outbox{}, &bytes.Buffer{}).ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		if w.Code >= 400 && c.want != 503 {
			asProblem(t, w)
		}
		if c.want == 405 && w.Header().Get("Allow") != "POST" || c.want == 401 && w.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%s: headers %v", c.name, w.Header())
		}
	}
}

func TestTokensAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	a := newAPI(t, &exchange{}, &outbox{}, &log)
	post(a, "/v1/calls", crmToken, `{"from":"1","to":"2"}`)
	post(a, "/v1/calls", "a-wrong-token-0123456789", `{"from":"1","to":"2"}`)
	if text := log.String(); strings.Contains(text, "0123456789") || !strings.Contains(text, "by=crm") {
		t.Errorf("the log: %s", text)
	}
}

func TestConnectionAndReadiness(t *testing.T) {
	e := &exchange{connection: telephony.Connection{
		State: telephony.Disconnected, Since: time.Unix(1e9, 0), CloseCode: 4008, CloseMeaning: "the password is wrong", LastError: "closed",
	}}
	o := &outbox{err: errors.New("no space left on device")}
	a := newAPI(t, e, o, &bytes.Buffer{})
	get := func(path string) (int, string) {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Authorization", "Bearer "+crmToken)
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	want := `{"state":"disconnected","since":"2001-09-09T01:46:40Z","last_close":{"code":4008,"meaning":"the password is wrong"},"last_error":"closed"}`
	if status, body := get("/v1/connection"); status != 200 || body != want {
		t.Errorf("connection: %d %s", status, body)
	}
	if status, body := get("/readyz"); status != 503 || !strings.Contains(body, "no space left") || !strings.Contains(body, "no connection") {
		t.Errorf("not ready: %d %s", status, body)
	}
	e.connection, o.err = telephony.Connection{State: telephony.Connected, ServerVersion: "v1"}, nil
	if status, body := get("/readyz"); status != 200 || body != `{"status":"ready"}` {
		t.Errorf("ready: %d %s", status, body)
	}
}

func TestTwoBearersOfOneToken(t *testing.T) {
	_, err := New(Options{
		Exchange: &exchange{}, Outbox: &outbox{}, Tokens: map[string]string{"a": crmToken, "b": crmToken},
		CommandTimeout: time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil || strings.Contains(fmt.Sprint(err), crmToken) {
		t.Errorf("got %v", err)
	}
}
