package dashboard

import (
	"net/http"
	"testing"

	"pzbridge/outbox"
)

// What other faces show of the verdict are whole sentences in the language of the request.
func TestVerdictIsForOtherFacesToo(t *testing.T) {
	s := newStage(t, func(o *Options) {
		o.Outbox = told{Outbox: o.Outbox, status: outbox.EndpointStatus{Name: "crm", State: "ok", Dead: 2}}
	})
	for lang, want := range map[string]string{
		"en": "crm has not got everything. Dead, and not sent again: 2.",
		"ru": "crm получила не всё. Не доставлено и не отправлено повторно: 2.",
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/verdict", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Language", lang)
		list, err := s.dashboard.Verdict(r)
		if err != nil || len(list) != 2 || list[0] != (Finding{levelWarn, "crm", want}) || list[1].Level != levelGood {
			t.Errorf("%s: %+v, %v", lang, list, err)
		}
	}
}
