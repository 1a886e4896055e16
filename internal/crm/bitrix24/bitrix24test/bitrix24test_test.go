package bitrix24test_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
)

const register = `{"USER_ID":15,"PHONE_NUMBER":"+73430112233","TYPE":2,"CALL_START_DATE":"2026-11-23T11:25:05+05:00",` +
	`"CRM_CREATE":1,"ADD_TO_CHAT":0,"LINE_NUMBER":"+73432000000","EXTERNAL_CALL_ID":"c1"}`

// client is a client of a portal on a server.
type client struct {
	*testing.T
	portal  *bitrix24test.Portal
	now     time.Time
	address string
}

func newClient(t *testing.T) *client {
	c := &client{T: t, portal: bitrix24test.New("secret"), now: time.Date(2026, 11, 23, 6, 25, 10, 0, time.UTC)}
	c.portal.Now = func() time.Time { return c.now }
	server := httptest.NewServer(c.portal)
	t.Cleanup(server.Close)
	c.address = server.URL + c.portal.Path()
	return c
}

// answer is an answer of the portal.
type answer struct {
	Result      any
	Error       *string
	Description string `json:"error_description"`
	Total, Next int
	Time        map[string]any
}

// post posts JSON, and wants a status.
func (c *client) post(method, body string, status int) answer {
	c.Helper()
	return c.send(c.address+method, "application/json", strings.NewReader(body), status)
}

