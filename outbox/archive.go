package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"

	"github.com/google/uuid"
)

// EndpointStatus is the state of an endpoint and of its deliveries.
type EndpointStatus struct {
	Name string
	// State is "ok", "failing" (only probed, since many attempts in a row have failed), "paused"
	// (it has requested a pause with a 429), or "reads" (it has no URL and reads its events).
	State       string
	TakesCalls  bool      // it gets some events of the exchange, not of the bridge alone
	LastRead    time.Time // the last read of an endpoint that reads; zero if there was none
	Since       time.Time // when it began to fail; zero if it is not failing
	NextAttempt time.Time // the time of the next probe, or the end of the pause
	Failures    int       // attempts that failed in a row until now
	// LastError is that of the last failed attempt, while the endpoint is failing or paused, or the
	// last attempt has failed.
	LastError string
	LastCause telephony.Cause
	// Pending, Delivered, Expired and Dead count the stored deliveries. For an endpoint that reads,
	// Pending counts those that it has not read, store.MaxUnread at most.
	Pending, Delivered, Expired, Dead uint64
	// DeliveredBy is the name of the bridge that delivers to the endpoint, if several share the
	// outbox; empty while none does.
	DeliveredBy string
}

// Endpoints returns the status of each endpoint that this bridge has.
func (o *Outbox) Endpoints(ctx context.Context) ([]EndpointStatus, error) {
	list, err := o.EndpointsOfAll(ctx)
	return slices.DeleteFunc(list, func(s EndpointStatus) bool { return o.endpoint(s.Name) == nil }), err
}

// EndpointsOfAll is Endpoints with those that only other bridges have, as far as these have said
// how they stand.
func (o *Outbox) EndpointsOfAll(ctx context.Context) ([]EndpointStatus, error) {
	standing, err := o.engine.Standing(ctx)
	if err != nil {
		return nil, err
	}
	bridges, err := o.bridges(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]EndpointStatus, 0, len(o.lanes))
	for _, l := range o.lanes {
		status, n := l.status(time.Now()), standing[l.endpoint.Name]
		status.addBridge(bridges, l.isMine.Load())
		status.TakesCalls = slices.ContainsFunc(telephony.EventTypes, l.endpoint.Events.Match)
		if l.endpoint.Reads() {
			status.State, status.LastRead = StateReads, n.LastRead
		}
		status.addStanding(n)
		list = append(list, status)
	}
	for _, name := range o.endpointsOfAll() {
		if o.endpoint(name) == nil {
			status := EndpointStatus{Name: name}
			status.addBridge(bridges, false)
			status.addStanding(standing[name])
			list = append(list, status)
		}
	}
	return list, nil
}

func (s *EndpointStatus) addStanding(n store.Standing) {
	s.Pending, s.Delivered, s.Expired, s.Dead = n.Pending, n.Delivered, n.Expired, n.Dead
}

// bridges returns the bridges that share the outbox; none if only this one uses it.
func (o *Outbox) bridges(ctx context.Context) ([]store.Bridge, error) {
	if o.shared() == nil {
		return nil, nil
	}
	return o.shared().Bridges(ctx, time.Now().Add(-time.Hour))
}

// addBridge adds which bridge delivers to the endpoint, and how it has found the endpoint if that
// is not this bridge.
func (s *EndpointStatus) addBridge(bridges []store.Bridge, isMine bool) {
	for i := range bridges {
		b := &bridges[i]
		if !slices.Contains(b.Lanes, s.Name) {
			continue
		}
		s.DeliveredBy = b.Name
		if status, isKnown := b.Status[s.Name]; isKnown && !isMine {
			s.State, s.Since, s.NextAttempt = status.State, status.Since, status.NextAttempt
			s.Failures, s.LastError, s.LastCause = status.Failures, status.LastError, status.LastCause
		}
	}
}

// HeardByOthers is that of the engine, which must be a store.Shared.
func (o *Outbox) HeardByOthers(
	ctx context.Context, slot int, after uint64,
) (list []store.Heard, followed uint64, err error) {
	return o.shared().HeardByOthers(ctx, slot, after)
}

// LastNumber is that of the engine.
func (o *Outbox) LastNumber(ctx context.Context) (uint64, error) { return o.engine.LastNumber(ctx) }

// LaneStatus returns how the endpoints stand to which this bridge delivers, for the others to show.
func (o *Outbox) LaneStatus() map[string]store.LaneStatus {
	list := map[string]store.LaneStatus{}
	for _, l := range o.lanes {
		if l.isMine.Load() {
			s := l.status(time.Now())
			list[s.Name] = store.LaneStatus{
				State:       s.State,
				Since:       s.Since,
				NextAttempt: s.NextAttempt,
				Failures:    s.Failures,
				LastError:   s.LastError,
				LastCause:   s.LastCause,
			}
		}
	}
	return list
}

