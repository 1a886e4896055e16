package transferapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/advice"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Events reads the stored events.
type Events interface {
	Events(ctx context.Context, q store.EventQuery) (store.EventPage, error)
	Changed() <-chan struct{} // closed when the next event is stored
	Call(ctx context.Context, callID string, after uint64) (store.CallPage, error)
	Route(ctx context.Context, callID string) (*telephony.Route, error)
}

// maxWait bounds the parameter wait of a read of events.
const maxWait = time.Minute

// listEvents returns the caller's events after a cursor. If there are none, it waits for the next
// one up to the parameter wait.
func (a *API) listEvents(w http.ResponseWriter, r *http.Request) {
	q, wait, refusal := readEventQuery(r)
	if refusal != nil {
		refusal.write(w)
		return
	}
	if by := caller(r); by != Operator {
		q.Endpoint = by
	}
	if wait > 0 {
		polls := a.readSlots[caller(r)].polls
		if !polls.acquire(r.Context(), 0) {
			tooManyRequests(
				fmt.Sprintf("%d requests with this token wait for events already: that is as many as may.", maxPolls),
			).write(w)
			return
		}
		defer polls.release()
	}
	// The server's read timeout would cut the wait short.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	timeUp := time.NewTimer(wait)
	defer timeUp.Stop()
	for waiting := wait > 0; ; {
		changed := a.opts.Events.Changed() // taken before the read, so that no event between the two is missed
		if a.answerEvents(w, r, &q, waiting) {
			return
		}
		select {
		case <-changed:
		case <-timeUp.C:
			waiting = false
		case <-a.draining:
			waiting = false
		case <-r.Context().Done():
			return
		}
	}
}

// answerEvents answers with a page of events. If the page is empty and the caller waits, it does
// not answer, and moves q past the events that were scanned.
func (a *API) answerEvents(w http.ResponseWriter, r *http.Request, q *store.EventQuery, waiting bool) (answered bool) {
	answered = true
	a.withReadSlots(w, r, func(scan func(func()) bool) {
		var page store.EventPage
		var err error
		switch {
		case !scan(func() { page, err = a.opts.Events.Events(r.Context(), *q) }):
		case err != nil:
			eventProblem(err).write(w)
		case len(page.Events) == 0 && waiting && !page.More:
			q.After, answered = page.Cursor, false
		default:
			writeEvents(w, page)
		}
	})
	return answered
}

// writeEvents answers with a page of events. It writes each event as it is stored: that is JSON,
// and another encoding would copy it.
func writeEvents(w http.ResponseWriter, page store.EventPage) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, `{"events":[`)
	for i, event := range page.Events {
		if i > 0 {
			_, _ = io.WriteString(w, ",")
		}
		_, _ = w.Write(event)
	}
	end := struct {
		NextCursor string `json:"next_cursor,omitempty"`
		More       bool   `json:"more"`
	}{page.Cursor, page.More}
	_, _ = w.Write(append([]byte("],"), bytes.TrimPrefix(encodeJSON(end), []byte("{"))...))
}

func readEventQuery(r *http.Request) (q store.EventQuery, wait time.Duration, refusal *problem) {
	values, refusal := readQuery(r, "after", "limit", "wait", "types", "order")
	if refusal != nil {
		return q, 0, refusal
	}
	q.After = values.Get("after")
	if q.Limit, refusal = readLimit(values); refusal != nil {
		return q, 0, refusal
	}
	var errOrder, errWait, errTypes error
	q.Backwards, errOrder = readOrder(values.Get("order"))
	if wait, errWait = readWait(values.Get("wait")); wait > 0 && q.Backwards {
		errWait = &fieldError{"wait", "is of use with order=asc only: nothing new comes behind the oldest"}
	}
	q.Types, errTypes = readTypes(strings.Split(values.Get("types"), ","))
	if err := errors.Join(errOrder, errWait, errTypes); err != nil {
		return q, 0, badFields(err)
	}
	return q, wait, nil
}

func readOrder(s string) (backwards bool, err error) {
	if s != "" && s != "asc" && s != "desc" {
		return false, &fieldError{"order", "must be asc (the oldest first) or desc (the newest first)"}
	}
	return s == "desc", nil
}

