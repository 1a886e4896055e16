package transferapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/bolt"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

const (
	crmToken      = "crm-token-0123456789"
	crmNewToken   = "crm-new-token-0123456789"
	operatorToken = "operator-token-0123456789"
)

// exchange records the commands and returns err for each.
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

// Answer accepts every answer, as if each call had an open question.
func (e *exchange) Answer(ctx context.Context, callID, _, _, to string) error {
	return e.Do(ctx, telephony.Command{Kind: telephony.CommandTransfer, CallID: callID, To: to})
}

// Enable changes the state.
func (e *exchange) Enable(enabled bool) {
	e.connection = telephony.Connection{State: telephony.Disabled}
	if enabled {
		e.connection.State = telephony.Connected
	}
}

func (e *exchange) Connection() telephony.Connection {
	if e.connection.State == "" {
		return telephony.Connection{State: telephony.Disconnected}
	}
	return e.connection
}

// box is a real outbox. err stands for a failure of the disk, endpoints for other states of the
// endpoints.
type box struct {
	*outbox.Outbox
	engine    *bolt.Engine
	folder    string // of the outbox's file
	err       error
	endpoints []outbox.EndpointStatus // nil: the real states
}

func (b *box) Writable(context.Context) error { return b.err }

func (b *box) Endpoints(ctx context.Context) ([]outbox.EndpointStatus, error) {
	if b.endpoints != nil {
		return b.endpoints, nil
	}
	return b.Outbox.Endpoints(ctx)
}

// openBox opens an outbox on a file in a new folder.
func openBox(t *testing.T, o storetest.Options) *box {
	t.Helper()
	folder := t.TempDir()
	o.Place = filepath.Join(folder, "outbox.db")
	o.Retention, o.RoutingTimeout, o.Logger = time.Hour, time.Second, slog.New(slog.DiscardHandler)
	opened := bolttest.Open(t, o)
	return &box{Outbox: opened.Outbox, engine: opened.Engine.(*bolt.Engine), folder: folder}
}

// changeRoute applies changes to the route of the call "5".
func (b *box) changeRoute(t *testing.T, changes ...telephony.RouteChange) {
	t.Helper()
	for _, c := range changes {
		if _, err := b.engine.ChangeRoute(t.Context(), "5", c); err != nil {
			t.Fatal(err)
		}
	}
}

// newBox opens an outbox for the endpoints "crm" and "other".
func newBox(t *testing.T) *box { return newBoxAt(t, "http://127.0.0.1:1/?token=t0psecret") }

// newBoxAt opens an outbox for the endpoints "crm" and "other" at url.
func newBoxAt(t *testing.T, url string) *box {
	t.Helper()
	var opts storetest.Options
	for _, name := range []string{"crm", "other"} {
		opts.Endpoints = append(opts.Endpoints, store.Endpoint{
			Name:        name,
			URL:         url,
			Secrets:     [][]byte{make([]byte, 24)},
			Events:      store.Filter{"call.*"},
			Timeout:     time.Second,
			Concurrency: 1,
			RingingTTL:  time.Second,
		})
	}
	return openBox(t, opts)
}

