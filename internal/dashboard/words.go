package dashboard

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"pzbridge/internal/advice"
	"pzbridge/internal/telephony"

	"golang.org/x/text/language"
)

// words maps each English text to its text in one language.
type words map[string]string

var (
	languages = language.NewMatcher([]language.Tag{language.English, language.Russian})
	wordsOf   = []words{english(), russian} // in the order of languages
)

// short formats a duration in one unit.
func (t words) short(d time.Duration) string {
	text := t.inOneUnit(d)
	if t["lang"] == "ru" {
		text = strings.Replace(text, ".", ",", 1)
	}
	return text
}

func (t words) inOneUnit(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f %s", d.Seconds()*1000, t["ms"])
	case d < time.Second:
		return fmt.Sprintf("%d %s", d.Milliseconds(), t["ms"])
	case d < time.Minute:
		return fmt.Sprintf("%.1f %s", d.Seconds(), t["s"])
	case d < time.Hour:
		return fmt.Sprintf("%d %s", int(d.Minutes()), t["min"])
	case d < 48*time.Hour:
		return fmt.Sprintf("%d %s", int(d.Hours()), t["h"])
	}
	return fmt.Sprintf("%d %s", int(d.Hours()/24), t["d"])
}

// explain returns an error, and what to do about it, in the page's language.
func (t words) explain(err error) string {
	if t["lang"] == "ru" {
		return advice.Russian(err)
	}
	return advice.English(err)
}

// say is explain for a text that was kept with its cause.
func (t words) say(text string, c telephony.Cause) string {
	if t["lang"] == "ru" {
		return advice.RussianText(text, c)
	}
	return advice.EnglishText(text, c)
}

// wordsFor chooses the language by Accept-Language: Russian if it is preferred, else English.
func wordsFor(r *http.Request) words {
	_, i := language.MatchStrings(languages, r.Header.Get("Accept-Language"))
	return wordsOf[i]
}

// english maps each text to itself, except the keys that are identifiers.
func english() words {
	w := words{}
	for text := range russian {
		w[text] = text
	}
	for name, text := range map[string]string{
		"lang":                    "en",
		"reads":                   "reads its events itself",
		"call.transfer_requested": "asks where to go",
		"call.incoming":           "rings",
		"call.incoming_answered":  "picked up",
		"call.outgoing":           "rings the client",
		"call.outgoing_answered":  "the client picked up",
		"call.completed":          "over",
		"call.recording_ready":    "recording",
		"sms.sent":                "SMS",
		"sms.status":              "SMS status",
		"pz.event":                "other event",
		"bridge.connected":        "the phone system is connected",
		"bridge.disconnected":     "the phone system is not connected",
		"endpoint.failing":        "a CRM fails",
		"endpoint.recovered":      "a CRM takes events again",
		"delivery.dead":           "an event was given up",
		"alert.disconnected":      "alert: no connection to the phone system",
		"alert.endpoint_failing":  "alert: a CRM fails",
		"alert.delivery_dead":     "alert: events were given up",
		"alert.outbox_full":       "alert: the outbox fills up",
		"alert.commands_refused":  "alert: commands were refused",
		"did.signed_in":           "signed in",
		"did.signed_out":          "signed out, in all browsers",
		"did.paused":              "paused the connection",
		"did.resumed":             "resumed the connection",
		"did.redelivered":         "sent one delivery again",
		"did.redelivered_many":    "sent many deliveries again",
		"did.tested":              "sent a test",
		"did.forgot":              "forgot a person's number",
		"did.backed_up":           "took a backup",
		"stands.connected":        "connected",
		"stands.spare":            "spare",
		"stands.unconnected":      "not connected",
		"stands.gone":             "gone",
		"span.hour":               "hour",
		"span.day":                "day",
		"span.week":               "week",
		"kind.incoming":           "Incoming",
		"kind.outgoing":           "Outgoing",
		"kind.internal":           "Internal",
		"kind.sms":                "SMS",
		"kind.call":               "Call",
		"outcome.answered":        "answered",
		"outcome.missed":          "missed",
		"outcome.no_answer":       "no answer",
		"outcome.going_on":        "going on",
		"none":                    "nothing sent",
		"held":                    "waits for an earlier event of its call",
		"From time":               "From",
		"To time":                 "To",
		"unread":                  "not read yet",
	} {
		w[name] = text
	}
	return w
}
