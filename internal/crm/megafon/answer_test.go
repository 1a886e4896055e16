package megafon

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
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

// An event of which the CRM refuses a part is given up, and the next one begins with its own first
// request.
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
