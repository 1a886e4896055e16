package transferapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/advice"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Deliveries lists deliveries and queues them again.
type Deliveries interface {
	Deliveries(ctx context.Context, q store.DeliveryQuery) (store.DeliveryPage, error)
	Delivery(ctx context.Context, id string) (store.DeliveryView, []store.Attempt, error)
	Redeliver(ctx context.Context, id string) (store.DeliveryView, error)
	RedeliverAll(ctx context.Context, r store.Redelivery) (number uint32, count int, err error)
	Redelivery(ctx context.Context, number uint32) (store.RedeliveryState, error)
	Redeliveries(ctx context.Context, limit int) ([]store.RedeliveryState, error)
}

const (
	defaultLimit = 50  // items of a list, unless the query sets limit
	maxLimit     = 500 // items of a list
)

// delivery is the JSON form of a delivery. A field without a value is left out.
type delivery struct {
	ID            string              `json:"id"`
	EventID       string              `json:"event_id"`
	Endpoint      string              `json:"endpoint"`
	Type          telephony.EventType `json:"type"`
	CallID        string              `json:"call_id,omitempty"`
	Client        string              `json:"client_number,omitempty"`
	Extension     string              `json:"extension,omitempty"`
	Sequence      uint64              `json:"sequence,omitempty"`
	Timestamp     time.Time           `json:"timestamp"`
	State         string              `json:"state"`
	Held          bool                `json:"held,omitempty"` // it waits for an earlier event of its call
	Attempts      int                 `json:"attempts"`
	LastStatus    int                 `json:"last_status,omitempty"`
	LastError     string              `json:"last_error,omitempty"`
	NextAttemptAt time.Time           `json:"next_attempt_at,omitzero"`
	EndedAt       time.Time           `json:"ended_at,omitzero"`
	Redelivered   bool                `json:"redelivered,omitempty"`
	LastAttempts  []attempt           `json:"last_attempts,omitempty"`
}

type attempt struct {
	At       time.Time `json:"at"`
	Duration float64   `json:"duration_ms"`
	Status   int       `json:"status,omitempty"`
	Response string    `json:"response,omitempty"`
	Error    string    `json:"error,omitempty"`
}

func showDelivery(d store.DeliveryView, attempts []store.Attempt) delivery {
	out := delivery{
		ID:            d.ID,
		EventID:       d.EventID,
		Endpoint:      d.Endpoint,
		Type:          d.Type,
		CallID:        d.CallID,
		Client:        d.Client,
		Extension:     d.Extension,
		Sequence:      d.Sequence,
		Timestamp:     d.EventTime,
		State:         d.State,
		Held:          d.State == "pending" && d.NextAttempt.IsZero() && !d.ToBeRead,
		Attempts:      d.Attempts,
		LastStatus:    d.LastStatus,
		LastError:     advice.EnglishText(d.LastError, d.LastCause),
		NextAttemptAt: d.NextAttempt,
		EndedAt:       d.Ended,
		Redelivered:   d.Redelivered,
	}
	for _, a := range attempts {
		out.LastAttempts = append(out.LastAttempts, showAttempt(a))
	}
	return out
}

func showAttempt(a store.Attempt) attempt {
	return attempt{
		At:       a.At.UTC(),
		Duration: float64(a.Took.Microseconds()) / 1000,
		Status:   a.Status,
		Response: strings.ToValidUTF8(a.Response, "\uFFFD"),
		Error:    advice.EnglishText(a.Error, a.Cause),
	}
}

// listDeliveries lists deliveries, those of the newest event first. An endpoint sees only its own.
func (a *API) listDeliveries(r *http.Request) answer {
	query, refusal := readDeliveryQuery(r)
	if refusal != nil {
		return problemAnswer(*refusal)
	}
	if by := caller(r); by != Operator {
		if query.Endpoint != "" && query.Endpoint != by {
			return problemAnswer(problem{
				Status: http.StatusForbidden,
				Detail: fmt.Sprintf("This token may see the deliveries of %q only.", by),
			})
		}
		query.Endpoint = by
	}
	page, err := a.opts.Deliveries.Deliveries(r.Context(), query)
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	answer := struct {
		Deliveries []delivery `json:"deliveries"`
		NextCursor string     `json:"next_cursor,omitempty"`
	}{Deliveries: []delivery{}, NextCursor: page.Cursor}
	for _, d := range page.Deliveries {
		answer.Deliveries = append(answer.Deliveries, showDelivery(d, nil))
	}
	return okAnswer(answer)
}

