package transferapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// Events are what has happened, to be read.
type Events interface {
	Events(q outbox.EventQuery) (bodies [][]byte, cursor string, err error)
	Changed() <-chan struct{} // closed when there are new ones
	Call(callID string) ([]outbox.CallEvent, *telephony.Route, error)
}

// mostWait is how long a read of events may wait for one.
const mostWait = time.Minute

// listEvents gives the caller's events after a cursor, and waits for the next one if there is none and the caller says so.
func (a *API) listEvents(w http.ResponseWriter, r *http.Request) {
	q, wait, refusal := readEventQuery(r)
	if refusal != nil {
		refusal.write(w)
		return
	}
	if by := caller(r); by != Operator {
		q.Endpoint = by
	}
	// The server's time for reading a request would end the wait.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	timeUp := time.NewTimer(wait)
	defer timeUp.Stop()
	for waiting := wait > 0; ; {
		changed := a.opts.Events.Changed() // before the read: nothing falls between the two
		bodies, cursor, err := a.opts.Events.Events(q)
		if err != nil {
			eventProblem(err).write(w)
			return
		}
		if len(bodies) > 0 || !waiting {
			answer := struct {
				Events     []json.RawMessage `json:"events"`
				NextCursor string            `json:"next_cursor"`
			}{Events: []json.RawMessage{}, NextCursor: cursor}
			for _, body := range bodies {
				answer.Events = append(answer.Events, body)
			}
			writeJSON(w, http.StatusOK, answer)
			return
		}
		q.After = cursor
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

func readEventQuery(r *http.Request) (q outbox.EventQuery, wait time.Duration, refusal *problem) {
	values, refusal := readQuery(r, "after", "limit", "wait", "types")
	if refusal != nil {
		return q, 0, refusal
	}
	q.After = values.Get("after")
	if q.Limit, refusal = readLimit(values); refusal != nil {
		return q, 0, refusal
	}
	if s := values.Get("wait"); s != "" {
		var err error
		if wait, err = time.ParseDuration(s); err != nil || wait < 0 || wait > mostWait {
			return q, 0, badFields(&fieldError{"wait", fmt.Sprintf("must be a time such as 30s, at most %s", mostWait)})
		}
	}
	for kind := range strings.SplitSeq(values.Get("types"), ",") {
		kind := telephony.EventType(strings.TrimSpace(kind))
		switch {
		case kind == "":
		case !telephony.IsType(kind):
			return q, 0, badFields(&fieldError{"types", fmt.Sprintf("holds %q, which is no type of event", kind)})
		default:
			q.Types = append(q.Types, kind)
		}
	}
	return q, wait, nil
}

// readQuery reads the query's parameters. One that is none of the names is refused, as a field is.
func readQuery(r *http.Request, names ...string) (url.Values, *problem) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &problem{Status: http.StatusBadRequest, Detail: "The query of the address cannot be read."}
	}
	for name := range values {
		if !slices.Contains(names, name) {
			return nil, badFields(&fieldError{name, "is no parameter of this list; it takes " + strings.Join(names, ", ")})
		}
	}
	return values, nil
}

func readLimit(values url.Values) (int, *problem) {
	if !values.Has("limit") {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(values.Get("limit"))
	if err != nil || n < 1 || n > mostAtOnce {
		return 0, badFields(&fieldError{"limit", fmt.Sprintf("must be a number from 1 to %d", mostAtOnce)})
	}
	return n, nil
}

func eventProblem(err error) problem {
	p := problem{Status: http.StatusInternalServerError, Detail: sentence(err)}
	var pruned *outbox.PrunedError
	switch {
	case errors.As(err, &pruned):
		p.Status, p.Field, p.Oldest = http.StatusGone, "after", pruned.Oldest
	case errors.Is(err, outbox.ErrBadCursor):
		p.Status, p.Field = http.StatusBadRequest, "after"
	}
	return p
}

// call is what happened to a call, as the API shows it.
type call struct {
	CallID  string      `json:"call_id"`
	Events  []callEvent `json:"events"`
	Routing *routing    `json:"routing,omitempty"` // absent if the call has not asked where to go
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
	Transfer   *transfer              `json:"transfer,omitempty"` // absent if nothing was to be sent
}

type reply struct {
	By         string              `json:"by"`
	At         time.Time           `json:"at"`
	Kind       telephony.ReplyKind `json:"kind"`
	TransferTo string              `json:"transfer_to,omitempty"`
	Reason     string              `json:"reason,omitempty"`
}

// transfer is what was sent to the exchange, and how that went.
type transfer struct {
	To    string                  `json:"to"`
	State telephony.TransferState `json:"state"`
	At    time.Time               `json:"at,omitzero"`
	Error string                  `json:"error,omitempty"`
}

// getCall tells what happened to a call. An endpoint sees its own part of it, and who has won.
func (a *API) getCall(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("call_id")
	events, route, err := a.opts.Events.Call(id)
	if err != nil && !errors.Is(err, outbox.ErrNoCall) {
		problem{Status: http.StatusInternalServerError, Detail: sentence(err)}.write(w)
		return
	}
	answer := call{CallID: id, Events: []callEvent{}}
	mine := func(name string) bool { return caller(r) == Operator || caller(r) == name }
	for _, e := range events {
		told := callEvent{ID: e.ID, Type: e.Type, Sequence: e.Sequence, Timestamp: e.Time, Deliveries: []delivery{}}
		for _, d := range e.Deliveries {
			if mine(d.Endpoint) {
				told.Deliveries = append(told.Deliveries, showDelivery(d, nil))
			}
		}
		if len(told.Deliveries) > 0 || caller(r) == Operator {
			answer.Events = append(answer.Events, told)
		}
	}
	if len(answer.Events) == 0 {
		problem{Status: http.StatusNotFound, Detail: sentence(outbox.ErrNoCall)}.write(w)
		return
	}
	if route != nil {
		answer.Routing = showRoute(*route, mine)
	}
	writeJSON(w, http.StatusOK, answer)
}

func showRoute(r telephony.Route, mine func(name string) bool) *routing {
	out := &routing{
		AskedAt: r.AskedAt.UTC(), AnswerBy: r.AnswerBy.UTC(), Asked: []string{}, Replies: []reply{}, Outcome: r.Outcome,
		Winner: r.Winner, TransferTo: r.To, DecidedAt: r.DecidedAt.UTC(), OverAt: r.OverAt.UTC(),
	}
	for _, name := range r.Asked {
		if mine(name) {
			out.Asked = append(out.Asked, name)
		}
	}
	for _, p := range r.Replies {
		if mine(p.By) {
			out.Replies = append(out.Replies, reply{By: p.By, At: p.At.UTC(), Kind: p.Kind, TransferTo: p.To, Reason: p.Why})
		}
	}
	if r.Transfer != "" {
		out.Transfer = &transfer{To: r.To, State: r.Transfer, At: r.TransferAt.UTC(), Error: r.TransferError}
	}
	return out
}
