package transferapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

func get(a *API, path, token string) *httptest.ResponseRecorder {
	return send(a, http.MethodGet, path, token, "")
}

func send(a *API, method, path, token, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	serve(a, w, r)
	return w
}

func add(t *testing.T, b *box, kind telephony.EventType, call string) {
	t.Helper()
	e := telephony.Event{
		ID:     uuid.Must(uuid.NewV7()).String(),
		Type:   kind,
		Time:   time.Now(),
		CallID: call,
		From:   "1",
	}
	if _, err := b.Append(t.Context(), []telephony.Event{e}); err != nil {
		t.Fatal(err)
	}
}

// read decodes a page of events: the call IDs of the events, and the cursor.
func read(t *testing.T, w *httptest.ResponseRecorder) (calls []string, cursor string) {
	t.Helper()
	var page struct {
		Events []struct {
			Data struct {
				CallID string `json:"call_id"`
			} `json:"data"`
		} `json:"events"`
		NextCursor string `json:"next_cursor"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != http.StatusOK || page.NextCursor == "" {
		t.Fatalf("%d %s %v", w.Code, w.Body, err)
	}
	for _, e := range page.Events {
		calls = append(calls, e.Data.CallID)
	}
	return calls, page.NextCursor
}

// A CRM reads its own events in order, each once over all pages; the operator reads all events.
func TestEventsAreReadInOrder(t *testing.T) {
	b := newBox(t)
	a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
	if calls, cursor := read(t, get(a, "/v1/events", crmToken)); len(calls) != 0 || cursor != "0" {
		t.Errorf("of an empty file: %v, %s", calls, cursor)
	}
	for i := range 7 {
		// the filter is call.*
		add(t, b, []telephony.EventType{"call.incoming", "call.completed", "sms.sent"}[i%3], fmt.Sprint(i))
	}
	for limit := 1; limit < 9; limit++ {
		var all []string
		cursor := ""
		for range 9 {
			var calls []string
			calls, cursor = read(t, get(a, fmt.Sprintf("/v1/events?limit=%d&after=%s", limit, cursor), crmToken))
			all = append(all, calls...)
		}
		if !slices.Equal(all, []string{"0", "1", "3", "4", "6"}) {
			t.Errorf("by %d: %v", limit, all)
		}
	}
	if calls, _ := read(t, get(a, "/v1/events", operatorToken)); len(calls) != 7 {
		t.Errorf("the operator reads %v", calls)
	}
	calls, cursor := read(t, get(a, "/v1/events?types=call.completed,sms.sent", operatorToken))
	if !slices.Equal(calls, []string{"1", "2", "4", "5"}) || cursor != "7" {
		t.Errorf("by type: %v, %s", calls, cursor)
	}
	for _, query := range []string{
		"after=x", "after=-1", "limit=0", "limit=501", "wait=1h", "wait=-1s", "wait=soon", "types=call.lost", "since=1",
	} {
		if w := get(a, "/v1/events?"+query, crmToken); w.Code != 400 ||
			asProblem(t, w).Field != strings.Split(query, "=")[0] {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if calls, cursor := read(t, get(a, "/v1/events?after=now", operatorToken)); len(calls) != 0 || cursor != "7" {
		t.Errorf("from now on: %v, %s", calls, cursor)
	}
	if w := get(a, "/v1/events?after=99", crmToken); w.Code != http.StatusGone || asProblem(t, w).Oldest != "0" {
		t.Errorf("a cursor of another file: %d %s", w.Code, w.Body)
	}
}

// A request that waits for events is answered as soon as an event is stored, and with an empty page
// when its time is up or the API is drained.
func TestPollReturnsWhenAnEventIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
		_, cursor := read(t, get(a, "/v1/events", crmToken))
		wait := func() (calls []string, took time.Duration) {
			began := time.Now()
			calls, cursor = read(t, get(a, "/v1/events?wait=30s&after="+cursor, crmToken))
			return calls, time.Since(began)
		}
		if calls, took := wait(); len(calls) != 0 || took != 30*time.Second {
			t.Errorf("nothing happens: %v after %s", calls, took)
		}
		var adding sync.WaitGroup
		adding.Go(func() {
			time.Sleep(5 * time.Second)
			add(t, b, "sms.sent", "0") // the filter excludes it
			time.Sleep(5 * time.Second)
			add(t, b, "call.incoming", "1")
		})
		if calls, took := wait(); !slices.Equal(calls, []string{"1"}) || took != 10*time.Second {
			t.Errorf("one happens: %v after %s", calls, took)
		}
		adding.Wait()
		cursor = "now"
		adding.Go(func() {
			time.Sleep(time.Second)
			add(t, b, "sms.sent", "0")
			add(t, b, "call.incoming", "2")
		})
		if calls, took := wait(); !slices.Equal(calls, []string{"2"}) || took != time.Second {
			t.Errorf("the next one: %v after %s", calls, took)
		}
		adding.Wait()
		time.AfterFunc(time.Second, a.Drain)
		if calls, took := wait(); len(calls) != 0 || took != time.Second {
			t.Errorf("drained: %v after %s", calls, took)
		}
	})
}

func TestCallShowsAnEndpointItsOwnPart(t *testing.T) {
	b := newBox(t)
	a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
	add(t, b, "call.transfer_requested", "5")
	route, err := b.Route(t.Context(), "5")
	if err != nil {
		t.Fatal(err)
	}
	now := route.AskedAt
	b.changeRoute(t, telephony.RouteChange{
		Kind:    telephony.RouteSettle,
		EventID: route.EventID,
		Now:     now,
		Replies: []telephony.Reply{{
			By:    "other",
			Kind:  telephony.ReplyNone,
			Why:   "no answer within 10s",
			Cause: telephony.Cause{Code: telephony.CodeNoReply, Args: []string{"10s"}},
		}},
	}, telephony.RouteChange{
		Kind:    telephony.RouteAnswer,
		Now:     now,
		Replies: []telephony.Reply{{By: "crm", Kind: telephony.ReplyNumber, To: "101"}},
	}, telephony.RouteChange{
		Kind:     telephony.RouteTransferEnded,
		EventID:  route.EventID,
		Now:      now,
		Transfer: telephony.TransferDone,
	})
	add(t, b, "call.incoming", "5")
	add(t, b, "call.completed", "5")
	var all, own call
	for token, into := range map[string]*call{operatorToken: &all, crmToken: &own} {
		w := get(a, "/v1/calls/5", token)
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil || w.Code != 200 {
			t.Fatalf("%d %s %v", w.Code, w.Body, err)
		}
	}
	if len(all.Events) != 3 || len(all.Events[0].Deliveries) != 2 || len(all.Events[1].Deliveries) != 1 ||
		len(all.Routing.Replies) != 2 || all.Routing.Replies[0].Reason != "no answer within 10s (ROUTING_TIMEOUT)" ||
		len(all.Routing.Asked) != 2 || all.Routing.Winner != "crm" ||
		all.Routing.Transfer.State != "done" || all.Routing.OverAt.IsZero() {
		t.Errorf("the operator sees %+v, %+v", all, all.Routing)
	}
	if len(own.Events) != 3 || len(own.Events[0].Deliveries) != 1 || len(own.Routing.Replies) != 1 ||
		len(own.Routing.Asked) != 1 || own.Routing.Replies[0].TransferTo != "101" {
		t.Errorf("the CRM sees %+v, %+v", own, own.Routing)
	}
	add(t, b, "sms.sent", "6")
	for path, token := range map[string]string{
		"/v1/calls/6": crmToken, "/v1/calls/7": operatorToken, "/v1/calls/%20": operatorToken,
	} {
		if w := get(a, path, token); w.Code != 404 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := get(a, "/v1/calls/6", operatorToken); w.Code != 200 || strings.Contains(w.Body.String(), "routing") {
		t.Errorf("a call that has not asked: %d %s", w.Code, w.Body)
	}
}

// The command of an Idempotency-Key is carried out once, whatever its outcome. Only a command that
// was not written to the exchange may be repeated.
func TestIdempotencyKeyRepeatsTheAnswer(t *testing.T) {
	const body = `{"from":"101","to":"102"}`
	for name, c := range map[string]struct {
		err    error
		status int
		kept   bool
	}{
		"done":          {nil, 200, true},
		"refused":       {&telephony.RefusedError{Code: "2"}, 502, true},
		"no answer":     {telephony.ErrNoAnswer, 504, true},
		"not connected": {telephony.ErrNotConnected, 503, false},
		"not sent":      {telephony.ErrNotSent, 503, false},
	} {
		e := &exchange{err: c.err, connection: telephony.Connection{State: telephony.Connected}}
		b := newBox(t)
		a := newAPI(t, e, b, &bytes.Buffer{})
		first := send(a, "POST", "/v1/calls", crmToken, body, "Idempotency-Key", "k")
		e.err = nil
		// after a restart
		again := send(newAPI(t, e, b, &bytes.Buffer{}), "POST", "/v1/calls", crmToken, ` {"to":"102", "from":"101"}`,
			"Idempotency-Key", "k")
		if first.Code != c.status {
			t.Errorf("%s: %d", name, first.Code)
		}
		if c.kept && (again.Code != first.Code || again.Body.String() != first.Body.String() || len(e.got) != 1 ||
			again.Header().Get("Idempotency-Replayed") != "true" ||
			again.Header().Get("Content-Type") != first.Header().Get("Content-Type")) {
			t.Errorf("%s: again it is %d %s, %d commands", name, again.Code, again.Body, len(e.got))
		}
		if !c.kept && (again.Code != 200 || len(e.got) != 2) {
			t.Errorf("%s: again it is %d %s, %d commands", name, again.Code, again.Body, len(e.got))
		}
	}
	e := &exchange{connection: telephony.Connection{State: telephony.Connected}}
	b := newBox(t)
	a := newAPI(t, e, b, &bytes.Buffer{})
	send(a, "POST", "/v1/calls", crmToken, body, "Idempotency-Key", "k")
	for want, c := range map[int][]string{
		422: {"/v1/calls", `{"from":"101","to":"103"}`, "k", crmToken},
		400: {"/v1/calls", body, strings.Repeat("k", 256), crmToken},
		200: {"/v1/calls", body, "k", operatorToken}, // the same key of another bearer
	} {
		if w := send(a, "POST", c[0], c[3], c[1], "Idempotency-Key", c[2]); w.Code != want {
			t.Errorf("%v: %d %s", c, w.Code, w.Body)
		}
	}
	sms := `{"from":"101","to":"102","text":"x"}`
	if w := send(a, "POST", "/v1/sms", crmToken, sms, "Idempotency-Key", "k"); w.Code != 422 {
		t.Errorf("another command: %d", w.Code)
	}
	if len(e.got) != 2 {
		t.Errorf("%d commands", len(e.got))
	}
}

// Concurrent requests with one key are one command. A key that a crashed process has claimed
// carries out no command again until it expires.
func TestConcurrentRequestsWithOneKeyAreOneCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &slowExchange{}
		b := newBox(t)
		a, err := New(Options{
			Exchange:       e,
			Router:         e,
			Outbox:         b,
			Backup:         b.engine,
			Bridges:        threeBridges{},
			Verdict:        allIsWell,
			Charts:         someCharts,
			Deliveries:     b,
			Events:         b,
			Calls:          b,
			Keys:           b.engine,
			Metrics:        http.NotFoundHandler(),
			Rate:           1000,
			Tokens:         map[string][]string{"crm": {crmToken}},
			CommandTimeout: time.Minute,
			Logger:         newAPI(t, &exchange{}, b, &bytes.Buffer{}).opts.Logger,
		})
		if err != nil {
			t.Fatal(err)
		}
		call := func(key string) *httptest.ResponseRecorder {
			return send(a, "POST", "/v1/calls", crmToken, `{"from":"1","to":"2"}`, "Idempotency-Key", key)
		}
		var requests sync.WaitGroup
		for range 5 {
			requests.Go(func() {
				if w := call("k"); w.Code != 200 {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		}
		requests.Wait()
		if e.n != 1 {
			t.Errorf("%d commands", e.n)
		}
		e.crash = true
		func() {
			defer func() { _ = recover() }()
			call("crashes")
		}()
		e.crash = false
		if w := call("crashes"); w.Code != 504 || e.n != 2 {
			t.Errorf("%d %s, %d commands", w.Code, w.Body, e.n)
		}
		time.Sleep(24 * time.Hour)
		if w := call("k"); w.Code != 200 || e.n != 3 {
			t.Errorf("a day later: %d, %d commands", w.Code, e.n)
		}
	})
}

// slowExchange takes a second for a command, or panics in it as a crash would end it.
type slowExchange struct {
	exchange
	n     int
	crash bool
}

func (e *slowExchange) Do(context.Context, telephony.Command) error {
	e.n++
	if e.crash {
		panic("the process ends here")
	}
	time.Sleep(time.Second)
	return nil
}

func TestRateIsLimitedPerBearer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
		a.opts.Rate = 2
		a, err := New(a.opts)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []int{200, 200, 429, 429} {
			w := get(a, "/v1/connection", crmToken)
			if w.Code != want || (w.Header().Get("Retry-After") == "1") != (want == 429) {
				t.Errorf("request %d: %d, Retry-After %q", i, w.Code, w.Header().Get("Retry-After"))
			}
		}
		if w := get(a, "/v1/connection", operatorToken); w.Code != 200 {
			t.Errorf("another token: %d", w.Code)
		}
		time.Sleep(time.Second)
		if w := get(a, "/v1/connection", crmToken); w.Code != 200 {
			t.Errorf("a second later: %d", w.Code)
		}
	})
}

// While a CRM's token is being replaced, both tokens are the same bearer: they share its keys and
// its rate.
func TestTokensOfOneCRMShareKeysAndRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &exchange{}
		a := newAPI(t, e, newBox(t), &bytes.Buffer{})
		for _, token := range []string{crmToken, crmNewToken} {
			w := send(a, "POST", "/v1/calls", token, `{"from":"1","to":"2"}`, "Idempotency-Key", "k")
			if w.Code != 200 || len(e.got) != 1 {
				t.Errorf("%d, %d commands", w.Code, len(e.got))
			}
		}
		a.opts.Rate = 1
		a, err := New(a.opts)
		if err != nil {
			t.Fatal(err)
		}
		for token, want := range map[string]int{crmToken: 200, operatorToken: 200} {
			if w := get(a, "/v1/connection", token); w.Code != want {
				t.Errorf("got %d", w.Code)
			}
		}
		if w := get(a, "/v1/connection", crmNewToken); w.Code != 429 {
			t.Errorf("with its other token: %d", w.Code)
		}
	})
}

// The status of a transfer follows from the router's error; 409 names the winner.
func TestTransferOutcomeDecidesStatus(t *testing.T) {
	for status, err := range map[int]error{
		200: nil,
		404: telephony.ErrNeverAsked,
		409: &telephony.DecidedError{Winner: "other", To: "7"},
		410: telephony.ErrRouteClosed,
		502: &telephony.RefusedError{},
		503: telephony.ErrNotKept,
		504: telephony.ErrNoAnswer,
	} {
		e := &exchange{err: err, connection: telephony.Connection{State: telephony.Connected}}
		w := post(newAPI(t, e, newBox(t), &bytes.Buffer{}), "/v1/transfers", crmToken, `{"call_id":"5","to":"1"}`)
		if w.Code != status {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
		if status == 409 && asProblem(t, w).Winner != "other" {
			t.Errorf("the winner is not named: %s", w.Body)
		}
	}
	e := &exchange{connection: telephony.Connection{State: telephony.Disconnected}}
	a := newAPI(t, e, newBox(t), &bytes.Buffer{})
	if w := post(a, "/v1/transfers", crmToken, `{"call_id":"5","to":"1"}`); w.Code != 503 || len(e.got) != 0 {
		t.Errorf("without a connection: %d, %v", w.Code, e.got)
	}
	if w := post(a, "/v1/transfers", crmToken, `{"call_id":"5","to":""}`); w.Code != 200 || len(e.got) != 1 {
		t.Errorf("a decline without a connection: %d, %v", w.Code, e.got)
	}
	e.err = telephony.ErrCallOver
	if w := post(a, "/v1/transfers", crmToken, `{"call_id":"5","to":""}`); w.Code != 410 {
		t.Errorf("of a call that is over: %d", w.Code)
	}
	e.err = telephony.ErrOutboxFull
	if w := post(a, "/v1/calls", crmToken, `{"from":"1","to":"2"}`); w.Code != 503 {
		t.Errorf("with a full outbox: %d", w.Code)
	}
}

func TestConnectionSwitchIsStored(t *testing.T) {
	e, b := &exchange{connection: telephony.Connection{State: telephony.Connected}}, newBox(t)
	a := newAPI(t, e, b, &bytes.Buffer{})
	for _, enabled := range []bool{false, true} {
		w := send(a, "PUT", "/v1/connection", operatorToken, fmt.Sprintf(`{"enabled":%v}`, enabled))
		kept, err := b.IsToConnect(t.Context())
		if w.Code != 200 || err != nil || kept != enabled ||
			!strings.Contains(w.Body.String(), fmt.Sprintf(`"enabled":%v`, enabled)) {
			t.Errorf("%v: %d %s, kept %v, %v", enabled, w.Code, w.Body, kept, err)
		}
	}
	for _, body := range []string{
		`{}`, `{"enabled":"no"}`, `{"enable":true}`, `{"enabled":false}}`, `{"enabled":false}] more`,
		`{"enabled":false} {}`,
	} {
		if w := send(a, "PUT", "/v1/connection", operatorToken, body); w.Code != 400 {
			t.Errorf("%s: %d", body, w.Code)
		}
	}
	if w := send(a, "PUT", "/v1/connection", crmToken, `{"enabled":false}`); w.Code != 403 {
		t.Errorf("by a CRM: %d", w.Code)
	}
}

func TestResponseOfATestEventIsReturned(t *testing.T) {
	var got *http.Request
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte("short and stout"))
	}))
	defer crm.Close()
	b := newBoxAt(t, crm.URL)
	a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
	w := send(a, "POST", "/v1/endpoints/crm/test", operatorToken, "")
	var result struct {
		EventID   string `json:"event_id"`
		Delivered bool
		Status    int
		Response  string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &result); err != nil || w.Code != 200 || result.Status != 418 ||
		result.Delivered || result.Response != "short and stout" {
		t.Errorf("%d %s %v", w.Code, w.Body, err)
	}
	if got == nil || got.Header.Get("webhook-id") != result.EventID || got.Header.Get("webhook-signature") == "" {
		t.Errorf("the CRM got %+v", got)
	}
	if w := send(a, "POST", "/v1/endpoints/nobody/test", operatorToken, ""); w.Code != 404 {
		t.Errorf("of no endpoint: %d", w.Code)
	}
}

// A CRM may use the call ID as its key: the stored answer is repeated for the same question only, a
// new question of the call is carried out.
func TestReusedKeyAnswersANewQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &exchange{connection: telephony.Connection{State: telephony.Connected}}
		b := newBox(t)
		a := newAPI(t, e, b, &bytes.Buffer{})
		answers := func(to string, times int) {
			t.Helper()
			w := send(a, "POST", "/v1/transfers", crmToken, `{"call_id":"5","to":"`+to+`"}`, "Idempotency-Key", "5")
			if w.Code != 200 || len(e.got) != times {
				t.Errorf("%d, the router got %d answers, want %d", w.Code, len(e.got), times)
			}
		}
		add(t, b, "call.transfer_requested", "5")
		answers("", 1)
		answers("", 1)
		b.changeRoute(t, telephony.RouteChange{Kind: telephony.RouteSettle, Now: time.Now(), TimeUp: true})
		time.Sleep(time.Second)
		answers("", 1)
		add(t, b, "call.transfer_requested", "5")
		time.Sleep(time.Second)
		answers("", 2)
		answers("", 2)
	})
}

// A command with a key and a redelivery run to their end even if the caller has disconnected.
func TestRequestOutlivesItsConnection(t *testing.T) {
	e := &exchange{connection: telephony.Connection{State: telephony.Connected}}
	b := newBox(t)
	for i := range 600 {
		add(t, b, "call.completed", strconv.Itoa(i))
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	log := &bytes.Buffer{}
	a := newAPI(t, e, b, log)
	r := httptest.NewRequest(
		"POST", "/v1/redeliver",
		strings.NewReader(`{"endpoint":"crm","since":"2020-01-01T00:00:00Z","states":["missing"]}`),
	).WithContext(gone)
	r.Header.Set("Authorization", "Bearer "+operatorToken)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	serve(a, w, r)
	if w.Code != 200 || !strings.Contains(log.String(), "deliveries are made again") {
		t.Errorf("redelivering: %d %s %s", w.Code, w.Body, log)
	}
	ends := &endingExchange{}
	a.opts.Exchange = ends
	r = httptest.NewRequest("POST", "/v1/calls", strings.NewReader(`{"from":"1","to":"2"}`)).WithContext(gone)
	r.Header.Set("Authorization", "Bearer "+crmToken)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", "k")
	w = httptest.NewRecorder()
	serve(a, w, r)
	if w.Code != 200 || ends.err != nil {
		t.Errorf("with a key: %d %s, %v", w.Code, w.Body, ends.err)
	}
}

// endingExchange records whether a command's context has ended.
type endingExchange struct {
	exchange
	err error
}

func (e *endingExchange) Do(ctx context.Context, _ telephony.Command) error {
	e.err = ctx.Err()
	return nil
}

// waitingExchange blocks until the command's context ends.
type waitingExchange struct{ exchange }

func (e *waitingExchange) Do(ctx context.Context, _ telephony.Command) error {
	<-ctx.Done()
	return telephony.ErrNoAnswer
}

// When the server cancels its base context, a command with a key is answered too.
func TestShutdownAnswersCommandsWithKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
		a.opts.Exchange, a.opts.CommandTimeout = &waitingExchange{}, time.Hour
		requests, timeUp := context.WithCancel(t.Context())
		server := &http.Server{BaseContext: func(net.Listener) context.Context { return requests }}
		r := httptest.NewRequest("POST", "/v1/calls", strings.NewReader(`{"from":"1","to":"2"}`))
		r = r.WithContext(context.WithValue(requests, http.ServerContextKey, server))
		r.Header.Set("Authorization", "Bearer "+crmToken)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", "k")
		w := httptest.NewRecorder()
		time.AfterFunc(time.Second, timeUp)
		began := time.Now()
		serve(a, w, r)
		if w.Code != 504 || time.Since(began) != time.Second {
			t.Errorf("after %s: %d %s", time.Since(began), w.Code, w.Body)
		}
		again := send(a, "POST", "/v1/calls", crmToken, `{"from":"1","to":"2"}`, "Idempotency-Key", "k")
		if again.Code != 504 || again.Header().Get("Idempotency-Replayed") != "true" {
			t.Errorf("again: %d %s", again.Code, again.Body)
		}
	})
}

// For a CRM that reads its events, the operator sees the time of its last read, and the unread
// events as pending and not held. Unread events cause no warning.
func TestReadingEndpointIsShown(t *testing.T) {
	b := readingBox(t, store.Filter{"call.*"})
	a := newAPI(t, &exchange{connection: telephony.Connection{State: telephony.Connected}}, b, &bytes.Buffer{})
	for range 2 {
		add(t, b, "call.incoming", "5")
	}
	before := get(a, "/v1/endpoints", operatorToken).Body.String()
	want := `{"endpoints":[{"name":"crm","state":"reads",` +
		`"deliveries":{"pending":2,"delivered":0,"expired":0,"dead":0}}]}`
	if strings.TrimSpace(before) != want {
		t.Errorf("before it has read: %s", before)
	}
	list := get(a, "/v1/deliveries?state=pending", crmToken).Body.String()
	if strings.Count(list, `"state":"pending"`) != 2 || strings.Contains(list, "held") {
		t.Errorf("its deliveries: %s", list)
	}
	read(t, get(a, "/v1/events?limit=1", crmToken))
	after := get(a, "/v1/endpoints", operatorToken).Body.String()
	if !strings.Contains(after, `"last_read_at":"`) || !strings.Contains(after, `{"pending":1,"delivered":1,`) {
		t.Errorf("after it has read one: %s", after)
	}
	if ready := get(a, "/readyz", operatorToken).Body.String(); strings.Contains(ready, "crm") {
		t.Errorf("readiness: %s", ready)
	}
}

