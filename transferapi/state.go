package transferapi

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// switchConnection hangs up, and stays so through restarts, or connects again.
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
	if err := a.opts.Outbox.Connect(*request.Enabled); err != nil {
		problem{Status: http.StatusServiceUnavailable, Detail: "It could not be stored, so nothing has changed: " + err.Error() + "."}.write(w)
		return
	}
	a.opts.Exchange.Enable(*request.Enabled)
	a.opts.Logger.Info("the connection was switched", "enabled", *request.Enabled, "by", caller(r))
	a.connection(w, r)
}

// sendTest sends an endpoint a test and tells what it said.
func (a *API) sendTest(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	id, made, err := a.opts.Outbox.SendTest(r.Context(), name)
	switch {
	case errors.Is(err, outbox.ErrNoEndpoint):
		problem{Status: http.StatusNotFound, Detail: sentence(err)}.write(w)
	case errors.Is(err, outbox.ErrNoURL):
		problem{Status: http.StatusConflict, Detail: sentence(err)}.write(w)
	case err != nil:
		problem{Status: http.StatusServiceUnavailable, Detail: sentence(err)}.write(w)
	default:
		writeJSON(w, http.StatusOK, struct {
			EventID   string `json:"event_id"`
			Endpoint  string `json:"endpoint"`
			Delivered bool   `json:"delivered"` // it was answered 2xx
			attempt
		}{id, name, made.Status >= 200 && made.Status <= 299, showAttempt(made)})
	}
}

// connection tells where the connection to the exchange stands.
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
		State: c.State, Enabled: c.State != telephony.Disabled, Since: c.Since.UTC(), LastError: c.LastError,
		ServerVersion: telephony.Brief(c.ServerVersion), Form: c.Form,
	}
	if c.CloseCode != 0 {
		answer.LastClose = &lastClose{c.CloseCode, c.CloseMeaning}
	}
	writeJSON(w, http.StatusOK, answer)
}

// alive says that the process answers. An exchange that is away is no reason to restart the bridge.
func (a *API) alive(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// fault is what is wrong: in brief for everybody, and the whole, which names CRMs and quotes what they and the exchange have answered, for the operator.
type fault struct{ brief, whole string }

func texts(faults []fault, operator bool) (list []string) {
	for _, f := range faults {
		text := f.brief
		if operator {
			text = f.whole
		}
		if !slices.Contains(list, text) { // nor does it tell how many CRMs there are
			list = append(list, text)
		}
	}
	return list
}

// outboxFault says what is wrong with the outbox: whether events cannot be stored, or are stored and
// in danger.
func outboxFault(err error) fault {
	switch {
	case errors.Is(err, outbox.ErrFileGone):
		return fault{"The outbox's file is gone.", sentence(err)}
	case errors.Is(err, outbox.ErrDamaged):
		return fault{"The outbox is damaged.", sentence(err)}
	case errors.Is(err, outbox.ErrWrongClock):
		return fault{"The clock of this machine is wrong.", sentence(err)}
	}
	const brief, then = "The outbox cannot be written", ". Events wait in memory."
	return fault{brief + then, brief + ": " + err.Error() + then}
}

// ready says whether events can come in and be kept, and what stands in the way.
func (a *API) ready(w http.ResponseWriter, r *http.Request) {
	var problems, warnings []fault // warnings are what is wrong and no reason to do without the bridge
	if err := a.opts.Outbox.Writable(); err != nil {
		problems = append(problems, outboxFault(err))
	}
	if c := a.opts.Exchange.Connection(); c.State != telephony.Connected {
		detail := "There is no connection to the Prostie Zvonki server"
		f := fault{detail + ".", detail + "."}
		if c.LastError != "" {
			f.whole = detail + ": " + c.LastError + "."
		}
		problems = append(problems, f)
	}
	if list, err := a.opts.Outbox.Endpoints(); err == nil {
		for _, e := range list {
			if e.State != "ok" && e.State != "reads" {
				warnings = append(warnings, fault{
					"A CRM does not take its events.",
					fmt.Sprintf("The endpoint %s is %s: %s. What is for it waits (%d events).", e.Name, e.State, e.LastError, e.Pending),
				})
			}
		}
	}
	by, _ := a.bearer(r)
	answer := struct {
		Status   string   `json:"status"`
		Problems []string `json:"problems,omitempty"`
		Warnings []string `json:"warnings,omitempty"`
		Form     string   `json:"form,omitempty"` // in which the server packs its messages
	}{"ready", texts(problems, by.name == Operator), texts(warnings, by.name == Operator), a.opts.Exchange.Connection().Form}
	status := http.StatusOK
	if len(answer.Problems) > 0 {
		answer.Status, status = "not ready", http.StatusServiceUnavailable
	}
	writeJSON(w, status, answer)
}
