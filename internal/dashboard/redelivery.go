package dashboard

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// choiceView is the data of the page that shows what would be sent again, and asks.
type choiceView struct {
	deliveryFilter
	Problem   string        // why nothing can be sent again
	Endpoints []string      // to choose from, if the filter names none
	IDs       []string      // the deliveries that were ticked
	Rows      []deliveryRow // the same
	States    []string      // of the filter
	Count     int
	Back      string // the path of the list
}

// ticked is in place of a number in the path of a redelivery of those that were ticked. Its query
// names them.
const ticked = "ticked"

// resentStates are the states of what a filter without a state sends again. What is delivered is
// sent again only on request.
var resentStates = []string{"dead", "expired"}

// choose serves the page that counts what would be sent again, and asks.
func (d *Dashboard) choose(w http.ResponseWriter, r *http.Request) {
	t, q := wordsFor(r), r.URL.Query()
	v := choiceView{deliveryFilter: t.readDeliveryFilter(q)}
	v.Back = v.path("/deliveries", "")
	endpoints, err := d.opts.Outbox.Endpoints(r.Context())
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	if q.Get("chosen") == ticked {
		if v.IDs = q["id"]; len(v.IDs) == 0 {
			v.Problem = t["Nothing is ticked."]
		}
		v.Rows, err = d.tickedRows(r.Context(), t, v.IDs, endpoints)
		v.Count = len(v.Rows)
	} else {
		err = d.count(r, &v, endpoints)
	}
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.render(w, r, http.StatusOK, "choice", t["Send again"], v)
}

// count counts what a filter selects.
func (d *Dashboard) count(r *http.Request, v *choiceView, endpoints []outbox.EndpointStatus) error {
	t := wordsFor(r)
	for _, e := range endpoints {
		if e.State != "reads" {
			v.Endpoints = append(v.Endpoints, e.Name)
		}
	}
	if v.Endpoint == "" && len(v.Endpoints) == 1 {
		v.Endpoint = v.Endpoints[0]
	}
	switch {
	case v.Endpoint == "":
		v.Problem = t["Choose the CRM that is to get its events again:"]
		return nil
	case v.State == "pending":
		v.Problem = t["What waits is sent by itself."]
		return nil
	case v.Type == string(telephony.EventTransferRequested):
		v.Problem = t["The time of the question is over."]
		return nil
	case !v.isValid():
		v.Problem = v.SinceError + v.UntilError
		return nil
	}
	what := v.redelivery()
	what.DryRun, v.States = true, what.States
	_, n, err := d.opts.Outbox.RedeliverAll(r.Context(), what)
	v.Count = n
	return err
}

// redelivery returns what the filter selects to be sent again. Questions where a call goes are not
// among it: their time is over.
func (f *deliveryFilter) redelivery() store.Redelivery {
	what := store.Redelivery{
		Endpoint: f.Endpoint,
		Since:    f.since,
		Until:    f.until,
		States:   resentStates,
		Types:    f.types(),
	}
	if f.State != "" {
		what.States = []string{f.State}
	}
	if what.Types == nil {
		for _, t := range slices.Concat(telephony.EventTypes, telephony.OperationalTypes) {
			if t != telephony.EventTransferRequested {
				what.Types = append(what.Types, t)
			}
		}
	}
	return what
}

// tickedRows returns the deliveries with the given IDs; those that have been removed meanwhile are
// left out.
func (d *Dashboard) tickedRows(
	ctx context.Context, t words, ids []string, endpoints []outbox.EndpointStatus,
) (rows []deliveryRow, err error) {
	for _, id := range ids[:min(len(ids), deliveriesOnPage)] {
		delivery, _, err := d.opts.Outbox.Delivery(ctx, id)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, err
		default:
			rows = append(rows, t.newDeliveryRow(&delivery, endpoints))
		}
	}
	return rows, nil
}

// redeliverMany sends again what the page of choose has shown, and redirects to the page of its
// progress. It runs to its end even if the browser goes away, else only a part would be sent.
func (d *Dashboard) redeliverMany(w http.ResponseWriter, r *http.Request) {
	t := wordsFor(r)
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		d.renderProblem(w, r, t["The form cannot be read."])
		return
	}
	ctx, cancel := d.detach(r)
	defer cancel()
	if ids := r.PostForm["id"]; len(ids) > 0 {
		d.redeliverTicked(ctx, w, r, ids)
		return
	}
	filter := t.readDeliveryFilter(r.PostForm)
	if !filter.isValid() {
		d.renderProblem(w, r, filter.SinceError+filter.UntilError)
		return
	}
	select {
	case d.redelivering <- struct{}{}:
		defer func() { <-d.redelivering }()
	default:
		text := t["Other deliveries are being chosen: wait until that is done."]
		d.renderFailure(w, r, http.StatusTooManyRequests, text)
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // choosing among millions takes its time
	what := filter.redelivery()
	number, n, err := d.opts.Outbox.RedeliverAll(ctx, what)
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.opts.Logger.Info("deliveries are made again", "endpoint", what.Endpoint, "deliveries", n)
	d.did(r, store.AuditRedeliveredAll, what.Endpoint, n)
	d.redirect(w, r, "/redeliveries/"+strconv.FormatUint(uint64(number), 10))
}