func (c *client) send(address, kind string, body io.Reader, status int) (a answer) {
	c.Helper()
	resp, err := http.Post(address, kind, body)
	if err != nil {
		c.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	err = json.Unmarshal(text, &a)
	if err != nil || resp.StatusCode != status || (a.Time["operating_reset_at"] != nil) != (status == http.StatusOK) {
		c.Errorf("%s: got %d %s, want %d", address, resp.StatusCode, text, status)
	}
	return a
}

// refuses posts JSON, and wants an error.
func (c *client) refuses(method, body string, status int, code, description string) {
	c.Helper()
	a := c.post(method, body, status)
	if a.Error == nil || *a.Error != code || !strings.HasPrefix(a.Description, description) {
		c.Errorf("%s: got %+v, want the error %q, %q", method, a, code, description)
	}
}

// does posts JSON, and returns the fields of the result.
func (c *client) does(method, body string) map[string]any {
	c.Helper()
	fields, _ := c.post(method, body, http.StatusOK).Result.(map[string]any)
	return fields
}

func (c *client) wantFaults(want ...string) {
	c.Helper()
	if got := c.portal.Faults(); !slices.Equal(got, want) {
		c.Errorf("got the faults %q, want %q", got, want)
	}
}

func TestACallFromRegisterToRecording(t *testing.T) {
	c := newClient(t)
	made := c.does("Telephony.externalcall.REGISTER.json", register)
	id := fmt.Sprintf(`{"CALL_ID":%q,`, made["CALL_ID"])
	if made["CRM_ENTITY_TYPE"] != "LEAD" || made["CRM_CREATED_LEAD"] != made["CRM_ENTITY_ID"] {
		t.Errorf("no lead for an unknown number: %v", made)
	}
	c.does("telephony.externalCall.show", id+`"USER_ID":[17,16]}`)
	c.does("telephony.externalCall.hide", id+`"USER_ID":[15,17]}`)
	call := c.portal.Calls()[0]
	if !slices.Equal(call.ShownTo, []int{16}) || !slices.Equal(call.Cards, []int{15, 16, 17}) {
		t.Errorf("got the cards %+v", call)
	}

	record := id + `"FILENAME":"c1.mp3","FILE_CONTENT":"SUQz"}`
	c.refuses("telephony.externalCall.attachRecord", record, 400, "", "Call is not found in the statistic table")
	finish := id + `"USER_PHONE_INNER":"102","DURATION":60,"ADD_TO_CHAT":0}`
	row := c.does("telephony.externalCall.finish", finish)
	if row["CALL_STATUS"] != 1.0 || row["CRM_ACTIVITY_ID"] == nil {
		t.Errorf("the statistics: %v", row)
	}
	c.refuses("telephony.externalCall.finish", finish, 400, "",
		"Call is not found (call should be registered prior to finishing")
	if a := c.post("telephony.externalCall.hide", id+`"USER_ID":16}`, 200); a.Result != false {
		t.Errorf("hide of a finished call: %+v", a)
	}
	c.does("telephony.externalCall.attachRecord", record)
	call = c.portal.Calls()[0]
	if call.FinishedBy != 16 || call.StatusCode != "200" || len(call.ShownTo) > 0 || string(call.Record) != "ID3" {
		t.Errorf("got the call %+v", call)
	}
	c.refuses("telephony.externalCall.attachRecord", strings.Replace(record, "mp3", "ogg", 1), 400, "", "Wrong file")
	c.upload(c.does("telephony.externalCall.attachRecord", id+`"FILENAME":"c1.wav"}`))
	if call := c.portal.Calls()[0]; call.RecordName != "c1.wav" || string(call.Record) != "RIFF" {
		t.Errorf("uploaded %q %q", call.RecordName, call.Record)
	}
	if a := c.post("voximplant.statistic.get", `{"FILTER":{"EXTERNAL_CALL_ID":"c1"}}`, 200); a.Total != 1 {
		t.Errorf("the statistics: %+v", a)
	}
	c.wantFaults()
}

// upload does the second step of attachRecord.
func (c *client) upload(step map[string]any) {
	c.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	file, _ := form.CreateFormFile(fmt.Sprint(step["fieldName"]), "c1.wav")
	_, _ = io.WriteString(file, "RIFF")
	_ = form.Close()
	c.send(fmt.Sprint(step["uploadUrl"]), form.FormDataContentType(), &body, http.StatusOK)
}

func TestOnlyAnUnfinishedRecentEqualCallIsADuplicate(t *testing.T) {
	c := newClient(t)
	first := c.does("telephony.externalCall.register", register)["CALL_ID"]
	for _, change := range []string{`"USER_ID":16`, `"TYPE":1`, `"LINE_NUMBER":"2"`, `"EXTERNAL_CALL_ID":"c2"`} {
		other := strings.TrimSuffix(register, "}") + "," + change + "}" // the last of two equal names counts
		if c.does("telephony.externalCall.register", other)["CALL_ID"] == first {
			t.Errorf("%s makes no other call", change)
		}
	}
	c.now = time.Date(2026, 11, 23, 6, 55, 5, 0, time.UTC)
	if id := c.does("telephony.externalCall.register", register)["CALL_ID"]; id != first {
		t.Errorf("not found again after 30 minutes: %v", id)
	}
	c.now = c.now.Add(time.Second)
	if id := c.does("telephony.externalCall.register", register)["CALL_ID"]; id == first {
		t.Error("found again after more than 30 minutes")
	}
}

func TestValidation(t *testing.T) {
	c, method := newClient(t), "telephony.externalCall.register"
	c.refuses(method, `{}`, 400, "", "USER_ID or USER_PHONE_INNER should be set")
	c.refuses(method, `{"USER_PHONE_INNER":"104"}`, 400, "", "USER_ID or USER_PHONE_INNER should be set")
	c.refuses(method, `{"USER_ID":15,"TYPE":6}`, 400, "", "Unknown TYPE")
	c.refuses(method, `{"USER_ID":15,"TYPE":1,"CALL_START_DATE":"now"}`, 400, "", "CALL_START_DATE should be")
	c.wantFaults() // a probe is none
	c.refuses(method, `{"USER_ID":15,"TYPE":2,"PHONE_NUMBER":"Anonymous"}`, 400, "", "Unsupported phone number format")
	c.refuses("telephony.externalCall.finish", `{"USER_ID":15,"CALL_ID":7}`, 400, "INVALID_ARGUMENT", "CALL_ID must be")
	c.wantFaults(
		`A call with "Anonymous" is registered without EXTERNAL_CALL_ID.`,
		`The call "" is registered without ADD_TO_CHAT.`,
		`The call "" has the number "Anonymous", with letters.`,
		`The request telephony.externalCall.finish has the CALL_ID 7, which is no string.`)
}

func TestUsersAndClients(t *testing.T) {
	c := newClient(t)
	if a := c.post("user.get", `{"FILTER":{"ACTIVE":true,"USER_TYPE":"employee"},"start":0}`, 200); a.Total != 4 {
		t.Errorf("got the users %+v", a)
	}
	c.portal.SetUsers(make([]bitrix24test.User, 60))
	if a := c.post("user.get", `{"start":0}`, 200); a.Next != 50 || len(a.Result.([]any)) != 50 {
		t.Errorf("got the page %+v", a)
	}
	c.portal.Assign("8 (343) 011-22-33", "CONTACT", 797, 15, "OPENED")
	c.portal.TextIDs(true)
	c.portal.SetUsers([]bitrix24test.User{{ID: 15, Extension: "101"}})
	found := c.post("telephony.externalCall.searchCrmEntities", `{"PHONE_NUMBER":"+73430112233"}`, 200)
	if text := fmt.Sprint(found.Result); !strings.Contains(text, "CRM_ENTITY_ID:797") ||
		!strings.Contains(text, "TIMEMAN_STATUS:OPENED USER_PHONE_INNER:101") {
		t.Errorf("the search found %s", text)
	}
	if made := c.does("telephony.externalCall.register", register); made["CRM_ENTITY_ID"] != "797" {
		t.Errorf("the known client was not found: %v", made)
	}
}

func TestSwitches(t *testing.T) {
	c, method := newClient(t), "telephony.externalCall.register"
	c.portal.AppOnly(true)
	c.refuses(method, "{}", 403, "WRONG_AUTH_TYPE", "")
	c.portal.WithoutScope("telephony")
	c.refuses(method, "{}", 403, "insufficient_scope", "")
	c.portal.FreePlan(true)
	c.refuses(method, "{}", 403, "ACCESS_DENIED", "")
	c.portal.Revoke()
	c.refuses(method, "{}", 401, "INVALID_CREDENTIALS", "")
	c.portal.Restore()
	c.portal.FreePlan(false)
	c.refuses("no.method", "{}", 404, "ERROR_METHOD_NOT_FOUND", "")
	c.portal.Fail(1)
	c.refuses("profile", "{}", 500, "INTERNAL_SERVER_ERROR", "")
	c.portal.Lose(1)
	if resp, err := http.Post(c.address+"profile", "", nil); err == nil {
		resp.Body.Close()
		t.Error("an answer was not lost")
	}
	for range 50 - 7 {
		c.does("scope", "")
	}
	c.refuses("scope", "", 503, "QUERY_LIMIT_EXCEEDED", "")
	c.now = c.now.Add(time.Second / 2)
	c.does("scope", "")
}

// batch posts a batch, and returns the parts of its result.
func (c *client) batch(halt int, cmd string) map[string]any {
	c.Helper()
	return c.does("batch", fmt.Sprintf(`{"halt":%d,"cmd":%s}`, halt, cmd))
}

// wantLog compares the methods and the statuses of the last requests.
func (c *client) wantLog(want ...string) {
	c.Helper()
	requests, _ := c.portal.Requests()
	var got []string
	for _, r := range requests[max(0, len(requests)-len(want)):] {
		got = append(got, strings.TrimSpace(fmt.Sprint(r.Command, " ", r.Method, " ", r.Status)))
	}
	if !slices.Equal(got, want) {
		c.Errorf("got the log %q, want %q", got, want)
	}
}

// want compares a part of a result, as fmt prints it.
func (c *client) want(got any, want string) {
	c.Helper()
	if text := fmt.Sprint(got); text != want {
		c.Errorf("got %s, want %s", text, want)
	}
}

const (
	registerCommand = `"telephony.externalcall.REGISTER?USER_ID=15&PHONE_NUMBER=%2B73430112233&TYPE=2&SHOW=0` +
		`&CALL_START_DATE=2026-11-23T11%3A25%3A05%2B05%3A00&EXTERNAL_CALL_ID=c1&ADD_TO_CHAT=0&CRM_CREATE=1"`
	finishCommand = `"telephony.externalCall.finish?CALL_ID=%24result%5Bregister%5D%5BCALL_ID%5D&USER_ID=16` +
		`&DURATION=60&ADD_TO_CHAT=0"`
)

func TestABatchRegistersAndFinishes(t *testing.T) {
	c := newClient(t)
	c.portal.Burst = 1
	a := c.batch(1, `{"register":`+registerCommand+`,"finish":`+finishCommand+`}`)
	c.refuses("scope", "", 503, "QUERY_LIMIT_EXCEEDED", "") // but a batch is only one request
	call := c.portal.Calls()[0]
	if !call.Finished || call.FinishedBy != 16 || call.Phone != "+73430112233" || call.Lead == 0 ||
		call.Duration != time.Minute || !call.Started.Equal(c.now.Add(-5*time.Second)) {
		t.Errorf("got the call %+v", call)
	}
	c.want(a["result"].(map[string]any)["finish"].(map[string]any)["CALL_ID"], call.CallID)
	c.want([]any{a["result_error"], a["result_total"], a["result_next"]}, "[[] [] []]")
	if times := a["result_time"].(map[string]any); len(times) != 2 {
		t.Errorf("got the times %v", times)
	}
	c.wantLog("batch 200", "register telephony.externalCall.register 200", "finish telephony.externalCall.finish 200",
		"scope 503")
	requests, _ := c.portal.Requests()
	c.want(requests[2].Params["CALL_ID"], call.CallID)
	c.wantFaults()
}

func TestErrorsInABatch(t *testing.T) {
	c := newClient(t)
	cmd := `{"register":"telephony.externalCall.register?USER_ID=15&TYPE=6","finish":` + finishCommand +
		`,"batch":"batch?cmd[a]=scope","none":"scope.json","scope":"scope"}`
	a := c.batch(0, cmd)
	c.want(a["result"], "map[scope:[crm telephony user]]")
	c.want(a["result_error"], "map["+
		"batch:map[error:ERROR_BATCH_METHOD_NOT_ALLOWED error_description:Method is not allowed for batch usage] "+
		"finish:map[error:INVALID_ARGUMENT error_description:CALL_ID must be a string] "+
		"none:map[error:ERROR_METHOD_NOT_FOUND error_description:Method not found!] "+
		"register:map[error: error_description:Unknown TYPE]]")
	c.wantLog("batch 200", "register telephony.externalCall.register 400", "finish telephony.externalCall.finish 400",
		"batch batch 405", "none scope.json 404", "scope scope 200")
	a = c.batch(1, cmd)
	c.want(a["result_error"], "map[register:map[error: error_description:Unknown TYPE]]")
	c.want([]any{a["result"], a["result_time"]}, "[[] []]")
	c.wantLog("scope scope 200", "batch 200", "register telephony.externalCall.register 400")

	c.portal.WithoutScope("telephony")
	a = c.batch(0, `{"register":`+registerCommand+`,"profile":"profile"}`)
	c.want(a["result_error"], "map[register:map[error:insufficient_scope error_description:]]")
	c.want(a["result"], "map[profile:map[ADMIN:true ID:1 LAST_NAME:Orlova NAME:Olga]]")
	c.wantFaults()
}

func TestABatchKeepsTheOrder(t *testing.T) {
	c := newClient(t)
	c.portal.Assign("83430112233", "CONTACT", 797, 15, "")
	a := c.batch(0, `{
		"z":"telephony.externalCall.searchCrmEntities?PHONE_NUMBER=%2B73430112233",
		"y":"user.get?FILTER[ID]=$result[z][0][ASSIGNED_BY][ID]&FILTER[ACTIVE]=1&start=0",
		"x":"crm.timeline.comment.add?fields[ENTITY_TYPE]=contact&fields[ENTITY_ID]=$result[z][0][CRM_ENTITY_ID]`+
		`&fields[COMMENT]=By+$result[y][0][NAME]+%28of+$result[z][0][CRM_ENTITY_ID]+and+$result[none]+%29"}`)
	c.want(c.portal.Comments(), "[{contact 797 By Anna (of 797 and $result[none] ) 0}]")
	c.want(a["result_total"], "map[y:1]")
	c.wantLog("batch 200", "z telephony.externalCall.searchCrmEntities 200", "y user.get 200",
		"x crm.timeline.comment.add 200")

	c.portal.SetUsers(append(c.portal.Users(), make([]bitrix24test.User, 60)...))
	a = c.batch(0, `["scope",`+registerCommand+`,`+
		`"telephony.externalCall.show?CALL_ID=$result[1][CALL_ID]&USER_ID[0]=17&USER_ID[1]=16",`+
		`"telephony.externalCall.hide?CALL_ID=$result[1][CALL_ID]&USER_ID[]=17","user.get"]`)
	if results, _ := a["result"].([]any); len(results) != 5 || results[3] != true {
		t.Errorf("got the results %v", a["result"])
	}
	c.want(a["result_total"], "map[4:65]")
	c.want(a["result_next"], "map[4:50]")
	if call := c.portal.Calls()[0]; !slices.Equal(call.ShownTo, []int{16}) || !slices.Equal(call.Cards, []int{16, 17}) {
		t.Errorf("got the cards %+v", call)
	}
	c.wantFaults()
}

func TestABatchHasAtMost50SubCalls(t *testing.T) {
	c := newClient(t)
	call := c.does("telephony.externalCall.register", register)["CALL_ID"]
	var cmd []string
	for i := range 50 {
		cmd = append(cmd, fmt.Sprintf(`"c%d":"telephony.externalCall.show?CALL_ID=%s&USER_ID=%d"`, i, call, i+1))
	}
	c.want(c.batch(0, "{"+strings.Join(cmd, ",")+"}")["result_error"], "[]")
	c.wantFaults()
	cmd = append(cmd, `"last":"telephony.externalCall.hide?CALL_ID=`+fmt.Sprint(call)+`"`)
	a := c.batch(0, "{"+strings.Join(cmd, ",")+"}")
	c.want(a["result_error"],
		"map[last:map[error:ERROR_BATCH_LENGTH_EXCEEDED error_description:Max batch length exceeded]]")
	if shown := len(c.portal.Calls()[0].ShownTo); len(a["result"].(map[string]any)) != 50 || shown != 50 {
		t.Errorf("%d cards after %v", shown, a)
	}
	c.wantFaults("A batch has 51 sub-calls.")
}

func TestAWrongBatch(t *testing.T) {
	c := newClient(t)
	c.want(c.does("batch", "")["result"], "[]")
	a := c.batch(1, `{"a":{"method":"scope"},"b":"voximplant.statistic.get?FILTER[CALL_ID]=100%#1"}`)
	c.want([]any{a["result"], a["result_error"], a["result_total"]}, "[map[b:[]] [] map[b:0]]")
	c.wantFaults(`The sub-call "a" is no text.`,
		`The sub-call "b" has parameters that are not URL-encoded: invalid URL escape "%".`)
}

func TestABatchIsLostOrFailsAsAWhole(t *testing.T) {
	c, cmd := newClient(t), `{"halt":1,"cmd":{"register":`+registerCommand+`,"finish":`+finishCommand+`}}`
	c.portal.Fail(1)
	c.refuses("batch", cmd, 500, "INTERNAL_SERVER_ERROR", "")
	c.wantLog("batch 500")
	c.portal.Revoke()
	c.refuses("batch", cmd, 401, "INVALID_CREDENTIALS", "")
	c.portal.Restore()
	c.portal.Lose(1)
	if resp, err := http.Post(c.address+"batch", "", strings.NewReader(cmd)); err == nil {
		resp.Body.Close()
		t.Error("an answer was not lost")
	}
	requests, _ := c.portal.Requests()
	if len(requests) != 5 || !requests[2].Lost || !requests[4].Lost || !c.portal.Calls()[0].Finished {
		t.Errorf("got the requests %+v", requests)
	}
}

func TestClick(t *testing.T) {
	c := newClient(t)
	var forms []url.Values
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		forms = append(forms, r.PostForm)
	}))
	defer hook.Close()
	options := bitrix24test.ClickOptions{Old: true, Twice: true}
	id, status, err := c.portal.Click(t.Context(), http.DefaultClient, hook.URL, "token", 15, "+74951234567", options)
	call := c.portal.Calls()[0]
	if err != nil || status != 200 || call.CallID != id || call.Type != 1 || !slices.Equal(call.ShownTo, []int{15}) {
		t.Errorf("got %d, %v, and the call %+v", status, err, call)
	}
	if len(forms) != 2 || forms[1].Get("data[CALL_ID]") != id || forms[1].Get("auth[application_token]") != "token" ||
		forms[1].Get("auth[domain]") != "firm.bitrix24.ru" || forms[1].Has("event_handler_id") {
		t.Errorf("got the events %v", forms)
	}
}