func readWait(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	wait, err := time.ParseDuration(s)
	if err != nil || wait < 0 || wait > maxWait {
		return 0, &fieldError{"wait", fmt.Sprintf("must be a time such as 30s, at most %s", maxWait)}
	}
	return wait, nil
}

// readTypes returns the event types that entries select. An entry is a type, or a prefix such as
// call.*; empty entries are skipped.
func readTypes(entries []string) (types []telephony.EventType, err error) {
	for _, entry := range entries {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		filter, err := store.ParseFilter(entry)
		if err != nil {
			return nil, &fieldError{
				"types",
				fmt.Sprintf("holds %q, which is no type of event, nor a prefix of some such as call.*", entry),
			}
		}
		for _, kind := range slices.Concat(telephony.EventTypes, telephony.OperationalTypes) {
			if filter.Match(kind) && !slices.Contains(types, kind) {
				types = append(types, kind)
			}
		}
	}
	return types, nil
}

// readQuery reads the query's parameters. It refuses a parameter that is not in names, as
// readFields refuses a field.
func readQuery(r *http.Request, names ...string) (url.Values, *problem) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &problem{Status: http.StatusBadRequest, Detail: "The query of the address cannot be read."}
	}
	for name := range values {
		if !slices.Contains(names, name) {
			return nil, badFields(
				&fieldError{name, "is no parameter of this list; it takes " + strings.Join(names, ", ")},
			)
		}
	}
	return values, nil
}

