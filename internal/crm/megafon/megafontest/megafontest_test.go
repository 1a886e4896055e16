package megafontest_test

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm/megafon/megafontest"
)

const key = "the key"

// start is when the tests' calls start.
var start = time.Date(2026, 11, 23, 6, 25, 5, 0, time.UTC)

// form returns parameters that are given as name=value.
func form(params ...string) url.Values {
	form := url.Values{}
	for _, param := range params {
		name, value, _ := strings.Cut(param, "=")
		form.Set(name, value)
	}
	return form
}

// event returns a faultless event of the incoming call c1 for an extension. More parameters, as
// name=value, replace those of the event; without a value, they remove them.
func event(kind, ext string, more ...string) url.Values {
	return with(form("cmd=event", "type="+kind, "phone=73430112233", "user="+ext+"@pzbridge", "ext="+ext,
		"diversion=73432723033", "direction=in", "callid=c1", "crm_token="+key), more)
}

// history is a faultless history of the same call.
func history(ext string, more ...string) url.Values {
	return with(form("cmd=history", "type=in", "status=Success", "phone=73430112233", "user="+ext+"@pzbridge",
		"ext="+ext, "diversion=73432723033", "start=20261123T062505Z", "duration=60",
		"link=https://bridge.example/rec/1", "callid=c1", "crm_token="+key), more)
}

func with(params url.Values, more []string) url.Values {
	maps.Copy(params, form(more...))
	maps.DeleteFunc(params, func(_ string, values []string) bool { return values[0] == "" })
	return params
}

func contact(phone string) url.Values {
	return form("cmd=contact", "phone="+phone, "callid=c1", "diversion=73432723033", "crm_token="+key)
}

// server serves a fake and returns its address.
func server(t *testing.T, handler http.Handler) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL
}

// request makes a form post as the PBX does it, with the crm_token as the X-API-KEY.
func request(t *testing.T, address string, params url.Values) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(params.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	r.Header.Set("X-API-KEY", params.Get("crm_token"))
	return r
}

// post posts a form and wants a status and an answer.
func post(t *testing.T, address string, params url.Values, status int, answer string) {
	t.Helper()
	wantAnswer(t, request(t, address, params), status, answer)
}

func wantAnswer(t *testing.T, r *http.Request, status int, answer string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status || string(body) != answer {
		t.Errorf("got %d %s, %v, want %d %s", resp.StatusCode, body, err, status, answer)
	}
}