// Deliveries lists deliveries: see store.Archive.
func (o *Outbox) Deliveries(ctx context.Context, q store.DeliveryQuery) (store.DeliveryPage, error) {
	limit := q.Limit
	var list []store.DeliveryView
	for range maxInnerPages {
		page, err := o.engine.Deliveries(ctx, q)
		if err != nil {
			return store.DeliveryPage{}, err
		}
		whole := len(page.Deliveries)
		shown := slices.DeleteFunc(page.Deliveries, isInner)
		list = append(list, shown...)
		q.Limit, q.Cursor = limit-len(list), page.Cursor
		if len(shown) == whole || q.Limit <= 0 || q.Cursor == "" {
			break
		}
	}
	return store.DeliveryPage{Deliveries: list, Cursor: q.Cursor}, nil
}

// maxInnerPages is how many pages of deliveries are read for one, since those to the bridge itself
// are left out.
const maxInnerPages = 4

// isInner reports whether a delivery is to the bridge itself: no list shows those.
func isInner(d store.DeliveryView) bool { return store.IsInner(d.Endpoint) }

// Delivery returns one delivery and its last attempts, oldest first, ten at most. Fails with
// store.ErrNotFound.
func (o *Outbox) Delivery(ctx context.Context, id string) (store.DeliveryView, []store.Attempt, error) {
	eventID, endpoint, _ := strings.Cut(id, ".")
	if store.IsInner(endpoint) {
		return store.DeliveryView{}, nil, store.ErrNotFound
	}
	return o.engine.Delivery(ctx, eventID, endpoint)
}

// Call returns the events of a call: see store.Archive.
func (o *Outbox) Call(ctx context.Context, callID string, after uint64) (store.CallPage, error) {
	page, err := o.engine.Call(ctx, callID, after)
	for i := range page.Events {
		e := &page.Events[i]
		if at := slices.IndexFunc(e.Deliveries, isInner); at >= 0 {
			e.Fetching = new(e.Deliveries[at])
			e.Deliveries = slices.Delete(e.Deliveries, at, at+1)
		}
	}
	return page, err
}

// OldestPending returns when the oldest event that is pending for an endpoint was read: see
// store.Archive.
func (o *Outbox) OldestPending(ctx context.Context, endpoint string) (time.Time, error) {
	return o.engine.OldestPending(ctx, endpoint)
}

// Changed returns a channel that is closed when events have been appended.
func (o *Outbox) Changed() <-chan struct{} { return o.engine.Changed() }

// Formatter converts events to the format of an endpoint, as its Sender does.
type Formatter interface {
	// Object returns the JSON object in a format for a body in the standard format.
	Object(f store.Format, body []byte) []byte
	// Render returns the bytes that are sent for such a body, and their content type.
	Render(f store.Format, body []byte) (contentType string, sent []byte)
}

// format returns the format of an endpoint's events; the standard one for an endpoint that is no
// longer configured.
func (o *Outbox) format(endpoint string) store.Format {
	if e := o.endpoint(endpoint); e != nil {
		return e.Format
	}
	return store.FormatStandard
}

// Sent returns the body with which an event is sent to an endpoint. Fails with store.ErrNotFound.
func (o *Outbox) Sent(ctx context.Context, endpoint, eventID string) (contentType string, body []byte, err error) {
	e, err := o.engine.Event(ctx, eventID)
	if err != nil {
		return "", nil, err
	}
	contentType, body = o.opts.Formatter.Render(o.format(endpoint), e.Body)
	return contentType, body, nil
}

// Route returns the question where a call should go, or nil if the call has not asked.
func (o *Outbox) Route(ctx context.Context, callID string) (*telephony.Route, error) {
	return o.engine.Route(ctx, callID)
}