func readLimit(values url.Values) (int, *problem) {
	if !values.Has("limit") {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(values.Get("limit"))
	if err != nil || n < 1 || n > maxLimit {
		return 0, badFields(&fieldError{"limit", fmt.Sprintf("must be a number from 1 to %d", maxLimit)})
	}
	return n, nil
}

// readOnlyLimit reads the query of a list that takes a limit and nothing else.
func readOnlyLimit(r *http.Request) (int, *problem) {
	values, refusal := readQuery(r, "limit")
	if refusal != nil {
		return 0, refusal
	}
	return readLimit(values)
}

func eventProblem(err error) problem {
	p := problem{Status: http.StatusInternalServerError, Code: codeOf(err), Detail: sentence(err)}
	var pruned *store.PrunedError
	switch {
	case errors.As(err, &pruned):
		p.Status, p.Field, p.Oldest = http.StatusGone, "after", pruned.Oldest
	case errors.Is(err, store.ErrStillCopied):
		p.Status = http.StatusServiceUnavailable
	case errors.Is(err, store.ErrBadCursor):
		p.Status, p.Field = http.StatusBadRequest, "after"
	}
	return p
}

// call is the JSON form of a call: its events and its routing.
type call struct {
	CallID string `json:"call_id"`
	callHead
	Events  []callEvent `json:"events"`
	Routing *routing    `json:"routing,omitempty"` // absent if the call had no routing question
	// NextCursor is absent on the last page.
	NextCursor string `json:"next_cursor,omitempty"`
}

type callEvent struct {
	ID         string              `json:"id"`
	Type       telephony.EventType `json:"type"`
	Sequence   uint64              `json:"sequence"`
	Timestamp  time.Time           `json:"timestamp"`
	Deliveries []delivery          `json:"deliveries"`
}

type routing struct {
	AskedAt    time.Time              `json:"asked_at"`
	AnswerBy   time.Time              `json:"answer_by"`
	Asked      []string               `json:"asked"`
	Replies    []reply                `json:"replies"`
	Outcome    telephony.RouteOutcome `json:"outcome"`
	Winner     string                 `json:"winner,omitempty"`
	TransferTo string                 `json:"transfer_to,omitempty"`
	DecidedAt  time.Time              `json:"decided_at,omitzero"`
	OverAt     time.Time              `json:"over_at,omitzero"`
	Transfer   *transfer              `json:"transfer,omitempty"` // absent if no transfer was to be sent
}

type reply struct {
	By         string              `json:"by"`
	At         time.Time           `json:"at"`
	Kind       telephony.ReplyKind `json:"kind"`
	TransferTo string              `json:"transfer_to,omitempty"`
	Reason     string              `json:"reason,omitempty"`
}

// transfer is the transfer that was sent to the exchange, and its outcome.
type transfer struct {
	To    string                  `json:"to"`
	State telephony.TransferState `json:"state"`
	At    time.Time               `json:"at,omitzero"`
	Error string                  `json:"error,omitempty"`
}

// getCall returns a page of a call's events, with its routing. An endpoint sees only its own
// deliveries and replies, and the winner.
func (a *API) getCall(r *http.Request) answer {
	values, refusal := readQuery(r, "cursor")
	if refusal != nil {
		return problemAnswer(*refusal)
	}
	after, err := uint64(0), error(nil)
	if values.Has("cursor") {
		if after, err = strconv.ParseUint(values.Get("cursor"), 10, 64); err != nil {
			return problemAnswer(*badFields(&fieldError{"cursor", "is none that this call has given"}))
		}
	}
	shown := call{CallID: r.PathValue("call_id"), Events: []callEvent{}}
	page, err := a.opts.Events.Call(r.Context(), shown.CallID, after)
	visible := func(name string) bool { return caller(r) == Operator || caller(r) == name }
	for _, e := range page.Events {
		if event := showCallEvent(e, visible); len(event.Deliveries) > 0 || caller(r) == Operator {
			shown.Events = append(shown.Events, event)
		}
	}
	if page.Next > 0 {
		shown.NextCursor = strconv.FormatUint(page.Next, 10)
	}
	switch {
	case errors.Is(err, store.ErrNoCall),
		// Every event belongs to another endpoint.
		err == nil && len(shown.Events) == 0 && shown.NextCursor == "" && after == 0:
		return problemAnswer(problem{
			Status: http.StatusNotFound,
			Code:   codeOf(store.ErrNoCall),
			Detail: sentence(store.ErrNoCall),
		})
	case err != nil:
		return problemAnswer(problem{Status: http.StatusInternalServerError, Detail: sentence(err)})
	case page.Route != nil && len(shown.Events) > 0:
		shown.Routing = showRoute(*page.Route, visible)
	}
	head, err := a.opts.Calls.CallHead(r.Context(), shown.CallID)
	if err != nil {
		return problemAnswer(problem{Status: http.StatusInternalServerError, Detail: sentence(err)})
	}
	shown.callHead = showCallHead(&head, visible)
	return okAnswer(shown)
}

func showCallEvent(e store.CallEvent, visible func(name string) bool) callEvent {
	shown := callEvent{
		ID:         e.ID,
		Type:       e.Type,
		Sequence:   e.Sequence,
		Timestamp:  e.Time,
		Deliveries: []delivery{},
	}
	for _, d := range e.Deliveries {
		if visible(d.Endpoint) {
			shown.Deliveries = append(shown.Deliveries, showDelivery(d, nil))
		}
	}
	return shown
}

func showRoute(r telephony.Route, visible func(name string) bool) *routing {
	out := &routing{
		AskedAt:    r.AskedAt.UTC(),
		AnswerBy:   r.AnswerBy.UTC(),
		Asked:      []string{},
		Replies:    []reply{},
		Outcome:    r.Outcome,
		Winner:     r.Winner,
		TransferTo: r.To,
		DecidedAt:  r.DecidedAt.UTC(),
		OverAt:     r.OverAt.UTC(),
	}
	for _, name := range r.Asked {
		if visible(name) {
			out.Asked = append(out.Asked, name)
		}
	}
	for _, p := range r.Replies {
		if visible(p.By) {
			out.Replies = append(out.Replies, reply{
				By:         p.By,
				At:         p.At.UTC(),
				Kind:       p.Kind,
				TransferTo: p.To,
				Reason:     telephony.BriefText(advice.EnglishText(p.Why, p.Cause)),
			})
		}
	}
	if r.Transfer != "" {
		out.Transfer = &transfer{
			To:    r.To,
			State: r.Transfer,
			At:    r.TransferAt.UTC(),
			Error: telephony.BriefText(advice.EnglishText(r.TransferError, r.TransferCause)),
		}
	}
	return out
}