func wantFaults(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got the faults\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWebasystFollowsACallThatOneOfThreeAnswers(t *testing.T) {
	crm, now := megafontest.NewWebasyst(key), start
	crm.Now = func() time.Time { return now }
	address := server(t, crm)
	for _, ext := range []string{"101", "102", "103"} {
		post(t, address, event("INCOMING", ext), 200, "")
	}
	if calls := crm.Calls(); len(calls) != 3 || calls[2].Login != "103" || calls[2].State != megafontest.Pending {
		t.Errorf("three employees ring: %+v", calls)
	}
	post(t, address, event("CANCELLED", "102"), 200, "")
	if state := crm.Calls()[0].State; state != megafontest.Dropped {
		t.Errorf("the first row is %s", state)
	}
	post(t, address, event("CANCELLED", "103"), 200, "")
	post(t, address, event("ACCEPTED", "101"), 200, "")
	now = now.Add(50 * time.Second)
	post(t, address, event("COMPLETED", "101"), 200, "")
	want := megafontest.Call{
		CallID: "c1", Login: "101", Phone: "73430112233", Direction: "in", State: megafontest.Completed,
		Duration: 50 * time.Second,
	}
	if calls := crm.Calls(); !slices.Equal(calls, []megafontest.Call{want}) {
		t.Errorf("the call is completed: %+v", calls)
	}
	post(t, address, history("101", "link="), 200, "")
	if calls := crm.Calls(); !slices.Equal(calls, []megafontest.Call{want}) {
		t.Errorf("a history without a link changes nothing: %+v", calls)
	}
	post(t, address, history("101"), 200, "")
	want.Link, want.Duration = "https://bridge.example/rec/1", time.Minute
	if calls := crm.Calls(); !slices.Equal(calls, []megafontest.Call{want}) {
		t.Errorf("a history with a link corrects the call: %+v", calls)
	}
	wantFaults(t, crm.Faults())
}

func TestWebasystSuffersFromAWrongOrder(t *testing.T) {
	crm := megafontest.NewWebasyst(key)
	address := server(t, crm)
	post(t, address, event("ACCEPTED", "101"), 200, "")
	if calls := crm.Calls(); len(calls) != 0 {
		t.Errorf("an unknown call is ignored: %+v", calls)
	}
	post(t, address, event("INCOMING", "101", "callid=c2", "user=101", "diversion="), 200, "")
	post(t, address, history("101", "callid=c2"), 200, "")
	post(t, address, event("ACCEPTED", "101", "callid=c2"), 200, "")
	post(t, address, event("CANCELLED", "102", "callid=c2"), 200, "")
	if calls := crm.Calls(); len(calls) != 1 || calls[0].Login != "" || calls[0].State != megafontest.Dropped {
		t.Errorf("the answered call of nobody is dropped: %+v", calls)
	}
	post(t, address, event("INCOMING", "101", "callid=c2", "user=@", "ext="), 200, "")
	if calls := crm.Calls(); len(calls) != 1 || calls[0].State != megafontest.Pending {
		t.Errorf("the call rings again: %+v", calls)
	}
	wantFaults(
		t, crm.Faults(),
		`The request "ACCEPTED" of call "c1" came before any INCOMING or OUTGOING.`,
		`The request "INCOMING" of call "c2" is incoming and has no diversion.`,
		`The request "INCOMING" of call "c2" has the user "101", which is not login@domain.`,
		`The request "history" of call "c2" came before the call's end.`,
		`The request "ACCEPTED" of call "c2" came after the call's end.`,
		`The request "CANCELLED" of call "c2" came after ACCEPTED, and marks an answered call as dropped.`,
		`The request "INCOMING" of call "c2" has the user "@", which is not login@domain.`,
		`The request "INCOMING" of call "c2" has the ext "", which is not of 1 to 10 characters.`,
		`The request "INCOMING" of call "c2" came after the end, and lets the call ring again.`,
	)
}

func TestSalesManTakesAnyFormAndAnswersErrorsWith200(t *testing.T) {
	crm := megafontest.NewSalesMan(key)
	address := server(t, crm)
	post(t, address, event("INCOMING", "101", "crm_token=other"), 200, `{"error":"Invalid token"}`)
	post(t, address, event("INCOMING", "10123456789"), 200, `{"error":"Invalid parameters: [ext]"}`)
	post(t, address, event("RINGING", "101"), 200, `{"error":"Invalid parameters: [type]"}`)
	post(t, address, form("cmd=rating", "crm_token="+key), 200, `{"error":"Invalid request"}`)
	if records := crm.Records(); len(records) != 0 {
		t.Errorf("nothing is kept of what is refused: %+v", records)
	}

	post(t, address, event("INCOMING", "771", "ext=", "user=name771@firm"), 200, "{}")
	r := request(t, address+"?"+history("", "user=name", "duration=", "callid=", "crm_token=").Encode(), nil)
	body := `{"callid":"c1","duration":60,"status":"Missed","crm_token":"` + key + `"}`
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Type", "application/json")
	wantAnswer(t, r, 200, "{}")
	want := megafontest.Record{CallID: "c1", Phone: "73430112233", Direction: "in", Status: "Missed"}
	if records := crm.Records(); !slices.Equal(records, []megafontest.Record{want}) {
		t.Errorf("without ext, link and duration are not kept: %+v", records)
	}
	r = request(t, address, nil)
	var parts bytes.Buffer
	writer := multipart.NewWriter(&parts)
	for name, values := range history("771") {
		writer.WriteField(name, values[0])
	}
	writer.Close()
	r.Body, r.ContentLength = io.NopCloser(&parts), int64(parts.Len())
	r.Header.Set("Content-Type", writer.FormDataContentType())
	wantAnswer(t, r, 200, "{}")
	want.Ext, want.Status, want.Duration, want.Link = "771", "Success", time.Minute, "https://bridge.example/rec/1"
	if records := crm.Records(); !slices.Equal(records, []megafontest.Record{want}) {
		t.Errorf("the history updates the record: %+v", records)
	}
}

func TestContactNamesWhoIsResponsible(t *testing.T) {
	salesman := megafontest.NewSalesMan(key)
	rukovoditel, strict := megafontest.NewRukovoditel(key), megafontest.NewStrict(key)
	for _, crm := range []struct {
		handler http.Handler
		base    *megafontest.CRM
		nobody  string
	}{
		{salesman, &salesman.CRM, `{"contact_name":"","responsible":0}`},
		{rukovoditel, &rukovoditel.CRM, `{"contact_name":"","responsible":""}`},
		{strict, &strict.CRM, `{}`},
	} {
		address := server(t, crm.handler)
		crm.base.Assign("73430112233", "anna@firm")
		crm.base.Assign("73430112244", 101)
		post(t, address, contact("73430112233"), 200, `{"contact_name":"Client 73430112233","responsible":"anna@firm"}`)
		post(t, address, contact("73430112244"), 200, `{"contact_name":"Client 73430112244","responsible":101}`)
		post(t, address, contact("73430112255"), 200, crm.nobody)
		wantFaults(t, crm.base.Faults())
	}
}

func TestRukovoditelAnswersEverythingWith200(t *testing.T) {
	crm := megafontest.NewRukovoditel(key)
	address := server(t, crm)
	post(t, address, event("INCOMING", "101"), 200, "")
	crm.Revoke()
	post(t, address, event("ACCEPTED", "101"), 200, `{"error":"Invalid token"}`)
}

func TestStrictRefuses(t *testing.T) {
	crm := megafontest.NewStrict(key)
	address := server(t, crm)
	for name, request := range map[string][]url.Values{
		"cmd":       {form("cmd=rating", "crm_token="+key)},
		"type":      {event("incoming", "101"), history("101", "type=missed")},
		"direction": {event("INCOMING", "101", "direction=")},
		"diversion": {event("INCOMING", "101", "diversion="), history("101", "diversion=")},
		"status":    {history("101", "status=success"), history("101", "status=Busy")},
		"start":     {history("101", "start=2026-11-23T06:25:05Z"), history("101", "start=20261123T062505.5Z")},
		"phone":     {event("INCOMING", "101", "phone=+73430112233"), history("101", "phone="), contact("+7343")},
	} {
		for _, params := range request {
			before := len(crm.Faults())
			post(t, address, params, 400, `{"error":"Invalid parameters: [`+name+`]"}`)
			if len(crm.Faults()) == before {
				t.Errorf("%v is no fault", params)
			}
		}
	}
	post(t, address, event("INCOMING", "101", "crm_token=other"), 401, `{"error":"Invalid token"}`)
	post(t, address, event("INCOMING", "101"), 200, `{}`)
	r := request(t, address, event("CANCELLED", "101"))
	r.Header.Del("X-API-KEY")
	wantAnswer(t, r, 200, `{}`)
	r = request(t, address, event("CANCELLED", "101"))
	r.Header.Set("X-API-KEY", "other")
	wantAnswer(t, r, 401, `{"error":"Invalid token"}`)
}

func TestSwitches(t *testing.T) {
	crm := megafontest.NewWebasyst(key)
	address := server(t, crm)
	_, arrived := crm.Requests()
	crm.Limit(1)
	crm.Fail(1)
	post(t, address, event("INCOMING", "101"), 429, "")
	post(t, address, event("INCOMING", "101"), 500, "")
	<-arrived
	crm.Revoke()
	post(t, address, event("INCOMING", "101"), 401, `{"error":"Invalid token"}`)
	if calls := crm.Calls(); len(calls) != 0 {
		t.Errorf("the call was kept: %+v", calls)
	}
	crm.Restore()
	crm.Lose(2)
	post(t, address, event("INCOMING", "101"), 200, "")
	resp, err := http.DefaultClient.Do(request(t, address, event("ACCEPTED", "101")))
	if err == nil {
		resp.Body.Close()
		t.Errorf("the lost answer is %s", resp.Status)
	}
	if calls := crm.Calls(); len(calls) != 1 || calls[0].State != megafontest.Accepted {
		t.Errorf("the request was not processed: %+v", calls)
	}
	var statuses []int
	requests, _ := crm.Requests()
	for _, r := range requests {
		statuses = append(statuses, r.Status)
	}
	if !slices.Equal(statuses, []int{429, 500, 401, 200, 200}) || !requests[4].Lost {
		t.Errorf("the log is %+v", requests)
	}
}

// bridge is a PBX that makes calls for 101 only and knows the call c1.
func bridge(w http.ResponseWriter, r *http.Request) {
	answer := `{"error":"Invalid parameters: [user]"}`
	switch cmd := r.FormValue("cmd"); {
	case r.URL.Path != "/sys/crm_api.wcgp" || r.FormValue("token") != "token":
		answer = `{"error":"Invalid token"}`
		w.WriteHeader(http.StatusUnauthorized)
	case cmd == "makeCall" && r.FormValue("user") == "101" && r.FormValue("phone") == "73430112233":
		kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
		text, _ := json.Marshal(map[string]string{"uuid": r.Method + " " + kind})
		answer = string(text)
	case cmd == "accounts":
		answer = `[{"name":"101","realName":"Anna","ext":"101","telnum":"","email":""}]`
	case cmd == "history" && (r.FormValue("period") == "today" || r.FormValue("end") == "20261124T062505Z"):
		answer = "c1,in,73430112233,101,73432723033,2026-11-23T06:25:05Z,3,60,\n"
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
	_, _ = io.WriteString(w, answer)
}

func TestCRMsAskTheirPBX(t *testing.T) {
	ctx, address, client := t.Context(), server(t, http.HandlerFunc(bridge)), http.DefaultClient
	webasyst, salesman := megafontest.NewWebasyst(key), megafontest.NewSalesMan(key)
	rukovoditel := megafontest.NewRukovoditel(key)

	uuid, err := webasyst.Click(ctx, client, address, "token", "101", "73430112233")
	if err != nil || uuid != "POST application/x-www-form-urlencoded" || webasyst.Calls()[0].CallID != uuid {
		t.Errorf("Webasyst: %q, %v, %+v", uuid, err, webasyst.Calls())
	}
	if uuid, err := webasyst.Click(ctx, client, address, "token", "102", "73430112233"); err == nil || uuid != "" ||
		webasyst.Calls()[1].State != megafontest.Dropped {
		t.Errorf("Webasyst, without a uuid: %q, %v, %+v", uuid, err, webasyst.Calls())
	}
	uuid, err = salesman.Click(ctx, client, address, "token", "101", "73430112233")
	if err != nil || uuid != "POST multipart/form-data" || salesman.Records()[0].CallID != uuid {
		t.Errorf("SalesMan: %q, %v, %+v", uuid, err, salesman.Records())
	}
	answer, err := rukovoditel.Click(ctx, client, address, "token", "101", "73430112233")
	if err != nil || answer != `{"uuid":"GET "}` {
		t.Errorf("Rukovoditel: %q, %v", answer, err)
	}
	if answer, err := rukovoditel.Click(ctx, client, address, "other", "101", "73430112233"); err == nil {
		t.Errorf("Rukovoditel, with the word in the answer: %q", answer)
	}

	anna := megafontest.Account{Name: "101", RealName: "Anna", Ext: "101"}
	for _, accounts := range []func() ([]megafontest.Account, error){
		func() ([]megafontest.Account, error) { return webasyst.Accounts(ctx, client, address, "token") },
		func() ([]megafontest.Account, error) { return salesman.Accounts(ctx, client, address, "token") },
	} {
		if list, err := accounts(); err != nil || !slices.Equal(list, []megafontest.Account{anna}) {
			t.Errorf("accounts: %+v, %v", list, err)
		}
	}

	post(t, server(t, webasyst), event("INCOMING", "101"), 200, "")
	past := megafontest.PastCall{
		UID: "c1", Type: "in", Client: "73430112233", Account: "101", Via: "73432723033", Start: start,
		Wait: 3 * time.Second, Duration: time.Minute,
	}
	calls, err := webasyst.History(ctx, client, address, "token")
	if hanging := webasyst.Calls()[2]; err != nil || !slices.Equal(calls, []megafontest.PastCall{past}) ||
		hanging.State != megafontest.Completed || hanging.Duration != time.Minute {
		t.Errorf("Webasyst's history: %+v, %v, %+v", calls, err, hanging)
	}
	calls, err = salesman.History(ctx, client, address, "token", start, start.Add(24*time.Hour))
	if err != nil || !slices.Equal(calls, []megafontest.PastCall{past}) {
		t.Errorf("SalesMan's history: %+v, %v", calls, err)
	}
}