func readDeliveryQuery(r *http.Request) (store.DeliveryQuery, *problem) {
	values, refusal := readQuery(
		r, "state", "endpoint", "call_id", "types", "since", "until", "limit", "cursor",
	)
	if refusal != nil {
		return store.DeliveryQuery{}, refusal
	}
	limit, refusal := readLimit(values)
	if refusal != nil {
		return store.DeliveryQuery{}, refusal
	}
	q := store.DeliveryQuery{
		State:    values.Get("state"),
		Endpoint: values.Get("endpoint"),
		CallID:   values.Get("call_id"),
		Cursor:   values.Get("cursor"),
		Limit:    limit,
	}
	var errTypes, errSince, errUntil error
	if values.Get("types") != "" {
		q.Types, errTypes = readTypes(strings.Split(values.Get("types"), ","))
	}
	q.Since, errSince = readTime("since", values.Get("since"))
	q.Until, errUntil = readTime("until", values.Get("until"))
	if err := errors.Join(errTypes, errSince, errUntil); err != nil {
		return store.DeliveryQuery{}, badFields(err)
	}
	return q, nil
}

// getDelivery returns one delivery with its last attempts. For an endpoint, a delivery of another
// one does not exist.
func (a *API) getDelivery(r *http.Request) answer {
	d, attempts, err := a.opts.Deliveries.Delivery(r.Context(), r.PathValue("id"))
	if by := caller(r); err == nil && by != Operator && by != d.Endpoint {
		err = store.ErrNotFound
	}
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	return okAnswer(showDelivery(d, attempts))
}

func (a *API) redeliver(w http.ResponseWriter, r *http.Request) {
	d, err := a.opts.Deliveries.Redeliver(r.Context(), r.PathValue("id"))
	if err != nil {
		deliveryProblem(err).write(w)
		return
	}
	a.opts.Logger.Info("delivery is made again", "event_id", d.EventID, "endpoint", d.Endpoint, "call_id", d.CallID)
	a.audit(r, store.Audit{Action: store.AuditRedelivered, Subject: d.ID})
	writeJSON(w, http.StatusAccepted, showDelivery(d, nil))
}

func readTime(field, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, &fieldError{field, "must be a time such as 2026-11-23T06:25:53Z"}
	}
	return t, nil
}

func deliveryProblem(err error) problem {
	p := problem{Status: http.StatusInternalServerError, Code: codeOf(err), Detail: sentence(err)}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrNoRedelivery):
		p.Status = http.StatusNotFound
	case errors.Is(err, store.ErrNoEndpoint), errors.Is(err, store.ErrNoURL):
		p.Status, p.Field = http.StatusBadRequest, "endpoint"
	case errors.Is(err, store.ErrStillCopied):
		p.Status = http.StatusServiceUnavailable
	case errors.Is(err, store.ErrBadState):
		p.Status, p.Field = http.StatusBadRequest, "state"
	case errors.Is(err, store.ErrBadCursor):
		p.Status, p.Field = http.StatusBadRequest, "cursor"
	}
	return p
}

