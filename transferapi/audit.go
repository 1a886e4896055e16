package transferapi

import (
	"net"
	"net/http"
	"time"

	"pzbridge/outbox/store"
)

// audit keeps what the operator has done by a request.
func (a *API) audit(r *http.Request, e store.Audit) {
	e.Through = "API"
	if e.From, _, _ = net.SplitHostPort(r.RemoteAddr); e.From == "" {
		e.From = r.RemoteAddr
	}
	a.opts.Outbox.Audit(r.Context(), e)
}

// listAudits returns what the operator has done, the latest first.
func (a *API) listAudits(r *http.Request) answer {
	limit, refusal := readOnlyLimit(r)
	if refusal != nil {
		return problemAnswer(*refusal)
	}
	list, err := a.opts.Outbox.Audits(r.Context(), limit)
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	type entry struct {
		At      time.Time         `json:"at"`
		Action  store.AuditAction `json:"action"`
		From    string            `json:"from,omitempty"`
		Through string            `json:"through"`
		Subject string            `json:"subject,omitempty"`
		Count   int               `json:"count,omitempty"`
	}
	shown := struct {
		Entries []entry `json:"entries"`
	}{[]entry{}}
	for _, e := range list {
		shown.Entries = append(shown.Entries, entry{e.At, e.Action, e.From, e.Through, e.Subject, e.Count})
	}
	return okAnswer(shown)
}
