package dashboard

import (
	"net/http"
	"strconv"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// connectionView is the data of the page that asks before the connection is paused.
type connectionView struct {
	Enabled bool
	Pause   outbox.Pause
}

// connection serves the page that asks whether to pause the connection, and says what that means.
func (d *Dashboard) connection(w http.ResponseWriter, r *http.Request) {
	pause, err := d.opts.Outbox.Paused(r.Context())
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	v := connectionView{Enabled: d.shownConnection(pause).State != telephony.Disabled, Pause: pause}
	d.render(w, r, http.StatusOK, "connection", wordsFor(r)["Phone system"], v)
}

// switchConnection closes or opens the connection to the exchange. The choice is stored first and
// survives restarts.
func (d *Dashboard) switchConnection(w http.ResponseWriter, r *http.Request) {
	enabled, err := strconv.ParseBool(r.PostFormValue("enabled"))
	if err != nil {
		d.renderProblem(w, r, wordsFor(r)[badSwitch])
		return
	}
	if err := d.opts.Outbox.Connect(r.Context(), enabled, byDashboard); err != nil {
		d.renderError(w, r, err)
		return
	}
	d.opts.Exchange.Enable(enabled)
	d.opts.Logger.Info("the connection was switched", "enabled", enabled, "by", byDashboard)
	action := store.AuditPaused
	if enabled {
		action = store.AuditResumed
	}
	d.did(r, action, "", 0)
	d.redirect(w, r, "/")
}

// byDashboard is stored with a pause that was made here.
const byDashboard = "dashboard"
