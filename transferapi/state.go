package transferapi

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"pzbridge/internal/advice"
	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// switchConnection closes or opens the connection to the exchange. The choice is stored first and
// survives restarts.
func (a *API) switchConnection(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Enabled *bool `json:"enabled"`
	}
	if refusal := readJSON(w, r, &request); refusal != nil {
		refusal.write(w)
		return
	}
	if request.Enabled == nil {
		badFields(&fieldError{"enabled", "is missing: it is true or false"}).write(w)
		return
	}
	if err := a.opts.Outbox.Connect(r.Context(), *request.Enabled, "API"); err != nil {
		problem{
			Status: http.StatusServiceUnavailable,
			Code:   codeOf(err),
			Detail: "It could not be stored, so nothing has changed: " + advice.English(err) + ".",
		}.write(w)
		return
	}
	a.opts.Exchange.Enable(*request.Enabled)
	a.opts.Logger.Info("the connection was switched", "enabled", *request.Enabled, "by", caller(r))
	action := store.AuditPaused
	if *request.Enabled {
		action = store.AuditResumed
	}
	a.audit(r, store.Audit{Action: action})
	a.connection(w, r)
}

// sendTest sends a test event to an endpoint and returns the attempt with its response.
func (a *API) sendTest(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	id, result, err := a.opts.Outbox.SendTest(r.Context(), name)
	switch {
	case errors.Is(err, store.ErrNoEndpoint):
		problem{Status: http.StatusNotFound, Code: codeOf(err), Detail: sentence(err)}.write(w)
	case errors.Is(err, store.ErrNoURL):
		problem{Status: http.StatusConflict, Code: codeOf(err), Detail: sentence(err)}.write(w)
	case err != nil:
		problem{Status: http.StatusServiceUnavailable, Code: codeOf(err), Detail: sentence(err)}.write(w)
	default:
		a.audit(r, store.Audit{Action: store.AuditTested, Subject: name})
		writeJSON(w, http.StatusOK, struct {
			EventID   string `json:"event_id"`
			Endpoint  string `json:"endpoint"`
			Delivered bool   `json:"delivered"` // the status was 2xx
			attempt
		}{id, name, result.Status >= 200 && result.Status <= 299, showAttempt(result)})
	}
}

// checkEndpoint checks the CRM of an endpoint more closely than by a test.
func (a *API) checkEndpoint(w http.ResponseWriter, r *http.Request) {
	var wish crm.Wish
	if refusal := readJSON(w, r, &wish); refusal != nil {
		refusal.write(w)
		return
	}
	name := r.PathValue("name")
	checker := a.opts.CRMs[name]
	if checker == nil {
		problem{
			Status: http.StatusNotFound,
			Detail: fmt.Sprintf("There is no endpoint %q with a preset: another one is checked with its test.", name),
		}.write(w)
		return
	}
	findings := []Finding{}
	for _, f := range crm.Check(r.Context(), checker, wish) {
		level, text := f.Sentence(advice.English)
		findings = append(findings, Finding{Level: level, Text: text})
	}
	a.audit(r, store.Audit{Action: store.AuditTested, Subject: name})
	writeJSON(w, http.StatusOK, struct {
		Endpoint string    `json:"endpoint"`
		Findings []Finding `json:"findings"`
	}{name, findings})
}

// connection returns the state of the connection to the exchange.
func (a *API) connection(w http.ResponseWriter, _ *http.Request) {
	type lastClose struct {
		Code    int    `json:"code"`
		Meaning string `json:"meaning"`
	}
	c := a.opts.Exchange.Connection()
	answer := struct {
		State         telephony.ConnectionState `json:"state"`
		Enabled       bool                      `json:"enabled"`
		Since         time.Time                 `json:"since"`
		LastClose     *lastClose                `json:"last_close,omitempty"`
		LastError     string                    `json:"last_error,omitempty"`
		ServerVersion string                    `json:"server_version,omitempty"`
		Form          string                    `json:"form,omitempty"`
	}{
		State:         c.State,
		Enabled:       c.State != telephony.Disabled,
		Since:         c.Since.UTC(),
		LastError:     lastError(c),
		ServerVersion: telephony.Brief(c.ServerVersion),
		Form:          c.Form,
	}
	if c.CloseCode != 0 {
		answer.LastClose = &lastClose{c.CloseCode, advice.EnglishText(c.CloseMeaning, c.CloseCause)}
	}
	writeJSON(w, http.StatusOK, answer)
}

