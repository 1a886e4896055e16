package dashboard

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// maxCalls is the number of latest calls on the first page.
const maxCalls = 10

// templateFuncs are the functions of the templates.
var templateFuncs = template.FuncMap{
	"clock":    func(t time.Time) string { return t.Local().Format("15:04:05") },
	"datetime": func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") },
	"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"zone":     func() string { return time.Now().Format("UTC-07:00") },
	"short":    func(t words, d time.Duration) string { return t.short(d) },
	"say":      func(t words, text string, c telephony.Cause) string { return t.say(text, c) },
	"callPath": callPath,
	"brief":    telephony.Brief,
}

// callPath returns the path of a call's page. It is empty without an ID, and for an ID over 1 KiB,
// whose path could exceed a server's limit.
func callPath(id string) string {
	const maxID = 1 << 10
	if id == "" || len(id) > maxID {
		return ""
	}
	return "/calls/" + url.PathEscape(id)
}

// page is the data of every template.
type page struct {
	T       words
	Title   string // before the program's name; empty on all pages but a call's
	Version string
	In      bool // signed in
	Data    any
}

func (d *Dashboard) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	t := wordsFor(r)
	title := ""
	if v, ok := data.(callView); ok {
		title = t["Call"] + " " + telephony.Brief(v.ID)
	}
	if err := d.pages.ExecuteTemplate(&b, name, page{
		T:       t,
		Title:   title,
		Version: d.opts.Version,
		In:      d.Knows(r),
		Data:    data,
	}); err != nil {
		d.opts.Logger.Error("a page cannot be shown", "page", name, "err", err)
		http.Error(w, "The page cannot be shown; the log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Language", t["lang"])
	w.Header().Set("Vary", "Accept-Language")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// overview is the data of the first page: the state of the exchange, the outbox and the endpoints.
type overview struct {
	T          words
	Connection telephony.Connection
	Connected  bool
	Enabled    bool
	ShowClose  bool   // show the last close code, which is not the last error
	Trouble    string // the outbox's error; empty if it is writable
	InDanger   bool   // events are stored nevertheless; Trouble contains the remedy
	InUse      string
	Endpoints  []endpointView
	Plot       plot
	Start      time.Time // of the plot, if it covers less than an hour
	Calls      []callView
}

type endpointView struct {
	outbox.EndpointStatus
	Oldest     time.Duration
	HasOldest  bool
	P50, P99   time.Duration
	HasSamples bool
	Unread     string // number of unread events of an endpoint that reads its events
}

func (d *Dashboard) overview(ctx context.Context, t words) (overview, error) {
	now := time.Now()
	o := overview{
		T:          t,
		Connection: d.opts.Exchange.Connection(),
		Plot:       newPlot(d.opts.Stats.hour(now)),
		Start:      d.opts.Stats.start(now),
	}
	o.Connected = o.Connection.State == telephony.Connected
	o.Enabled = o.Connection.State != telephony.Disabled
	o.ShowClose = o.Connection.CloseCode != 0 && !o.Connection.EndedByClose
	inUse, err := d.opts.Outbox.InUse(ctx)
	if err != nil {
		return o, err
	}
	o.InUse = fmt.Sprintf("%d / %d %s", inUse>>20, d.opts.MaxBytes>>20, t["MiB"])
	if err := d.opts.Outbox.Writable(ctx); err != nil {
		o.Trouble = t.explain(err)
		o.InDanger = errors.Is(err, store.ErrFileGone) || errors.Is(err, store.ErrDamaged) ||
			telephony.CauseOf(err).Code == telephony.CodeClockWrong
	}
	list, err := d.opts.Outbox.Endpoints(ctx)
	if err != nil {
		return o, err
	}
	for _, e := range list {
		v := endpointView{EndpointStatus: e, Unread: strconv.FormatUint(e.Pending, 10)}
		if e.Pending >= store.MaxUnread {
			v.Unread += "+"
		}
		oldest, err := d.opts.Outbox.OldestPending(ctx, e.Name)
		if err != nil {
			return o, err
		}
		if v.HasOldest = !oldest.IsZero(); v.HasOldest {
			v.Oldest = max(0, now.Sub(oldest))
		}
		v.P50, v.P99, v.HasSamples = d.opts.Stats.quantiles(e.Name)
		o.Endpoints = append(o.Endpoints, v)
	}
	calls, err := d.opts.Outbox.LatestCalls(ctx, maxCalls)
	if err != nil {
		return o, err
	}
	for _, id := range calls {
		v, err := d.callView(ctx, t, id, 0)
		switch {
		case errors.Is(err, store.ErrNoCall): // pruned just now
		case err != nil:
			if o.Trouble == "" { // the rest of the page says what to do about it
				o.Trouble, o.InDanger = t.explain(err), true
			}
		default:
			o.Calls = append(o.Calls, v)
		}
	}
	return o, nil
}

// home serves the first page.
func (d *Dashboard) home(w http.ResponseWriter, r *http.Request) {
	o, err := d.overview(r.Context(), wordsFor(r))
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	d.render(w, r, http.StatusOK, "home", o)
}

const (
	// liveInterval is the interval at which a live page is rendered.
	liveInterval = time.Second
	// maxWatchers bounds the live pages, since each is rendered every second.
	maxWatchers = 16
)

// live sends the overview's HTML as Server-Sent Events: when it has changed, and every 20 s to keep
// the connection alive.
func (d *Dashboard) live(w http.ResponseWriter, r *http.Request) {
	select {
	case d.watchers <- struct{}{}:
		defer func() { <-d.watchers }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "Too many pages are watched at a time.", http.StatusTooManyRequests)
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the response lasts as long as the page is open
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // keeps a proxy from buffering
	tick := time.NewTicker(liveInterval)
	defer tick.Stop()
	var last []byte
	for quiet := 0; d.Knows(r); quiet++ { // ends with the session
		o, err := d.overview(r.Context(), wordsFor(r))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := d.pages.ExecuteTemplate(&b, "overview", o); err != nil {
			d.opts.Logger.Error("a page cannot be shown", "page", "overview", "err", err)
			return
		}
		const keepAlive = 20 // ticks
		if !bytes.Equal(b.Bytes(), last) || quiet == keepAlive {
			last, quiet = b.Bytes(), 0
			_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second))
			text, _ := json.Marshal(b.String())
			if _, err := fmt.Fprintf(w, "data: %s\n\n", text); err != nil || control.Flush() != nil {
				return
			}
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-d.draining:
			return
		}
	}
}