// Events reads events in the endpoint's format, and returns the cursor to continue from; forwards
// there always is one. How far an endpoint without a URL has read is stored. Fails with
// store.ErrBadCursor, store.ErrNoEndpoint or a *store.PrunedError; backwards with the first two
// only, since the removed events are the end then.
func (o *Outbox) Events(ctx context.Context, q store.EventQuery) (store.EventPage, error) {
	reads := false
	if q.Endpoint != "" {
		e := o.endpoint(q.Endpoint)
		if e == nil {
			return store.EventPage{}, o.errNoEndpoint(q.Endpoint)
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

// Audit keeps something that an operator has done, with an ID and the time of now. That it cannot
// be kept is logged: it was done all the same.
func (o *Outbox) Audit(ctx context.Context, e store.Audit) {
	e.ID, e.At = uuid.Must(uuid.NewV7()), time.Now().UTC()
	if err := o.engine.AddAudit(context.WithoutCancel(ctx), e); err != nil {
		o.opts.Logger.Warn("what an operator has done cannot be kept", "action", string(e.Action), "err", err)
	}
}

// Audits returns what operators have done, the latest first.
func (o *Outbox) Audits(ctx context.Context, limit int) ([]store.Audit, error) {
	return o.engine.Audits(ctx, limit)
}

// The names of settings, which outlive a restart.
const (
	SettingClientGUID   = "client_guid"
	settingDisconnected = "disconnected"
	settingSessions     = "sessions"
	settingCharts       = "charts"
)

// ChartCounts returns what SetChartCounts has stored, empty if there was none.
func (o *Outbox) ChartCounts(ctx context.Context) (string, error) {
	return o.engine.Setting(ctx, settingCharts+o.opts.Bridge, "")
}

// SetChartCounts stores the counts of the dashboard's charts, for later starts.
func (o *Outbox) SetChartCounts(ctx context.Context, counts string) error {
	return o.engine.SetSetting(ctx, settingCharts+o.opts.Bridge, counts)
}

// chartsLife is how far back the longest chart looks.
const chartsLife = 7 * 24 * time.Hour

// OthersChartCounts returns what other bridges have stored that share the outbox, or have shared it
// while a chart goes back to them. What others have stored before that is removed.
func (o *Outbox) OthersChartCounts(ctx context.Context) (list []string, err error) {
	if o.shared() == nil {
		return nil, nil
	}
	now := time.Now()
	bridges, err := o.shared().Bridges(ctx, now.Add(-store.BridgeKept))
	if err != nil {
		return nil, err
	}
	for _, b := range bridges {
		if b.Name == o.opts.Bridge {
			continue
		}
		counts, err := o.engine.Setting(ctx, settingCharts+b.Name, "")
		isOver := now.Sub(b.Seen) > chartsLife
		switch {
		case err == nil && !isOver:
			list = append(list, counts)
		case err == nil && counts != "":
			err = o.engine.SetSetting(ctx, settingCharts+b.Name, "")
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// ClientGUID returns the identity by which the exchange knows which events have been missed. It
// belongs to a slot, 1 if there is only one, and so passes from bridge to bridge with that. The
// first call stores generated as that identity.
func (o *Outbox) ClientGUID(ctx context.Context, slot int, generated string) (string, error) {
	name := SettingClientGUID
	if slot > 1 {
		name += "_" + strconv.Itoa(slot)
	}
	return o.engine.Setting(ctx, name, generated)
}

// Pause says since when the connection to the exchange is switched off, and by whom. The zero value
// means that it is not switched off.
type Pause struct {
	Since time.Time // zero also if an older version has switched it off
	By    string    // empty too in that case
}

// Connect stores whether the bridge is to be connected to the exchange, for later starts, and who
// has decided that. A pause that is stored already stays as it is.
func (o *Outbox) Connect(ctx context.Context, enabled bool, by string) error {
	if enabled {
		return o.engine.SetSetting(ctx, settingDisconnected, "")
	}
	isOn, err := o.IsToConnect(ctx)
	if err != nil || !isOn {
		return err
	}
	value := pausedMark + strconv.FormatInt(time.Now().UnixMicro(), 10) + " " + by
	return o.engine.SetSetting(ctx, settingDisconnected, value)
}

// pausedMark begins the stored form of a pause. Older versions have stored it alone.
const pausedMark = "\x01"

// IsToConnect returns what the last call of Connect has stored; true if there was none.
func (o *Outbox) IsToConnect(ctx context.Context) (bool, error) {
	value, err := o.engine.Setting(ctx, settingDisconnected, "")
	return value == "", err
}

// Paused returns the pause that the last call of Connect has stored.
func (o *Outbox) Paused(ctx context.Context) (Pause, error) {
	value, err := o.engine.Setting(ctx, settingDisconnected, "")
	since, by, _ := strings.Cut(strings.TrimPrefix(value, pausedMark), " ")
	micros, isTime := strconv.ParseInt(since, 10, 64)
	if err != nil || isTime != nil {
		return Pause{}, err
	}
	return Pause{Since: time.UnixMicro(micros), By: by}, nil
}

// Sessions returns the generation of the operator's valid sessions: 0 until EndSessions is called.
func (o *Outbox) Sessions(ctx context.Context) (generation uint64, err error) {
	value, err := o.engine.Setting(ctx, settingSessions, "")
	if err != nil || len(value) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64([]byte(value)), nil
}

// EndSessions starts a new generation, and returns it when it is durable: all present sessions end,
// also after a restart. The generation is a time, so that none recurs after a backup is restored.
func (o *Outbox) EndSessions(ctx context.Context) (generation uint64, err error) {
	o.sessions.Lock() // two callers must not get the same generation, nor store the older one last
	defer o.sessions.Unlock()
	generation, err = o.Sessions(ctx)
	if err != nil {
		return 0, err
	}
	generation = max(generation+1, uint64(time.Now().UnixMicro()))
	value := string(binary.BigEndian.AppendUint64(nil, generation))
	return generation, o.engine.SetSetting(ctx, settingSessions, value)
}

// Writable returns why events cannot be stored or are in danger; nil if they are safe. A failed
// Append counts until one succeeds, since smaller writes still go through on a full disk; one that
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

// InUse returns how many bytes are in use.
func (o *Outbox) InUse(ctx context.Context) (used int64, err error) {
	used, _, err = o.engine.Usage(ctx)
	return used, err
}
