// Package alert tells an administrator what they must know, without a monitoring system: it watches
// the bridge, and sends an event when something is wrong and one when it is over. Any endpoint may
// get these events, such as a chat's webhook with the format text.
//
//	the bridge ─► conditions ─► step: what is new, what is over ─► events ─► outbox
package alert

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

const (
	// interval is the time between two looks at the bridge.
	interval = 5 * time.Second
	// minDisconnected is for how long there is no connection before that is worth an alert: a
	// server that restarts is back sooner.
	minDisconnected = time.Minute
	// quiet is the shortest time between two alerts of the same kind about the same endpoint.
	quiet = time.Hour
	// fullAt and fullNoMore are the parts of the outbox's limit at which it is nearly full, and
	// below which it no longer is.
	fullAt, fullNoMore = 0.8, 0.75
	// refusedFor is for how long refused commands count after the last one.
	refusedFor = time.Hour
)

// Exchange is the session with the exchange.
type Exchange interface {
	Connection() telephony.Connection
}

// Outbox is what is watched of the outbox, and what takes the alerts.
type Outbox interface {
	// EndpointsOfAll are those of all bridges: one of them watches for all.
	EndpointsOfAll(ctx context.Context) ([]outbox.EndpointStatus, error)
	InUse(ctx context.Context) (int64, error)
	// Alert stores events about the bridge itself; those that cannot be stored are sent once.
	Alert(ctx context.Context, events []telephony.Event)
	// AlertsSent and SetAlertsSent keep what was sent, as text, across a restart.
	AlertsSent(ctx context.Context) (string, error)
	SetAlertsSent(ctx context.Context, sent string) error
}

// Options are what is watched, and in which language an administrator is told.
type Options struct {
	Exchange Exchange
	Outbox   Outbox
	MaxBytes int64 // the limit of the outbox; 0 if there is none
	Russian  bool  // the sentences are in Russian, otherwise in English
	// OthersRefusals returns how many commands other bridges have refused that share the outbox,
	// and when the last one was; nil if there are none.
	OthersRefusals func() (number int, last time.Time)
	Logger         *slog.Logger
}

// Watch looks at the bridge again and again.
type Watch struct {
	opts Options

	mu        sync.Mutex
	refused   int       // commands that were refused, ever
	refusedAt time.Time // when the last one was

	// The fields below are used by Run alone.
	lostAt time.Time // since when there is no connection; zero while there is one
	sent   sent
	ended  map[string]uint64 // by endpoint: deliveries that had ended at the last look
}

// New returns a Watch.
func New(opts Options) (*Watch, error) {
	if opts.Exchange == nil || opts.Outbox == nil || opts.Logger == nil {
		return nil, errors.New("alert: Options.Exchange, Outbox and Logger must be set")
	}
	return &Watch{opts: opts, ended: map[string]uint64{}}, nil
}

// CommandRefused counts a command that the policy has refused: see callpolicy.Observer.
func (w *Watch) CommandRefused(string, telephony.CommandKind, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused++
	w.refusedAt = time.Now()
}

