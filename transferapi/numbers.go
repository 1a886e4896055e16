package transferapi

import (
	"context"
	"errors"
	"net/http"

	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// Forgetter removes what is stored of a person.
type Forgetter interface {
	Forget(ctx context.Context, number string, dryRun bool) (store.Forgotten, error)
}

// notReached is what forgetting a number cannot reach, as people are told.
func (a *API) notReached() []string {
	free := "free pages of the outbox's file, which pzbridge compact overwrites"
	if a.opts.Backup == nil { // it is a database
		free = "free space in the files of the database, and its WAL, until PostgreSQL writes over it"
	}
	return []string{
		"what the CRMs have got",
		"backups, which keep it until they are deleted",
		"the log, which holds no numbers at the level info, but at debug",
		free,
		"recordings on the exchange",
		"webhooks under way at this moment",
	}
}

// forget removes all calls with a number, or with dry_run counts them.
func (a *API) forget(w http.ResponseWriter, r *http.Request) {
	values, refusal := readQuery(r, "dry_run")
	if refusal != nil {
		refusal.write(w)
		return
	}
	dryRun, err := readChoice(values, "dry_run", "true", "false")
	if err != nil {
		badFields(err).write(w)
		return
	}
	if !a.redeliveries.acquire(r.Context(), maxSlotWait) {
		tooManyRequests("Many deliveries are being changed: wait until that is done.").write(w)
		return
	}
	defer a.redeliveries.release()
	// It runs to its end even if the caller disconnects, else only a part would be removed.
	ctx, cancel := detach(r)
	defer cancel()
	gone, err := a.opts.Calls.Forget(ctx, r.PathValue("number"), dryRun == "true")
	if dryRun != "true" && (gone.Events > 0 || err == nil) {
		a.opts.Logger.Info("a number was forgotten", "calls", gone.Calls, "events", gone.Events)
		a.audit(r, store.Audit{Action: store.AuditForgot, Count: gone.Events})
	}
	switch {
	case errors.Is(err, outbox.ErrNoPerson):
		p := deliveryProblem(err)
		p.Status, p.Field = http.StatusBadRequest, "number"
		p.write(w)
		return
	case errors.Is(err, store.ErrUnindexed):
		p := deliveryProblem(err)
		p.Status = http.StatusServiceUnavailable
		p.write(w)
		return
	case err != nil:
		deliveryProblem(err).write(w)
		return
	}
	writeJSON(w, http.StatusOK, struct {
		DryRun     bool     `json:"dry_run"`
		Calls      int      `json:"calls"`
		Events     int      `json:"events"`
		Deliveries int      `json:"deliveries"`
		Pending    int      `json:"pending"`
		Routes     int      `json:"routes"`
		Recordings int      `json:"recordings"`
		NotReached []string `json:"not_reached"`
	}{
		dryRun == "true", gone.Calls, gone.Events, gone.Deliveries, gone.Pending, gone.Routes, gone.Recordings,
		a.notReached(),
	})
}
