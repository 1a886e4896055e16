package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// EndpointStatus is how an endpoint stands.
type EndpointStatus struct {
	Name string
	// State is "ok", "failing" (only probed, since many attempts in a row have failed), "paused"
	// (it has asked with a 429 to be left alone), or "reads": it has no URL and reads its events.
	State       string
	LastRead    time.Time // when an endpoint that reads has done so last; zero if it never has
	Since       time.Time // since when it is failing
	NextAttempt time.Time // when it is probed next, or when the pause ends
	LastError   string    // of the last attempt that failed, while the endpoint is failing or paused
	// Pending, Delivered, Expired and Dead count the deliveries that are stored. Of an endpoint
	// that reads, those are pending that it has not read, store.MaxUnread at most.
	Pending, Delivered, Expired, Dead uint64
}

// Endpoints gives how each configured endpoint stands.
func (o *Outbox) Endpoints(ctx context.Context) ([]EndpointStatus, error) {
	standing, err := o.engine.Standing(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]EndpointStatus, 0, len(o.lanes))
	for _, l := range o.lanes {
		status, n := l.status(time.Now()), standing[l.endpoint.Name]
		if l.endpoint.Reads() {
			status.State, status.LastRead = stateReads, n.LastRead
		}
		status.Pending, status.Delivered, status.Expired, status.Dead = n.Pending, n.Delivered, n.Expired, n.Dead
		list = append(list, status)
	}
	return list, nil
}

// Deliveries lists deliveries: see store.Archive.
func (o *Outbox) Deliveries(ctx context.Context, q store.DeliveryQuery) (store.DeliveryPage, error) {
	return o.engine.Deliveries(ctx, q)
}

// Delivery gives one delivery and its last attempts, oldest first, ten at most. Fails with
// store.ErrNotFound.
func (o *Outbox) Delivery(ctx context.Context, id string) (store.DeliveryView, []store.Attempt, error) {
	eventID, endpoint, _ := strings.Cut(id, ".")
	return o.engine.Delivery(ctx, eventID, endpoint)
}

// Call gives what has happened to a call: see store.Archive.
func (o *Outbox) Call(ctx context.Context, callID string, after uint64) (store.CallPage, error) {
	return o.engine.Call(ctx, callID, after)
}

// LatestCalls gives the calls with the newest events: see store.Archive.
func (o *Outbox) LatestCalls(ctx context.Context, limit int) ([]string, error) {
	return o.engine.LatestCalls(ctx, limit)
}

// OldestPending gives when the oldest event was read that waits for an endpoint: see store.Archive.
func (o *Outbox) OldestPending(ctx context.Context, endpoint string) (time.Time, error) {
	return o.engine.OldestPending(ctx, endpoint)
}

// Changed gives a channel that is closed when events have been appended.
func (o *Outbox) Changed() <-chan struct{} { return o.engine.Changed() }

// Formatter gives events in the format of an endpoint, as its Sender does.
type Formatter interface {
	// Object gives the JSON object of a standard body.
	Object(f store.Format, body []byte) []byte
	// Render gives the bytes that are sent, and their content type.
	Render(f store.Format, body []byte) (contentType string, sent []byte)
}

// format is the format in which an endpoint gets its events; one that is configured no longer has
// the standard one.
func (o *Outbox) format(endpoint string) store.Format {
	if e := o.endpoint(endpoint); e != nil {
		return e.Format
	}
	return store.FormatStandard
}

// Sent gives what an endpoint is sent of an event. Fails with store.ErrNotFound.
func (o *Outbox) Sent(ctx context.Context, endpoint, eventID string) (contentType string, body []byte, err error) {
	e, err := o.engine.Event(ctx, eventID)
	if err != nil {
		return "", nil, err
	}
	contentType, body = o.opts.Formatter.Render(o.format(endpoint), e.Body)
	return contentType, body, nil
}

