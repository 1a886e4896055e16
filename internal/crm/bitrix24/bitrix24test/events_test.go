package bitrix24test_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
)

func TestEventHandlers(t *testing.T) {
	a := newApp(t)
	webhook := &client{T: t, portal: a.portal, address: a.address + strings.TrimPrefix(a.portal.Path(), "/rest/")}
	for _, method := range []string{"bind", "unbind", "get", "offline.get", "offline.clear"} {
		webhook.refuses("event."+method, `{"event":"OnExternalCallStart"}`, 403, "WRONG_AUTH_TYPE", "")
	}
	on := func(more string) string { return a.body(`,"event":"OnExternalCallStart"` + more) }
	handler, offline := on(`,"handler":"https://a.example"`), on(`,"event_type":"offline"`)
	for range 2 {
		a.want(a.post("event.bind", handler, 200).Result, "true")
		a.want(a.post("event.bind", offline, 200).Result, "true")
		a.refuses("event.bind", handler, 400, "ERROR_CORE", "Unable to set event handler: Handler already binded")
		a.refuses("event.bind", offline, 400, "ERROR_CORE", "Unable to set event handler: Handler already binded")
		a.want(a.post("event.get", a.body(""), 200).Result, "[map[auth_type:0 event:ONEXTERNALCALLSTART "+
			"handler:https://a.example offline:0] map[connector_id: event:ONEXTERNALCALLSTART offline:1]]")
		a.want(a.does("event.unbind", handler)["count"], "1")
		a.want(a.does("event.unbind", offline)["count"], "1")
		a.want(a.does("event.unbind", offline)["count"], "0")
	}
	a.refuses("event.bind", on(""), 400, "ERROR_ARGUMENT", "Argument 'HANDLER' is null or empty")
	a.refuses("event.bind", a.body(`,"event":"OnNothing","event_type":"offline"`), 400, "ERROR_EVENT_NOT_FOUND", "")

	code := a.portal.AuthorizeCodeOf(15)
	a.access = fmt.Sprint(a.token(200, "authorization_code", "code", code)["access_token"])
	a.refuses("event.bind", on(`,"event_type":"offline"`), 403, "ACCESS_DENIED", "Access denied! Offline events")
	a.refuses("event.offline.get", a.body(""), 403, "ACCESS_DENIED", "Access denied!")
	a.does("event.bind", on(`,"handler":"https://a.example"`))
	a.want(a.post("event.get", a.body(""), 200).Result,
		"[map[auth_type:15 event:ONEXTERNALCALLSTART handler:https://a.example offline:0]]")
}

// click clicks as the user 15.
func (a *app) click(phone string, o bitrix24test.ClickOptions) string {
	a.Helper()
	id, _, err := a.portal.ClickInApp(a.Context(), http.DefaultClient, 15, phone, o)
	if err != nil {
		a.Error(err)
	}
	return id
}

func TestAClickReachesTheHandlers(t *testing.T) {
	a := newApp(t)
	if _, _, err := a.portal.ClickInApp(t.Context(), http.DefaultClient, 15, "+74951234567",
		bitrix24test.ClickOptions{}); err == nil || len(a.portal.Calls()) > 0 {
		t.Error("a click without a handler")
	}
	a.does("event.bind", a.body(fmt.Sprintf(`,"event":"ONEXTERNALCALLSTART","handler":%q`, a.hook)))
	a.does("event.bind", a.body(`,"event":"ONEXTERNALCALLSTART","event_type":"offline"`))
	id := a.click("+74951234567", bitrix24test.ClickOptions{Twice: true})
	form := a.forms[2]
	a.want(len(a.forms), "3")
	a.want([]string{form.Get("data[CALL_ID]"), form.Get("auth[application_token]"), form.Get("data[USER_ID]")},
		"["+id+" token 15]")
	call := a.portal.Calls()[0]
	if call.App != "local.1" || !slices.Equal(call.ShownTo, []int{15}) {
		t.Errorf("got the call %+v", call)
	}
	events := a.does("event.offline.get", a.body(""))["events"].([]any)
	event := events[0].(map[string]any)
	data := event["EVENT_DATA"].(map[string]any)
	a.want([]any{len(events), event["EVENT_NAME"], event["TIMESTAMP_X"], event["EVENT_ADDITIONAL"], data["CALL_ID"]},
		"[1 ONEXTERNALCALLSTART 2026-11-23T06:25:10Z map[user_id:15] "+id+"]")
	a.access = form.Get("auth[access_token]") // the rights of the one who clicked
	a.want(a.does("profile", a.body(""))["ID"], "15")
	a.wantFaults()
}

func TestTheQueueOfOfflineEvents(t *testing.T) {
	a := newApp(t)
	a.does("event.bind", a.body(`,"event":"ONEXTERNALCALLSTART","event_type":"offline"`))
	get := func(more string) (process any, phones string) {
		t.Helper()
		result := a.does("event.offline.get", a.body(more))
		for _, event := range result["events"].([]any) {
			phones += fmt.Sprint(event.(map[string]any)["EVENT_DATA"].(map[string]any)["PHONE_NUMBER"], " ")
		}
		return result["process_id"], phones
	}
	a.click("+74951111111", bitrix24test.ClickOptions{})
	a.click("+74952222222", bitrix24test.ClickOptions{Age: 10 * time.Minute})
	a.click("+74953333333", bitrix24test.ClickOptions{})
	a.now = a.now.Add(time.Second)
	a.click("+74951111111", bitrix24test.ClickOptions{}) // the same call: only the last is kept

	reserved, phones := get(`,"clear":0,"limit":2`)
	a.want(phones, "+74952222222 +74953333333 ")
	process, phones := get(`,"filter":{"=EVENT_NAME":"ONEXTERNALCALLSTART"}`)
	a.want([]any{process, phones}, "[<nil> +74951111111 ]")
	_, phones = get("")
	a.want(phones, "")
	_, phones = get(fmt.Sprintf(`,"clear":0,"process_id":%q`, reserved))
	a.want(phones, "+74952222222 +74953333333 ")
	waiting, marked := a.portal.Offline()
	a.want([]int{waiting, marked}, "[0 2]")

	a.refuses("event.offline.clear", a.body(""), 400, "ERROR_ARGUMENT", "Argument 'PROCESS_ID' is null or empty")
	clear := fmt.Sprintf(`,"process_id":%q`, reserved)
	a.does("event.offline.clear", a.body(clear+`,"message_id":["none"]`))
	_, marked = a.portal.Offline()
	a.want(marked, "2")
	a.does("event.offline.clear", a.body(clear))
	_, marked = a.portal.Offline()
	a.want(marked, "0")

	a.portal.WithoutReserving(true)
	a.refuses("event.offline.get", a.body(`,"clear":0`), 403, "WRONG_LICENSE", "")
	a.want(a.does("feature.get", a.body(`,"code":"rest_offline_extended"`))["value"], "N")
	a.click("+74954444444", bitrix24test.ClickOptions{})
	a.portal.Install(bitrix24test.App{ClientID: "local.1"})
	waiting, _ = a.portal.Offline()
	a.want(waiting, "0")
	a.wantFaults()
}
