package megafon

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

func TestMeaningOfAResponse(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		after  time.Duration
		want   store.Verdict
		says   string
	}{
		{200, "", 0, store.Done, ""},
		{200, `{"contact_name":"x"}`, 0, store.Done, ""},
		{200, "<html>error</html>", 0, store.Done, ""},
		{200, `{"error":null}`, 0, store.Done, ""},
		{200, `{"error":""}`, 0, store.Done, ""},
		{200, `{"error":false}`, 0, store.Done, ""},
		{200, `{"error":0}`, 0, store.Done, ""},
		{200, `{"error":"0"}`, 0, store.Done, ""},
		{200, `{"error":[]}`, 0, store.Done, ""},
		{200, `{"error":1}`, 0, store.Refused, "an error without a text"},
		{200, `{"error":"Invalid parameters: [ext]"}`, 0, store.Refused, "Invalid parameters: [ext]"},
		{200, `{"error":{"code":7}}`, 0, store.Refused, "an error without a text"},
		{200, "\uFEFF{\"error\":\"Invalid token\"}", 0, store.Misconfigured, "Invalid token"},
		{400, `{"error":"Invalid request"}`, 0, store.Refused, "Invalid request"},
		{400, "", 0, store.Refused, ""},
		{401, "", 0, store.Misconfigured, "does not take the key"},
		{403, `{"error":"blocked"}`, 0, store.Misconfigured, "blocked"},
		{404, "", 0, store.Again, ""},
		{429, "", 0, store.Pause, ""},
		{503, "", 0, store.Again, ""},
		{503, "", time.Minute, store.Pause, ""},
		{500, `{"error":"of the database"}`, 0, store.Again, ""},
	} {
		answer := outbound.Answer{Status: c.status, Body: []byte(c.body), RetryAfter: c.after}
		verdict, err := meaning(answer, func(s string) string { return s })
		says := ""
		if err != nil {
			says = err.Error()
		}
		if verdict != c.want || !strings.Contains(says, c.says) || c.says == "" && says != "" {
			t.Errorf("%d %s is verdict %d, %q; want %d, %q", c.status, c.body, verdict, says, c.want, c.says)
		}
	}
}

// A card that the CRM refuses costs no call: what follows is told all the same.
func TestRefusedCardCostsNoCall(t *testing.T) {
	fake := megafontest.NewWebasyst(crmKey)
	picky := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("type") == "CANCELLED" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fake.ServeHTTP(w, r)
	})
	inBubble(t, picky, settings(t), func(b *bench) {
		b.rings("7")
		b.delivered(5)
		if calls := fake.Calls(); !slices.ContainsFunc(calls, func(c megafontest.Call) bool {
			return c.State == megafontest.Completed && c.Duration == time.Minute
		}) {
			t.Errorf("the calls are %+v", calls)
		}
	})
}

// A secret at the edge of what is kept of an error is not shown in part.
func TestErrorIsRedactedBeforeItIsCut(t *testing.T) {
	body := `{"error":"` + strings.Repeat("x", 990) + crmKey + `"}`
	_, err := meaning(outbound.Answer{Status: 400, Body: []byte(body)}, func(s string) string {
		return strings.ReplaceAll(s, crmKey, "(hidden)")
	})
	if err == nil || strings.Contains(err.Error(), "k3y") {
		t.Errorf("the error is %v", err)
	}
}

// The answer to INCOMING was lost behind a proxy, and the call is over meanwhile: its card is
// closed.
func TestLostCardIsClosed(t *testing.T) {
	fake := megafontest.NewWebasyst(crmKey)
	lost := false
	proxy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isLost := !lost; isLost {
			lost = true
			fake.ServeHTTP(httptest.NewRecorder(), r)
			w.WriteHeader(http.StatusGatewayTimeout)
			return
		}
		fake.ServeHTTP(w, r)
	})
	with := settings(t)
	with.People.Missed, with.People.Default = crm.MissedLast, "boss"
	inBubble(t, proxy, with, func(b *bench) {
		e, over := storetest.Event(telephony.EventIncoming, "7"), storetest.Event(telephony.EventCompleted, "7")
		e.From, e.To, e.Direction = client, "102", telephony.Incoming
		over.From, over.Direction = client, telephony.Incoming
		storetest.MustAppend(b.t, b.box, e)
		time.Sleep(time.Second / 2)
		storetest.MustAppend(b.t, b.box, over)
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []string{"event INCOMING 102", "event CANCELLED 102", "history in Missed 102"}
		if got := told(&fake.CRM); !slices.Equal(got, want) {
			t.Errorf("it was told\n%q, want\n%q", got, want)
		}
	})
}

// An event of which the CRM refuses the last part is given up, and the next one begins with its own
// first request.
func TestRefusedPartGivesUpItsEventAlone(t *testing.T) {
	fake := megafontest.NewWebasyst(crmKey)
	picky := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("type") == "ACCEPTED" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fake.ServeHTTP(w, r)
	})
	inBubble(t, picky, settings(t), func(b *bench) {
		b.says(telephony.EventIncoming, "7", client, "101")
		b.says(telephony.EventIncoming, "7", client, "102")
		b.says(telephony.EventIncomingAnswered, "7", client, "102")
		b.says(telephony.EventCompleted, "7", client, "102", time.Minute)
		want := []string{
			"event INCOMING 101", "event INCOMING 102", "event CANCELLED 101",
			"event CANCELLED 101", "event COMPLETED 102", "history in Success 102",
		}
		if got := told(&fake.CRM); !slices.Equal(got, want) {
			t.Errorf("it was told\n%q, want\n%q", got, want)
		}
	})
}