// Route gives the question where a call should go, nil if it has not asked.
func (o *Outbox) Route(ctx context.Context, callID string) (*telephony.Route, error) {
	return o.engine.Route(ctx, callID)
}

// Events reads events in the endpoint's format, and gives the cursor to go on from: forwards also
// when there is none. How far an endpoint without a URL has read is kept. Fails with
// store.ErrBadCursor, store.ErrNoEndpoint or a *store.PrunedError, backwards with the first two:
// what was removed is the end then.
func (o *Outbox) Events(ctx context.Context, q store.EventQuery) (store.EventPage, error) {
	reads := false
	if q.Endpoint != "" {
		e := o.endpoint(q.Endpoint)
		if e == nil {
			return store.EventPage{}, errNoEndpoint(q.Endpoint)
		}
		reads = e.Reads()
	}
	newest, err := o.engine.LastNumber(ctx)
	if err != nil {
		return store.EventPage{}, err
	}
	page, err := o.engine.Events(ctx, q)
	if err == nil && reads {
		o.engine.SetRead(ctx, q, page, newest, time.Now())
	}
	for i := range page.Events {
		page.Events[i] = o.opts.Formatter.Object(o.format(q.Endpoint), page.Events[i])
	}
	return page, err
}

// Settings that outlive a restart.
const (
	settingClientGUID   = "client_guid"
	settingDisconnected = "disconnected"
	settingSessions     = "sessions"
)

// ClientGUID is the identity under which the exchange remembers what the bridge has missed. It is
// stored the first time; generated is used then.
func (o *Outbox) ClientGUID(ctx context.Context, generated string) (string, error) {
	return o.engine.Setting(ctx, settingClientGUID, generated)
}

// Connect keeps, through restarts, whether the bridge is to be connected to the exchange.
func (o *Outbox) Connect(ctx context.Context, enabled bool) error {
	value := "\x01"
	if enabled {
		value = ""
	}
	return o.engine.SetSetting(ctx, settingDisconnected, value)
}

// IsToConnect gives what Connect has kept last; true if it has never been called.
func (o *Outbox) IsToConnect(ctx context.Context) (bool, error) {
	value, err := o.engine.Setting(ctx, settingDisconnected, "")
	return value == "", err
}

// Sessions is the generation of the operator's sessions that are good: 0 until EndSessions is
// called.
func (o *Outbox) Sessions(ctx context.Context) (generation uint64, err error) {
	value, err := o.engine.Setting(ctx, settingSessions, "")
	if err != nil || len(value) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64([]byte(value)), nil
}

// EndSessions begins another generation, and returns it when that is durable: all sessions that
// there are end, and stay ended after a restart. The generation is the time, so that none comes
// again after a backup was restored.
func (o *Outbox) EndSessions(ctx context.Context) (generation uint64, err error) {
	generation, err = o.Sessions(ctx)
	if err != nil {
		return 0, err
	}
	generation = max(generation+1, uint64(time.Now().UnixMicro()))
	value := string(binary.BigEndian.AppendUint64(nil, generation))
	return generation, o.engine.SetSetting(ctx, settingSessions, value)
}

// Writable says why events cannot be stored, or are in danger; nil if they are safe. A failed
// Append counts until one succeeds, since on a full disk smaller changes still go through; one that
// failed with store.ErrFull counts until there is room.
func (o *Outbox) Writable(ctx context.Context) error {
	o.mu.Lock()
	failed := o.appendErr
	o.mu.Unlock()
	if failed == nil {
		return o.engine.Writable(ctx)
	}
	used, allowed, err := o.engine.Usage(ctx)
	if hasRoom := err == nil && used < allowed; hasRoom && errors.Is(failed, store.ErrFull) {
		return o.engine.Writable(ctx)
	}
	return failed
}

// InUse is how many bytes are in use.
func (o *Outbox) InUse(ctx context.Context) (used int64, err error) {
	used, _, err = o.engine.Usage(ctx)
	return used, err
}