// listEndpoints returns the state of each endpoint and the counts of its deliveries.
func (a *API) listEndpoints(w http.ResponseWriter, r *http.Request) {
	type counts struct {
		Pending   uint64 `json:"pending"`
		Delivered uint64 `json:"delivered"`
		Expired   uint64 `json:"expired"`
		Dead      uint64 `json:"dead"`
	}
	type click struct {
		At    time.Time `json:"at"`
		Error string    `json:"error,omitempty"`
	}
	type endpoint struct {
		Name          string    `json:"name"`
		State         string    `json:"state"`
		Since         time.Time `json:"since,omitzero"`
		NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
		LastError     string    `json:"last_error,omitempty"`
		LastReadAt    time.Time `json:"last_read_at,omitzero"`
		DeliveredBy   string    `json:"delivered_by,omitempty"`
		LastClick     *click    `json:"last_click,omitempty"`
		Deliveries    counts    `json:"deliveries"`
	}
	list, err := a.opts.Outbox.Endpoints(r.Context())
	if err != nil {
		deliveryProblem(err).write(w)
		return
	}
	answer := struct {
		Endpoints []endpoint `json:"endpoints"`
	}{[]endpoint{}}
	for _, e := range list {
		var clicked *click
		if sender := a.opts.CRMs[e.Name]; sender != nil {
			last, err := sender.LastClick(r.Context())
			if err != nil {
				deliveryProblem(err).write(w)
				return
			}
			if !last.At.IsZero() {
				clicked = &click{last.At.UTC(), last.Failure}
			}
		}
		answer.Endpoints = append(answer.Endpoints, endpoint{
			Name:          e.Name,
			State:         e.State,
			Since:         e.Since.UTC(),
			NextAttemptAt: e.NextAttempt.UTC(),
			LastError:     advice.EnglishText(e.LastError, e.LastCause),
			LastReadAt:    e.LastRead.UTC(),
			DeliveredBy:   e.DeliveredBy,
			LastClick:     clicked,
			Deliveries: counts{
				Pending:   e.Pending,
				Delivered: e.Delivered,
				Expired:   e.Expired,
				Dead:      e.Dead,
			},
		})
	}
	writeJSON(w, http.StatusOK, answer)
}

// backupWriteTimeout bounds each write of a backup. A caller that stops reading would keep the
// copy, and its space on the disk.
const backupWriteTimeout = 30 * time.Second

// backup sends a copy of the outbox's file. It breaks off the connection if that fails midway.
func (a *API) backup(w http.ResponseWriter, r *http.Request) {
	if a.opts.Backup == nil {
		const detail = "The outbox is in a PostgreSQL database, so there is no file to copy: " +
			"back the database up with PostgreSQL's own tools, such as pg_dump."
		problem{Status: http.StatusNotFound, Detail: detail}.write(w)
		return
	}
	if !a.backups.acquire(r.Context(), maxSlotWait) {
		tooManyRequests(
			"Another backup is being taken: its copy takes as much room on the disk as the outbox, " +
				"so there is one at a time.",
		).write(w)
		return
	}
	defer a.backups.release()
	began := time.Now()
	started := false
	err := a.opts.Backup.Backup(func(size int64) io.Writer {
		started = true
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		name := "outbox-" + began.UTC().Format("20060102-150405") + ".db"
		w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s"`, name))
		w.Header().Set("Cache-Control", "no-store")
		return deadlineWriter{w, http.NewResponseController(w)}
	})
	switch {
	case err != nil && !started:
		a.opts.Logger.Warn("backup cannot be made", "err", err)
		deliveryProblem(err).write(w)
	case err != nil:
		a.opts.Logger.Warn("backup was broken off", "err", err)
		panic(http.ErrAbortHandler) // a normal return could look like a complete backup
	default:
		a.audit(r, store.Audit{Action: store.AuditBackedUp})
		a.opts.Logger.Info("backup sent", "took", time.Since(began).Round(time.Millisecond).String())
	}
}

// deadlineWriter sets a new deadline before each write, instead of one for the whole answer.
type deadlineWriter struct {
	w          http.ResponseWriter
	controller *http.ResponseController
}

func (d deadlineWriter) Write(b []byte) (int, error) {
	_ = d.controller.SetWriteDeadline(time.Now().Add(backupWriteTimeout)) // the recorder of a test has none
	return d.w.Write(b)
}

// readJSON decodes the request's object into a struct, or returns the problem with it. Field names
// are matched exactly; unknown fields and null are refused.
func readJSON(w http.ResponseWriter, r *http.Request, into any) *problem {
	body, members, refusal := readObject(w, r, "")
	if refusal != nil {
		return refusal
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		switch {
		case name != strings.ToLower(name): // encoding/json ignores case
			return badFields(&fieldError{name, "is not a field of this request"})
		case string(members[name]) == "null":
			return badFields(&fieldError{name, "is null: leave it out, or give it a value"})
		}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType):
		return badFields(&fieldError{wrongType.Field, "is of the wrong type (" + wrongType.Value + ")"})
	case err != nil: // readObject has refused every other error
		name := strings.TrimPrefix(err.Error(), "json: unknown field ")
		return badFields(&fieldError{strings.Trim(name, `"`), "is not a field of this request"})
	}
	return nil
}
