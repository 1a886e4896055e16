package dashboard

import (
	"net"
	"net/http"

	"pzbridge/outbox/store"
)

// did keeps what the operator has done.
func (d *Dashboard) did(r *http.Request, action store.AuditAction, subject string, count int) {
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = r.RemoteAddr
	}
	d.opts.Outbox.Audit(r.Context(), store.Audit{
		Action:  action,
		From:    from,
		Through: byDashboard,
		Subject: subject,
		Count:   count,
	})
}

// audit serves the list of what operators have done.
func (d *Dashboard) audit(w http.ResponseWriter, r *http.Request) {
	list, err := d.opts.Outbox.Audits(r.Context(), store.MaxAudits)
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.render(w, r, http.StatusOK, "audit", wordsFor(r)["Who did what"], list)
}
