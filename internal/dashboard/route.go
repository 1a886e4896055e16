package dashboard

import (
	"fmt"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// routeView is the drawing of the question where a call goes: a bar for each that was asked, from
// the question to the reply.
type routeView struct {
	AskedAt time.Time
	Within  string // the time in which an answer counted
	Rows    []routeRow
	Result  string // what was decided, and what came of it
	Failed  bool   // Result is that a transfer failed
}

type routeRow struct {
	By    string
	Kind  string // number, declined, out, open or late
	Text  string
	After string // how long after the question; empty if there was no reply
	Width int    // of its bar, in hundredths of the whole
	Won   bool
}

func (t words) newRouteView(r *telephony.Route, now time.Time) *routeView {
	if r == nil {
		return nil
	}
	v := &routeView{AskedAt: r.AskedAt, Within: t.short(r.AnswerBy.Sub(r.AskedAt))}
	end := r.AnswerBy
	for _, p := range r.Replies {
		if p.At.After(end) {
			end = p.At
		}
	}
	span := max(1, end.Sub(r.AskedAt))
	width := func(at time.Time) int {
		return int(100 * min(max(span/100, at.Sub(r.AskedAt)), span) / span)
	}
	for _, p := range r.Replies {
		row := t.replyRow(r, &p)
		row.Width = width(p.At)
		v.Rows = append(v.Rows, row)
	}
	for _, by := range r.Asked {
		if slices.ContainsFunc(r.Replies, func(p telephony.Reply) bool { return p.By == by }) {
			continue
		}
		row := routeRow{By: by, Kind: "open", Text: t["has not answered yet"], Width: width(now)}
		if r.Outcome != telephony.RouteOpen {
			row.Kind, row.Text, row.Width = "late", t["had not answered by then"], width(r.DecidedAt)
		}
		v.Rows = append(v.Rows, row)
	}
	v.Result, v.Failed = t.routeResult(r)
	return v
}

func (t words) replyRow(r *telephony.Route, p *telephony.Reply) routeRow {
	row := routeRow{By: p.By, Kind: string(p.Kind), After: t.short(max(0, p.At.Sub(r.AskedAt)))}
	switch p.Kind {
	case telephony.ReplyNumber:
		row.Text = "→ " + p.To
		row.Won = r.Outcome == telephony.RouteWon && p.By == r.Winner && p.To == r.To
	case telephony.ReplyNone:
		row.Text = t["no answer"] + ": " + telephony.BriefText(t.say(p.Why, p.Cause))
	default:
		row.Text = t["declined"]
	}
	return row
}

// routeResult says what was decided, and what came of the transfer.
func (t words) routeResult(r *telephony.Route) (text string, failed bool) {
	switch r.Outcome {
	case telephony.RouteOpen:
		return t["The question is open."], false
	case telephony.RouteOver:
		return t["The call ended before an answer came."], false
	case telephony.RouteWon:
		text = fmt.Sprintf(t["%s has won: the call goes to %s."], r.Winner, r.To)
	default:
		text = t["No CRM has named a number in time."]
	}
	if r.TransferError != "" {
		return text + " " + t["The transfer failed:"] + " " +
			telephony.BriefText(t.say(r.TransferError, r.TransferCause)) + ".", true
	}
	switch r.Transfer {
	case telephony.TransferDone:
		after := t.short(max(0, r.TransferAt.Sub(r.AskedAt)))
		done := fmt.Sprintf(t["The phone system transferred it %s after the question."], after)
		if r.To == "" {
			done = t["The phone system was told not to redirect it."]
		}
		return text + " " + done, false
	case telephony.TransferWriting:
		return text + " " + t["The phone system has not confirmed the transfer."], false
	case telephony.TransferNotSent, telephony.TransferFailed:
		return text + " " + t["It was not transferred."], true
	}
	return text, false
}

// routeSteps returns the points of a call's routing for its timeline: the replies and the transfer.
func (t words) routeSteps(r *telephony.Route) (steps []step) {
	if r == nil {
		return nil
	}
	for _, p := range r.Replies {
		text := p.By + ": " + t["declined"]
		switch p.Kind {
		case telephony.ReplyNumber:
			text = p.By + " → " + p.To
		case telephony.ReplyNone:
			text = p.By + ": " + t["no answer"]
		}
		steps = append(steps, step{At: p.At, Kind: "answered", Text: text})
	}
	if r.Transfer != "" && !r.TransferAt.IsZero() {
		text := t["transferred"] + " → " + r.To
		switch {
		case r.TransferError != "":
			text = t["not transferred"]
		case r.To == "":
			text = t["not redirected"]
		}
		steps = append(steps, step{At: r.TransferAt, Kind: "transferred", Text: text})
	}
	return steps
}