// plot is the chart of the last hour.
type plot struct {
	Bars   []bar
	Most   int // the highest count of a minute
	Events int // totals of the hour, likewise Taken and Failed
	Taken  int
	Failed int
}

// bar is one minute of a plot that is 60 high: the heights of the counts and their upper edges.
type bar struct{ X, Events, EventsY, Delivered, DeliveredY, Failed, FailedY int }

func newPlot(events, delivered, failed []int) plot {
	p := plot{Most: 1}
	for i := range events {
		p.Most = max(p.Most, events[i], delivered[i]+failed[i])
		p.Events += events[i]
		p.Taken += delivered[i]
		p.Failed += failed[i]
	}
	const height, step = 60, 10
	scale := func(n int) int {
		if n == 0 {
			return 0
		}
		return max(1, n*height/p.Most)
	}
	for i := range events {
		b := bar{
			X:         i * step,
			Events:    scale(events[i]),
			Delivered: scale(delivered[i]),
			Failed:    scale(failed[i]),
		}
		b.EventsY, b.DeliveredY = height-b.Events, height-b.Delivered
		b.FailedY = b.DeliveredY - b.Failed
		p.Bars = append(p.Bars, b)
	}
	return p
}

// callView is a page of a call's events, with the timeline.
type callView struct {
	T      words
	ID     string
	From   string
	To     string
	Began  time.Time
	Steps  []step
	Route  *telephony.Route
	Events []eventView
	After  uint64 // the page begins after this sequence
	Next   uint64 // the next page begins after this sequence; 0 if there is none
	// AsOf is the time of the read. The page of a call is not live, so that opened details stay
	// open.
	AsOf  time.Time
	Again *store.DeliveryView // the delivery that the operator has just queued again, or nil
	Waits bool                // no attempt at Again has ended yet
}

// step is a point of the timeline. X is its position, from 0 to 600.
type step struct {
	X    int
	At   time.Time
	Kind string // asked, answered, transferred, rang, picked, over, other
	Text string
}

type eventView struct {
	store.CallEvent
	Name       string
	Deliveries []deliveryView
}

type deliveryView struct {
	store.DeliveryView
	Past        []store.Attempt
	ContentType string
	Request     string // the webhook's body, or the beginning of it
	Whole       bool   // Request is the whole body
	HasURL      bool   // the endpoint is configured and has a URL, so a redelivery is possible
}

// callView reads a page of a call, from the event after the sequence after. It leaves out the
// attempts; call adds them.
func (d *Dashboard) callView(ctx context.Context, t words, id string, after uint64) (callView, error) {
	page, err := d.opts.Outbox.Call(ctx, id, after)
	if err != nil {
		return callView{}, err
	}
	v := callView{
		T:     t,
		ID:    id,
		Route: page.Route,
		After: after,
		Next:  page.Next,
		AsOf:  time.Now(),
	}
	for _, e := range page.Events {
		if v.Began.IsZero() {
			v.Began = e.Time
		}
		v.From, v.To = cmp.Or(v.From, e.From), cmp.Or(e.To, v.To)
		kind := stepKinds[e.Type]
		v.Steps = append(v.Steps, step{At: e.Time, Kind: cmp.Or(kind, "other"), Text: t[string(e.Type)]})
		v.Events = append(v.Events, eventView{CallEvent: e, Name: t[string(e.Type)]})
	}
	v.Steps = append(v.Steps, routeSteps(t, page.Route)...)
	slices.SortStableFunc(v.Steps, func(a, b step) int { return a.At.Compare(b.At) })
	placeSteps(v.Steps)
	return v, nil
}

