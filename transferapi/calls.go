package transferapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/phone"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// Calls finds calls.
type Calls interface {
	Forgetter
	FindCalls(ctx context.Context, f outbox.CallFilter) (outbox.FoundCalls, error)
	CallHead(ctx context.Context, callID string) (store.CallHead, error)
}

// callHead is the JSON form of what is known of a call as a whole. A field without a value is left
// out.
type callHead struct {
	Kind         string              `json:"kind"` // call or sms
	Direction    telephony.Direction `json:"direction,omitempty"`
	Internal     bool                `json:"internal,omitempty"`
	Client       string              `json:"client_number,omitempty"`
	Extension    string              `json:"extension,omitempty"`
	From         string              `json:"from,omitempty"`
	To           string              `json:"to,omitempty"`
	Line         string              `json:"line,omitempty"`
	BeganAt      time.Time           `json:"began_at,omitzero"`
	LastEventAt  time.Time           `json:"last_event_at,omitzero"`
	Completed    bool                `json:"completed"`
	Outcome      telephony.Outcome   `json:"outcome,omitempty"`
	Duration     *int64              `json:"duration_seconds,omitempty"`
	RecordingURL string              `json:"recording_url,omitempty"`
	Endpoints    []callStanding      `json:"endpoints"`
}

// callStanding says how the deliveries of a call stand at an endpoint.
type callStanding struct {
	Endpoint  string `json:"endpoint"`
	State     string `json:"state"`
	Pending   int    `json:"pending"`
	Delivered int    `json:"delivered"`
	Expired   int    `json:"expired"`
	Dead      int    `json:"dead"`
}

func showCallHead(h *store.CallHead, visible func(name string) bool) callHead {
	shown := callHead{
		Kind:         "call",
		Direction:    h.Direction,
		Internal:     h.Internal,
		Client:       h.Client,
		Extension:    h.Extension,
		From:         h.From,
		To:           h.To,
		Line:         h.Line,
		BeganAt:      h.Began.UTC(),
		LastEventAt:  h.Latest.UTC(),
		Completed:    h.Completed,
		Outcome:      h.Outcome,
		Duration:     h.Duration,
		RecordingURL: h.RecordingURL,
		Endpoints:    []callStanding{},
	}
	if h.IsSMS {
		shown.Kind = "sms"
	}
	for i := range h.Deliveries {
		d := &h.Deliveries[i]
		if visible(d.Endpoint) {
			shown.Endpoints = append(shown.Endpoints, callStanding{
				Endpoint:  d.Endpoint,
				State:     d.State().String(),
				Pending:   d.Pending,
				Delivered: d.Delivered,
				Expired:   d.Expired,
				Dead:      d.Dead,
			})
		}
	}
	return shown
}

// findCalls lists the calls that a search finds, the one with the latest event first.
func (a *API) findCalls(r *http.Request) answer {
	filter, refusal := readCallFilter(r)
	if refusal != nil {
		return problemAnswer(*refusal)
	}
	found, err := a.opts.Calls.FindCalls(r.Context(), filter)
	if err != nil {
		return problemAnswer(callProblem(err))
	}
	type item struct {
		CallID string `json:"call_id"`
		callHead
	}
	shown := struct {
		Calls      []item `json:"calls"`
		NextCursor string `json:"next_cursor,omitempty"`
		Searched   int    `json:"searched,omitempty"`
		AnyDigits  bool   `json:"any_digits,omitempty"`
		Incomplete bool   `json:"incomplete,omitempty"`
	}{
		Calls:      []item{},
		NextCursor: found.Cursor,
		Searched:   found.Searched,
		AnyDigits:  found.AnyDigits,
		Incomplete: found.Unindexed,
	}
	all := func(string) bool { return true }
	for i := range found.Calls {
		h := &found.Calls[i]
		shown.Calls = append(shown.Calls, item{h.CallID, showCallHead(h, all)})
	}
	return okAnswer(shown)
}

func readCallFilter(r *http.Request) (outbox.CallFilter, *problem) {
	values, refusal := readQuery(
		r, "number", "since", "until", "direction", "outcome", "state", "limit", "cursor",
	)
	if refusal != nil {
		return outbox.CallFilter{}, refusal
	}
	limit, refusal := readLimit(values)
	if refusal != nil {
		return outbox.CallFilter{}, refusal
	}
	f := outbox.CallFilter{
		Number: values.Get("number"),
		State:  values.Get("state"),
		Limit:  limit,
		Cursor: values.Get("cursor"),
	}
	var errs [5]error
	f.Since, errs[0] = readTime("since", values.Get("since"))
	f.Until, errs[1] = readTime("until", values.Get("until"))
	f.Direction, errs[2] = readChoice(values, "direction", telephony.Incoming, telephony.Outgoing)
	f.Outcome, errs[3] = readChoice(
		values, "outcome", telephony.OutcomeAnswered, telephony.OutcomeMissed, telephony.OutcomeNoAnswer,
	)
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		errs[4] = &fieldError{"until", "must be later than since"}
	}
	if err := errors.Join(errs[:]...); err != nil {
		return outbox.CallFilter{}, badFields(err)
	}
	return f, nil
}

// readChoice reads a parameter that is one of a few words, or absent.
func readChoice[T ~string](values url.Values, name string, choices ...T) (T, error) {
	value := T(values.Get(name))
	if value == "" || slices.Contains(choices, value) {
		return value, nil
	}
	words := make([]string, len(choices))
	for i, c := range choices {
		words[i] = string(c)
	}
	return "", &fieldError{name, "must be one of " + strings.Join(words, ", ")}
}

func callProblem(err error) problem {
	if errors.Is(err, phone.ErrTooFewDigits) {
		return problem{Status: http.StatusBadRequest, Code: codeBadField, Field: "number", Detail: sentence(err)}
	}
	return deliveryProblem(err)
}