func (d *Dashboard) redeliverTicked(ctx context.Context, w http.ResponseWriter, r *http.Request, ids []string) {
	var done []string
	for _, id := range ids[:min(len(ids), deliveriesOnPage)] {
		delivery, err := d.opts.Outbox.Redeliver(ctx, id)
		switch {
		case errors.Is(err, store.ErrNotFound): // it has been removed meanwhile
		case err != nil:
			d.renderError(w, r, err)
			return
		default:
			d.logRedelivery(&delivery)
			d.did(r, store.AuditRedelivered, id, 0)
			done = append(done, id)
		}
	}
	d.redirect(w, r, "/redeliveries/"+ticked+"?"+url.Values{"id": done}.Encode())
}

// progress is a redelivery of many, and what has come of it.
type progress struct {
	Number       uint32 // 0 for those that were ticked
	Live         string // the path of the live part of its page
	Endpoint     string
	States       []string
	Type         string // the only one, or empty
	Since, Until time.Time
	At           time.Time // when it was requested
	IsChoosing   bool
	IsCutOff     bool // the bridge was stopped while it was choosing
	Chosen       int
	Pending      int
	Delivered    int
	Expired      int
	Dead         int
	Superseded   int
	Rows         []deliveryRow // those that were ticked
	State        string        // of the endpoint, if it is failing or paused
	Why          string        // likewise
	NextAttempt  time.Time     // likewise
}

// maxChoosing is longer than any request that chooses what to send again may take.
const maxChoosing = 15 * time.Minute

func newProgress(r *store.RedeliveryState) progress {
	p := progress{
		Number:     r.Number,
		Endpoint:   r.Endpoint,
		States:     r.States,
		Since:      r.Since,
		Until:      r.Until,
		At:         r.At,
		IsChoosing: !r.Whole && time.Since(r.At) < maxChoosing,
		IsCutOff:   !r.Whole && time.Since(r.At) >= maxChoosing,
		Chosen:     r.Chosen,
		Pending:    r.Pending(),
		Delivered:  r.Delivered,
		Expired:    r.Expired,
		Dead:       r.Dead,
		Superseded: r.Superseded,
	}
	if len(r.Types) == 1 {
		p.Type = string(r.Types[0])
	}
	return p
}

// Ended returns how many deliveries have ended.
func (p *progress) Ended() int { return p.Chosen - p.Pending }

// IsDone reports whether nothing is to come any more.
func (p *progress) IsDone() bool { return !p.IsChoosing && p.Pending == 0 }

// refresh returns after how many seconds a browser without JavaScript loads the page again.
func (p *progress) refresh() int {
	if p.IsDone() {
		return 0
	}
	return 3
}

// redelivery serves the page of a redelivery.
func (d *Dashboard) redelivery(w http.ResponseWriter, r *http.Request) {
	p, err := d.progress(r)
	switch {
	case errors.Is(err, store.ErrNoRedelivery):
		d.renderFailure(w, r, http.StatusNotFound, wordsFor(r).explain(err))
	case err != nil:
		d.renderError(w, r, err)
	default:
		d.render(w, r, http.StatusOK, "redelivery", wordsFor(r)["Sent again"], p)
	}
}

// liveRedelivery is the liveView of a redelivery.
func (d *Dashboard) liveRedelivery(r *http.Request) (any, error) { return d.progress(r) }

func (d *Dashboard) progress(r *http.Request) (*progress, error) {
	endpoints, err := d.opts.Outbox.Endpoints(r.Context())
	if err != nil {
		return nil, err
	}
	p, err := d.readProgress(r, endpoints)
	if err != nil {
		return nil, err
	}
	p.Live = "/redeliveries/" + r.PathValue("number") + "/live"
	if r.URL.RawQuery != "" {
		p.Live += "?" + r.URL.RawQuery
	}
	for _, e := range endpoints {
		if e.Name == p.Endpoint && (e.State == "failing" || e.State == "paused") {
			p.State, p.NextAttempt, p.Why = e.State, e.NextAttempt, wordsFor(r).say(e.LastError, e.LastCause)
		}
	}
	return p, nil
}

func (d *Dashboard) readProgress(r *http.Request, endpoints []outbox.EndpointStatus) (*progress, error) {
	if r.PathValue("number") == ticked {
		rows, err := d.tickedRows(r.Context(), wordsFor(r), r.URL.Query()["id"], endpoints)
		if err != nil {
			return nil, err
		}
		return progressOf(rows), nil
	}
	number, err := strconv.ParseUint(r.PathValue("number"), 10, 32)
	if err != nil {
		return nil, store.ErrNoRedelivery
	}
	state, err := d.opts.Outbox.Redelivery(r.Context(), uint32(number))
	if err != nil {
		return nil, err
	}
	p := newProgress(&state)
	return &p, nil
}

// progressOf sums up the deliveries that were ticked.
func progressOf(rows []deliveryRow) *progress {
	p := &progress{Chosen: len(rows), Rows: rows}
	for i := range rows {
		switch rows[i].State {
		case "pending":
			p.Pending++
			p.Endpoint = rows[i].Endpoint
		case "delivered":
			p.Delivered++
		case "expired":
			p.Expired++
		case "dead":
			p.Dead++
		}
	}
	return p
}

// To returns the path of the page with another endpoint.
func (v choiceView) To(endpoint string) string {
	v.Endpoint = endpoint
	return v.path("/redeliveries/new", "")
}