// Refusals returns how many commands were refused of late, and when the last one was.
func (w *Watch) Refusals() (number int, last time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refused, w.refusedAt
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	text, err := w.opts.Outbox.AlertsSent(ctx)
	if err != nil {
		w.opts.Logger.Warn("it cannot be read which alerts were sent: they may be sent once more", "err", err)
	}
	w.sent = readSent(text)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		w.look(ctx, time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look looks at the bridge once, and sends what is new.
func (w *Watch) look(ctx context.Context, now time.Time) {
	conditions, err := w.conditions(ctx, now)
	if err != nil {
		return // the log and readiness say why the outbox cannot be read
	}
	alerts := w.sent.step(now, conditions)
	if len(alerts) == 0 {
		return
	}
	events := make([]telephony.Event, len(alerts))
	for i := range alerts {
		events[i] = alerts[i].event(w.opts.Russian)
	}
	w.opts.Outbox.Alert(ctx, events)
	if err := w.opts.Outbox.SetAlertsSent(ctx, w.sent.String()); err != nil {
		w.opts.Logger.Warn("it cannot be stored which alerts were sent: they may be sent once more", "err", err)
	}
}

// conditions returns what is wrong now.
func (w *Watch) conditions(ctx context.Context, now time.Time) (list []condition, err error) {
	endpoints, err := w.opts.Outbox.EndpointsOfAll(ctx)
	if err != nil {
		return nil, err
	}
	inUse, err := w.opts.Outbox.InUse(ctx)
	if err != nil {
		return nil, err
	}
	w.sent.keepOf(endpoints)
	list = append(list, w.connection(now)...)
	for i := range endpoints {
		e := &endpoints[i]
		if w.isFailing(e) {
			list = append(list, condition{
				key:   key{telephony.EventAlertEndpointFailing, e.Name},
				cause: e.LastCause,
				text:  e.LastError,
			})
		}
		if e.Dead > 0 {
			list = append(list, condition{
				key:   key{telephony.EventAlertDeliveryDead, e.Name},
				level: int(e.Dead),
			})
		}
	}
	if w.opts.MaxBytes > 0 {
		part := float64(inUse) / float64(w.opts.MaxBytes)
		full := key{kind: telephony.EventAlertOutboxFull}
		if part >= fullAt || w.sent.isActive(full) && part >= fullNoMore {
			list = append(list, condition{
				key:     full,
				percent: int(100 * part),
			})
		}
	}
	return append(list, w.refusals(now)...), nil
}

// isFailing reports whether an endpoint fails. An alert that was sent is over only with a delivery:
// a process that has just started, or has taken the queue over from another one, has forgotten the
// attempts before.
func (w *Watch) isFailing(e *outbox.EndpointStatus) bool {
	ended := e.Delivered + e.Dead
	before, isKnown := w.ended[e.Name]
	w.ended[e.Name] = ended
	if e.State == outbox.StateFailing {
		return true
	}
	isOver := e.Failures == 0 && isKnown && ended > before
	return w.sent.isActive(key{telephony.EventAlertEndpointFailing, e.Name}) && !isOver
}

// connection returns that there is no connection to the exchange, if that lasts and is not wanted.
// An alert that was sent, maybe before a restart, is over only with a connection.
func (w *Watch) connection(now time.Time) []condition {
	c, disconnected := w.opts.Exchange.Connection(), key{kind: telephony.EventAlertDisconnected}
	switch {
	case c.State == telephony.Connected:
		w.lostAt = time.Time{}
		return nil
	case c.State == telephony.Disabled:
		w.lostAt = time.Time{}
	case w.lostAt.IsZero():
		w.lostAt = now
	}
	isLasting := !w.lostAt.IsZero() && now.Sub(w.lostAt) >= minDisconnected
	if !isLasting && !w.sent.isActive(disconnected) {
		return nil
	}
	return []condition{{
		key:   disconnected,
		cause: c.LastCause,
		text:  c.LastError,
	}}
}

func (w *Watch) refusals(now time.Time) []condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	refused := key{kind: telephony.EventAlertCommandsRefused}
	if w.refusedAt.IsZero() && w.sent.isActive(refused) { // before a restart
		w.refusedAt = w.sent[refused].At
	}
	if w.refusedAt.IsZero() || now.Sub(w.refusedAt) > refusedFor {
		w.refused, w.refusedAt = 0, time.Time{}
	}
	level, last := w.refused, w.refusedAt
	if w.opts.OthersRefusals != nil {
		if number, at := w.opts.OthersRefusals(); now.Sub(at) <= refusedFor {
			level += number
			if at.After(last) {
				last = at
			}
		}
	}
	if last.IsZero() {
		return nil
	}
	return []condition{{key: refused, level: level}}
}
