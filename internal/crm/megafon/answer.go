package megafon

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// pauseForTooMany is the pause that a 429 without a Retry-After asks for.
const pauseForTooMany = 10 * time.Second

// meaning is what a response means. An error is an object with a member of that name, whatever the
// status: some CRMs answer errors with 200.
func meaning(a outbound.Answer, redact func(string) string) (store.Verdict, error) {
	said := telephony.BriefText(redact(errorOf(a.Body)))
	isKey := a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden ||
		strings.Contains(strings.ToLower(said), "token")
	isSuccess := a.Status >= 200 && a.Status <= 299
	switch {
	case isKey:
		return store.Misconfigured, keyRefused(said)
	case a.Status == http.StatusTooManyRequests, a.Status == http.StatusServiceUnavailable && a.RetryAfter > 0:
		return store.Pause, nil
	case isSuccess && said == "":
		return store.Done, nil
	case isSuccess, a.Status == http.StatusBadRequest, a.Status == http.StatusUnprocessableEntity:
		return store.Refused, refused(said)
	}
	return store.Again, nil
}

// errorOf returns the error that the body of a response tells, "" if it tells none.
func errorOf(body []byte) string {
	var answer struct {
		Error any `json:"error"`
	}
	body = bytes.TrimPrefix(bytes.TrimSpace(body), []byte("\uFEFF"))
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	switch e := answer.Error.(type) {
	case nil:
		return ""
	case string:
		if e == "0" { // PHP writes none so too
			return ""
		}
		return strings.TrimSpace(e)
	case bool:
		if !e {
			return ""
		}
	case float64:
		if e == 0 {
			return ""
		}
	case []any:
		if len(e) == 0 {
			return ""
		}
	}
	return "an error without a text"
}

func keyRefused(said string) error {
	f := &telephony.Fault{Code: telephony.CodeCRMKeyRefused, Text: "the CRM does not take the key"}
	if said != "" {
		return f.With(": it says «"+said+"»", said)
	}
	return f
}

// refused is nil for a response without words: its status says all then.
func refused(said string) error {
	if said == "" {
		return nil
	}
	code := telephony.CodeCRMSays
	if strings.Contains(said, "diversion") {
		code = telephony.CodeCRMWantsLine
	}
	return &telephony.Fault{Code: code, Args: []string{said}, Text: "the CRM says «" + said + "»"}
}

// ask asks the CRM whom the client belongs to. No answer, or one that names nobody with a
// telephone, declines the call.
func (s *Sender) ask(ctx context.Context, e *crm.Event, mayRedial func() bool) store.Outcome {
	if e.Client == "" {
		o := crm.Nothing("the caller hides the number")
		o.Reply = &store.RouteReply{}
		return o
	}
	o, answer := s.do(ctx, s.questions, s.contact(e.Client, e.CallID, e.Line), mayRedial)
	switch o.Verdict {
	case store.CutOff:
	case store.Done:
		person, _ := s.responsible(answer)
		o.Reply = &store.RouteReply{To: person.Extension}
	default:
		o.Reply = &store.RouteReply{}
	}
	return o
}

// responsible returns the employee whom an answer to cmd=contact names, and false if it names
// nobody who is known. Nobody is "", 0, null, or no member at all.
func (s *Sender) responsible(answer []byte) (crm.Person, bool) {
	var contact struct {
		Responsible any `json:"responsible"`
	}
	in := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(bytes.TrimSpace(answer), []byte("\uFEFF"))))
	in.UseNumber()
	if in.Decode(&contact) != nil {
		return crm.Person{}, false
	}
	switch name := contact.Responsible.(type) {
	case string:
		return s.settings.People.Named(name)
	case json.Number:
		return s.settings.People.Named(name.String())
	}
	return crm.Person{}, false
}