// stepKinds maps an event type to the kind of its step. Other types have the kind other.
var stepKinds = map[telephony.EventType]string{
	telephony.EventTransferRequested: "asked",
	telephony.EventIncoming:          "rang", telephony.EventOutgoing: "rang",
	telephony.EventIncomingAnswered: "picked", telephony.EventOutgoingAnswered: "picked",
	telephony.EventCompleted: "over",
}

// routeSteps returns the points of a call's routing: the replies and the transfer.
func routeSteps(t words, r *telephony.Route) (steps []step) {
	if r == nil {
		return nil
	}
	for _, p := range r.Replies {
		text := p.By + ": " + t["declined"]
		switch p.Kind {
		case telephony.ReplyNumber:
			text = p.By + " → " + p.To
		case telephony.ReplyNone:
			text = p.By + ": " + t["no answer"] + " (" + telephony.BriefText(t.say(p.Why, p.Cause)) + ")"
		}
		steps = append(steps, step{At: p.At, Kind: "answered", Text: text})
	}
	if r.Transfer != "" && !r.TransferAt.IsZero() {
		text := t["transferred"] + " → " + r.To
		if r.To == "" {
			text = t["not redirected"]
		}
		if r.TransferError != "" {
			text += ": " + telephony.BriefText(t.say(r.TransferError, r.TransferCause))
		}
		steps = append(steps, step{At: r.TransferAt, Kind: "transferred", Text: text})
	}
	return steps
}

// placeSteps sets the positions of the points in proportion to their times. It keeps them 16 apart,
// as long as all fit, so that none covers another.
func placeSteps(steps []step) {
	const width, gap, margin = 580, 16, 10
	if len(steps) == 0 {
		return
	}
	first, span := steps[0].At, steps[len(steps)-1].At.Sub(steps[0].At)
	for i := range steps {
		x := margin
		if span > 0 {
			x += int(float64(width) * float64(steps[i].At.Sub(first)) / float64(span))
		}
		if i > 0 {
			x = max(x, steps[i-1].X+gap)
		}
		steps[i].X = x
	}
	// From the end, move the points back that lie beyond it.
	for i, end := len(steps)-1, width+margin; i >= 0; i-- {
		steps[i].X = max(margin/2, min(steps[i].X, end))
		end = steps[i].X - gap
	}
}

const (
	maxRequest  = 16 << 10 // shown bytes of a webhook's body
	maxRequests = 1 << 20  // bytes of bodies on one page; the following bodies are left out
)

// formatRequest returns a body for the page, indented if it is JSON, and whether it is whole. A
// body of over maxRequest bytes is copied up to there, so that the rest can be freed.
func formatRequest(body []byte) (text string, whole bool) {
	var b bytes.Buffer
	if len(body) > maxRequest || json.Indent(&b, body, "", "  ") != nil {
		return strings.ToValidUTF8(string(body[:min(len(body), maxRequest)]), ""), len(body) <= maxRequest
	}
	return b.String(), true
}

// call serves the page of one call, with the request, the attempts and the responses of each
// webhook.
func (d *Dashboard) call(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseUint(r.FormValue("after"), 10, 64) // an invalid number counts as 0, the beginning
	v, err := d.callView(r.Context(), wordsFor(r), r.PathValue("id"), after)
	if errors.Is(err, store.ErrNoCall) {
		d.render(w, r, http.StatusNotFound, "failed", map[string]any{"Problem": wordsFor(r).explain(err)})
		return
	}
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	endpoints, err := d.opts.Outbox.Endpoints(r.Context())
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	hasURL := map[string]bool{}
	for _, e := range endpoints {
		hasURL[e.Name] = e.State != "reads"
	}
	budget := maxRequests
	for i := range v.Events {
		for _, delivery := range v.Events[i].CallEvent.Deliveries {
			_, attempts, err := d.opts.Outbox.Delivery(r.Context(), delivery.ID)
			if errors.Is(err, store.ErrNotFound) {
				continue // pruned just now
			}
			if err != nil {
				// The rest of the page can be read.
				attempts = []store.Attempt{{Error: err.Error(), Cause: telephony.CauseOf(err)}}
			}
			for n := range attempts {
				attempts[n].Response = strings.ToValidUTF8(attempts[n].Response, "\uFFFD")
			}
			view := deliveryView{DeliveryView: delivery, Past: attempts, HasURL: hasURL[delivery.Endpoint]}
			if budget > 0 {
				var body []byte
				// The event may have been pruned just now.
				view.ContentType, body, _ = d.opts.Outbox.Sent(r.Context(), delivery.Endpoint, delivery.EventID)
				budget -= len(body)
				view.Request, view.Whole = formatRequest(body)
			}
			if delivery.Redelivered && delivery.ID == r.FormValue("again") {
				v.Again, v.Waits = &delivery, delivery.State == "pending" && r.FormValue("waits") != ""
			}
			v.Events[i].Deliveries = append(v.Events[i].Deliveries, view)
		}
	}
	d.render(w, r, http.StatusOK, "call", v)
}