// lastError returns why there is no connection, and what to do about it; empty if there is one.
func lastError(c telephony.Connection) string { return advice.EnglishText(c.LastError, c.LastCause) }

// alive answers 200 while the process runs. It leaves out the connection to the exchange: a restart
// of the bridge would not bring it back.
func (a *API) alive(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// fault describes a fault in two texts. brief is public; full is for the operator alone, since it
// names CRMs and quotes their answers and the exchange's.
type fault struct{ brief, full string }

// faultTexts returns each text once, so that the public list does not reveal the number of CRMs.
func faultTexts(faults []fault, operator bool) (list []string) {
	for _, f := range faults {
		text := f.brief
		if operator {
			text = f.full
		}
		if !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	return list
}

// outboxFault describes an error of Outbox.Writable: events cannot be stored, or they are stored
// and in danger of being lost.
func outboxFault(err error) fault {
	switch {
	case errors.Is(err, store.ErrFileGone):
		return fault{"The outbox's file is gone.", sentence(err)}
	case errors.Is(err, store.ErrDamaged):
		return fault{"The outbox is damaged.", sentence(err)}
	case telephony.CauseOf(err).Code == telephony.CodeClockWrong:
		return fault{"The clock of this machine is wrong.", sentence(err)}
	}
	const brief, rest = "The outbox cannot be written", ". Events wait in memory."
	return fault{brief + rest, brief + ": " + advice.English(err) + rest}
}

// ready answers 200 if events can arrive and be stored, else 503, with the faults. A CRM that does
// not take its events is only a warning.
func (a *API) ready(w http.ResponseWriter, r *http.Request) {
	var problems, warnings []fault // a warning leaves the bridge ready
	if err := a.opts.Outbox.Writable(r.Context()); err != nil {
		problems = append(problems, outboxFault(err))
	}
	if c := a.opts.Exchange.Connection(); c.State != telephony.Connected {
		detail := "There is no connection to the Prostie Zvonki server"
		f := fault{detail + ".", detail + "."}
		if c.LastError != "" {
			f.full = detail + ": " + lastError(c) + "."
		}
		problems = append(problems, f)
	}
	list, err := a.opts.Outbox.Endpoints(r.Context())
	if err != nil {
		const brief = "How the CRMs stand cannot be read from the outbox"
		warnings = append(warnings, fault{brief + ".", brief + ": " + advice.English(err) + "."})
	}
	for _, e := range list {
		if e.State != "ok" && e.State != "reads" {
			warnings = append(warnings, fault{
				"A CRM does not take its events.",
				fmt.Sprintf("The endpoint %s is %s: %s. What is for it waits (%d events).",
					e.Name, e.State, advice.EnglishText(e.LastError, e.LastCause), e.Pending),
			})
		}
	}
	by, _ := a.authenticate(r)
	answer := struct {
		Status   string   `json:"status"`
		Problems []string `json:"problems,omitempty"`
		Warnings []string `json:"warnings,omitempty"`
		Form     string   `json:"form,omitempty"` // encoding of the server's messages
	}{
		Status:   "ready",
		Problems: faultTexts(problems, by.name == Operator),
		Warnings: faultTexts(warnings, by.name == Operator),
		Form:     a.opts.Exchange.Connection().Form,
	}
	status := http.StatusOK
	if len(answer.Problems) > 0 {
		answer.Status, status = "not ready", http.StatusServiceUnavailable
	}
	writeJSON(w, status, answer)
}