func newAPI(t *testing.T, e *exchange, o *box, log *bytes.Buffer) *API {
	t.Helper()
	a, err := New(Options{
		Exchange:       e,
		Router:         e,
		Outbox:         o,
		Backup:         o.engine,
		Bridges:        threeBridges{},
		Verdict:        allIsWell,
		Charts:         someCharts,
		Deliveries:     o,
		Events:         o,
		Calls:          o,
		Keys:           o.engine,
		Metrics:        http.NotFoundHandler(),
		Rate:           1000,
		Tokens:         map[string][]string{"crm": {crmToken, crmNewToken}, Operator: {operatorToken}},
		CommandTimeout: time.Second,
		Logger:         slog.New(slog.NewTextHandler(log, nil)),
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
	serve(a, w, r)
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

func TestCommandFieldsAreChecked(t *testing.T) {
	long := strings.Repeat("1", 64)
	for _, c := range []struct {
		path, body string
		want       telephony.Command // the command of a valid request
		field      string            // the wrong field of an invalid one; "-" if it is no field
	}{
		{
			"/v1/calls", `{"from":"101","to":"+7 343 0112233"}`,
			telephony.Command{Kind: "call", From: "101", To: "+7 343 0112233"},
			"",
		},
		{
			"/v1/calls", `{"from":"иван","to":"*8(101)-#"}`,
			telephony.Command{Kind: "call", From: "иван", To: "*8(101)-#"},
			"",
		},
		{"/v1/calls", `{"from":"101","to":"` + long + `"}`, telephony.Command{Kind: "call", From: "101", To: long}, ""},
		{"/v1/calls", `{"from":"101","to":"` + long + `1"}`, telephony.Command{}, "to"},
		{
			"/v1/calls", `{"from":"SIP/101","to":"PJSIP/ivan_i.ivanov-00000a1b"}`,
			telephony.Command{Kind: "call", From: "SIP/101", To: "PJSIP/ivan_i.ivanov-00000a1b"},
			"",
		},
		{
			"/v1/calls", `{"from":"sip:101@pbx.local","to":"+7\u00a0343\u202f011\u20112233"}`,
			telephony.Command{Kind: "call", From: "sip:101@pbx.local", To: "+7 343 011-2233"},
			"",
		},
		{"/v1/calls", `{"from":"SIP/101&SIP/102","to":"5"}`, telephony.Command{}, "from"},
		{"/v1/calls", `{"from":"101","to":"5,30,gM(x)"}`, telephony.Command{}, "to"},
		{
			"/v1/transfers", `{"call_id":"5","to":"Local/101@from-internal/n"}`,
			telephony.Command{Kind: "transfer", CallID: "5", To: "Local/101@from-internal/n"},
			"",
		},
		{
			"/v1/transfers", `{"call_id":"5","to":"\u2068101\u2069"}`,
			telephony.Command{Kind: "transfer", CallID: "5", To: "101"},
			"",
		},
		{"/v1/transfers", `{"call_id":"5","to":"\u00a0"}`, telephony.Command{}, "to"},
		{"/v1/sms", `{"from":"SIP/101","to":"\u2009102\u2009","text":"x"}`, telephony.Command{
			Kind: "sms",
			From: "SIP/101",
			To:   "102",
			Text: "x",
		}, ""},
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
		{
			"/v1/transfers", `{"call_id":"18446744073709551615","to":"101"}`,
			telephony.Command{Kind: "transfer", CallID: "18446744073709551615", To: "101"},
			"",
		},
		{"/v1/transfers", `{"call_id":"5","to":""}`, telephony.Command{Kind: "transfer", CallID: "5"}, ""},
		{"/v1/transfers", `{"call_id":"5"}`, telephony.Command{}, "to"},
		{"/v1/transfers", `{"call_id":"5","to":" "}`, telephony.Command{}, "to"},
		{"/v1/transfers", `{"to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/transfers", `{"call_id":"18446744073709551616","to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/transfers", `{"call_id":"-1","to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/transfers", `{"call_id":5,"to":"101"}`, telephony.Command{}, "call_id"},
		{"/v1/sms", `{"from":"101","to":"102","text":"Привет <&>\n"}`, telephony.Command{
			Kind: "sms",
			From: "101",
			To:   "102",
			Text: "Привет <&>\n",
		}, ""},
		{"/v1/sms", `{"from":"101","to":"102","text":" "}`, telephony.Command{}, "text"},
		{"/v1/sms", `{"from":"101","to":"102"}`, telephony.Command{}, "text"},
		{"/v1/sms", "{\"from\":\"101\",\"to\":\"102\",\"text\":\"\xff\"}", telephony.Command{}, "-"},
	} {
		e := &exchange{connection: telephony.Connection{State: telephony.Connected}}
		w := post(newAPI(t, e, newBox(t), &bytes.Buffer{}), c.path, crmToken, c.body)
		if c.field == "" {
			if w.Code != http.StatusOK || len(e.got) != 1 || e.got[0] != c.want {
				t.Errorf("%s %s: %d %s, the exchange got %+v", c.path, c.body, w.Code, w.Body, e.got)
			}
			continue
		}
		p := asProblem(t, w)
		if w.Code != http.StatusBadRequest || len(e.got) != 0 || p.Field != strings.Trim(c.field, "-") ||
			!strings.Contains(p.Detail, p.Field) {
			t.Errorf("%s %s: %d %s", c.path, c.body, w.Code, w.Body)
		}
	}
}

// A long reason of the exchange's refusal is shortened in the answer, also in the stored answer of
// an Idempotency-Key.
func TestLongRefusalIsShortened(t *testing.T) {
	e := &exchange{
		connection: telephony.Connection{State: telephony.Connected},
		err:        &telephony.RefusedError{Code: "2", Details: strings.Repeat("no", 300<<10)},
	}
	b := &keyBearers{box: newBox(t)}
	a := newAPI(t, e, b.box, &bytes.Buffer{})
	a.opts.Keys = b
	for range 2 {
		w := send(a, "POST", "/v1/calls", crmToken, `{"from":"1","to":"2"}`, "Idempotency-Key", "k")
		if p := asProblem(t, w); w.Code != 502 || len(p.Detail) > 2000 || !strings.HasSuffix(p.Detail, "…") {
			t.Errorf("%d %.300s", w.Code, w.Body)
		}
	}
	send(a, "POST", "/v1/calls", operatorToken, `{"from":"1","to":"2"}`, "Idempotency-Key", "k")
	if want := []string{"crm", "crm", "crm", Operator, Operator}; len(e.got) != 2 || !slices.Equal(b.got, want) {
		t.Errorf("%d commands; keys were taken and answered for %v", len(e.got), b.got)
	}
}

// keyBearers records the bearers for whom keys are claimed and answered.
type keyBearers struct {
	*box
	got []string
}

func (b *keyBearers) ClaimKey(
	ctx context.Context, bearer string, key [32]byte, c store.KeyClaim,
) (*store.KeyClaim, error) {
	b.got = append(b.got, bearer)
	return b.engine.ClaimKey(ctx, bearer, key, c)
}

func (b *keyBearers) SettleKey(ctx context.Context, bearer string, key [32]byte, c store.KeyClaim) error {
	b.got = append(b.got, bearer)
	return b.engine.SettleKey(ctx, bearer, key, c)
}

func TestCommandOutcomeDecidesStatus(t *testing.T) {
	for status, err := range map[int]error{
		http.StatusOK:                 nil,
		http.StatusBadGateway:         &telephony.RefusedError{Code: "2", Details: "no such extension"},
		http.StatusServiceUnavailable: telephony.ErrNotConnected,
		http.StatusGatewayTimeout:     telephony.ErrNoAnswer,
	} {
		w := post(newAPI(t, &exchange{err: err}, newBox(t), &bytes.Buffer{}), "/v1/calls", crmToken,
			`{"from":"1","to":"2"}`)
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

// Every route that reads JSON skips one byte order mark before it. A mark within the JSON is
// content, and a second one before it is an error.
func TestByteOrderMarkIsSkipped(t *testing.T) {
	const mark = "\uFEFF"
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/v1/calls", mark + `{"from":"101","to":"102"}`, 200},
		{"POST", "/v1/transfers", mark + `{"call_id":"5","to":"101"}`, 200},
		{"POST", "/v1/sms", mark + `{"from":"101","to":"102","text":"` + mark + `x"}`, 200},
		{"PUT", "/v1/connection", mark + `{"enabled":true}`, 200},
		{"POST", "/v1/redeliver", mark + `{"endpoint":"crm","since":"2026-11-23T06:25:53Z"}`, 200},
		{"POST", "/v1/calls", mark + mark + `{"from":"101","to":"102"}`, 400},
		{"POST", "/v1/calls", mark, 400},
	} {
		e := &exchange{connection: telephony.Connection{State: telephony.Connected}}
		w := send(newAPI(t, e, newBox(t), &bytes.Buffer{}), c.method, c.path, operatorToken, c.body)
		if w.Code != c.want {
			t.Errorf("%s %s %q: %d %s", c.method, c.path, c.body, w.Code, w.Body)
		}
		if len(e.got) == 1 && e.got[0].Kind == telephony.CommandSMS && e.got[0].Text != mark+"x" {
			t.Errorf("the text is %q", e.got[0].Text)
		}
	}
}

func TestRoutesRequireTheirTokens(t *testing.T) {
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
		{
			"what is the operator's", "GET", "/v1/endpoints",
			http.Header{"Authorization": {"Bearer " + crmToken}},
			"", 403,
		},
		{
			"the same by the operator", "GET", "/v1/endpoints",
			http.Header{"Authorization": {"Bearer " + operatorToken}},
			"", 200,
		},
		{
			"redelivering", "POST", "/v1/deliveries/x.crm/redeliver",
			http.Header{"Authorization": {"Bearer " + crmToken}},
			"", 403,
		},
		{"redelivering much", "POST", "/v1/redeliver", http.Header{"Authorization": {"Bearer " + crmToken}}, "", 403},
		{"a backup", "GET", "/v1/backup", http.Header{"Authorization": {"Bearer " + crmToken}}, "", 403},
		{"another method", "GET", "/v1/transfers", nil, "", 405},
		{"another method of a path with a name in it", "GET", "/v1/deliveries/x.crm/redeliver", nil, "", 405},
		{"another path", "GET", "/v1/nothing", nil, "", 404},
		{
			"no JSON", "POST", "/v1/calls",
			http.Header{"Authorization": {"Bearer " + crmToken}, "Content-Type": {"application/x-www-form-urlencoded"}},
			"from=1", 415,
		},
		{
			"too large", "POST", "/v1/calls",
			http.Header{"Authorization": {"Bearer " + crmToken}, "Content-Type": {"application/json"}},
			strings.Repeat(" ", 64<<10+1), 413,
		},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		if c.header != nil {
			r.Header = c.header
		}
		w := httptest.NewRecorder()
		serve(newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{}), w, r)
		if w.Code != c.want {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		if w.Code >= 400 && c.want != 503 {
			asProblem(t, w)
		}
		if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s may be cached, or taken for something else: %v", c.name, w.Header())
		}
		if c.want == 405 && w.Header().Get("Allow") != "POST" ||
			c.want == 401 && w.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%s: headers %v", c.name, w.Header())
		}
	}
}

func TestTokensAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	a := newAPI(t, &exchange{}, newBox(t), &log)
	post(a, "/v1/calls", crmToken, `{"from":"1","to":"2"}`)
	post(a, "/v1/calls", "a-wrong-token-0123456789", `{"from":"1","to":"2"}`)
	if text := log.String(); strings.Contains(text, "0123456789") || !strings.Contains(text, "by=crm") {
		t.Errorf("the log: %s", text)
	}
}

func TestOperatorSeesConnectionAndFaults(t *testing.T) {
	e := &exchange{connection: telephony.Connection{
		State:        telephony.Disconnected,
		Since:        time.Unix(1e9, 0),
		CloseCode:    4008,
		CloseMeaning: "the password is wrong",
		CloseCause:   telephony.Cause{Code: telephony.CodeWrongPassword},
		LastError:    "refused with HTTP 403",
		LastCause:    telephony.Cause{Code: telephony.CodeForbidden},
	}}
	o := newBox(t)
	o.err = errors.New("no space left on device")
	a := newAPI(t, e, o, &bytes.Buffer{})
	get := func(path string) (int, string) {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Authorization", "Bearer "+operatorToken)
		w := httptest.NewRecorder()
		serve(a, w, r)
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	want := `{"state":"disconnected","enabled":true,"since":"2001-09-09T01:46:40Z",` +
		`"last_close":{"code":4008,"meaning":"the password is wrong: set PZ_PASSWORD to the server's"},` +
		`"last_error":"refused with HTTP 403: check PZ_PASSWORD, and that PZ_URL is a Prostie Zvonki server"}`
	if status, body := get("/v1/connection"); status != 200 || body != want {
		t.Errorf("connection: %d %s", status, body)
	}
	if status, body := get("/readyz"); status != 503 || !strings.Contains(body, "no space left") ||
		!strings.Contains(body, "no connection to the Prostie Zvonki server: refused with HTTP 403: check PZ_") {
		t.Errorf("not ready: %d %s", status, body)
	}
	e.connection, o.err = telephony.Connection{State: telephony.Connected, ServerVersion: "v1"}, nil
	if status, body := get("/readyz"); status != 200 || body != `{"status":"ready"}` {
		t.Errorf("ready: %d %s", status, body)
	}
	o.endpoints = []outbox.EndpointStatus{
		{
			Name:      "crm",
			State:     "failing",
			LastError: "HTTP 500",
			Pending:   7,
		},
		{Name: "other", State: "ok"},
		{Name: "third", State: "paused", LastError: "HTTP 429"},
	}
	want = `{"status":"ready","warnings":["The endpoint crm is failing: HTTP 500. What is for it waits (7 events).",` +
		`"The endpoint third is paused: HTTP 429. What is for it waits (0 events)."]}`
	if status, body := get("/readyz"); status != 200 || body != want {
		t.Errorf("with endpoints that are not well: %d %s", status, body)
	}
}

// To a caller without the operator's token /readyz shows whether the bridge is ready and the kinds
// of faults: no names, no numbers, no quoted answers.
func TestReadinessHidesDetailsFromStrangers(t *testing.T) {
	e := &exchange{connection: telephony.Connection{State: telephony.Disconnected, LastError: "closed with code 4008"}}
	o := newBox(t)
	o.err = errors.New("no space left on device")
	o.endpoints = []outbox.EndpointStatus{
		{
			Name:      "crm",
			State:     "failing",
			LastError: "HTTP 500",
			Pending:   7,
		},
		{
			Name:      "third",
			State:     "paused",
			LastError: "HTTP 429",
			Pending:   1,
		},
	}
	a := newAPI(t, e, o, &bytes.Buffer{})
	const notReady = `{"status":"not ready","problems":["The outbox cannot be written. Events wait in memory.",` +
		`"There is no connection to the Prostie Zvonki server."],"warnings":["A CRM does not take its events."]}`
	for _, authorization := range []string{"", "Bearer " + crmToken, "Bearer x", "Basic " + operatorToken} {
		r := httptest.NewRequest(http.MethodGet, "/readyz", nil)
		r.Header.Set("Authorization", authorization)
		w := httptest.NewRecorder()
		serve(a, w, r)
		if got := strings.TrimSpace(w.Body.String()); w.Code != 503 || got != notReady {
			t.Errorf("%q: %d %s", authorization, w.Code, got)
		}
	}
	if w := get(a, "/readyz", operatorToken); w.Code != 503 ||
		!strings.Contains(w.Body.String(), "no space left on device") ||
		!strings.Contains(w.Body.String(), "closed with code 4008") ||
		!strings.Contains(w.Body.String(), "third is paused: HTTP 429") {
		t.Errorf("the operator: %d %s", w.Code, w.Body)
	}
	e.connection, o.err = telephony.Connection{State: telephony.Connected}, nil
	if w := get(a, "/readyz", "x"); w.Code != 200 ||
		strings.TrimSpace(w.Body.String()) != `{"status":"ready","warnings":["A CRM does not take its events."]}` {
		t.Errorf("ready: %d %s", w.Code, w.Body)
	}
}

// Each request with a wrong token is counted. The log has one line for many of them, without the
// token.
func TestWrongTokensAreCountedAndRarelyLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		wrong := 0
		a := newAPI(t, &exchange{}, newBox(t), &log)
		a.opts.WrongToken = func() { wrong++ }
		for range 5 {
			get(a, "/v1/connection", "a-wrong-token-0123456789")
		}
		get(a, "/readyz", "a-wrong-token-0123456789")
		get(a, "/v1/connection", crmToken)
		send(a, "GET", "/v1/connection", "", "")
		if lines := strings.Count(log.String(), "\n"); wrong != 6 || lines != 1 ||
			!strings.Contains(log.String(), "remote=192.0.2.1:1234 times=1\n") {
			t.Errorf("%d counted, the log: %s", wrong, log.String())
		}
		time.Sleep(30 * time.Second)
		log.Reset()
		get(a, "/v1/connection", "a-wrong-token-0123456789")
		if !strings.Contains(log.String(), "times=6\n") || strings.Contains(log.String(), "0123456789") {
			t.Errorf("half a minute later: %s", log.String())
		}
	})
}

// request sends a request with a token, decodes the answer and returns the status.
func request(t *testing.T, a *API, method, path, token, body string, into any) int {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	serve(a, w, r)
	if w.Code >= 400 {
		asProblem(t, w)
	} else if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		t.Errorf("%s %s: %v", method, path, err)
	}
	return w.Code
}

// A CRM sees its own deliveries, the operator all of them, and only the operator redelivers.
// The API explains an error that was stored without its remedy.
func TestStoredErrorsAreExplained(t *testing.T) {
	const text, want = "no answer within 10s", "no answer within 10s (ROUTING_TIMEOUT)"
	cause := telephony.Cause{Code: telephony.CodeNoReply, Args: []string{"10s"}}
	attempts := []store.Attempt{{Error: text, Cause: cause}}
	d := showDelivery(store.DeliveryView{LastError: text, LastCause: cause}, attempts)
	if d.LastError != want || d.LastAttempts[0].Error != want {
		t.Errorf("%+v", d)
	}
	route := showRoute(telephony.Route{
		Transfer:      telephony.TransferFailed,
		TransferError: text,
		TransferCause: cause,
	}, func(string) bool { return true })
	if route.Transfer.Error != want {
		t.Errorf("%+v", route.Transfer)
	}
}

func TestDeliveriesAreListedAndRedelivered(t *testing.T) {
	o := newBox(t)
	var ids []string
	for range 3 {
		e := telephony.Event{
			ID:     uuid.Must(uuid.NewV7()).String(),
			Type:   telephony.EventCompleted,
			Time:   time.Now(),
			CallID: "5",
		}
		ids = append(ids, e.ID)
		if _, err := o.Append(t.Context(), []telephony.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	a := newAPI(t, &exchange{}, o, &bytes.Buffer{})
	var page struct {
		Deliveries []delivery
		NextCursor string `json:"next_cursor"`
	}
	for _, c := range []struct {
		token, query string
		status, n    int
	}{
		{operatorToken, "", 200, 6},
		{crmToken, "", 200, 3},
		{crmToken, "?endpoint=crm&state=pending&call_id=5", 200, 3},
		{crmToken, "?endpoint=other", 403, 0},
		{operatorToken, "?endpoint=other", 200, 3},
		{operatorToken, "?state=dead", 200, 0},
		{operatorToken, "?call_id=6", 200, 0},
		{operatorToken, "?state=lost", 400, 0},
		{operatorToken, "?limit=0", 400, 0},
		{operatorToken, "?limit=501", 400, 0},
		{operatorToken, "?cursor=x", 400, 0},
		{operatorToken, "?sate=dead", 400, 0},
		{operatorToken, "?state=%", 400, 0},
	} {
		page.Deliveries = nil
		if status := request(t, a, "GET", "/v1/deliveries"+c.query, c.token, "", &page); status != c.status ||
			len(page.Deliveries) != c.n {
			t.Errorf("%s: %d, %d deliveries", c.query, status, len(page.Deliveries))
		}
	}
	page.Deliveries = nil
	request(t, a, "GET", "/v1/deliveries?limit=4", operatorToken, "", &page)
	first := page.Deliveries
	page.Deliveries = nil
	request(t, a, "GET", "/v1/deliveries?limit=4&cursor="+page.NextCursor, operatorToken, "", &page)
	if len(first) != 4 || len(page.Deliveries) != 2 {
		t.Errorf("the second page: %+v", page)
	}
	if first[0].ID != ids[2]+".crm" || !first[0].Held || first[0].Sequence != 3 ||
		first[0].NextAttemptAt != (time.Time{}) {
		t.Errorf("the newest: %+v", first[0])
	}
	var one delivery
	if status := request(t, a, "GET", "/v1/deliveries/"+ids[0]+".crm", crmToken, "", &one); status != 200 ||
		one.Held || one.NextAttemptAt.IsZero() {
		t.Errorf("one: %d %+v", status, one)
	}
	if status := request(t, a, "GET", "/v1/deliveries/"+ids[0]+".other", crmToken, "", &one); status != 404 {
		t.Errorf("somebody else's: %d", status)
	}
	if status := request(
		t, a, "POST", "/v1/deliveries/"+ids[0]+".other/redeliver", operatorToken, "", &one,
	); status != 202 || !one.Redelivered {
		t.Errorf("redelivered: %d %+v", status, one)
	}
	if status := request(
		t, a, "POST", "/v1/deliveries/"+ids[0]+".nobody/redeliver", operatorToken, "", &one,
	); status != 400 {
		t.Errorf("redelivered to nobody: %d", status)
	}
	var all struct {
		Deliveries *int
		DryRun     bool `json:"dry_run"`
	}
	for body, want := range map[string]int{
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","until":"2020-01-02T00:00:00+05:00",` +
			`"states":["dead","expired","delivered"],"types":["call.completed"],"dry_run":true}`: 200,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z"}`: 200,
		`{"endpoint":"crm"}`: 400,
		`{}`:                 400,
		`{"endpoint":"nobody","since":"2020-01-01T00:00:00Z"}`:                   400,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","states":["pending"]}`: 400,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","types":["call"]}`:     400,
		`{"endpoint":"crm","since":"yesterday"}`:                                 400,
		`{"endpoint":"crm","since":""}`:                                          400,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","dry_run":"yes"}`:      400,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","dryrun":true}`:        400,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z"} {}`:                   400,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","dry_run":null}`:       400,
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","Dry_run":true}`:       400,
		`[]`:   400,
		`null`: 400,
	} {
		all.Deliveries = nil
		if status := request(t, a, "POST", "/v1/redeliver", operatorToken, body, &all); status != want ||
			status == 200 && (all.Deliveries == nil || *all.Deliveries != 0) {
			t.Errorf("%s: %d %+v", body, status, all)
		}
	}
	for body, want := range map[string]string{
		`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","states":["foo"]}`: "states",
		`{"endpoint":"crm","dry_run":true}`:                                  "since",
		`{"endpoint":"crm","dry_run":null}`:                                  "dry_run",
		`{"endpoint":"crm","Dry_run":true}`:                                  "Dry_run",
		`{"endpoint":"crm","dryrun":true}`:                                   "dryrun",
		`{"endpoint":"crm","types":"call.completed"}`:                        "types",
	} {
		if p := asProblem(t, send(a, "POST", "/v1/redeliver", operatorToken, body)); p.Field != want {
			t.Errorf("%s: the field is %q", body, p.Field)
		}
	}
	var endpoints struct {
		Endpoints []struct {
			Name, State string
			Deliveries  struct{ Pending int }
		}
	}
	request(t, a, "GET", "/v1/endpoints", operatorToken, "", &endpoints)
	if len(endpoints.Endpoints) != 2 || endpoints.Endpoints[0].Name != "crm" || endpoints.Endpoints[0].State != "ok" ||
		endpoints.Endpoints[0].Deliveries.Pending != 3 {
		t.Errorf("endpoints: %+v", endpoints)
	}
}

// A backup that cannot be made is answered with an error and logged.
func TestFailedBackupIsReported(t *testing.T) {
	o := newBox(t)
	var log bytes.Buffer
	a := newAPI(t, &exchange{}, o, &log)
	// The outbox would create a missing folder again, so a file takes its place.
	if err := errors.Join(os.RemoveAll(o.folder), os.WriteFile(o.folder, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if status := request(t, a, "GET", "/v1/backup", operatorToken, "", nil); status != 500 ||
		!strings.Contains(log.String(), "backup cannot be made") {
		t.Errorf("%d, %s", status, log.String())
	}
}

// slowReader blocks in Write until take is closed. It closes started at the first Write.
type slowReader struct {
	*httptest.ResponseRecorder
	started, take chan struct{}
	once          sync.Once
}

func (s *slowReader) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.started) })
	<-s.take
	return s.ResponseRecorder.Write(b)
}

// While a caller reads a backup slowly, another one is refused: each needs a copy of the whole file
// on the disk.
func TestOneBackupAtATime(t *testing.T) {
	a := newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{})
	doRequest := func(w http.ResponseWriter) {
		r := httptest.NewRequest(http.MethodGet, "/v1/backup", nil)
		r.Header.Set("Authorization", "Bearer "+operatorToken)
		a.ServeHTTP(w, r)
	}
	slow := &slowReader{
		ResponseRecorder: httptest.NewRecorder(), started: make(chan struct{}), take: make(chan struct{}),
	}
	var first sync.WaitGroup
	first.Go(func() { doRequest(slow) })
	<-slow.started
	second := httptest.NewRecorder()
	if doRequest(second); second.Code != http.StatusTooManyRequests || second.Header().Get("Retry-After") == "" {
		t.Errorf("beside a slow one: %d", second.Code)
	}
	close(slow.take)
	first.Wait()
	third := httptest.NewRecorder()
	if doRequest(third); slow.Code != http.StatusOK || third.Code != http.StatusOK {
		t.Errorf("the slow one: %d, one after it: %d", slow.Code, third.Code)
	}
}

