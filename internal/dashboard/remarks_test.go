package dashboard

import (
	"testing"

	"pzbridge/internal/crm"
	"pzbridge/outbox/store"
)

// What the CRM made of an event is said once, in the page's language, whatever number of attempts
// said it; words that the page does not have stay as they are.
func TestWhatTheCRMMadeIsInThePagesLanguage(t *testing.T) {
	made := store.Step{What: "telephony.externalCall.register"}
	made.Remark(crm.RemarkEntity("LEAD", true), "5")
	made.Remark("another word", "7: <b>")
	finished := store.Step{What: "telephony.externalCall.finish"}
	finished.Remark(crm.RemarkUser, "16")
	finished.Remark(crm.RemarkNobody, "")
	attempts := []store.Attempt{
		{Status: 200, Steps: []store.Step{made}},
		{Status: 200, Steps: []store.Step{{What: "telephony.externalCall.hide"}, made, finished}},
		{Response: store.NothingToSend + "the portal knows that already"},
	}
	for lang, want := range map[string][2]string{
		"en": {
			"new lead: 5 · another word: 7: <b> · entered for the user: 16 · nobody is responsible · " +
				"nothing to send: the portal knows that already",
			"telephony.externalCall.register · new lead: 5 · another word: 7: <b>",
		},
		"ru": {
			"новый лид: 5 · another word: 7: <b> · записан на пользователя: 16 · ответственного нет · " +
				"отправлять нечего: портал это уже знает",
			"telephony.externalCall.register · новый лид: 5 · another word: 7: <b>",
		},
	} {
		words := map[string]words{"en": english(), "ru": russian}[lang]
		if got := words.made(attempts); got != want[0] {
			t.Errorf("%s: it made %q, want %q", lang, got, want[0])
		}
		if got := words.request(&made); got != want[1] {
			t.Errorf("%s: the request is %q, want %q", lang, got, want[1])
		}
	}
}
