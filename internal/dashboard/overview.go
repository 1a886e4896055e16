package dashboard

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// maxCalls is the number of latest calls on the first page.
const maxCalls = 10

// overview is the data of the first page: the state of the exchange, the outbox and the endpoints.
type overview struct {
	Verdict    []finding // the worst first; never empty
	Connection telephony.Connection
	Connected  bool
	Enabled    bool
	Pause      outbox.Pause
	ShowClose  bool   // show the last close code, which is not the last error
	Trouble    string // the outbox's error; empty if it is writable
	InDanger   bool   // events are stored nevertheless; Trouble contains the remedy
	Used       int64  // MiB, likewise Allowed
	Allowed    int64
	Endpoints  []endpointView
	Chart      chart // of the last hour
	Calls      []callRow

	Bridges       []bridgeView // those that share the outbox; none if it is a file
	IsSpare       bool         // this bridge waits until it can connect in place of another
	ConnectedAt   string       // the names of other bridges that are connected to the exchange
	UnconnectedAt string       // and of those that are to be and are not
}

type endpointView struct {
	outbox.EndpointStatus
	Level      string // good, warn or bad; empty for an endpoint that reads
	Why        string // the sentence of the verdict about it; empty if there is none
	Oldest     time.Duration
	HasOldest  bool
	P50, P99   time.Duration
	HasSamples bool
	Unread     string // number of unread events of an endpoint that reads its events
	IsShared   bool   // one of several bridges delivers to it
}

func (d *Dashboard) overview(ctx context.Context, t words) (overview, error) {
	o, list, err := d.standing(ctx, t)
	if err != nil {
		return o, err
	}
	o.Chart = d.chartOf("", 0, time.Now())
	o.Calls, _, err = d.findRows(ctx, outbox.CallFilter{Limit: maxCalls}, list)
	if err != nil && o.Trouble == "" { // the rest of the page says what to do about it
		o.Trouble, o.InDanger = t.explain(err), true
	}
	o.Verdict = t.verdict(&o)
	return o, nil
}

// standing returns what the verdict depends on, and the endpoints.
func (d *Dashboard) standing(ctx context.Context, t words) (o overview, list []outbox.EndpointStatus, err error) {
	now := time.Now()
	pause, err := d.opts.Outbox.Paused(ctx)
	if err != nil {
		return o, nil, err
	}
	o = overview{
		Connection: d.shownConnection(pause),
		Pause:      pause,
		Allowed:    d.opts.MaxBytes >> 20,
	}
	o.Connected = o.Connection.State == telephony.Connected
	o.Enabled = o.Connection.State != telephony.Disabled
	o.ShowClose = o.Connection.CloseCode != 0 && !o.Connection.EndedByClose
	inUse, err := d.opts.Outbox.InUse(ctx)
	if err != nil {
		return o, nil, err
	}
	o.Used = inUse >> 20
	if err := d.addBridges(ctx, &o, now); err != nil {
		return o, nil, err
	}
	if err := d.opts.Outbox.Writable(ctx); err != nil {
		o.Trouble, o.InDanger = t.explain(err), isDanger(err)
	}
	if list, err = d.opts.Outbox.Endpoints(ctx); err != nil {
		return o, nil, err
	}
	o.Endpoints, err = d.endpointViews(ctx, list, now)
	return o, list, err
}

// isDanger reports whether events are stored although the outbox has an error: they can be lost.
func isDanger(err error) bool {
	return errors.Is(err, store.ErrFileGone) || errors.Is(err, store.ErrDamaged) ||
		telephony.CauseOf(err).Code == telephony.CodeClockWrong
}

func (d *Dashboard) endpointViews(
	ctx context.Context, list []outbox.EndpointStatus, now time.Time,
) (views []endpointView, err error) {
	for _, e := range list {
		v := endpointView{
			EndpointStatus: e,
			Unread:         strconv.FormatUint(e.Pending, 10),
			IsShared:       d.opts.Bridge != "",
		}
		if e.Pending >= store.MaxUnread {
			v.Unread += "+"
		}
		oldest, err := d.opts.Outbox.OldestPending(ctx, e.Name)
		if err != nil {
			return nil, err
		}
		if v.HasOldest = !oldest.IsZero(); v.HasOldest {
			v.Oldest = max(0, now.Sub(oldest))
		}
		v.P50, v.P99, v.HasSamples = d.opts.Stats.quantiles(e.Name)
		views = append(views, v)
	}
	return views, nil
}

// home serves the first page.
func (d *Dashboard) home(w http.ResponseWriter, r *http.Request) {
	o, err := d.overview(r.Context(), wordsFor(r))
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.render(w, r, http.StatusOK, "home", "", o)
}

// liveOverview is the liveView of the first page.
func (d *Dashboard) liveOverview(r *http.Request) (any, error) {
	return d.overview(r.Context(), wordsFor(r))
}

// sendTest sends a test event to an endpoint and shows the attempt with its response.
func (d *Dashboard) sendTest(w http.ResponseWriter, r *http.Request) {
	name := r.PostFormValue("endpoint")
	_, made, err := d.opts.Outbox.SendTest(r.Context(), name)
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.did(r, store.AuditTested, name, 0)
	t, failure := wordsFor(r), ""
	if isTaken := made.Error == "" && made.Status >= 200 && made.Status <= 299; !isTaken {
		failure = t.explain(made.Failure())
	}
	d.render(w, r, http.StatusOK, "test", t["Test of"]+" "+name, map[string]any{
		"Endpoint": name,
		"Attempt":  made,
		"Taken":    failure == "",
		"Failure":  failure,
	})
}