// A backup that is read over a real connection opens as an outbox.
func TestBackupOpensAsOutbox(t *testing.T) {
	o := newBox(t)
	if _, err := o.Append(t.Context(), []telephony.Event{{
		ID:     uuid.NewString(),
		Type:   telephony.EventCompleted,
		Time:   time.Now(),
		CallID: "5",
	}}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(newAPI(t, &exchange{}, o, &bytes.Buffer{}))
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v1/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+operatorToken)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	copied, err := io.ReadAll(resp.Body)
	if err != nil || int64(len(copied)) != resp.ContentLength ||
		!strings.Contains(resp.Header.Get("Content-Disposition"), "outbox-") {
		t.Fatalf("%d bytes, %v, %v", len(copied), resp.Header, err)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(path, copied, 0o600); err != nil {
		t.Fatal(err)
	}
	restored := bolttest.Open(t, storetest.Options{
		Place:     path,
		Endpoints: []store.Endpoint{},
		Logger:    slog.New(slog.DiscardHandler),
	})
	if list, _, err := restored.Deliveries(store.DeliveryQuery{Limit: 10}); len(list) != 2 || err != nil {
		t.Errorf("%d deliveries, %v", len(list), err)
	}
}

func TestSharedTokenIsRejected(t *testing.T) {
	_, err := New(Options{
		Exchange:       &exchange{},
		Router:         &exchange{},
		Outbox:         newBox(t),
		Backup:         newBox(t).engine,
		Bridges:        threeBridges{},
		Verdict:        allIsWell,
		Charts:         someCharts,
		Deliveries:     newBox(t),
		Events:         newBox(t),
		Calls:          newBox(t),
		Keys:           newBox(t).engine,
		Metrics:        http.NotFoundHandler(),
		Rate:           1,
		Tokens:         map[string][]string{"a": {crmToken}, "b": {crmNewToken, crmToken}},
		CommandTimeout: time.Second,
		Logger:         slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "same token") || strings.Contains(err.Error(), crmToken) {
		t.Errorf("got %v", err)
	}
}

// redeliveries records the redelivery that is requested.
type redeliveries struct {
	*box
	got store.Redelivery
}

func (a *redeliveries) RedeliverAll(_ context.Context, r store.Redelivery) (uint32, int, error) {
	a.got = r
	return 3, 7, nil
}

// Every filter of the request reaches the outbox.
func TestRedeliveryPassesEveryFilter(t *testing.T) {
	o := &redeliveries{box: newBox(t)}
	a := newAPI(t, &exchange{}, o.box, &bytes.Buffer{})
	a.opts.Deliveries = o
	var counted struct{ Deliveries int }
	body := `{"endpoint":"crm","since":"2026-11-23T06:25:53Z","until":"2026-11-24T06:25:53Z",` +
		`"states":["dead","missing"],"types":["call.completed"],"dry_run":true}`
	status := request(t, a, "POST", "/v1/redeliver", operatorToken, body, &counted)
	want := store.Redelivery{
		Endpoint: "crm",
		Since:    time.Date(2026, 11, 23, 6, 25, 53, 0, time.UTC),
		Until:    time.Date(2026, 11, 24, 6, 25, 53, 0, time.UTC),
		States:   []string{"dead", "missing"},
		Types:    []telephony.EventType{telephony.EventCompleted},
		DryRun:   true,
	}
	if status != 200 || counted.Deliveries != 7 || !reflect.DeepEqual(o.got, want) {
		t.Errorf("%d, %d deliveries, asked for %+v", status, counted.Deliveries, o.got)
	}
}

// Without states, a redelivery selects dead and expired deliveries. Delivered ones must be named.
func TestRedeliveryDefaultsToUndelivered(t *testing.T) {
	for _, states := range []string{"", `,"states":[]`} {
		o := &redeliveries{box: newBox(t)}
		a := newAPI(t, &exchange{}, o.box, &bytes.Buffer{})
		a.opts.Deliveries = o
		body := `{"endpoint":"crm","since":"2026-11-23T06:25:53Z"` + states + `}`
		if status := request(t, a, "POST", "/v1/redeliver", operatorToken, body, &struct{}{}); status != 200 ||
			!slices.Equal(o.got.States, []string{"dead", "expired"}) {
			t.Errorf("%s: %d, asked for %+v", body, status, o.got)
		}
	}
}

// strict is a policy that allows nothing.
type strict struct{ telephony.NotAllowedError }

func (s *strict) Allow(string, telephony.Command) error { return &s.NotAllowedError }

// A command that is not allowed is answered 403 with the field, or 429 if it may be repeated later.
// Nothing is sent, and the Idempotency-Key is released.
func TestPolicyRefusalSendsNothing(t *testing.T) {
	for _, path := range []string{"/v1/calls", "/v1/sms"} {
		e := &exchange{connection: telephony.Connection{State: telephony.Connected}}
		var log bytes.Buffer
		o := newBox(t)
		policy := &strict{telephony.NotAllowedError{Text: "it is not allowed", Field: "to", Number: "+44 20"}}
		a, err := New(Options{
			Exchange:       e,
			Router:         e,
			Policy:         policy,
			Outbox:         o,
			Backup:         o.engine,
			Bridges:        threeBridges{},
			Verdict:        allIsWell,
			Charts:         someCharts,
			Deliveries:     o,
			Events:         o,
			Calls:          o,
			Keys:           o.engine,
			Metrics:        http.NotFoundHandler(),
			Rate:           1000,
			Tokens:         map[string][]string{"crm": {crmToken}},
			CommandTimeout: time.Second,
			Logger:         slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		doRequest := func() *httptest.ResponseRecorder {
			r := httptest.NewRequest(
				http.MethodPost, path, strings.NewReader(`{"from":"101","to":"+44 20","text":"x"}`),
			)
			if path == "/v1/calls" {
				r = httptest.NewRequest(http.MethodPost, path, strings.NewReader(`{"from":"101","to":"+44 20"}`))
			}
			r.Header.Set("Authorization", "Bearer "+crmToken)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Idempotency-Key", "once")
			w := httptest.NewRecorder()
			serve(a, w, r)
			return w
		}
		w := doRequest()
		if p := asProblem(t, w); w.Code != http.StatusForbidden || p.Field != "to" ||
			p.Detail != "It is not allowed." || w.Header().Get("Retry-After") != "" {
			t.Errorf("%s: %d %s %v", path, w.Code, w.Body, w.Header())
		}
		policy.RetryAfter = 1500 * time.Millisecond
		w = doRequest()
		if asProblem(t, w); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "2" ||
			w.Header().Get("Idempotency-Replayed") != "" {
			t.Errorf("%s, closed: %d %s %v", path, w.Code, w.Body, w.Header())
		}
		if len(e.got) != 0 || log.Len() != 0 { // the policy writes the log line
			t.Errorf("%s: the exchange got %+v, the log has %s", path, e.got, &log)
		}
	}
}

// The readiness of a connected bridge names the encoding of the server's messages.
func TestReadinessNamesMessageEncoding(t *testing.T) {
	e := &exchange{connection: telephony.Connection{
		State: telephony.Connected, Form: "base64", FormOfAddress: "base64",
	}}
	w := httptest.NewRecorder()
	serve(newAPI(t, e, newBox(t), &bytes.Buffer{}), w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"form":"base64"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