// The operator finds calls by their numbers and by what they are, and sees how their deliveries
// stand.
func TestCallsAreFound(t *testing.T) {
	b := newBox(t)
	a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
	talk := int64(5)
	for i, e := range []telephony.Event{
		{Type: "call.incoming", CallID: "1", From: "83430112233", To: "101", Direction: telephony.Incoming},
		{Type: "call.completed", CallID: "1", From: "83430112233", To: "101", Direction: telephony.Incoming},
		{
			Type:      "call.completed",
			CallID:    "2",
			From:      "101",
			To:        "+79101234567",
			Direction: telephony.Outgoing,
			Duration:  &talk,
		},
	} {
		e.ID, e.Time = uuid.Must(uuid.NewV7()).String(), time.Now().Add(time.Duration(i)*time.Millisecond)
		if _, err := b.Append(t.Context(), []telephony.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	type head struct {
		CallID    string `json:"call_id"`
		Client    string `json:"client_number"`
		Extension string
		Outcome   string
		Endpoints []callStanding
	}
	find := func(query string) (found []string, all struct {
		Calls      []head
		NextCursor string `json:"next_cursor"`
		AnyDigits  bool   `json:"any_digits"`
	},
	) {
		w := get(a, "/v1/calls"+query, operatorToken)
		if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil || w.Code != 200 {
			t.Fatalf("%s: %d %s %v", query, w.Code, w.Body, err)
		}
		for _, h := range all.Calls {
			found = append(found, h.CallID)
		}
		return found, all
	}
	for query, want := range map[string]string{
		"":                            "[2 1]",
		"?number=%2B73430112233":      "[1]",
		"?number=2233":                "[1]",
		"?number=4301":                "[1]",
		"?number=101":                 "[2 1]",
		"?direction=outgoing":         "[2]",
		"?outcome=missed":             "[1]",
		"?outcome=answered":           "[2]",
		"?state=pending&limit=1":      "[2]",
		"?state=dead":                 "[]",
		"?since=2100-01-01T00:00:00Z": "[]",
	} {
		if found, _ := find(query); fmt.Sprint(found) != want {
			t.Errorf("%s: %v, want %s", query, found, want)
		}
	}
	_, all := find("?number=4301")
	h := all.Calls[0]
	if !all.AnyDigits || h.Client != "+73430112233" || h.Extension != "101" || h.Outcome != "missed" ||
		len(h.Endpoints) == 0 || h.Endpoints[0].State != "pending" {
		t.Errorf("the call is %+v", all)
	}
	_, all = find("?limit=1")
	if found, rest := find("?limit=1&cursor=" + all.NextCursor); fmt.Sprint(found) != "[1]" || rest.NextCursor != "" {
		t.Errorf("the second page is %v, %+v", found, rest)
	}
	var one head
	w := get(a, "/v1/calls/1", operatorToken)
	if err := json.Unmarshal(w.Body.Bytes(), &one); err != nil || one.Outcome != "missed" {
		t.Errorf("the call by its ID: %s", w.Body)
	}
	for query, field := range map[string]string{
		"?number=%2B1":     "number",
		"?outcome=busy":    "outcome",
		"?direction=in":    "direction",
		"?state=lost":      "state",
		"?since=yesterday": "since",
		"?cursor=x":        "cursor",
		"?limit=0":         "limit",
		"?color=red":       "color",
		"?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z": "until",
	} {
		w := get(a, "/v1/calls"+query, operatorToken)
		if w.Code != 400 || !strings.Contains(w.Body.String(), `"field":"`+field+`"`) {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	w = get(a, "/v1/deliveries?limit=1", operatorToken)
	if !strings.Contains(w.Body.String(), `"client_number":"+79101234567","extension":"101"`) {
		t.Errorf("a list of deliveries says %s", w.Body)
	}
	if w := get(a, "/v1/calls", crmToken); w.Code != 403 {
		t.Errorf("a CRM may look for any call: %d", w.Code)
	}
}

// The operator has a number forgotten, and is told what went and what that cannot reach.
func TestANumberIsForgotten(t *testing.T) {
	b := newBox(t)
	var log bytes.Buffer
	a := newAPI(t, &exchange{}, b, &log)
	e := telephony.Event{
		ID:        uuid.Must(uuid.NewV7()).String(),
		Type:      "call.incoming",
		Time:      time.Now(),
		CallID:    "1",
		From:      "83430112233",
		To:        "101",
		Direction: telephony.Incoming,
	}
	if _, err := b.Append(t.Context(), []telephony.Event{e}); err != nil {
		t.Fatal(err)
	}
	const path = "/v1/numbers/%2B7%20343%20011-22-33"
	for _, query := range []string{"?dry_run=true", ""} {
		w := send(a, http.MethodDelete, path+query, operatorToken, "")
		var gone struct {
			Calls, Events, Deliveries, Pending int
			NotReached                         []string `json:"not_reached"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &gone); err != nil || w.Code != 200 || gone.Calls != 1 ||
			gone.Events != 1 || gone.Pending != gone.Deliveries || len(gone.NotReached) == 0 {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if w := get(a, "/v1/calls/1", operatorToken); w.Code != 404 {
		t.Errorf("the call is there: %d %s", w.Code, w.Body)
	}
	if strings.Contains(log.String(), "0112233") || !strings.Contains(log.String(), "a number was forgotten") {
		t.Errorf("the log says %s", log.String())
	}
	for path, want := range map[string]int{
		"/v1/numbers/101": 400, "/v1/numbers/Anonymous": 400, path + "?dry_run=perhaps": 400,
	} {
		if w := send(a, http.MethodDelete, path, operatorToken, ""); w.Code != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	w := get(a, "/v1/audit", operatorToken)
	if !strings.Contains(w.Body.String(), `"action":"forgot"`) || strings.Contains(w.Body.String(), "0112233") {
		t.Errorf("what was done: %d %s", w.Code, w.Body)
	}
	if w := send(a, http.MethodDelete, path, crmToken, ""); w.Code != 403 {
		t.Errorf("a CRM may have it forgotten: %d", w.Code)
	}
}
