package dashboard

import (
	"errors"
	"net/http"

	"pzbridge/internal/phone"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// callsView is the data of the page on which calls are found.
type callsView struct {
	Number      string
	NumberError string
	period
	Directions, Outcomes, States []choice
	IsFiltered                   bool // the form restricts the choice
	Narrowed                     bool // by something else than the number
	Rows                         []callRow
	Searched                     int // only so many calls were looked at; 0 means all
	AnyDigits, Unindexed         bool
	IsLater                      bool   // it is not the first page
	First, Older                 string // paths of other pages; Older is empty if there is none
}

// callsOnPage is the number of calls on a page.
const callsOnPage = 50

// calls serves the page on which calls are found.
func (d *Dashboard) calls(w http.ResponseWriter, r *http.Request) {
	t, q := wordsFor(r), r.URL.Query()
	direction := oneOf(q.Get("direction"), string(telephony.Incoming), string(telephony.Outgoing))
	outcome := oneOf(q.Get("outcome"), outcomes...)
	state := oneOf(q.Get("state"), states...)
	v := callsView{
		Number:     q.Get("number"),
		period:     t.readPeriod(q),
		Directions: t.choices(direction, "kind.", "incoming", "outgoing"),
		Outcomes:   t.choices(outcome, "outcome.", outcomes...),
		States:     t.choices(state, "", states...),
		IsLater:    q.Get("cursor") != "",
	}
	v.Narrowed = direction+outcome+state+v.Since+v.Until != ""
	v.IsFiltered = v.Narrowed || v.Number != ""
	page := func(cursor string) string {
		return link("/calls", "number", v.Number, "since", v.Since, "until", v.Until, "direction", direction,
			"outcome", outcome, "state", state, "cursor", cursor)
	}
	v.First = page("")
	if !v.isValid() {
		d.render(w, r, http.StatusBadRequest, "calls", t["Calls"], v)
		return
	}
	endpoints, err := d.opts.Outbox.Endpoints(r.Context())
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	rows, found, err := d.findRows(r.Context(), outbox.CallFilter{
		Number:    v.Number,
		Since:     v.since,
		Until:     v.until,
		Direction: telephony.Direction(direction),
		Outcome:   telephony.Outcome(outcome),
		State:     state,
		Limit:     callsOnPage,
		Cursor:    q.Get("cursor"),
	}, endpoints)
	switch {
	case errors.Is(err, phone.ErrTooFewDigits):
		v.NumberError = t[phone.ErrTooFewDigits.Error()]
		d.render(w, r, http.StatusBadRequest, "calls", t["Calls"], v)
		return
	case err != nil:
		d.renderError(w, r, err)
		return
	}
	v.Rows, v.Searched, v.AnyDigits, v.Unindexed = rows, found.Searched, found.AnyDigits, found.Unindexed
	if found.Cursor != "" {
		v.Older = page(found.Cursor)
	}
	d.render(w, r, http.StatusOK, "calls", t["Calls"], v)
}

// outcomes and states are the choices in the forms.
var (
	outcomes = []string{
		string(telephony.OutcomeAnswered), string(telephony.OutcomeMissed), string(telephony.OutcomeNoAnswer),
	}
	states = []string{"pending", "delivered", "expired", "dead"}
)
